"""Learning rates for the arms of the quickstart: dev loss and recall within L; tuning runs only.

Command:  python scripts/study.py --study=configs/studies/quickstart_rates.py --workdir=studies/quickstart_rates
Reaches:  the curves of results/quickstart
Takes:    about three minutes a run on one core: 15 runs of the quickstart, with loss and recall on
          dev
"""  # noqa: E501

from ml_collections import ConfigDict

from configs.studies import quickstart
from posenc_jax.study.grid import Study, Tuning

STUDY = Study(
    tier="cpu",
    arms=quickstart.STUDY.arms,
    seeds=quickstart.STUDY.seeds,
    tuning=Tuning(rates=(0.00211, 0.00422, 0.00844), seed=90),
    tuning_suite="E3,passkey,mqar",
    skip=lambda cell: None if cell.tuning else "this study only tunes",
)


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. rope-s90-lr0.01."""
    return STUDY.fill(run, quickstart.base())
