"""The hybrids and their parents on two cores, with text: the qualitative picture, tuned, three seeds.

Command:  python scripts/study.py --study=configs/studies/cpu.py --workdir=studies/cpu
Reaches:  one run of it (coupled, seed 0, rate 0.01, 1,000 steps): 1.86 bits per byte at L and 1.87 at 4L
          on test text; of recall at L, 0.13, which is a guess among the eight pairs in sight. With 15 %
          of retrieval documents, expect few runs in the acquisition table (configs/lm.py has 75 %)
Takes:    2 h 08 min on two cores, 15 % under 2.5 h. Processor seconds of one run each, measured on one
          core of a busy machine, start-up and compilation included:
            tuning        44 runs x (86 for 300 steps + 14 for dev rows)              4,400
            runs          33 runs x (257 for 900 steps, 0.285 a step + 70 for rows)  10,790
            readings       3 x 70                                                       210
          15,400 processor seconds, 7,700 s on two cores

The heads that neither rotate nor decay are one of four here, two of four in the quickstart. The factorial
of rotation x bias takes the six arms that name their factors; log-n goes with its level "on 3 of 4 heads".
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
        Arm("coupled", f"3*(rope(base=match)+alibi(slopes=match))|1*{FLAT}"),
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
    config.train.update(length=128, batch_size=16, steps=900, save_every=300)
    config.data.update(retrieval_share=0.15, answer_weight=12.0)
    config.evaluation.update(stretches=64, instances=100, batch_tokens=2176)
    return STUDY.fill(run, config)
