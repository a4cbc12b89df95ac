"""The programs of our kernel for NVIDIA GPUs (`posenc_jax.attention.kernels.flash`): one per tile of a result.

Dims of a tile in lower case: t queries, s keys, H columns. Logits and biases are in units of q k, which scale2 turns
into logarithms to base 2, as those of sums are. Places are float32, exact below 2^24: to turn an integer into a float
takes a GPU as long as an exponential, and there would be one for each logit. Written in Pallas for Triton.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

LOG2E = math.log2(math.e)
MIN_COLUMNS = 16  # columns of a tensor core's product
# A power of two, so that a multiple of it less the same multiple is nothing, whether or not it is rounded between.
MASK_VALUE = -(2.0**100)


class TileConfig(NamedTuple):
    """Queries and keys of a tile, and how a program of it is laid on a GPU."""

    q_block: int
    k_block: int
    warps: int
    stages: int


class TileConfigs(NamedTuple):
    """Of the program that computes the result, of the one for the gradient of queries and of that for keys."""

    forward: TileConfig
    of_queries: TileConfig
    of_keys: TileConfig


# Measured on an H100 at 4,096 and 16,384 tokens, with heads of 64, 96 and 128.
_NARROW = TileConfigs(TileConfig(128, 64, 4, 3), TileConfig(64, 64, 4, 3), TileConfig(64, 64, 4, 2))
_MIDDLE = TileConfigs(TileConfig(64, 64, 4, 3), TileConfig(64, 64, 4, 3), TileConfig(64, 64, 4, 2))
_WIDE = TileConfigs(TileConfig(128, 64, 8, 3), TileConfig(128, 64, 8, 3), TileConfig(64, 128, 8, 2))


def tile_configs(columns: int) -> TileConfigs:
    """Returns the tiles for heads of so many columns."""
    return _NARROW if columns <= 64 else _MIDDLE if columns < 128 else _WIDE


class Arithmetic(NamedTuple):
    """Operations of a GPU that are written out, as its compiler joins none and guards exp2 with four more.

    Emulated they are the same up to their last bit.
    """

    emulated: bool

    def exp2(self, x):
        """Returns 2^x; below 2^-126 zero on a GPU."""
        return jnp.exp2(x) if self.emulated else self._of("ex2.approx.ftz.f32 $0, $1;", x)

    def times_plus(self, a, b, c):
        """Returns a b + c."""
        return a * b + c if self.emulated else self._of("fma.rn.f32 $0, $1, $2, $3;", a, b, c)

    def _of(self, instruction, *numbers):
        args = jnp.broadcast_arrays(*(jnp.asarray(x, jnp.float32) for x in numbers))
        [result] = triton.elementwise_inline_asm(
            instruction, args=args, constraints=",".join(["=f", *("f" for _ in args)]), pack=1,
            result_shape_dtypes=[jax.ShapeDtypeStruct(args[0].shape, jnp.float32)],
        )  # fmt: skip
        return result


def power_of_two_parts(width: int) -> tuple[slice, ...]:
    """Returns the columns of a head in powers of two, which is what Triton's arrays come in, from the widest on.

    A product over the columns is the sum of those over the parts: heads of 96 are worked on as 64 and 32, where
    padding would compute and move 128.

    Raises:
      ValueError: a width that is no multiple of what a tensor core multiplies.
    """
    if width % MIN_COLUMNS:
        raise ValueError(f"heads of {width} columns, not a multiple of {MIN_COLUMNS}")
    first, found = 0, []
    for power in reversed(range(width.bit_length())):
        if width & 2**power:
            found.append(slice(first, first + 2**power))
            first += 2**power
    return tuple(found)


def _rows(ref, rows=slice(None)):
    """Returns rows of a block, in parts."""
    return tuple(
        ref[rows, pl.ds(x.start, x.stop - x.start)] for x in power_of_two_parts(ref.shape[-1])
    )


def _logits(a, b):
    """Returns the products of rows with rows."""
    return functools.reduce(jnp.add, (triton.dot(x, y.T) for x, y in zip(a, b, strict=True)))


def _mixed(sums, weight, rows, fade=None):
    """Returns sums grown by weighted rows, after they have faded."""
    old = sums if fade is None else (x * fade[:, None] for x in sums)
    return tuple(x + triton.dot(weight.astype(y.dtype), y) for x, y in zip(old, rows, strict=True))


def _blank(rows, length):
    return tuple(jnp.zeros((length, x.shape[1]), jnp.float32) for x in rows)


def _write(ref, rows):
    for columns, x in zip(power_of_two_parts(ref.shape[-1]), rows, strict=True):
        ref[:, pl.ds(columns.start, x.shape[1])] = x.astype(ref.dtype)


def _seen(low_t, row_t, col_s):
    return (low_t[:, None] <= col_s[None, :]) & (col_s[None, :] <= row_t[:, None])


def _away(row, col):
    return col.astype(jnp.float32) - row.astype(jnp.float32)


def _biased(do, content, bias_ref, row, col):
    """Returns content and the bias between rows and columns: of a slope, or looked up by distance in a table."""
    if bias_ref.shape == (1,):
        return do.times_plus(bias_ref[0], _away(row, col), content)
    return content + triton.load(bias_ref.at[jnp.maximum(row - col, 0)])


def _blocks(tiling: TileConfig, i, start_ref, highest_ref):
    """Returns bounds of key blocks: those before the second hold a key out of sight, and so do those from the third on."""
    t, s = tiling.q_block, tiling.k_block
    first, diagonal = start_ref[0] // s, i * t // s
    whole = jnp.clip((highest_ref[0] + s - 1) // s, first, jnp.maximum(diagonal, first))
    return first, whole, jnp.maximum(diagonal, whole), ((i + 1) * t + s - 1) // s


def _in_turn(bounds, body, carry):
    """Runs body(masked, j, carry) over the key blocks between bounds."""
    first, whole, diagonal, end = bounds
    carry = lax.fori_loop(first, whole, functools.partial(body, True), carry)
    carry = lax.fori_loop(whole, diagonal, functools.partial(body, False), carry)
    return lax.fori_loop(diagonal, end, functools.partial(body, True), carry)


def forward_kernel(
    scale, tiling, do, q_ref, k_ref, v_ref, low_ref, start_ref, highest_ref, bias_ref, sink_ref, out_ref,
    lse_ref,
):  # fmt: skip
    """Writes out_tH and lse_t, to base 2, of one block of queries; zeros where a row sees nothing."""
    t, s, scale2 = tiling.q_block, tiling.k_block, scale * LOG2E
    i = pl.num_programs(0) - 1 - pl.program_id(0)
    row_t, low_t = i * t + jnp.arange(t), low_ref[...]
    q_tH = _rows(q_ref)

    def body(masked, j, carry):
        acc_tH, top_t, sum_t = carry
        k_sH, v_sH = (_rows(ref, pl.ds(j * s, s)) for ref in (k_ref, v_ref))
        col_s = j * s + jnp.arange(s)
        logits_ts = _biased(do, _logits(q_tH, k_sH), bias_ref, row_t[:, None], col_s[None, :])
        if masked:
            logits_ts = jnp.where(_seen(low_t, row_t, col_s), logits_ts, MASK_VALUE)
        new_t = jnp.maximum(top_t, logits_ts.max(-1))
        weight_ts = do.exp2(do.times_plus(logits_ts, scale2, (-scale2 * new_t)[:, None]))
        fade_t = do.exp2((top_t - new_t) * scale2)
        acc_tH = _mixed(acc_tH, weight_ts, v_sH, fade_t)
        return acc_tH, new_t, sum_t * fade_t + weight_ts.sum(-1)

    # A sink is met before all keys, with a value of zero; where there is none, it stands at NEVER.
    sink_t = jnp.full((t,), sink_ref[0])
    blank = _blank(q_tH, t), sink_t, jnp.where(sink_t > MASK_VALUE / 2, 1.0, 0.0)
    acc_tH, top_t, sum_t = _in_turn(_blocks(tiling, i, start_ref, highest_ref), body, blank)
    # What a row collects before it sees a key fades to nothing once it does; padding sees none.
    sees_t = low_t <= row_t
    sum_t = jnp.where(sees_t, sum_t, 1.0)
    _write(out_ref, (jnp.where(sees_t[:, None], x / sum_t[:, None], 0.0) for x in acc_tH))
    lse_ref[...] = jnp.where(sees_t, top_t * scale2 + jnp.log2(sum_t), 0.0)


def dq_kernel(
    scale, tiling, do, q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, low_ref, start_ref, highest_ref, bias_ref,
    d_q_ref, d_slope_ref,
):  # fmt: skip
    """Writes d_q_tH of one block of queries, and each row's share of the slope's gradient."""
    t, s, scale2 = tiling.q_block, tiling.k_block, scale * LOG2E
    i = pl.num_programs(0) - 1 - pl.program_id(0)
    row_t, low_t = i * t + jnp.arange(t), low_ref[...]
    q_tH, d_out_tH, lse_t, delta_t = _rows(q_ref), _rows(d_out_ref), lse_ref[...], delta_ref[...]

    def body(masked, j, carry):
        d_q_tH, d_slope_t = carry
        k_sH, v_sH = (_rows(ref, pl.ds(j * s, s)) for ref in (k_ref, v_ref))
        col_s = j * s + jnp.arange(s)
        logits_ts = _biased(do, _logits(q_tH, k_sH), bias_ref, row_t[:, None], col_s[None, :])
        weight_ts = do.exp2(do.times_plus(logits_ts, scale2, -lse_t[:, None]))
        d_logits_ts = weight_ts * (_logits(d_out_tH, v_sH) - delta_t[:, None])
        if masked:  # last, as a NaN times zero is a NaN
            d_logits_ts = jnp.where(_seen(low_t, row_t, col_s), d_logits_ts, 0.0)
        away_ts = _away(row_t[:, None], col_s[None, :])
        return _mixed(d_q_tH, d_logits_ts, k_sH), d_slope_t + (d_logits_ts * away_ts).sum(-1)

    blank = _blank(q_tH, t), jnp.zeros((t,), jnp.float32)
    d_q_tH, d_slope_t = _in_turn(_blocks(tiling, i, start_ref, highest_ref), body, blank)
    _write(d_q_ref, (x * scale for x in d_q_tH))
    d_slope_ref[...] = d_slope_t


def dkv_kernel(
    scale, tiling, do, q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, low_ref, free_ref, end_ref, bias_ref,
    d_k_ref, d_v_ref,
):  # fmt: skip
    """Writes d_k_sH and d_v_sH of one block of keys, for one query head."""
    t, s, scale2 = tiling.q_block, tiling.k_block, scale * LOG2E
    j = pl.program_id(0)
    col_s = j * s + jnp.arange(s)
    k_sH, v_sH = _rows(k_ref), _rows(v_ref)

    def body(masked, i, carry):  # tiles lie the other way here: keys by queries
        d_k_sH, d_v_sH = carry
        rows = pl.ds(i * t, t)
        q_tH, d_out_tH = _rows(q_ref, rows), _rows(d_out_ref, rows)
        row_t = i * t + jnp.arange(t)
        logits_st = _biased(do, _logits(k_sH, q_tH), bias_ref, row_t[None, :], col_s[:, None])
        weight_st = do.exp2(do.times_plus(logits_st, scale2, -lse_ref[rows][None, :]))
        if masked:
            seen_st = _seen(low_ref[rows], row_t, col_s).T
            weight_st = jnp.where(seen_st, weight_st, 0.0)
        d_v_sH = _mixed(d_v_sH, weight_st, d_out_tH)
        d_logits_st = weight_st * (_logits(v_sH, d_out_tH) - delta_ref[rows][None, :])
        if masked:  # again, as a NaN times zero is a NaN
            d_logits_st = jnp.where(seen_st, d_logits_st, 0.0)
        return _mixed(d_k_sH, d_logits_st, q_tH), d_v_sH

    first, end = j * s // t, end_ref[0]
    whole = jnp.clip(((j + 1) * s + t - 1) // t, first, jnp.maximum(end, first))
    free = jnp.clip(free_ref[0], whole, jnp.maximum(end, whole))
    blank = _blank(k_sH, s), _blank(k_sH, s)
    d_k_sH, d_v_sH = _in_turn((first, whole, free, end), body, blank)
    _write(d_k_ref, (x * scale for x in d_k_sH))
    _write(d_v_ref, d_v_sH)
