"""The hybrids and their parents on two cores, with text: the qualitative picture, tuned, three seeds.

Command:  python scripts/study.py --study=configs/studies/cpu.py --workdir=studies/cpu
Takes:    ARITHMETIC
"""

from ml_collections import ConfigDict

from configs import lm
from posenc_jax.study.grid import Arm, Study, Tuning

FLAT = "nope~logn"  # a head that neither rotates nor decays
STUDY = Study(
    tier="cpu",
    arms=(
        Arm("nope", "nope", factors={"rotation": "none", "bias": "none"}),
        Arm(
            "rope",
            "rope(base=match)",
            readings=("yarn:4",),
            factors={"rotation": "full", "bias": "none"},
        ),
        Arm("prope-logn", "prope~logn"),
        Arm("alibi", "alibi"),
        Arm("alibi-match", "alibi(slopes=match)", factors={"rotation": "none", "bias": "linear"}),
        Arm(
            "sum",
            "rope(base=match)+alibi(slopes=match)",
            factors={"rotation": "full", "bias": "linear"},
        ),
        Arm(
            "coupled",
            f"3*(rope(base=match)+alibi(slopes=match))|1*{FLAT}",
        ),
        Arm(
            "coupled-rotated",
            "3*(rope(base=match)+alibi(slopes=match))|1*(rope(base=match)~logn)",
            factors={"rotation": "full", "bias": "on 3 of 4 heads"},
        ),
        Arm(
            "coupled-unrotated",
            f"3*alibi(slopes=match)|1*{FLAT}",
            factors={"rotation": "none", "bias": "on 3 of 4 heads"},
        ),
        Arm("logtail", "prope+log(c=2.0,t=10.0)~scale_invariant(t=10.0)"),
        Arm("capped", "rope(base=match)+capped(slopes=match)"),
    ),
    seeds=(0, 1, 2),
    tuning=Tuning(rates=(0.00316, 0.01, 0.0316, 0.1), seed=90, steps=300),
    roles={"rope": "rope", "alibi": "alibi-match", "hybrids": ["sum", "coupled", "logtail"]},
)


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. rope-s0-lr0.01 or, of the tuning, rope-s90-lr0.1."""
    config = lm.get_config()
    config.model.update(
        num_layers=3, model_dim=96, num_heads=4, head_dim=32, mlp_dim=256, embedding_scale=9.8
    )
    config.train.update(length=128, batch_size=16, steps=1000, save_every=500)
    config.data.update(retrieval_share=0.15, answer_weight=12.0)
    config.evaluation.update(stretches=64, instances=100, batch_tokens=2176)
    return STUDY.fill(run, config)
