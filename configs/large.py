"""Paper scale: the 1.3B decoder of the ALiBi paper and a 7B decoder, planned but not trained here.

Plan:     python scripts/plan.py --config=configs/large.py:1.3b,rope+alibi --mesh=fsdp:16 --chips=v5e
Command:  python train.py --config=configs/large.py:1.3b,rope+alibi --workdir=runs/large
          on every host of the job, with --config.train.fsdp_devices=16 and the like for the mesh
Reads:    BOOKS, a folder of UTF-8 text files split by file (the environment variable
          POSENC_JAX_BOOKS names another one), and TOKENIZER, a SentencePiece model of 50,300 pieces
          (POSENC_JAX_TOKENIZER), which has 50,304 ids with our four
Takes:    results/plan/ has memory and a roofline estimate of the least time of a step

1.3b is the decoder of Press et al. 2022, sec. 4.2 (25 layers, D 2048, 16 heads, F 8192) with our
norms and GELU; 7b has the shape of LLaMA 7B (Touvron et al. 2023, table 2).
"""  # noqa: E501

import dataclasses
import os

from ml_collections import ConfigDict

from posenc_jax.training.config import RunConfig

BOOKS = os.environ.get("POSENC_JAX_BOOKS", "data/books")
TOKENIZER = os.environ.get("POSENC_JAX_TOKENIZER", "data/tokenizer.model")
SIZES = {
    "1.3b": {
        "num_layers": 25,
        "model_dim": 2048,
        "num_heads": 16,
        "mlp_dim": 8192,
        "activation": "gelu",
    },
    "7b": {
        "num_layers": 32,
        "model_dim": 4096,
        "num_heads": 32,
        "mlp_dim": 11008,
        "activation": "swiglu",
    },
}


def get_config(size_and_scheme: str = "1.3b") -> ConfigDict:
    """Returns the configuration of a size and a scheme, e.g. "7b,alibi"; by default rope+alibi."""
    size, _, scheme = size_and_scheme.partition(",")
    if size not in SIZES:
        raise ValueError(f"configs/large.py has the sizes {', '.join(SIZES)}, not {size!r}")
    config = ConfigDict(dataclasses.asdict(RunConfig()))
    config.model.update(
        SIZES[size],
        scheme=scheme or "rope+alibi",
        tied_head=size == "1.3b",
        dtype="bfloat16",
        embedding_scale=SIZES[size]["model_dim"] ** 0.5,
    )
    config.train.update(
        tier="cluster",
        length=2048,
        batch_size=64,
        steps=50_000,
        save_every=500,
        log_every=10,
        scan_layers=True,
        remat="attention",
        loss_chunks=8,
    )
    config.optimizer.update(learning_rate=2e-4 if size == "1.3b" else 3e-4, warmup_steps=2000)
    config.data.update(
        corpus="text_folder", folder=BOOKS, tokenizer=TOKENIZER, max_pairs=16, threads=8
    )
    config.evaluation.update(stretches=512, instances=500, pairs=16, batch_tokens=131_072)
    return config
