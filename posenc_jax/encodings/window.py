"""Sliding windows: heads that see only the nearest keys."""

import dataclasses
import re

from posenc_jax.encodings.base import HeadContext, Part

_SHARE = re.compile(r"L(?:/([1-9][0-9]{0,7}))?")


@dataclasses.dataclass(frozen=True)
class Window(Part):
    """A sliding window: the query at position i sees the keys at i - size + 1 to i, of its own
    document.

    Without causality also the keys at i + 1 to i + size - 1. With a rotation it is the local layer
    of RNoPE-SWA (Yang et al. 2025), Longformer and Mistral. If the model has a window too
    (`ModelConfig.window`), the smaller one holds. Length extension does not change windows.

    Attributes:
      size: tokens, the query's own included; or a share of the training length, "L/8" (rounded
        down) or "L".
    """

    size: int | str = "L/8"

    def check(self, context: HeadContext) -> None:
        if isinstance(self.size, str) and not _SHARE.fullmatch(self.size):
            raise ValueError(
                "window: size must be tokens (256) or a share of the training length (L/8), not "
                f"{self.size!r}"
            )
        if self.tokens(context) < 1:
            raise ValueError(
                f"window: size={self.size} is below 1 token at a training length of "
                f"{context.train_length}; give a larger share, or tokens"
            )

    def tokens(self, context: HeadContext) -> int:
        """Returns the size in tokens: keys at this distance or beyond are masked."""
        if not isinstance(self.size, str):
            return self.size
        share = _SHARE.fullmatch(self.size)
        if share is None:
            raise ValueError(f"window: size={self.size!r} is no share of the training length")
        return context.train_length // int(share[1] or 1)
