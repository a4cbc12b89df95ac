"""Absolute position embeddings: the a(i) that is added to the token embedding."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.encodings.base import Absolute, HeadContext, Params, check_positive
from posenc_jax.encodings.gather import gather_rows
from posenc_jax.encodings.rotary import angles, check_pairing, inverse_frequencies

LARGEST_OFFSET = 2**20


def sinusoid(pos_BT: jax.Array, dim: int, base: float, pairing: str = "interleaved") -> jax.Array:
    """Returns a_BTD, float32: sine and cosine of the same angle per pair.

    Args:
      pairing: "interleaved", sin in even dims and cos in odd ones (Vaswani et al. 2017, sec. 3.5),
        or "half", all sines and then all cosines (tensor2tensor, Marian, fairseq).
    """
    angle_BTh = angles(pos_BT, inverse_frequencies(dim, base))
    both = jnp.stack([jnp.sin(angle_BTh), jnp.cos(angle_BTh)], -1 if pairing != "half" else -2)
    return both.reshape(*pos_BT.shape, dim)


def check_offset(owner: str, offset: int) -> None:
    """Raises ValueError for an offset of positions that is negative or very large."""
    if not 0 <= offset <= LARGEST_OFFSET:
        raise ValueError(f"{owner}: offset must lie in [0, {LARGEST_OFFSET}], not {offset}")


def table_rows(table_LD: jax.Array, pos_BT: jax.Array, offset: int = 0) -> jax.Array:
    """Returns table[pos + offset]; outside the table ValueError, or NaN under jit."""
    size = table_LD.shape[0] - offset
    if not isinstance(pos_BT, jax.core.Tracer):
        top, bottom = int(np.asarray(pos_BT).max()), int(np.asarray(pos_BT).min())
        if top >= size or bottom < 0:
            raise ValueError(
                f"position {top if top >= size else bottom} lies outside the learned table of "
                f"{size} positions"
            )
    inside_BT = jnp.where(pos_BT < 0, size, pos_BT)  # a row past the end is NaN
    return gather_rows(table_LD, inside_BT + offset, "fill")


@dataclasses.dataclass(frozen=True)
class Sinusoidal(Absolute):
    """The Transformer's sinusoids.

    Attributes:
      base: the slowest pair turns once in about 2*pi*base tokens.
      scale: factor on the sinusoid; the paper has 1.0 and token embeddings times sqrt(D)
        (`model.embedding_scale` here).
      pairing: "interleaved" or "half", see `sinusoid`.
      offset: added to positions. fairseq has 2, "half", and the base 10000^(h/(h-1)) with h = D/2.
    """

    base: float = 10_000.0
    scale: float = 1.0
    pairing: str = "interleaved"
    offset: int = 0

    def check(self, context: HeadContext) -> None:
        check_positive("sinusoidal", base=self.base, scale=self.scale)
        check_offset("sinusoidal", self.offset)
        check_pairing("sinusoidal", self.pairing)
        if context.model_dim % 2:
            raise ValueError(f"sinusoids come in pairs; model dim {context.model_dim} is odd")

    def embed(self, params: Params, pos_BT: jax.Array, context: HeadContext) -> jax.Array:
        pos_BT = pos_BT + self.offset
        return self.scale * sinusoid(pos_BT, context.model_dim, self.base, self.pairing)


@dataclasses.dataclass(frozen=True)
class Learned(Absolute):
    """A learned table of positions (GPT-2 style).

    Attributes:
      size: positions; 0: the training length.
      stddev: of the normal initial values (GPT-2: 0.02).
      offset: rows of the table before that of position 0, which are never read (OPT, fairseq: 2).
    """

    learns: ClassVar[bool] = True
    size: int = 0
    stddev: float = 0.02
    offset: int = 0

    def check(self, context: HeadContext) -> None:
        check_positive("learned", stddev=self.stddev)
        check_offset("learned", self.offset)
        if self.longest(context) < context.train_length:
            raise ValueError(
                f"learned: table of {self.size} positions is shorter than the training length "
                f"{context.train_length}"
            )

    def longest(self, context: HeadContext) -> int:
        return self.size or context.train_length

    def init(self, key: jax.Array, context: HeadContext) -> Params:
        """Returns {"table_LD"}: normal rows."""
        shape = (self.longest(context) + self.offset, context.model_dim)
        return {"table_LD": self.stddev * jax.random.normal(key, shape, jnp.float32)}

    def embed(self, params: Params, pos_BT: jax.Array, context: HeadContext) -> jax.Array:
        """Returns the rows of the table at pos_BT; see `table_rows` for positions outside it."""
        return table_rows(params["table_LD"], pos_BT, self.offset)
