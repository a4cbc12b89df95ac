r"""Runs of the claims ledger that no other study has: sinusoids, stretched RoPE, scaled slopes,
ALiBi to 1,024 L.

Command:  python scripts/study.py --study=configs/studies/claims.py --workdir=studies/claims
          python scripts/study.py --study=configs/studies/claims.py --workdir=studies/claims --run=alibi-s40
          python scripts/publish.py --workdir=studies/claims --out=results/claims
          python scripts/claims.py
Reaches:  not measured; results/claims.md takes up results/claims
Takes:    not measured; 30 runs of 1,000 steps (about 70 s each on one idle core) and 75
          evaluations: about two core-hours

`CLAIMS` names the arms of each claim; `--run=<arm>-s<seed>` makes one run, and arms with a parent
need its run of the same seed first. Long-text classification reads another corpus and is
configs/studies/longtext.py. Exploratory: rows of dev; the seeds count nowhere else.

- Sizes, data and learning rates are those of the quickstart, under which the parents learn recall
  within L; the steps are 1,000.
- `sinusoidal-2L` is trained at 2L with equally many tokens. E2 and E9 at its first multiple and at
  the others' second have the same targets: the last 8L tokens of the same 30 documents.
- The fine-tuned arms continue `rope` for 1,000 steps at 4L under each stretch; `rope-none` is their
  control. Here 1,000 steps are as many as the pretraining; in the sources they are a small part.
- `rope-far` is read under factors of 2 to 64, `alibi-far` to 1,024 L. Their texts are those few
  documents of dev that are as long, so they are trained and measured apart.
"""  # noqa: E501

from ml_collections import ConfigDict

from configs.studies import quickstart
from posenc_jax.encodings import extend_length, parse, unparse
from posenc_jax.study.grid import Arm, Study

LENGTH = 64
ROPE = "rope(base=match)"
FACTORS = (2, 4, 8, 16, 32, 64)
TEXT = ("E3", "passkey")
HEADS = ("E2", "E3", "E8", "E9", "M1", "M9", "M13", "passkey", "mqar")
TUNED = {"train.steps": 1000, "optimizer.warmup_steps": 20, "evaluation.measures": TEXT}


def _tuned(rule: str) -> Arm:
    """Returns RoPE fine-tuned at 4L under a stretch; `none` changes nothing but the length."""
    scheme = ROPE
    if rule != "none":
        scheme = unparse(
            extend_length(
                parse(ROPE),
                f"{rule}:4",
                length=4 * LENGTH,
                train_length=LENGTH,
                placed_length=LENGTH,
            )
        )
    return Arm(f"rope-{rule}", scheme, parent="rope", length=4 * LENGTH, overrides=TUNED)


STUDY = Study(
    tier="cpu",
    arms=(
        Arm("rope", ROPE),
        Arm(
            "alibi",
            "alibi(slopes=match)",
            readings=("slopes:2", "slopes:4", "slopes:8"),
            overrides={"evaluation.measures": HEADS},
        ),
        Arm("sinusoidal", "sinusoidal"),
        Arm(
            "sinusoidal-2L",
            "sinusoidal",
            length=2 * LENGTH,
            overrides={"evaluation.multiples": (1, 2, 4)},
        ),
        *map(_tuned, ("pi", "ntk", "yarn", "none")),
        Arm(
            "rope-far",
            ROPE,
            readings=tuple(f"{rule}:{factor}" for rule in ("pi", "yarn") for factor in FACTORS),
            overrides={
                "evaluation.multiples": (1, *FACTORS),
                "evaluation.stretches": 32,
                "evaluation.measures": ("E3",),
            },
        ),
        Arm(
            "alibi-far",
            "alibi(slopes=match)",
            overrides={
                "evaluation.multiples": (1, 4, 16, 64, 256, 1024),
                "evaluation.measures": ("E3", "E8_longest", "passkey"),
                "evaluation.instances": 20,
            },
        ),
    ),
    seeds=(40, 41, 42),
)
CLAIMS = {
    "S1": ("alibi", "sinusoidal-2L"),
    "S2": ("alibi", "sinusoidal-2L"),
    "S3": ("rope", "sinusoidal"),
    "S4": ("rope", "rope-pi", "rope-ntk", "rope-yarn", "rope-none"),
    "S5": ("rope-far",),
    "S6": ("alibi",),
    "S7": ("alibi",),
    "S8": ("alibi", "alibi-far"),
    "S13": ("rope", "alibi", "sinusoidal"),
    "S14": ("alibi",),
}


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. rope-s40."""
    config = quickstart.base()
    config.train.update(length=LENGTH, steps=1000, save_every=100, dev_every=100)
    measures = ("E2", "E9", *TEXT)
    config.evaluation.update(stretches=128, sliding_stretches=30, instances=100, measures=measures)
    return STUDY.fill(run, config)
