"""Study for the decision rule at small scale: 20M parameters, books, eight seeds, one GPU a run.

Command:  python scripts/study.py --study=configs/studies/gpu.py --workdir=studies/gpu
          and on a cluster  --launch=slurm --partition=... --gpus=1 --time=4:00:00 --venv=.venv
Reads:    BOOKS, a folder of UTF-8 text files split by file (200 MB to 1 GB; each at least 8 L + L/2
          bytes long); the environment variable POSENC_JAX_BOOKS overrides it
Takes:    not measured. 12 arms x (4 rates at 1,000 steps + 8 seeds at 6,000) are 624,000 steps of
          65,536 bytes; at 6 N FLOPs a byte, N = 19.5 M, that is 4.8e18 FLOPs: 13 hours of one GPU
          that sustains 100 TFLOP/s, divided by the number of tasks at a time

Of the training windows 85 % are text, 13 % retrieval documents and 2 % offset lookup (P3), which a
model must be trained on to answer.

Seeds 0 to 7 are for exploration. For a confirmation, copy this file, set its seeds (100 to 107), at
most three hybrids and the frozen plan, and run it. The oracle of the literature, RoPE trained at 4L
with equal tokens, is in other_lengths/ and in rows.jsonl under its own training length. Its
distances and targets are in units of its own L, so the report does not compare it with the others.
"""

import os

from ml_collections import ConfigDict

from configs import lm
from configs.studies import cpu
from posenc_jax.study.grid import Arm, Study, Tuning

BOOKS = os.environ.get("POSENC_JAX_BOOKS", "data/books")
STUDY = Study(
    tier="gpu",
    arms=(*cpu.STUDY.arms, Arm("rope-4L", "rope(base=match)", length=2048)),
    seeds=tuple(range(8)),
    tuning=Tuning(rates=(0.00316, 0.01, 0.0316, 0.1), seed=90, steps=1000),
    tuning_suite="E3",
    roles={**cpu.STUDY.roles, "oracle": "rope-4L"},
)


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. rope-s0-lr0.01 or, of the tuning,
    rope-s90-lr0.1.
    """
    config = lm.get_config()
    config.model.update(
        num_layers=6,
        model_dim=512,
        num_heads=8,
        head_dim=64,
        mlp_dim=1408,
        dtype="bfloat16",
        embedding_scale=512**0.5,
    )
    config.train.update(length=512, batch_size=128, steps=6000, save_every=500, log_every=50)
    config.optimizer.update(warmup_steps=300)
    config.data.update(
        corpus="text_folder",
        folder=BOOKS,
        retrieval_share=0.13,
        offset_share=0.02,
        max_pairs=16,
        retrieval_mix="passkey,needles_4,mqar,latest_first",
        answer_weight=12.0,
        threads=8,
    )
    config.evaluation.update(
        stretches=512, instances=500, pairs=16, batch_tokens=131072, measures=cpu.MEASURES
    )
    return STUDY.fill(run, config)
