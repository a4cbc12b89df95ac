"""The learning rate of every arm of the quickstart, chosen by dev loss within L: tuning runs alone.

Command:  python scripts/study.py --study=configs/studies/quickstart_rates.py --workdir=studies/quickstart_rates
Reaches:  the curves of results/quickstart: 0.01 for all arms but nope, whose best is the lowest of the four
Takes:    24 minutes on the same cores beside other work: 20 runs of the quickstart and their loss on dev
"""

import dataclasses

from ml_collections import ConfigDict

from configs import lm
from configs.studies import quickstart
from posenc_jax.study.grid import Study, Tuning

STUDY = Study(
    tier="cpu",
    arms=tuple(dataclasses.replace(arm, overrides={}) for arm in quickstart.STUDY.arms),
    seeds=quickstart.STUDY.seeds,
    tuning=Tuning(rates=(0.00316, 0.01, 0.0316, 0.1), seed=90),
    tuning_suite="E3",
    skip=lambda cell: None if cell.tuning else "the rates alone are asked for here",
)


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. rope-s90-lr0.01."""
    return STUDY.fill(run, lm.get_config())
