"""Quickstart study: perplexity beyond L and retrieval distance of five encodings, with equal data
and budget.

Command:  bash scripts/quickstart.sh
Reaches:  the table of results/quickstart
Takes:    9 min 31 s on two cores, with installation

All arms have the same rates; configs/studies/quickstart_rates.py measured three of them.
"""

from ml_collections import ConfigDict

from configs import lm
from posenc_jax.study.grid import Arm, Study

STUDY = Study(
    tier="cpu",
    arms=(
        Arm("nope", "nope"),
        Arm("rope", "rope"),
        Arm("alibi", "alibi(slopes=match)"),
        Arm("rope+alibi", "rope+alibi(slopes=match)"),
        Arm("coupled", "rope+alibi(slopes=match)|nope~logn"),
    ),
    seeds=(0, 1),
)


def base() -> ConfigDict:
    """Returns the configuration that all runs of the study share."""
    config = lm.get_config()
    config.model.head_dim = 16
    config.train.update(steps=1000, save_every=500)
    config.optimizer.update(learning_rate=0.00422, muon_learning_rate=0.00844)
    config.evaluation.update(stretches=64, instances=100)
    return config


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. rope-s0."""
    config = STUDY.fill(run, base())
    config.model.attention = "dense"  # its programs compile in a third of the time of blocks
    config.evaluation.measures = ("E3", "E4", "passkey", "mqar")
    return config
