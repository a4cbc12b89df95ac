"""Windows: heads that see the nearest keys alone. A mask, selected and never added."""

import dataclasses
import re

from posenc_jax.encodings.base import HeadContext, Part

_SHARE = re.compile(r"L(?:/([1-9][0-9]{0,7}))?")


@dataclasses.dataclass(frozen=True)
class Window(Part):
    """A sliding window: the query at position i sees the keys at i - size + 1 to i, of its own document.

    Without causality also those at i + 1 to i + size - 1. With a rotation it is the local layer of RNoPE-SWA
    (Yang et al. 2025), Longformer and Mistral. A model's own window (`ModelConfig.window`) still holds beside it:
    the smaller of both counts. Reading a scheme further never changes a window.

    Attributes:
      size: tokens, the query's own counted; or a share of the training length, "L/8" (rounded down) or "L".
    """

    size: int | str = "L/8"

    def check(self, context: HeadContext) -> None:
        """Raises ValueError for a size that is neither a number of tokens nor a share of L, or is below 1."""
        if isinstance(self.size, str) and not _SHARE.fullmatch(self.size):
            raise ValueError(
                f"window: size must be tokens (256) or a share of the training length (L/8), not {self.size!r}"
            )
        if self.tokens(context) < 1:
            raise ValueError(
                f"window: size={self.size} is below 1 token at a training length of {context.train_length}; "
                "give a larger share, or tokens"
            )

    def tokens(self, context: HeadContext) -> int:
        """Returns the size in tokens: keys at that distance or further are out of sight."""
        if isinstance(self.size, str):
            return context.train_length // int(_SHARE.fullmatch(self.size)[1] or 1)
        return self.size
