"""A small vision transformer on scikit-learn's digits, read at other resolutions than it was
trained at.

Command:  python train.py --config=configs/vision.py:axial --workdir=runs/vision/axial-s{seed} --seeds=0,1,2
Schemes:  axial, mixed, alibi2d, learned, sinusoidal; a line of the scheme grammar works too
Reaches:  results/vision has the accuracy of five schemes at 8, 12 and 16 pixels, three seeds each
Takes:    less than a minute a seed on one idle core
Other images: --config.image.corpus=cifar10 --config.image.size=32 --config.image.patch_size=4
          --config.image.read_sizes=32,64 (TFDS; --config.image.download on a connected machine)
"""  # noqa: E501

import dataclasses

from ml_collections import ConfigDict

from posenc_jax.training.config_sections import ModelSection
from posenc_jax.training.image_config import ImageRunConfig

# Patches have no embedding table, so the head cannot be tied to one.
_MODEL = ModelSection(
    scheme="axial", num_layers=2, model_dim=32, num_heads=4, mlp_dim=96, tied_head=False
)


def get_config(scheme: str = "axial") -> ConfigDict:
    """Returns the configuration for one scheme."""
    config = ConfigDict(dataclasses.asdict(ImageRunConfig(model=_MODEL)))
    config.model.scheme = scheme
    config.optimizer.update(learning_rate=5e-3, warmup_steps=30, weight_decay=0.05)
    return config
