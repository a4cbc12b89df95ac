"""Learning-rate search for the arms of the quickstart, by dev loss within L; it has tuning runs
only.

Command:  python scripts/study.py --study=configs/studies/quickstart_rates.py --workdir=studies/quickstart_rates
Reaches:  the curves of results/quickstart: 0.01 for all arms except nope, whose best rate is the
          lowest
Takes:    24 minutes on the same cores, with other load: 20 runs of the quickstart and their loss on
          dev
"""  # noqa: E501

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
    skip=lambda cell: None if cell.tuning else "this study only tunes",
)


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. rope-s90-lr0.01."""
    return STUDY.fill(run, lm.get_config())
