"""Labelled images: scikit-learn's digits, which need no network, and TFDS sets such as cifar10."""

import dataclasses
import hashlib
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

DIGITS = "digits"
_TESTED = 5  # the last fifth of the digits is for testing: other people wrote these digits


@dataclasses.dataclass(frozen=True)
class Images:
    """Images [H, W, C], uint8, of any sizes, with a class each."""

    pixels: Sequence[np.ndarray]
    label_N: np.ndarray

    def at(self, size: int) -> np.ndarray:
        """Returns image_NHWC, float32 in [0, 1]: middle squares, resized bilinearly to `size`."""
        return np.stack([_resized(image, size) for image in self.pixels])


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A training and a test set.

    fingerprint: SHA-256 of the images, or of the metadata that TFDS records. classes: their names.
    """

    name: str
    fingerprint: str
    classes: tuple[str, ...]
    train: Images
    test: Images


def open_images(name: str, data_dir: str, *, download: bool) -> ImageSet:
    """Returns the image set "digits" (8 x 8 pixels, scikit-learn), or a TFDS set: "cifar10",
    "imagenette".

    Raises:
      ValueError: no such set, one that is not prepared below data_dir and may not be downloaded, or
        a missing package.
    """
    if name == DIGITS:
        return _digits()
    from posenc_jax.data.tfds_sets import open_pictures  # slow to import

    data_dir = os.path.abspath(os.path.expanduser(data_dir))
    fingerprint, splits, classes = open_pictures(name, data_dir, download=download, also=(DIGITS,))
    return ImageSet(name, fingerprint, classes, *(Images(*splits[s]) for s in ("train", "test")))


def _digits() -> ImageSet:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise ValueError(
            f"data.corpus={DIGITS} comes with scikit-learn: pip install 'posenc_jax[vision]'"
        ) from None
    found = load_digits()
    pixels = np.round(found.images[..., None] * (255 / 16)).astype(np.uint8)  # 17 grey levels
    label_N = found.target.astype(np.int32)
    first = len(label_N) - len(label_N) // _TESTED
    parts = (Images(pixels[s], label_N[s]) for s in (slice(first), slice(first, None)))
    digest = hashlib.sha256(pixels.tobytes() + label_N.tobytes()).hexdigest()
    return ImageSet(DIGITS, digest, tuple(map(str, range(10))), *parts)


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    height, width, channels = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(image[top : top + side, left : left + side].squeeze())
    small = np.asarray(square.resize((size, size), Image.Resampling.BILINEAR), np.float32) / 255
    return small.reshape(size, size, channels)
