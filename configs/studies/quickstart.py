"""Five encodings, same data, same budget: where perplexity breaks and how far each retrieves.

Command:  bash scripts/quickstart.sh
Reaches:  the table of results/quickstart
Takes:    minutes on two cores; how many it took is in results/quickstart
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


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. rope-s0."""
    return STUDY.fill(run, lm.get_config())
