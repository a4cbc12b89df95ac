"""Five encodings, same data, same budget: where perplexity breaks and how far each retrieves.

Command:  bash scripts/quickstart.sh
Reaches:  the table of results/quickstart
Takes:    16 min 38 s on two slow cores, installation included; how slow they were is in results/quickstart

Every arm has the learning rate that is best for it within L, of the four of configs/studies/quickstart_rates.py:
0.00316, and 0.01 for `rope`.
"""

from ml_collections import ConfigDict

from configs import lm
from posenc_jax.study.grid import Arm, Study

STUDY = Study(
    tier="cpu",
    arms=(
        Arm("nope", "nope"),
        Arm(
            "rope",
            "rope",
            overrides={"optimizer.learning_rate": 0.01, "optimizer.muon_learning_rate": 0.0633},
        ),
        Arm("alibi", "alibi(slopes=match)"),
        Arm("rope+alibi", "rope+alibi(slopes=match)"),
        Arm("coupled", "rope+alibi(slopes=match)|nope~logn"),
    ),
    seeds=(0, 1),
)


def base() -> ConfigDict:
    """Returns what all runs share: configs/lm.py with heads of 16 and half as many evaluation items.

    AdamW, which trains the embedding, takes a third of the rate of configs/lm.py beside the same Muon: within L
    that is 0.03 to 0.07 bits per byte better for `rope` and `coupled` (seed 90).
    """
    config = lm.get_config()
    config.model.head_dim = 16
    config.optimizer.learning_rate = 0.00316
    config.evaluation.update(stretches=64, instances=100)
    return config


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. rope-s0."""
    return STUDY.fill(run, base())
