"""Long-text classification with four encodings, five seeds: the package of a definition's source.

Command:  python scripts/study.py --study=configs/studies/longtext.py --workdir=studies/longtext
          python scripts/publish.py --workdir=studies/longtext --out=results/longtext
Reaches:  not measured; results/claims.md takes up results/longtext (claim S9)
Takes:    not measured; 20 runs of 300 steps, about three minutes each with their rows on one core

The runs of configs/longtext.py, one learning rate for all arms. The study is apart from
configs/studies/claims.py, because a published folder has one corpus.
"""

from ml_collections import ConfigDict

from configs import longtext
from posenc_jax.study.grid import Arm, Study

STUDY = Study(
    tier="cpu",
    arms=(
        Arm("nope", "nope"),
        Arm("rope", "rope(base=match)"),
        Arm("alibi", "alibi(slopes=match)"),
        Arm("sum", "rope(base=match)+alibi(slopes=match)"),
    ),
    seeds=(40, 41, 42, 43, 44),
)


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. rope-s40."""
    return STUDY.fill(run, longtext.get_config())
