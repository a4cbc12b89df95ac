"""Study of the hybrids and their parents on two CPU cores: tuned learning rates, three seeds.

Command:  python scripts/study.py --study=configs/studies/cpu.py --workdir=studies/cpu
Reaches:  the table of results/cpu
Takes:    about 70 minutes on two idle cores: 44 tuning runs, and 33 runs with their rows

The mixture is 35 % text, 60 % retrieval documents and 5 % offset lookup (P3). The usual 15 % of
retrieval documents is too few for so short a schedule. One of four heads neither rotates nor
decays; in the quickstart two of four. The factorial of rotation x bias has the six arms with
factors; its level "on 3 of 4 heads" also has log-n.
"""

from ml_collections import ConfigDict

from configs import lm
from posenc_jax.study.grid import Arm, Study, Tuning

FLAT = "nope~logn"  # a head that neither rotates nor decays
MEASURES = ("E1", "E3", "E4", "E6", "E7", "E8", "Y_R", "EL", "latest_first", "P1", "P3", "P5")
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
    tuning=Tuning(rates=(0.00316, 0.01, 0.0316, 0.1), seed=90, steps=600),
    tuning_suite="E3",
    roles={
        "rope": "rope",
        "alibi": ["alibi-match", "alibi"],
        "stretched": ["rope yarn:4"],
        "hybrids": ["sum", "coupled", "logtail"],
    },
)


def base() -> ConfigDict:
    """Returns the configuration that all runs of the study share."""
    config = lm.get_config()
    config.train.update(length=128, batch_size=8, steps=3000, save_every=1000)
    config.data.update(
        retrieval_share=0.6,
        retrieval_mix="passkey,needles_4,mqar,latest_first",
        offset_share=0.05,
        max_pairs=16,
    )
    config.evaluation.update(stretches=64, instances=100, batch_tokens=2176, measures=MEASURES)
    return config


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. rope-s0-lr0.01 or, of the tuning,
    rope-s90-lr0.1.
    """
    return STUDY.fill(run, base())
