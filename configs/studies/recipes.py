"""A recipe under which the parents learn recall within L: four arms with and without a curriculum,
three seeds.

Command:  python scripts/study.py --study=configs/studies/recipes.py --workdir=studies/recipes
Reaches:  results/recipes
Takes:    about 85 seconds a run on one core, 24 runs

Model, L = 64 and rates are those of the quickstart; the mixture also has four needles. The
curriculum has retrieval documents of at most L/4, L/2 and L tokens by thirds (two pairs need 14),
pairs that grow from 2 to 8 in the first half, and every pair asked twice. 16 pairs do not fit in 64
tokens, so Y_R at L is not measured: passkey and four needles at L say what was learnt.
"""

from ml_collections import ConfigDict

from configs import lm
from posenc_jax.study.grid import Arm, Study

SUM = "rope(base=match)+alibi(slopes=match)"
PARENTS = (
    Arm("rope", "rope(base=match)"),
    Arm("alibi", "alibi(slopes=match)"),
    Arm("sum", SUM),
    Arm("coupled", f"3*({SUM})|1*nope~logn"),
)
CURRICULUM = {"data.length_warmup": (4, 2, 1), "data.pairs_warmup": 0.5, "data.pair_askings": 2}
RECIPES = {"plain": {}, "curriculum": CURRICULUM}
STUDY = Study(
    tier="cpu",
    arms=tuple(
        Arm(f"{arm.name}-{recipe}", arm.scheme, overrides=changes)
        for recipe, changes in RECIPES.items()
        for arm in PARENTS
    ),
    seeds=(0, 1, 2),
)


def base() -> ConfigDict:
    """Returns what all runs share: the quickstart's model and rates, and the tasks of Y_R."""
    config = lm.get_config()
    config.model.head_dim = 16
    config.train.update(steps=1000, save_every=500)
    config.optimizer.update(learning_rate=0.00422, muon_learning_rate=0.00844)
    config.data.update(retrieval_mix="passkey,needles_4,mqar:2")
    config.evaluation.update(stretches=64, instances=100, measures=("E3", "Y_R"), multiples=(1, 4))
    return config


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. rope-curriculum-s0."""
    return STUDY.fill(run, base())
