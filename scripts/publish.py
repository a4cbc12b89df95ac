"""Publishes a study: python scripts/publish.py --workdir=studies/x --out=results/x

Writes everything that report and verdict need, without runs and checkpoints: rows, training logs,
arrays per instance, the record of every run, the learning-rate search, the plan, and the list of
texts with their SHA-256. Prints the size of each file. Afterwards the published folder is enough
for:

    python scripts/verdict.py --results=results/x
    python scripts/report.py --results=results/x

A study that is run in parts, on several machines or days, is published part by part: with --add
the runs that --out has and --workdir lacks stay.

The corpus must be where the runs read it. A folder of another study is not overwritten. Takes
seconds. Exit code 2 for wrong input.
"""

from pathlib import Path

import installed  # noqa: F401
from absl import flags

from posenc_jax import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a study or of a run", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder to publish into, e.g. results/x", required=True)
_ADD = flags.DEFINE_bool("add", False, "Keep the runs that --out has and --workdir lacks")
_SPLIT = flags.DEFINE_enum(
    "split", None, ["test", "dev"], "Split whose rows are published; default: the study's"
)


def main() -> None:
    """Publishes the study of the flags."""
    from posenc_jax.data.text_digests import list_texts
    from posenc_jax.results.load import load_unmigrated, splits
    from posenc_jax.results.publish import corpus_fingerprint, joined, publish
    from posenc_jax.training.config import from_sections
    from posenc_jax.training.inputs import open_inputs

    workdir, out = Path(_WORKDIR.value), Path(_OUT.value)
    data = load_unmigrated(workdir, _SPLIT.value)
    others = [split for split in splits(workdir) if split != data.split]
    beside = load_unmigrated(workdir, others[0]) if others else None
    if _ADD.value:
        data = joined(data, out)
        beside = beside and joined(beside, out)
    corpus = open_inputs(from_sections(data.runs[0].config)).corpus
    if corpus.fingerprint != corpus_fingerprint(data):
        raise ValueError(
            f"the runs below {workdir} read a corpus {corpus_fingerprint(data)[:12]}, here it is "
            f"{corpus.fingerprint[:12]}: publish on a machine that has their texts"
        )
    sizes = publish(data, out, list_texts(corpus), beside)
    for name, size in sizes.items():
        print(f"{size / 1e3:10.1f} kB  {out / name}")


if __name__ == "__main__":
    cli.run_main(main)
