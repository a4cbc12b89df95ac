"""A small language model on text and retrieval documents, for two CPU cores.

Command:  python train.py --config=configs/lm.py:rope+alibi --workdir=runs/x
Reaches:  results/quickstart has a table of five schemes with two seeds each
Takes:    about a minute on one core
"""

import dataclasses

from ml_collections import ConfigDict

from posenc_jax.training.config import RunConfig


def get_config(scheme: str = "rope+alibi") -> ConfigDict:
    """Returns the configuration for one scheme (a line of the scheme grammar)."""
    config = ConfigDict(dataclasses.asdict(RunConfig()))
    config.model.update(
        scheme=scheme, model_dim=64, num_heads=4, head_dim=32, mlp_dim=128, embedding_scale=8.0
    )
    config.train.update(length=64, batch_size=16, steps=1200, save_every=400)
    config.optimizer.update(
        name="muon",
        learning_rate=1e-2,
        muon_learning_rate=2e-2,
        warmup_steps=50,
        final_fraction=0.05,
        weight_decay=0.01,
    )
    config.data.update(
        retrieval_share=0.75, passkey_share=0.25, answer_weight=3.0, min_pairs=2, max_pairs=8
    )
    config.evaluation.batch_tokens = 1088  # two of the longest rows; more cause page faults on CPU
    return config
