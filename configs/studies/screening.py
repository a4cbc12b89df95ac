"""The screening half of the gpu tier: six arms, 2.4M parameters, books, four seeds in one program.

Command:  POSENC_JAX_BOOKS=data/books python scripts/study.py --study=configs/studies/screening.py --workdir=studies/screening --workers=14
Reads:    POSENC_JAX_BOOKS, a folder of UTF-8 text files, one book each, in train/ and validation/, which is halved
          into dev and test by file. Written for 51 books to train on, 4 of dev and 3 of test (fingerprint 2d4a43fa2a73e64e)
Reaches:  the table of results/screening
Takes:    of an H100 with 16 cores, programs and evaluations side by side (--workers=14), 262 s of training (`wall_seconds` in
          results/screening/runs.json) and the evaluation after it. A step of an arm's four seeds is 32,768 tokens and 0.56 TFLOP, 9.4 PFLOP in all. Another number of steps: POSENC_JAX_STEPS

The arms are the four corners of rotation {none, full} x bias {none, linear}, whose interaction is the question, and the
split that retrieved farthest in the cpu study, `coupled`, beside its control that does not rotate. That control
names no level here: the factorial would lack the sixth cell and leave the interaction out. `logtail` and `capped` are
left out, which did not hold beyond L there.

Half of the windows is text, 45 % retrieval documents, half of them recall of up to 16 pairs, and 5 % offset lookup
(P3). At the 13 % of configs/studies/gpu.py these steps would hold 11,600 windows of retrieval; the cpu study had 14,400, and
in it no run of those that counted learnt to recall. Here they are 40,300, of twice the length.

Deviations from EVALUATION.md, sec. 8 and 9: no learning rate is tuned, every arm takes the 0.01 that eight arms of the cpu
study chose (`nope` chose 0.00316 there, `coupled` 0.0316); four seeds; that mixture. Attention is dense, by name:
65,536 logits of a training window are few for any other, with seeds in one program or alone, and rows of up
to 2,176 tokens are scored by the same definition.
"""

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
        num_layers=3, model_dim=256, num_heads=4, head_dim=64, mlp_dim=0, dtype="bfloat16",
        embedding_scale=256**0.5, attention="dense",
    )  # fmt: skip
    config.train.update(
        length=256, batch_size=32, steps=STEPS, save_every=max(STEPS // 4, 1), keep=4, log_every=50,
        wait_for_saves=False,
    )  # fmt: skip
    config.optimizer.update(warmup_steps=100)
    config.data.update(
        corpus="text_folder", folder=BOOKS, retrieval_share=0.45, offset_share=0.05, max_pairs=16,
        retrieval_mix="passkey,needles_4,mqar:3,latest_first", answer_weight=12.0,
    )  # fmt: skip
    config.evaluation.update(
        stretches=96, instances=120, pairs=16, batch_tokens=17408, measures=MEASURES
    )
    return STUDY.fill(run, config)
