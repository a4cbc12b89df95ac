"""The search for the hybrid: its parents, steepness of the slopes, number and place of flat heads,
rotation, log-n, rivals.

Command:  python scripts/study.py --study=configs/studies/hybrids.py --workdir=studies/hybrids
Reaches:  results/hybrids, 15 of its 232 runs
Takes:    120 to 165 seconds a run on one core

Exploration on dev: its seeds count nowhere. The recipe is the curriculum of
configs/studies/recipes.py. L is 104, so that 16 pairs asked twice fit. The endpoint is the
number of seeds that reach (retrieval beyond L of at least 0.8 at 4L), then text within L and at 4L.
At most three hybrids go on to the confirmation.

The hypothesis to break: rotation lets a shallow decaying head read well enough within L, and the
flat head then learns nothing. If it is right, steeper slopes bring more seeds that reach, and
steepness in the first layer alone brings fewer, since there the second layer reads as before.
"""

from ml_collections import ConfigDict

from configs.studies import recipes
from posenc_jax.encodings.scheme_presets import FLAT, PRESETS, coupled
from posenc_jax.study.grid import Arm, Study

STEEP_10 = "(rope(base=match)+alibi(slopes=match,steep=10.0))"
SHALLOW = "(rope(base=match)+alibi(slopes=match))"
NAMED = (
    "coupled",
    "steep",
    "steep-10",
    "steep-20",
    "coupled-unrotated",
    "steep-10-unrotated",
    "two-flat",
    "flat-last",
    "no-log-n",
    "rnope-swa-2",
    "rnope-swa-2-wide",
    "nape",
    "coupled-fox",
)
LINES = {
    "steep-2": coupled(2),
    "steep-2-two-flat": coupled(2, shares=(2, 2)),
    "steep-two-flat": coupled(4, shares=(2, 2)),
    "steep-20-unrotated": coupled(20, rotation=""),
    "steep-10-two-flat": coupled(10, shares=(2, 2)),
    "steep-10-no-log-n": coupled(10, flat="nope"),
    "steep-10-rotated": coupled(10, flat="rope(base=match)~logn"),
    "steep-10-first": f"{coupled(10)},{coupled()}",
    "steep-10-one-shallow": f"2*{STEEP_10}|1*{SHALLOW}|1*{FLAT}",
    "layers": f"rope(base=match)+alibi(slopes=match),{FLAT}",
    "layers-steep-10": f"rope(base=match)+alibi(slopes=match,steep=10.0),{FLAT}",
    "prope-logn": "prope~logn",
}
PARENTS = {
    "rope": "rope(base=match)",
    "alibi": "alibi(slopes=match)",
    "alibi-published": "alibi",
    "sum": "rope(base=match)+alibi(slopes=match)",
}
STUDY = Study(
    tier="cpu",
    arms=(
        *(Arm(name, line) for name, line in PARENTS.items()),
        *(Arm(name, PRESETS[name]) for name in NAMED),
        *(Arm(name, line) for name, line in LINES.items()),
    ),
    seeds=tuple(range(20, 28)),
)


def base() -> ConfigDict:
    """Returns what all runs share."""
    config = recipes.base()
    config.update_from_flattened_dict(recipes.CURRICULUM)
    config.model.attention = "dense"  # fewer programs to compile than blocks of keys
    config.train.update(length=104, batch_size=10, steps=1500, save_every=500)
    config.data.max_pairs = 16
    config.evaluation.update(batch_tokens=1040, multiples=(1, 4))
    return config


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. steep-10-s20."""
    return STUDY.fill(run, base())
