"""A small decoder with the switches of a published one, trained on text and retrieval documents.

Command:  python train.py --config=configs/systems.py:bloom --workdir=runs/bloom
          any name in posenc_jax/model/presets.py: gpt2, llama3, mixtral, falcon-7b, gemma3, ...
Reaches:  a lower loss than the frequencies of the tokens, within 300 steps
Takes:    about a minute on one core
"""

import dataclasses

from ml_collections import ConfigDict

from posenc_jax.model.presets import preset
from posenc_jax.training.config import RunConfig, model_section


def get_config(system: str = "bloom") -> ConfigDict:
    """Returns the configuration of a small model of one system."""
    small = preset(system, small=True)
    config = ConfigDict(dataclasses.asdict(RunConfig()))
    config.model.update(dataclasses.asdict(model_section(small)) | {"vocab_size": 0})
    config.train.update(
        arm=system, length=small.train_length, batch_size=16, steps=1200, save_every=400
    )
    config.optimizer.update(learning_rate=3e-3, warmup_steps=50, final_fraction=0.05)
    config.data.update(retrieval_share=0.5, answer_weight=3.0)
    config.evaluation.batch_tokens = 1088
    return config
