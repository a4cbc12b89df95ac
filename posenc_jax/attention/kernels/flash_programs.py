"""Pallas (Triton) programs of the flash kernel: forward, dq, and dk with dv.

Dims of a tile: t queries, s keys (lower case: one block), H columns. Logits are q . k + bias /
scale; times scale2 = scale log2(e) they are exponents of 2. lse2 is to base 2 too. A slot is the
index of a token in the row; it is converted to float32 (exact below 2^24) once per row and column,
because on a GPU such a conversion costs as much as an exponential.

Inputs made by `flash`: low, the first slot that a row sees; start, the first key slot that a block
of queries reads; highest, the first slot that all rows of the block see; for a block of keys, free
and end: query blocks from `free` on need a mask, and those from `end` on do not read the keys.
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
COLUMN_MULTIPLE = 16  # of the number of columns, for the tensor cores
# A power of two, so that scale * MASK_VALUE - scale * MASK_VALUE is exactly 0 with any rounding.
MASK_VALUE = -(2.0**100)


class TileConfig(NamedTuple):
    """Queries and keys of a tile, and the warps and pipeline stages of its program."""

    q_block: int
    k_block: int
    warps: int
    stages: int


class TileConfigs(NamedTuple):
    """The tiles of the forward program, of the program for dq, and of the program for dk and dv."""

    forward: TileConfig
    dq: TileConfig
    dkv: TileConfig


# The fastest tiles of those timed on an H100: 4,096 and 16,384 tokens, heads of 64, 96 and 128.
_NARROW = TileConfigs(TileConfig(128, 64, 4, 3), TileConfig(64, 64, 4, 3), TileConfig(64, 64, 4, 2))
_MIDDLE = TileConfigs(TileConfig(64, 64, 4, 3), TileConfig(64, 64, 4, 3), TileConfig(64, 64, 4, 2))
_WIDE = TileConfigs(TileConfig(128, 64, 8, 3), TileConfig(128, 64, 8, 3), TileConfig(64, 128, 8, 2))


def tile_configs(columns: int) -> TileConfigs:
    """Returns the tiles for heads with that number of columns."""
    return _NARROW if columns <= 64 else _MIDDLE if columns < 128 else _WIDE


class Arithmetic(NamedTuple):
    """Inline PTX for exp2 and fused multiply-add, because Triton emits slower code for both.

    With emulated=True (Pallas interpreter, CPU) jnp is used; results differ in the last
    bit at most.
    """

    emulated: bool

    def exp2(self, x):
        """Returns 2^x; on a GPU, results below 2^-126 are zero."""
        return jnp.exp2(x) if self.emulated else self._of("ex2.approx.ftz.f32 $0, $1;", x)

    def times_plus(self, a, b, c):
        """Returns a b + c."""
        return a * b + c if self.emulated else self._of("fma.rn.f32 $0, $1, $2, $3;", a, b, c)

    def _of(self, instruction, *numbers):
        args = jnp.broadcast_arrays(*(jnp.asarray(x, jnp.float32) for x in numbers))
        [result] = triton.elementwise_inline_asm(
            instruction,
            args=args,
            constraints=",".join(["=f", *("f" for _ in args)]),
            pack=1,
            result_shape_dtypes=[jax.ShapeDtypeStruct(args[0].shape, jnp.float32)],
        )
        return result


def power_of_two_parts(width: int) -> tuple[slice, ...]:
    """Returns slices of a head's columns whose widths are powers of two, as Triton requires, the
    widest first.

    A product over the columns is the sum over the parts: heads of 96 columns are computed as 64 and
    32 instead of padded to 128.

    Raises:
      ValueError: the width is not a multiple of 16.
    """
    if width % COLUMN_MULTIPLE:
        raise ValueError(f"heads of {width} columns, not a multiple of {COLUMN_MULTIPLE}")
    first, parts = 0, []
    for power in reversed(range(width.bit_length())):
        if width & 2**power:
            parts.append(slice(first, first + 2**power))
            first += 2**power
    return tuple(parts)


def _rows(ref, rows=slice(None)):
    """Returns rows of a block as a tuple of column parts."""
    return tuple(
        ref[rows, pl.ds(x.start, x.stop - x.start)] for x in power_of_two_parts(ref.shape[-1])
    )


def _dots(a, b):
    """Returns the dot products of rows of a with rows of b."""
    return functools.reduce(jnp.add, (triton.dot(x, y.T) for x, y in zip(a, b, strict=True)))


def _accumulated(sums, weight, rows, alpha=None):
    """Returns alpha * sums + weight @ rows."""
    old = sums if alpha is None else (x * alpha[:, None] for x in sums)
    return tuple(x + triton.dot(weight.astype(y.dtype), y) for x, y in zip(old, rows, strict=True))


def _zeros(rows, length):
    return tuple(jnp.zeros((length, x.shape[1]), jnp.float32) for x in rows)


def _store(ref, rows):
    for columns, x in zip(power_of_two_parts(ref.shape[-1]), rows, strict=True):
        ref[:, pl.ds(columns.start, x.shape[1])] = x.astype(ref.dtype)


def _seen(low_t, row_t, col_s):
    return (low_t[:, None] <= col_s[None, :]) & (col_s[None, :] <= row_t[:, None])


def _negative_distance(row, col):
    return col.astype(jnp.float32) - row.astype(jnp.float32)


def _biased(arithmetic, content, bias_ref, row, col):
    """Returns the content logits plus the bias, from a slope or from a table of distances."""
    if bias_ref.shape == (1,):
        return arithmetic.times_plus(bias_ref[0], _negative_distance(row, col), content)
    return content + triton.load(bias_ref.at[jnp.maximum(row - col, 0)])


def _blocks(tiling: TileConfig, i, start_ref, highest_ref):
    """Returns four bounds of key blocks; blocks between the second and third need no mask."""
    t, s = tiling.q_block, tiling.k_block
    first, diagonal = start_ref[0] // s, i * t // s
    whole = jnp.clip((highest_ref[0] + s - 1) // s, first, jnp.maximum(diagonal, first))
    return first, whole, jnp.maximum(diagonal, whole), ((i + 1) * t + s - 1) // s


def _over_key_blocks(bounds, body, carry):
    """Runs body(masked, j, carry) over the key blocks between the bounds."""
    first, whole, diagonal, end = bounds
    carry = lax.fori_loop(first, whole, functools.partial(body, True), carry)
    carry = lax.fori_loop(whole, diagonal, functools.partial(body, False), carry)
    return lax.fori_loop(diagonal, end, functools.partial(body, True), carry)


def forward_kernel(
    scale,
    tiling,
    arithmetic,
    q_ref,
    k_ref,
    v_ref,
    low_ref,
    start_ref,
    highest_ref,
    bias_ref,
    sink_ref,
    out_ref,
    lse2_ref,
):
    """Writes out_tH and lse2_t of one block of queries; zeros where no key is seen."""
    t, s, scale2 = tiling.q_block, tiling.k_block, scale * LOG2E
    i = pl.num_programs(0) - 1 - pl.program_id(0)
    row_t, low_t = i * t + jnp.arange(t), low_ref[...]
    q_tH = _rows(q_ref)

    def body(masked, j, carry):
        acc_tH, max_t, sum_t = carry
        k_sH, v_sH = (_rows(ref, pl.ds(j * s, s)) for ref in (k_ref, v_ref))
        col_s = j * s + jnp.arange(s)
        logits_ts = _biased(arithmetic, _dots(q_tH, k_sH), bias_ref, row_t[:, None], col_s[None, :])
        if masked:
            logits_ts = jnp.where(_seen(low_t, row_t, col_s), logits_ts, MASK_VALUE)
        new_max_t = jnp.maximum(max_t, logits_ts.max(-1))
        weight_ts = arithmetic.exp2(
            arithmetic.times_plus(logits_ts, scale2, (-scale2 * new_max_t)[:, None])
        )
        alpha_t = arithmetic.exp2((max_t - new_max_t) * scale2)
        acc_tH = _accumulated(acc_tH, weight_ts, v_sH, alpha_t)
        return acc_tH, new_max_t, sum_t * alpha_t + weight_ts.sum(-1)

    # The softmax starts with the sink, whose value is zero; without a sink its logit is MASK_VALUE.
    sink_t = jnp.full((t,), sink_ref[0])
    blank = _zeros(q_tH, t), sink_t, jnp.where(sink_t > MASK_VALUE / 2, 1.0, 0.0)
    acc_tH, max_t, sum_t = _over_key_blocks(_blocks(tiling, i, start_ref, highest_ref), body, blank)
    # Terms of masked keys are multiplied by alpha = 0 at the first visible key; padding sees none.
    sees_t = low_t <= row_t
    sum_t = jnp.where(sees_t, sum_t, 1.0)
    _store(out_ref, (jnp.where(sees_t[:, None], x / sum_t[:, None], 0.0) for x in acc_tH))
    lse2_ref[...] = jnp.where(sees_t, max_t * scale2 + jnp.log2(sum_t), 0.0)


def dq_kernel(
    scale,
    tiling,
    arithmetic,
    q_ref,
    k_ref,
    v_ref,
    d_out_ref,
    lse2_ref,
    delta_ref,
    low_ref,
    start_ref,
    highest_ref,
    bias_ref,
    d_q_ref,
    d_slope_ref,
):
    """Writes d_q_tH of one block of queries, and each row's part of the gradient of the slope."""
    t, s, scale2 = tiling.q_block, tiling.k_block, scale * LOG2E
    i = pl.num_programs(0) - 1 - pl.program_id(0)
    row_t, low_t = i * t + jnp.arange(t), low_ref[...]
    q_tH, d_out_tH, lse2_t, delta_t = _rows(q_ref), _rows(d_out_ref), lse2_ref[...], delta_ref[...]

    def body(masked, j, carry):
        d_q_tH, d_slope_t = carry
        k_sH, v_sH = (_rows(ref, pl.ds(j * s, s)) for ref in (k_ref, v_ref))
        col_s = j * s + jnp.arange(s)
        logits_ts = _biased(arithmetic, _dots(q_tH, k_sH), bias_ref, row_t[:, None], col_s[None, :])
        weight_ts = arithmetic.exp2(arithmetic.times_plus(logits_ts, scale2, -lse2_t[:, None]))
        d_logits_ts = weight_ts * (_dots(d_out_tH, v_sH) - delta_t[:, None])
        if masked:  # masked last, because NaN * 0 is NaN
            d_logits_ts = jnp.where(_seen(low_t, row_t, col_s), d_logits_ts, 0.0)
        negative_distance_ts = _negative_distance(row_t[:, None], col_s[None, :])
        return _accumulated(d_q_tH, d_logits_ts, k_sH), d_slope_t + (
            d_logits_ts * negative_distance_ts
        ).sum(-1)

    blank = _zeros(q_tH, t), jnp.zeros((t,), jnp.float32)
    d_q_tH, d_slope_t = _over_key_blocks(_blocks(tiling, i, start_ref, highest_ref), body, blank)
    _store(d_q_ref, (x * scale for x in d_q_tH))
    d_slope_ref[...] = d_slope_t


