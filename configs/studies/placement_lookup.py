"""Offset lookup (P3) of the arms of configs/studies/placement.py, trained on it alone.

Command:  python scripts/study.py --study=configs/studies/placement_lookup.py --workdir=studies/placement_lookup --run=one-shallow-first-s20
Reaches:  results/placement_lookup, 9 of its 80 runs
Takes:    about 60 seconds a run on one core
"""  # noqa: E501

from ml_collections import ConfigDict

from configs.studies import offset_lookup, placement

STUDY = placement.STUDY


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. one-shallow-first-s20."""
    return STUDY.fill(run, offset_lookup.get_config("rope-s20"))
