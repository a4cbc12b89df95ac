"""The learning rate of four parents within L, and which of its near ties lets recall be learnt:
tuning runs alone.

Command:  python scripts/study.py --study=configs/studies/recipe_rates.py --workdir=studies/recipe_rates
Reaches:  not measured
Takes:    not measured; 16 runs of 3,000 steps

The same four rates for every arm, a factor sqrt 10 apart. Among those within 0.005 bits per byte of
the best within L the one with the highest `least_id` is taken (the least of Y_R's tasks at L, above
chance).
"""  # noqa: E501

from ml_collections import ConfigDict

from configs.studies.recipes import PARENTS, base
from posenc_jax.study.grid import Study, Tuning

STUDY = Study(
    tier="cpu",
    arms=PARENTS,
    seeds=(0, 1, 2),
    tuning=Tuning(rates=(0.000316, 0.001, 0.00316, 0.01), seed=90),
    tuning_suite="E3,Y_R",
    skip=lambda cell: None if cell.tuning else "the rates alone are asked for here",
)


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. rope-s90-lr0.01."""
    return STUDY.fill(run, base())
