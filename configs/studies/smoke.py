"""Smoke study: the path of the quickstart at toy size, without a claim about learning.

Command:  bash scripts/quickstart.sh smoke
Takes:    about a minute on two cores after installation
"""

from ml_collections import ConfigDict

from configs import smoke
from posenc_jax.study.grid import Arm, Study

STUDY = Study(
    tier="smoke",
    arms=(Arm("rope", "rope"), Arm("coupled", "3*(rope+alibi(slopes=match))|1*nope~logn")),
    seeds=(0,),
)


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. rope-s0."""
    return STUDY.fill(run, smoke.get_config())
