"""Accuracy of image classifiers against the resolution of the images that they read."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.axes import Axes

from posenc_jax.report import style
from posenc_jax.report.figure import Figure, FigurePanel
from posenc_jax.report.style import MUTED


def accuracy_by_arm(rows: Iterable[Mapping]) -> list[dict]:
    """Returns, by arm and size, the mean, smallest and largest accuracy over the seeds.

    Args:
      rows: those of `posenc_jax.training.image_loop`, of any arms and seeds.

    Raises:
      ValueError: no rows, a seed twice, or arms that were trained at different resolutions.
    """
    found = defaultdict(dict)
    for row in rows:
        seeds = found[row["arm"], row["size"]]
        if row["seed"] in seeds:
            raise ValueError(f"{row['arm']} at {row['size']} pixels has seed {row['seed']} twice")
        seeds[row["seed"]] = row
    sizes = {row["train_size"] for seeds in found.values() for row in seeds.values()}
    if len(sizes) != 1:
        raise ValueError(f"the rows must be of one training resolution, not of {sorted(sizes)}")
    records = []
    for (arm, size), seeds in found.items():
        values = [row["accuracy"] for row in seeds.values()]
        records.append(
            {
                "arm": arm,
                "size": size,
                "train_size": min(sizes),
                "seeds": len(values),
                "accuracy": float(np.mean(values)),
                "least": min(values),
                "most": max(values),
            }
        )
    return sorted(records, key=lambda record: (record["arm"], record["size"]))


def resolution_figure(records: list[dict]) -> Figure:
    """A line for each arm, with the range of its seeds; a rule marks the resolution of training."""
    arms = list(dict.fromkeys(record["arm"] for record in records))
    sizes = sorted({record["size"] for record in records})

    def curves(axes: Axes) -> None:
        for index, arm in enumerate(arms):
            own = [record for record in records if record["arm"] == arm]
            size, mean, least, most = (
                np.array([record[key] for record in own])
                for key in ("size", "accuracy", "least", "most")
            )
            place = size * 1.01 ** (index - (len(arms) - 1) / 2)  # bars stand side by side
            bars = np.maximum((mean - least, most - mean), 0)  # a mean of equal numbers is rounded
            axes.errorbar(place, mean, bars, label=arm, capsize=2, **style.line_style(index))
        axes.axvline(records[0]["train_size"], color=MUTED, linewidth=0.8, linestyle="--")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.set(ylim=(0, 1), ylabel="accuracy: mean and range of the seeds")
        axes.set_xlabel("side of a test image in pixels; dashed: of a training image")
        axes.legend(fontsize="small")

    title = "Accuracy against resolution"
    return Figure("accuracy_by_resolution", title, "", records, [FigurePanel(curves, 3.6)])
