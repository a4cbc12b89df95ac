"""Accuracy against resolution: python scripts/draw_resolution.py --runs=runs/vision
--out=results/vision.

Reads resolution.jsonl of every run below --runs (train.py --config=configs/vision.py). Writes all
rows to rows.jsonl, and accuracy_by_resolution.csv and .png with the mean and range of each arm's
seeds. Exit code 2 for wrong input.
"""

from pathlib import Path

import installed  # noqa: F401
from absl import flags

from posenc_jax import cli

_RUNS = flags.DEFINE_string("runs", None, "Folder of the runs of image classifiers", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder for the table and the picture", required=True)


def main() -> None:
    """Draws the picture of the runs of the flags."""
    from posenc_jax.report.resolution_figures import accuracy_by_arm, resolution_figure
    from posenc_jax.results.files import json_lines, read_json_lines, replace_bytes, replace_text

    paths = sorted(Path(_RUNS.value).rglob("resolution.jsonl"))
    if not paths:
        raise ValueError(f"--runs={_RUNS.value} holds no finished run of configs/vision.py")
    rows = [row for path in paths for _, row in read_json_lines(path)[0]]
    figure = resolution_figure(accuracy_by_arm(rows))
    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    replace_text(out / "rows.jsonl", json_lines(rows))
    replace_text(out / f"{figure.name}.csv", figure.csv())
    replace_bytes(out / f"{figure.name}.png", figure.png())
    print(out / f"{figure.name}.png")


if __name__ == "__main__":
    cli.run_main(main)
