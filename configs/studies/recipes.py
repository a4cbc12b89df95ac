r"""A recipe under which the parents learn recall within L: four arms under eight recipes, three
seeds.

Command:  python scripts/study.py --study=configs/studies/recipes.py --workdir=studies/recipes
Reaches:  not measured
Takes:    not measured; 96 runs of 3,000 steps, 24 of them of twice as many

The recipe with the highest least acquisition over the arms is taken for the studies that follow,
and configs/studies/recipe_rates.py chooses the learning rates under it. Rates decide recall. At L =
64, in one seed, these commands and the rates below give:

    python train.py --config=configs/lm.py:rope --config.model.head_dim=16 --config.train.seed=90 --workdir=runs/x
    python scripts/evaluate.py --workdir=runs/x --suite=E3,passkey,mqar --lengths=1

RoPE with AdamW 0.01 and Muon 0.02, as there: 2.705 bits per byte within L, eight pairs -0.12 above
chance, passkey 0.26. With `--config.optimizer.muon_learning_rate=0.00632`: 2.893, 0.95 and 0.96;
hence `slow`. With `--config.optimizer.learning_rate=0.00316`: 2.718, -0.07 and 0.98; hence AdamW's
rate in `base`. At L = 128 the first third of `lengths` and `curriculum` has documents of 16 tokens,
which hold two pairs alone; there `curriculum` differs from `lengths` only in that it asks each pair
twice.
"""  # noqa: E501

from ml_collections import ConfigDict

from configs.studies import cpu
from posenc_jax.study.grid import Arm, Study

SUM = "rope(base=match)+alibi(slopes=match)"
PARENTS = (
    Arm("rope", "rope(base=match)"),
    Arm("alibi", "alibi(slopes=match)"),
    Arm("sum", SUM),
    Arm("coupled", f"3*({SUM})|1*nope~logn"),
)
LENGTHS = {"data.length_warmup": (8, 2, 1)}
SLOW = {"optimizer.muon_learning_rate": 0.00632}
RECIPES = {
    "plain": {},
    "slow": SLOW,
    "lengths": LENGTHS,
    "curriculum": {**LENGTHS, "data.pairs_warmup": 0.5, "data.pair_askings": 2},
    "twice": {"train.steps": 6000},
    "slow_twice": {**SLOW, "train.steps": 6000},
    "slow_curriculum": {**LENGTHS, **SLOW, "data.pairs_warmup": 0.5, "data.pair_askings": 2},
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


def base() -> ConfigDict:
    """Returns what all runs share: the cpu study's length and steps, heads of 16, recall weighing
    more.
    """
    config = cpu.base()
    config.model.head_dim = 16
    config.optimizer.learning_rate = 0.00316
    config.data.update(retrieval_mix="passkey,needles_4,mqar:3", offset_share=0.0)
    config.evaluation.update(measures=("E3", "Y_R"), pairs=16)
    return config


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. rope-curriculum-s0."""
    return STUDY.fill(run, base())