def dkv_kernel(
    scale,
    tiling,
    arithmetic,
    q_ref,
    k_ref,
    v_ref,
    d_out_ref,
    lse2_ref,
    delta_ref,
    low_ref,
    free_ref,
    end_ref,
    bias_ref,
    d_k_ref,
    d_v_ref,
):
    """Writes d_k_sH and d_v_sH of one block of keys, for one query head."""
    t, s, scale2 = tiling.q_block, tiling.k_block, scale * LOG2E
    j = pl.program_id(0)
    col_s = j * s + jnp.arange(s)
    k_sH, v_sH = _rows(k_ref), _rows(v_ref)

    def body(masked, i, carry):  # tiles are transposed here: keys by queries
        d_k_sH, d_v_sH = carry
        rows = pl.ds(i * t, t)
        q_tH, d_out_tH = _rows(q_ref, rows), _rows(d_out_ref, rows)
        row_t = i * t + jnp.arange(t)
        logits_st = _biased(arithmetic, _dots(k_sH, q_tH), bias_ref, row_t[None, :], col_s[:, None])
        weight_st = arithmetic.exp2(
            arithmetic.times_plus(logits_st, scale2, -lse2_ref[rows][None, :])
        )
        if masked:
            seen_st = _seen(low_ref[rows], row_t, col_s).T
            weight_st = jnp.where(seen_st, weight_st, 0.0)
        d_v_sH = _accumulated(d_v_sH, weight_st, d_out_tH)
        d_logits_st = weight_st * (_dots(v_sH, d_out_tH) - delta_ref[rows][None, :])
        if masked:  # masked again, because NaN * 0 is NaN
            d_logits_st = jnp.where(seen_st, d_logits_st, 0.0)
        return _accumulated(d_k_sH, d_logits_st, q_tH), d_v_sH

    first, end = j * s // t, end_ref[0]
    whole = jnp.clip(((j + 1) * s + t - 1) // t, first, jnp.maximum(end, first))
    free = jnp.clip(free_ref[0], whole, jnp.maximum(end, whole))
    blank = _zeros(k_sH, s), _zeros(k_sH, s)
    d_k_sH, d_v_sH = _over_key_blocks((first, whole, free, end), body, blank)
    _store(d_k_ref, (x * scale for x in d_k_sH))
    _store(d_v_ref, d_v_sH)
