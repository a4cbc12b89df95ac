"""A small study and the base configuration of its runs."""

import dataclasses

from posenc_jax.study.grid import Arm, Study
from posenc_jax.training.config import RunConfig

ROPE, SUM = Arm("rope", "rope"), Arm("sum", "rope+alibi")


def study(**changes) -> Study:
    return Study(**({"tier": "smoke", "arms": (ROPE, SUM), "seeds": (0, 1)} | changes))


def base() -> dict:
    return dataclasses.asdict(RunConfig())
