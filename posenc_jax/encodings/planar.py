"""Planar encodings: axial and mixed RoPE, and ALiBi by the distance on a grid.

The position of a token is one integer, its index in raster order. A part computes row and column
from it with its `width`. The same parts therefore serve a decoder that writes an image row by row
and an image encoder, and a larger image needs only another width. The functions below take rows and
columns, integer or float.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.encodings.base import HeadContext, Params, Rotation, check_positive
from posenc_jax.encodings.bias import Sloped, linear_bias
from posenc_jax.encodings.rotary import angles, check_pairs, inverse_frequencies, rotate

METRICS = ("euclidean", "manhattan")


def raster(pos_BT: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """Returns (row_BT, column_BT) of raster positions on a grid `width` columns wide."""
    return pos_BT // width, pos_BT % width


def axial_angles(row_BT: jax.Array, column_BT: jax.Array, freq_h: np.ndarray) -> jax.Array:
    """Returns angle_BTh: the first half of the pairs rotates with the column, the second half with
    the row.

    Args:
      row_BT, column_BT: integer or float. freq_h: radians per step, for both halves.
    """
    return jnp.concatenate([angles(column_BT, freq_h), angles(row_BT, freq_h)], axis=-1)


def mixed_angles(row_BT: jax.Array, column_BT: jax.Array, freq_2Nh: jax.Array) -> jax.Array:
    """Returns angle_BTNh = column * freq[0] + row * freq[1], float32, a direction for every pair.

    Learned frequencies allow no exact range reduction: the error is 1e-7 of the angle. Source: Heo
      et al. 2024, eq. 14.
    """
    column, row = (x.astype(jnp.float32)[:, :, None, None] for x in (column_BT, row_BT))
    return column * freq_2Nh[0][None, None] + row * freq_2Nh[1][None, None]


def grid_distances(
    q_row_BT: jax.Array,
    q_column_BT: jax.Array,
    k_row_BS: jax.Array,
    k_column_BS: jax.Array,
    metric: str,
) -> jax.Array:
    """Returns the distance on the grid as float32 [B,T,S], in grid steps."""
    down_BTS = (q_row_BT[:, :, None] - k_row_BS[:, None, :]).astype(jnp.float32)
    across_BTS = (q_column_BT[:, :, None] - k_column_BS[:, None, :]).astype(jnp.float32)
    if metric == "manhattan":
        return jnp.abs(down_BTS) + jnp.abs(across_BTS)
    return jnp.sqrt(down_BTS**2 + across_BTS**2)


class _OnGrid:
    """Mixin of parts with a `width`."""

    width: int

    def columns(self, context: HeadContext) -> int:
        """Returns `width`; for 0 the side of the smallest square of train_length tokens."""
        return self.width or math.isqrt(context.train_length - 1) + 1

    def check_width(self, owner: str) -> None:
        """Raises ValueError for a width below 0."""
        if self.width < 0:
            raise ValueError(
                f"{owner}: width, the columns of the grid, must be 0 or above, not {self.width}"
            )


class _PlanarRotation(_OnGrid, Rotation):
    """Base class of rotations on a grid, with fields `base` and `pairing`."""

    base: float
    pairing: str

    # False: in the raster index, though the rotation depends on differences.
    relative: ClassVar[bool] = False

    def check(self, context: HeadContext) -> None:
        owner = type(self).__name__.lower()
        check_positive(owner, base=self.base)
        check_pairs(owner, context, self.pairing)
        self.check_width(owner)
        if context.head_dim % 4:
            raise ValueError(
                f"{owner}: two axes of pairs need head dim divisible by 4, not {context.head_dim}"
            )

    def amplitude(self, context: HeadContext) -> float:
        return 1.0


@dataclasses.dataclass(frozen=True)
class Axial(_PlanarRotation):
    """2-D RoPE by axes: half of the pairs rotate with the column, half with the row (Heo et al.
    2024, eq. 12).

    Attributes:
      width: columns of the grid; 0 takes the side of the smallest square that holds train_length
        tokens.
      base: of each half's spectrum (published: 100, images being small). pairing: as in `Rope`.
    """

    width: int = 0
    base: float = 100.0
    pairing: str = "half"

    def rotate(self, params, x_BTNH, pos_BT, context, side):
        """Returns x_BTNH rotated to its row and column."""
        row_BT, column_BT = raster(pos_BT, self.columns(context))
        freq_h = inverse_frequencies(context.head_dim // 2, self.base)
        return rotate(x_BTNH, axial_angles(row_BT, column_BT, freq_h), self.pairing, 1.0)


@dataclasses.dataclass(frozen=True)
class Mixed(_PlanarRotation):
    """2-D RoPE with learned directions: every pair of every head rotates with a combination of row
    and column.

    The initial frequencies are two orthogonal spectra, rotated by a random angle per head. Source:
    Heo et al. 2024, eq. 14 (RoPE-Mixed).

    Attributes:
      width: as in `Axial`. base: of the initial spectra (published: 10). pairing: as in `Rope`.
    """

    learns: ClassVar[bool] = True
    per_head: ClassVar[bool] = True
    width: int = 0
    base: float = 10.0
    pairing: str = "half"

    def init(self, key: jax.Array, context: HeadContext) -> Params:
        """Returns {"freq_2Nh"}: radians per column and per row, of each pair of each head."""
        size_h = jnp.asarray(inverse_frequencies(context.head_dim // 2, self.base), jnp.float32)
        turn_N1 = jax.random.uniform(key, (context.heads, 1), maxval=2 * math.pi)
        across_N2h = [jnp.cos(turn_N1) * size_h[None], -jnp.sin(turn_N1) * size_h[None]]
        down_N2h = [jnp.sin(turn_N1) * size_h[None], jnp.cos(turn_N1) * size_h[None]]
        return {"freq_2Nh": jnp.stack([jnp.concatenate(x, -1) for x in (across_N2h, down_N2h)])}

    def rotate(self, params, x_BTNH, pos_BT, context, side):
        """Returns x_BTNH rotated to its row and column; heads of other groups do not rotate."""
        row_BT, column_BT = raster(pos_BT, self.columns(context))
        after = context.num_heads - context.first - context.heads
        freq_2Nh = jnp.pad(params["freq_2Nh"], ((0, 0), (context.first, after), (0, 0)))
        return rotate(x_BTNH, mixed_angles(row_BT, column_BT, freq_2Nh), self.pairing, 1.0)


@dataclasses.dataclass(frozen=True)
class Alibi2d(_OnGrid, Sloped):
    """2-D ALiBi: -m times the distance of two patches (Fuller et al. 2023, CROMA, sec. 3).

    Attributes:
      width: as in `Axial`. metric: "euclidean" or "manhattan". slopes, factor, ntk: as for ALiBi.
    """

    relative: ClassVar[bool] = False
    width: int = 0
    metric: str = "euclidean"

    def check(self, context: HeadContext) -> None:
        super().check(context)
        self.check_width("alibi2d")
        if self.metric not in METRICS:
            raise ValueError(f"alibi2d: metric must be one of {METRICS}, not {self.metric!r}")

    def bias(self, params, q_pos_BT, k_pos_BS, context):
        width = self.columns(context)
        places = (*raster(q_pos_BT, width), *raster(k_pos_BS, width))
        return linear_bias(self.slope_N(context), grid_distances(*places, self.metric))
