"""Smoke test: a tiny decoder for a few steps, without a claim about learning.

Command:  python train.py --config=configs/smoke.py:rope+alibi --workdir=runs/smoke
Reaches:  a loss that begins to fall
Takes:    about 20 seconds on two cores, most of it compiling
"""

from ml_collections import ConfigDict

from configs import lm


def get_config(scheme: str = "rope+alibi") -> ConfigDict:
    """Returns the configuration for one scheme."""
    config = lm.get_config(scheme)
    config.model.update(model_dim=32, head_dim=0, mlp_dim=96)
    config.train.update(tier="smoke", length=32, steps=40, batch_size=8, save_every=20, log_every=5)
    config.optimizer.update(name="adamw", learning_rate=3e-3, warmup_steps=10)
    config.data.update(retrieval_share=0.15, min_pairs=2, max_pairs=3)
    config.evaluation.update(stretches=16, instances=20, pairs=3)
    return config
