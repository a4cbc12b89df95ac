"""Configuration of an image classifier: the sections model and optimizer of a run, and sections of
its own.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping

from posenc_jax.data.images import DIGITS
from posenc_jax.encodings.scheme_presets import line_of
from posenc_jax.model.vision import VisionConfig, read_at
from posenc_jax.training.config import RunConfig, built_sections
from posenc_jax.training.config_sections import ModelSection, OptimizerSection, TrainSection
from posenc_jax.training.setting_bounds import COUNT, STEPS, between, check_settings, one_of

PIXELS = (1, 4096)


@dataclasses.dataclass(frozen=True)
class ImageSection:
    """Images and their patches.

    Attributes:
      corpus: "digits" (scikit-learn), or a TFDS set such as "cifar10" or "imagenette". data_dir,
        download: of TFDS, as for text.
      size: side of a training image, in pixels. patch_size: side of a patch. read_sizes: sides of
        the test images that the trained model reads at the end.
    """

    corpus: str = DIGITS
    data_dir: str = "data"
    download: bool = False
    size: int = between(8, PIXELS)
    patch_size: int = between(1, PIXELS)
    read_sizes: tuple[int, ...] = between((8, 12, 16), PIXELS)


@dataclasses.dataclass(frozen=True)
class ImageTrainSection:
    """Length of the training, on one device; see `TrainSection`. batch_size: images per step."""

    arm: str = ""
    tier: str = one_of("cpu", "smoke", "cpu", "gpu", "cluster")
    seed: int = between(0, (0, 2**32 - 1))
    steps: int = between(300, STEPS)
    batch_size: int = between(32, COUNT)
    save_every: int = between(100, STEPS)
    log_every: int = between(20, STEPS)
    keep: int = between(2, COUNT)


@dataclasses.dataclass(frozen=True)
class ImageRunConfig:
    """All settings of an image classifier; ValueError for sizes that do not fit."""

    model: ModelSection = dataclasses.field(default_factory=ModelSection)
    image: ImageSection = dataclasses.field(default_factory=ImageSection)
    train: ImageTrainSection = dataclasses.field(default_factory=ImageTrainSection)
    optimizer: OptimizerSection = dataclasses.field(default_factory=OptimizerSection)

    def __post_init__(self):
        for section in dataclasses.fields(self):
            check_settings(section.name, getattr(self, section.name))
        if self.image.size % self.image.patch_size:
            raise ValueError(
                f"config.image.size={self.image.size} does not divide into patches of "
                f"config.image.patch_size={self.image.patch_size}"
            )
        if not self.image.read_sizes:
            raise ValueError("config.image.read_sizes must hold at least one size, in pixels")
        _ = self.decoder_run

    @functools.cached_property
    def decoder_run(self) -> RunConfig:
        """The same model and training as settings of a decoder, for the code that both share."""
        train = TrainSection(
            length=(self.image.size // self.image.patch_size) ** 2, **dataclasses.asdict(self.train)
        )
        return RunConfig(model=self.model, train=train, optimizer=self.optimizer)

    def vision(self, classes: int, channels: int) -> VisionConfig:
        """Returns the encoder's configuration for such images; ValueError if none fits."""
        model = self.decoder_run.model_config(classes)
        config = VisionConfig(model, self.image.patch_size, channels)
        return read_at(config, (self.image.size, self.image.size))

    def to_json(self) -> str:
        """Returns the configuration as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def image_config(sections: Mapping[str, Mapping]) -> ImageRunConfig:
    """Returns an ImageRunConfig from nested mappings; ValueError as `config.from_sections`."""
    built = built_sections(ImageRunConfig, sections)
    model, train = built["model"], built["train"]
    built["train"] = dataclasses.replace(train, arm=train.arm or model.scheme.strip())
    built["model"] = dataclasses.replace(model, scheme=line_of(model.scheme))
    return ImageRunConfig(**built)
