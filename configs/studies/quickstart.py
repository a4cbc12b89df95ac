"""Quickstart study: perplexity beyond L and retrieval distance of five encodings, with equal data
and budget.

Command:  bash scripts/quickstart.sh
Reaches:  the table of results/quickstart
Takes:    14 min 12 s on two slow cores (see results/quickstart), with installation

Every arm has its best learning rate within L of the four in configs/studies/quickstart_rates.py.
"""

from ml_collections import ConfigDict

from configs import lm
from posenc_jax.study.grid import Arm, Study

STUDY = Study(
    tier="cpu",
    arms=(
        Arm(
            "nope",
            "nope",
            overrides={"optimizer.learning_rate": 0.00316, "optimizer.muon_learning_rate": 0.00632},
        ),
        Arm("rope", "rope"),
        Arm("alibi", "alibi(slopes=match)"),
        Arm("rope+alibi", "rope+alibi(slopes=match)"),
        Arm("coupled", "rope+alibi(slopes=match)|nope~logn"),
    ),
    seeds=(0, 1),
)


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. rope-s0."""
    return STUDY.fill(run, lm.get_config())
