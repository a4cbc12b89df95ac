"""The learning rate of four parents within L, and which of its near ties lets recall be learnt: tuning runs alone.

Command:  python scripts/study.py --study=configs/studies/recipe_rates.py --workdir=studies/recipe_rates
Reaches:  not measured
Takes:    not measured; 16 runs of 3,000 steps

The same four rates for every arm, a factor sqrt 10 apart. Among those within 0.005 bits per byte of the best within L
the one with the highest `least_id` is taken (the least of Y_R's tasks at L, above chance); configs/studies/recipes.py has them.
"""

from ml_collections import ConfigDict

from configs.studies import cpu
from posenc_jax.study.grid import Arm, Study, Tuning

SUM = "rope(base=match)+alibi(slopes=match)"
PARENTS = (
    Arm("rope", "rope(base=match)"),
    Arm("alibi", "alibi(slopes=match)"),
    Arm("sum", SUM),
    Arm("coupled", f"3*({SUM})|1*nope~logn"),
)
STUDY = Study(
    tier="cpu",
    arms=PARENTS,
    seeds=(0, 1, 2),
    tuning=Tuning(rates=(0.00316, 0.01, 0.0316, 0.1), seed=90),
    tuning_suite="E3,Y_R",
    skip=lambda cell: None if cell.tuning else "the rates alone are asked for here",
)


def base() -> ConfigDict:
    """Returns what all runs of the search for a recipe share: the cpu study's model and length, recall weighing more."""
    config = cpu.base()
    config.data.update(
        retrieval_mix="passkey,needles_4,mqar:3", answer_weight=12.0, offset_share=0.0
    )
    config.evaluation.update(measures=("E3", "Y_R"), pairs=16)
    return config


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. rope-s90-lr0.01."""
    return STUDY.fill(run, base())
