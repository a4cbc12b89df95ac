"""Study of training recipes on two CPU cores: random positions, DroPE, RoPE trained or fine-tuned
at 4L.

Command:  python scripts/study.py --study=configs/studies/rivals.py --workdir=studies/rivals
Reaches:  not measured
Takes:    not measured; 24 tuning runs, and 12 arms with 3 seeds each

R+ of the verdict is RoPE evaluated with YaRN at 4L or RoPE fine-tuned with YaRN at 4L, whichever is
better on dev. ALiBi and the hybrid are fine-tuned in the same way, for 1,000 steps at 4L. The
parent of DroPE takes 85 % of the steps and DroPE the rest (configs/drope.py has the recipe and its
source); with qk-norm the rate is warmed up again to the peak of the parent. Every arm has the same
curriculum of recall: documents of up to L/8, L/2 and L by thirds; pairs grow from 2 to 16 over the
first half, and each is asked twice. The first third has documents of 16 tokens: mqar of two pairs
(14 tokens) alone fits.
"""

from ml_collections import ConfigDict

from configs import drope
from configs.studies import cpu
from posenc_jax.encodings import extend_length, parse, unparse
from posenc_jax.study.grid import Arm, Study, Tuning

LENGTH, STEPS = 128, 3000
LAST = round(drope.SHARE * STEPS)  # steps of DroPE
FEW = {"train.steps": 1000, "optimizer.warmup_steps": 20}
ARMS = {arm.name: arm for arm in cpu.STUDY.arms}


def _tuned(arm: Arm) -> Arm:
    """Returns the arm fine-tuned at 4L, stretched by YaRN and the m L/L' of ALiBi."""
    scheme = extend_length(
        parse(arm.scheme), "yarn:4", length=4 * LENGTH, train_length=LENGTH, placed_length=LENGTH
    )
    return Arm(
        f"{arm.name}-yarn", unparse(scheme), parent=arm.name, length=4 * LENGTH, overrides=FEW
    )


def _dropped(name: str, scheme: str) -> Arm:
    few = {"train.steps": LAST, "optimizer.warmup_steps": max(round(drope.WARMUP * LAST), 1)}
    return Arm(name, scheme, parent="rope-85", peak=1.0, overrides=few)


ROPE, ALIBI, COUPLED = (ARMS[name] for name in ("rope", "alibi-match", "coupled"))
STUDY = Study(
    tier="cpu",
    arms=(
        ROPE,
        ALIBI,
        COUPLED,
        Arm("rope-random", ROPE.scheme, overrides={"data.random_positions": 8}),
        Arm("rope-85", ROPE.scheme, overrides={"train.steps": STEPS - LAST}),
        Arm("rope-4L", ROPE.scheme, length=4 * LENGTH),
        _dropped("drope", "nope"),
        _dropped("drope-logn", "nope~logn"),
        *map(_tuned, (ROPE, ALIBI, COUPLED)),
    ),
    seeds=(0, 1, 2),
    tuning=Tuning(rates=(0.00316, 0.01, 0.0316, 0.1), seed=90, steps=600),
    tuning_suite="E3",
    roles={
        "rope": "rope",
        "alibi": ["alibi-match"],
        "stretched": ["rope yarn:4", "rope-yarn"],
        "hybrids": ["coupled"],
        "oracle": "rope-4L",
    },
)


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. rope-s0-lr0.01 or, of the tuning,
    rope-s90-lr0.1.
    """
    config = cpu.base()
    config.data.update(length_warmup=(8, 2, 1), pairs_warmup=0.5, pair_askings=2)
    return STUDY.fill(run, config)
