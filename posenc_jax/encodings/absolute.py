"""Absolute position embeddings: the a(i) that is added to the token embedding."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.encodings.base import Absolute, HeadContext, Params, check_positive
from posenc_jax.encodings.gather import gather_rows
from posenc_jax.encodings.rotary import angles, inverse_frequencies


def sinusoid(pos_BT: jax.Array, dim: int, base: float) -> jax.Array:
    """Returns a_BTD, float32: sin in even dims, cos in odd ones (Vaswani et al. 2017, sec. 3.5)."""
    angle_BTh = angles(pos_BT, inverse_frequencies(dim, base))
    both = jnp.stack([jnp.sin(angle_BTh), jnp.cos(angle_BTh)], axis=-1)
    return both.reshape(*pos_BT.shape, dim)


def table_rows(table_LD: jax.Array, pos_BT: jax.Array) -> jax.Array:
    """Returns table[pos]; outside the table ValueError, or NaN under jit."""
    size = table_LD.shape[0]
    if not isinstance(pos_BT, jax.core.Tracer):
        top, bottom = int(np.asarray(pos_BT).max()), int(np.asarray(pos_BT).min())
        if top >= size or bottom < 0:
            raise ValueError(
                f"position {top if top >= size else bottom} lies outside the learned table of "
                f"{size} positions"
            )
    inside_BT = jnp.where(pos_BT < 0, size, pos_BT)  # JAX would wrap negative indices
    return gather_rows(table_LD, inside_BT, "fill")


@dataclasses.dataclass(frozen=True)
class Sinusoidal(Absolute):
    """The Transformer's sinusoids.

    Attributes:
      base: the slowest pair turns once in about 2*pi*base tokens.
      scale: factor on the sinusoid; the paper has 1.0 and token embeddings times sqrt(D)
        (`model.embedding_scale` here).
    """

    base: float = 10_000.0
    scale: float = 1.0

    def check(self, context: HeadContext) -> None:
        check_positive("sinusoidal", base=self.base, scale=self.scale)
        if context.model_dim % 2:
            raise ValueError(f"sinusoids come in pairs; model dim {context.model_dim} is odd")

    def embed(self, params: Params, pos_BT: jax.Array, context: HeadContext) -> jax.Array:
        return self.scale * sinusoid(pos_BT, context.model_dim, self.base)


@dataclasses.dataclass(frozen=True)
class Learned(Absolute):
    """A learned table of positions (GPT-2 style).

    Attributes:
      size: rows of the table; 0: the training length.
      stddev: of the normal initial values (GPT-2: 0.02).
    """

    learns: ClassVar[bool] = True
    size: int = 0
    stddev: float = 0.02

    def check(self, context: HeadContext) -> None:
        check_positive("learned", stddev=self.stddev)
        if self.longest(context) < context.train_length:
            raise ValueError(
                f"learned: table of {self.size} positions is shorter than the training length "
                f"{context.train_length}"
            )

    def longest(self, context: HeadContext) -> int:
        return self.size or context.train_length

    def init(self, key: jax.Array, context: HeadContext) -> Params:
        """Returns {"table_LD"}: normal rows."""
        shape = (self.longest(context), context.model_dim)
        return {"table_LD": self.stddev * jax.random.normal(key, shape, jnp.float32)}

    def embed(self, params: Params, pos_BT: jax.Array, context: HeadContext) -> jax.Array:
        """Returns the rows of the table at pos_BT; see `table_rows` for positions outside it."""
        return table_rows(params["table_LD"], pos_BT)
