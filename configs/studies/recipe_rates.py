"""The learning rate of RoPE, ALiBi and the steep hybrid within L, and which of its near ties lets
recall be learnt: tuning runs alone.

Command:  python scripts/study.py --study=configs/studies/recipe_rates.py --workdir=studies/recipe_rates
Reaches:  the rates of results/hybrids
Takes:    about 165 seconds a run on one core, 9 runs of 2,500 steps

Recipe and length are those of configs/studies/hybrids.py. There are more steps, because after 1,500
RoPE had learnt the passkey to 84 %, and eight rows a step, which make two rows of 4L. The three
rates are the same for every arm, a factor 2 apart. Among those within 0.005 bits per byte of the
best within L the one with the highest `least_id` is taken (the least of Y_R's tasks at L, above
chance).
"""  # noqa: E501

from ml_collections import ConfigDict

from configs.studies import hybrids
from posenc_jax.study.grid import Study, Tuning

RATED = ("rope", "alibi", "steep-10")
STUDY = Study(
    tier="cpu",
    arms=tuple(arm for arm in hybrids.STUDY.arms if arm.name in RATED),
    seeds=(0, 1, 2),
    tuning=Tuning(rates=(0.00211, 0.00422, 0.00844), seed=90),
    tuning_suite="E3,Y_R",
    skip=lambda cell: None if cell.tuning else "the rates alone are asked for here",
)


def base() -> ConfigDict:
    """Returns what all runs share."""
    config = hybrids.base()
    config.train.update(batch_size=8, steps=2500)
    return config


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. rope-s90-lr0.00422."""
    return STUDY.fill(run, base())
