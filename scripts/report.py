"""Writes the report of a study or a run: python scripts/report.py --workdir=studies/quickstart

Several runs or studies become one page: --workdir=runs/a --workdir=runs/b --out=pages/ab.
`--results=results/screening` reads a published folder instead of run folders. Writes report.html
(one self-contained page) and figures/ (PNG and CSV) into the same folder, or into --out; the last
line printed is the path of the page. Takes seconds. Exit code 2 for wrong input.
"""

from pathlib import Path

import installed  # noqa: F401
from absl import flags

from posenc_jax import cli

_WORKDIR = flags.DEFINE_multi_string(
    "workdir", [], "Folder of a study or of a run; may be repeated"
)
_RESULTS = flags.DEFINE_string("results", None, "Published folder, in place of --workdir")
_OUT = flags.DEFINE_string("out", None, "Folder of the page; default: the folder that is read")
_SPLIT = flags.DEFINE_enum(
    "split", None, ["test", "dev"], "Split whose rows are read; default: the study's own"
)


def main() -> None:
    """Writes the report of the flags."""
    from posenc_jax.report import write_report
    from posenc_jax.results.load import chosen_folder
    from posenc_jax.results.several_folders import load_together

    folders = [chosen_folder(workdir, _RESULTS.value) for workdir in _WORKDIR.value or [None]]
    if len(folders) > 1 and _OUT.value is None:
        raise ValueError(
            "--workdir is given several times: --out=FOLDER must say where their page lies"
        )
    print(write_report(load_together(folders, _SPLIT.value), Path(_OUT.value or folders[0])))


if __name__ == "__main__":
    cli.run_main(main)
