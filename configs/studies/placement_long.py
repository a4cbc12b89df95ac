"""RoPE, ALiBi and the hybrid of configs/studies/placement.py, for 3,000 steps.

Command:  python scripts/study.py --study=configs/studies/placement_long.py --workdir=studies/placement_long --run=rope-10k-s21
Reaches:  results/placement_long, 5 of its 80 runs
Takes:    about 140 seconds a run on one core
"""  # noqa: E501

from ml_collections import ConfigDict

from configs.studies import placement

STUDY = placement.STUDY


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. rope-10k-s21."""
    return STUDY.fill(run, placement.base(3000))
