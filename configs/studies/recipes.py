"""A recipe under which the parents learn recall within L: four arms under five recipes, three seeds.

Command:  python scripts/study.py --study=configs/studies/recipes.py --workdir=studies/recipes
Reaches:  not measured
Takes:    not measured; 60 runs, 12 of them of twice the steps

The recipe with the highest least acquisition over the arms is taken for the studies that follow. Rates are those of
configs/studies/recipe_rates.py, tuned under the recipe `plain`.
"""

from ml_collections import ConfigDict

from configs.studies.recipe_rates import PARENTS, base
from posenc_jax.study.grid import Arm, Study

LENGTHS = {"data.length_warmup": (8, 2, 1)}
RECIPES = {
    "plain": {},
    "lengths": LENGTHS,
    "curriculum": {**LENGTHS, "data.pairs_warmup": 0.5, "data.pair_askings": 2},
    "twice": {"train.steps": 6000},
    "shift": {"model.token_shift": True},
}
STUDY = Study(
    tier="cpu",
    arms=tuple(
        Arm(f"{arm.name}-{recipe}", arm.scheme, overrides=changes)
        for recipe, changes in RECIPES.items()
        for arm in PARENTS
    ),
    seeds=(0, 1, 2),
)


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. rope-curriculum-s0."""
    return STUDY.fill(run, base())
