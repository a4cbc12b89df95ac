"""Screening study on a GPU: six arms, 2.4M parameters, books, four seeds in one program.

Command:  POSENC_JAX_BOOKS=data/books python scripts/study.py --study=configs/studies/screening.py --workdir=studies/screening --workers=14
Reads:    POSENC_JAX_BOOKS, a folder of UTF-8 text files, one book each, in train/ and validation/, which is halved
          into dev and test by file. Written for 51 books to train on, 4 of dev and 3 of test
          (fingerprint 2d4a43fa2a73e64e)
Reaches:  the table of results/screening
Takes:    on an H100 with 16 cores, all programs at a time (--workers=14), 262 s of training
          (`wall_seconds` in results/screening/runs.json) and then the evaluation. A step of the
          four seeds of an arm is 32,768 tokens and 0.56 TFLOP; all are 9.4 PFLOP. POSENC_JAX_STEPS
          sets another number of steps

The arms are the four cells of rotation {none, full} x bias {none, linear}, whose interaction is the
question, and `coupled`, which retrieved farthest in the cpu study, with its control without
rotation. The control has no factors here: with it a sixth cell would be missing, and the fit would
leave the interaction out. `logtail` and `capped` are left out, since they failed beyond L in the
cpu study.

50 % of the windows are text, 45 % retrieval documents (half of these recall of up to 16 pairs) and
5 % offset lookup (P3). The 13 % of configs/studies/gpu.py would be 11,600 windows of retrieval. The
cpu study had 14,400, and no run that counted learnt recall. This study has 40,300, of twice the
length.

Deviations from the protocol: no learning rate is tuned (every arm takes 0.01, the choice of eight
arms of the cpu study; `nope` chose 0.00316 there, `coupled` 0.0316), four seeds, and this mixture.
Attention is dense: 65,536 logits of a training window are too few to gain from another path, and
rows of up to 2,176 tokens are scored by the same definition.
"""  # noqa: E501

import dataclasses
import os

from ml_collections import ConfigDict

from configs import lm
from configs.studies import cpu
from posenc_jax.study.grid import Study

BOOKS = os.environ.get("POSENC_JAX_BOOKS", "data/books")
STEPS = int(os.environ.get("POSENC_JAX_STEPS", "2800"))
ARMS = ("nope", "rope", "alibi-match", "sum", "coupled", "coupled-unrotated")
MEASURES = ("E3", "E4", "E6", "E7", "E8", "Y_R", "EL", "P1", "P3", "P5")
STUDY = Study(
    tier="gpu",
    arms=tuple(
        dataclasses.replace(arm, factors={}) if arm.name == "coupled-unrotated" else arm
        for arm in cpu.STUDY.arms
        if arm.name in ARMS
    ),
    seeds=(0, 1, 2, 3),
    roles={
        "rope": "rope",
        "alibi": "alibi-match",
        "stretched": ["rope yarn:4"],
        "hybrids": ["sum", "coupled"],
    },
    together=True,
)


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. rope-s0."""
    config = lm.get_config()
    config.model.update(
        num_layers=3,
        model_dim=256,
        num_heads=4,
        head_dim=64,
        mlp_dim=0,
        dtype="bfloat16",
        embedding_scale=256**0.5,
        attention="dense",
    )
    config.train.update(
        length=256,
        batch_size=32,
        steps=STEPS,
        save_every=max(STEPS // 4, 1),
        keep=4,
        log_every=50,
        wait_for_saves=False,
    )
    config.optimizer.update(warmup_steps=100)
    config.data.update(
        corpus="text_folder",
        folder=BOOKS,
        retrieval_share=0.45,
        offset_share=0.05,
        max_pairs=16,
        retrieval_mix="passkey,needles_4,mqar:3,latest_first",
        answer_weight=12.0,
    )
    config.evaluation.update(
        stretches=96, instances=120, pairs=16, batch_tokens=17408, measures=MEASURES
    )
    return STUDY.fill(run, config)
