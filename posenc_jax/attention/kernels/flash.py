"""FlashAttention-2 (Dao 2023) for NVIDIA GPUs, with a bias and a cut-off in the kernel.

For fixed biases of distance; queries and keys are the same tokens in the same slots (`aligned`).
The query at slot r sees the key at slot c if low[r] <= c <= r, where low[r] is the start of its
document or of the head's window (X lows: one for all heads, or one for each head). A block of
queries starts at the first key block that can change the result of any of its rows. For a linear
bias,

    |q_r| |k_c| / sqrt(H) - m (r - c)  over all c with r - c >= W  weigh less than epsilon exp(q_r .
    k_r / sqrt(H))

once m W >= |q_r| max |k| / sqrt(H) - q_r . k_r / sqrt(H) - ln epsilon - ln(1 - e^-m). A query
always sees its own key, so this is at most epsilon of the row's softmax sum. Norms and own logits
are taken per block, in the graph.

The programs (`flash_programs`) are written in Pallas for Triton: logits to base 2, one program per
tile of the result. Dims of blocks as in `tiles`: I of queries, J of keys.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from posenc_jax.attention.blockwise.cutoff import EXACT_EPSILON, ROUNDING, STRIDE
from posenc_jax.attention.kernels.flash_programs import (
    COLUMN_MULTIPLE,
    LOG2E,
    MASK_VALUE,
    Arithmetic,
    TileConfig,
    TileConfigs,
    dkv_kernel,
    dq_kernel,
    forward_kernel,
    tile_configs,
)
from posenc_jax.attention.kernels.remat_names import name_residuals

MAX_TOKENS = 2**24  # slots are float32 in the kernel, exact up to here
_STRIP = 128  # slots per block of the running maximum


class FlashConfig(NamedTuple):
    """The static part: the scale of the logits and the tiles."""

    scale: float
    tiles: TileConfigs


class BiasTable(NamedTuple):
    """A bias as a table of distances, and its tail masses, float32.

    Attributes:
      bias_NZ: the bias at every distance up to the length of a row. table_NE: from
        `cutoff.log_tail_mass`.
    """

    bias_NZ: jax.Array
    table_NE: jax.Array


def flash_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    bias: jax.Array | BiasTable,
    seg_BT: jax.Array,
    window: int | jax.Array | None = None,
    *,
    sink_N: jax.Array | None = None,
    epsilon: float = EXACT_EPSILON,
    tiles: TileConfigs | None = None,
) -> jax.Array:
    """Returns out_BTNH: causal softmax(q k / sqrt(H) + bias) v, documents apart; padding rows are
    zero.

    Args:
      q_BTNH, k_BTKH, v_BTKH: rotated, of one dtype; K divides N. H is the head dim of v; if q and k
        have more columns, v is padded to their number.
      bias: slope_N, float32, of a bias -slope * distance, with a gradient; or a `BiasTable`,
        without one.
      seg_BT: documents, each in consecutive slots; 0 is padding.
      window: one number for all heads, or window_N; keys at this distance or beyond are masked.
      sink_N: as in `OptionalInputs`.
      epsilon: largest share of a row's softmax sum that may be left out.
      tiles: None: the tiles that were measured to be fast.

    Raises:
      ValueError: more than `MAX_TOKENS` tokens.
    """
    T, H = q_BTNH.shape[1], v_BTKH.shape[3]
    if T > MAX_TOKENS:
        raise ValueError(
            f"{T} tokens: the flash kernel counts slots in float32, which is exact up to "
            f"{MAX_TOKENS}"
        )
    columns = q_BTNH.shape[3] + -q_BTNH.shape[3] % COLUMN_MULTIPLE
    tiles = tiles or tile_configs(columns)
    behind = -T % max(_STRIP, *(size for tiling in tiles for size in tiling[:2]))
    q_BTNH, k_BTKH, v_BTKH = (
        jnp.pad(x, ((0, 0), (0, behind), (0, 0), (0, columns - x.shape[3])))
        for x in (q_BTNH, k_BTKH, v_BTKH)
    )
    low_BXT = first_visible_slots(jnp.pad(seg_BT, ((0, 0), (0, behind))), window)
    how = FlashConfig(1 / math.sqrt(H), tiles)
    if isinstance(bias, BiasTable):
        bias_NZ = jnp.pad(bias.bias_NZ, ((0, 0), (0, behind)))
    else:
        bias_NZ = bias[:, None]
    start_BNI = lax.stop_gradient(
        first_relevant_slots(
            q_BTNH, k_BTKH, bias, low_BXT, epsilon, how.scale, tiles.forward.q_block
        )
    )
    bias_NZ = bias_NZ.astype(jnp.float32)
    out_BTNH = _attention(how, q_BTNH, k_BTKH, v_BTKH, bias_NZ, sink_N, low_BXT, start_BNI)
    return out_BTNH[:, :T, :, :H]


def first_visible_slots(seg_BT: jax.Array, window: int | jax.Array | None) -> jax.Array:
    """Returns low_BXT, the first slot that each row sees; for padding the slot after it, so that it
    sees none.

    X is 1, or N for window_N.
    """
    slot_1T = jnp.arange(seg_BT.shape[1], dtype=jnp.int32)[None]
    begins_BT = jnp.pad(seg_BT[:, 1:] != seg_BT[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    low_BXT, slot_11T = _running_max(jnp.where(begins_BT, slot_1T, 0))[:, None], slot_1T[None]
    if window is not None:
        window_1X1 = jnp.reshape(jnp.asarray(window, jnp.int32), (1, -1, 1))
        low_BXT = jnp.maximum(low_BXT, slot_11T + 1 - window_1X1)
    return jnp.where((seg_BT == 0)[:, None], slot_11T + 1, low_BXT)


def _running_max(x_BT: jax.Array) -> jax.Array:
    """Returns the running maximum of nonnegative numbers, first inside blocks and then over blocks.

    On a GPU this takes a few operations; `lax.cummax` takes dozens, which are slower than
    attention.
    """

    def up_to(x_BXx):
        length = x_BXx.shape[-1]
        upto = jnp.tril(jnp.ones((length, length), bool))
        upto = upto.reshape((1,) * (x_BXx.ndim - 1) + upto.shape)
        return jnp.where(upto, x_BXx[..., None, :], 0).max(-1)

    x_BXx = x_BT.reshape(len(x_BT), -1, _STRIP)
    inside_BXx, ends_BX = up_to(x_BXx), up_to(x_BXx.max(-1))
    earlier_BX1 = jnp.pad(ends_BX[:, :-1], ((0, 0), (1, 0)))[..., None]
    return jnp.maximum(inside_BXx, earlier_BX1).reshape(x_BT.shape)


def first_relevant_slots(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    bias: jax.Array | BiasTable,
    low_BXT: jax.Array,
    epsilon: float,
    scale: float,
    block: int,
) -> jax.Array:
    """Returns start_BNI, the first slot that can change a result of query block I."""
    B, T, N, _ = q_BTNH.shape
    blocks = T // block
    q, k = q_BTNH.astype(jnp.float32), k_BTKH.astype(jnp.float32)
    sees_BT1 = (low_BXT[:, 0] <= jnp.arange(T)[None])[
        ..., None
    ]  # False for padding; every window includes the own key

    def by_block(x_BTx, of):
        return of(x_BTx.reshape(B, blocks, block, -1), axis=2)

    reach_BIN = jnp.sqrt(by_block(jnp.where(sees_BT1, (q**2).sum(-1), 0.0), jnp.max)) * scale
    norm_BIK = jnp.sqrt(by_block((k**2).sum(-1), jnp.max))
    before_1II1 = jnp.tril(jnp.ones((blocks, blocks), bool))[None, ..., None]
    norm_BIK = jnp.where(before_1II1, norm_BIK[:, None], 0.0).max(2)
    own_BTN = (q * jnp.repeat(k, N // k.shape[2], axis=2)).sum(-1) * scale
    own_BIN = by_block(jnp.where(sees_BT1, own_BTN, jnp.inf), jnp.min)
    most_BIN = reach_BIN * jnp.repeat(norm_BIK, N // k.shape[2], axis=2)
    lead_BIN = most_BIN - own_BIN + ROUNDING - (math.log(epsilon) if epsilon else -jnp.inf)
    window_BIN = _windows(lead_BIN, bias)
    first_1I1 = (jnp.arange(blocks) * block)[None, :, None].astype(jnp.float32)
    # A NaN must reach the result, so it gives no cut-off. Rounding outwards costs one slot.
    start_BIN = jnp.where(window_BIN < first_1I1, jnp.floor(first_1I1 - window_BIN) - 1, 0.0)
    start_BIN = jnp.minimum(start_BIN, first_1I1)  # a block of padding needs no key
    lowest_BIX = by_block(low_BXT.swapaxes(1, 2), jnp.min)
    start_BIN = jnp.maximum(start_BIN.astype(jnp.int32), jnp.minimum(lowest_BIX, T - 1))
    return jnp.maximum(start_BIN, 0).swapaxes(1, 2)


def _windows(lead_BIN: jax.Array, bias: jax.Array | BiasTable) -> jax.Array:
    """Returns window_BIN: keys beyond it that lead by lead_BIN nats weigh less than 1 in all."""
    if isinstance(bias, BiasTable):
        fall_NE = bias.table_NE - bias.bias_NZ[:, :1]  # relative to the bias of the own key
        little_BINE = lead_BIN[..., None] + fall_NE[None, None] <= 0  # never where there is a NaN
        return STRIDE * (~little_BINE).sum(-1).astype(jnp.float32)
    slope_11N = bias[None, None]
    lead_BIN = lead_BIN - jnp.log(-jnp.expm1(-slope_11N))
    return jnp.where(slope_11N > 0, lead_BIN / slope_11N, jnp.inf)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(how, q_BTNH, k_BTKH, v_BTKH, bias_NZ, sink_N, low_BXT, start_BNI):
    return _forward(how, q_BTNH, k_BTKH, v_BTKH, bias_NZ, sink_N, low_BXT, start_BNI)[0]


def _forward(how, q_BTNH, k_BTKH, v_BTKH, bias_NZ, sink_N, low_BXT, start_BNI):
    tiling = how.tiles.forward
    highest_BXI = _highest(low_BXT, tiling.q_block)
    B, T, N, H = q_BTNH.shape
    specs = _BlockSpecs(tiling, T, H, N // k_BTKH.shape[2], bias_NZ.shape[1], low_BXT.shape[1])
    sink_N1 = jnp.full((N, 1), MASK_VALUE) if sink_N is None else sink_N[:, None] / how.scale
    given = [specs.query, specs.keys, specs.keys, specs.low, specs.of_block]
    given += [specs.highest, specs.bias, specs.sink]
    of_out = jax.ShapeDtypeStruct((B, T, N, H), v_BTKH.dtype)
    of_lse2 = jax.ShapeDtypeStruct((B, N, T), jnp.float32)
    made, grid = [(specs.query, of_out), (specs.row, of_lse2)], (T // tiling.q_block, B, N)
    run = _call(functools.partial(forward_kernel, how.scale), grid, tiling, given, made)
    out_BTNH, lse2_BNT = run(
        q_BTNH, k_BTKH, v_BTKH, low_BXT, start_BNI, highest_BXI, bias_NZ / how.scale, sink_N1
    )
    out_BTNH, lse2_BNT, start_BNI = name_residuals((out_BTNH, lse2_BNT, start_BNI))
    inputs = (q_BTNH, k_BTKH, v_BTKH, bias_NZ, sink_N, low_BXT)
    return out_BTNH, (*inputs, out_BTNH, lse2_BNT, start_BNI)


def _highest(low_BXT, block):
    """Returns highest_BXI, the first slot that all rows of a block see; it never decreases."""
    return low_BXT.reshape(*low_BXT.shape[:2], -1, block).max(-1)


class _BlockSpecs:
    """Block specs of programs (r, b, n): query block last - r of row b and head n."""

    def __init__(self, tiling: TileConfig, T: int, H: int, queries_per_kv: int, Z: int, X: int):
        t, last = tiling.q_block, T // tiling.q_block - 1
        own = _own(X)
        self.query = pl.BlockSpec((None, t, None, H), lambda r, b, n: (b, last - r, n, 0))
        self.keys = pl.BlockSpec((None, T, None, H), lambda r, b, n: (b, 0, n // queries_per_kv, 0))
        self.low = pl.BlockSpec((None, None, t), lambda r, b, n: (b, own(n), last - r))
        self.row = pl.BlockSpec((None, None, t), lambda r, b, n: (b, n, last - r))
        self.of_block = pl.BlockSpec((None, None, 1), lambda r, b, n: (b, n, last - r))
        self.highest = pl.BlockSpec((None, None, 1), lambda r, b, n: (b, own(n), last - r))
        self.bias = pl.BlockSpec((None, Z), lambda r, b, n: (n, 0))
        self.sink = pl.BlockSpec((None, 1), lambda r, b, n: (n, 0))


def _own(X: int):
    """Returns the index of head n in an array of X heads: n, or 0 where X is 1."""
    return (lambda n: n) if X > 1 else (lambda n: 0)


def _call(kernel, grid, tiling: TileConfig, in_specs, outs):
    """Returns the kernel as a function of arrays; on a CPU it is emulated."""

    def made(interpret):
        return pl.pallas_call(
            functools.partial(kernel, tiling, Arithmetic(interpret)),
            grid=grid,
            in_specs=in_specs,
            out_specs=[spec for spec, _ in outs],
            out_shape=[shape for _, shape in outs],
            interpret=interpret,
            compiler_params=triton.CompilerParams(num_warps=tiling.warps, num_stages=tiling.stages),
        )

    def run(*arrays):
        return lax.platform_dependent(*arrays, cpu=made(True), default=made(False))

    return run


def _backward(how, residuals, d_out_BTNH):
    q_BTNH, k_BTKH, v_BTKH, bias_NZ, sink_N, low_BXT, out_BTNH, lse2_BNT, start_BNI = residuals
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    d_out_BTNH = d_out_BTNH.astype(v_BTKH.dtype)
    delta_BNT = (
        (d_out_BTNH.astype(jnp.float32) * out_BTNH.astype(jnp.float32)).sum(-1).swapaxes(1, 2)
    )

    tiling, block = how.tiles.dq, how.tiles.forward.q_block
    t = tiling.q_block
    specs = _BlockSpecs(tiling, T, H, N // K, bias_NZ.shape[1], low_BXT.shape[1])
    begin_BNI = _coarser(start_BNI, block, t, T)
    of_query, of_row = specs.query, specs.row
    given = [of_query, specs.keys, specs.keys, of_query, of_row, of_row]
    given += [specs.low, specs.of_block, specs.highest, specs.bias]
    of_rows = jax.ShapeDtypeStruct((B, N, T), jnp.float32)
    made = [(of_query, jax.ShapeDtypeStruct(q_BTNH.shape, q_BTNH.dtype)), (of_row, of_rows)]
    arrays = (q_BTNH, k_BTKH, v_BTKH, d_out_BTNH, lse2_BNT, delta_BNT, low_BXT)
    scaled_NZ = bias_NZ / how.scale
    run = _call(functools.partial(dq_kernel, how.scale), (T // t, B, N), tiling, given, made)
    d_q_BTNH, d_slope_BNT = run(*arrays, begin_BNI, _highest(low_BXT, t), scaled_NZ)

    tiling = how.tiles.dkv
    t, s = tiling[:2]
    end_BNJ = _readers(_coarser(start_BNI, block, t, T), t, s, T)
    J, own = T // s, _own(low_BXT.shape[1])
    highest_BX1I = _highest(low_BXT, t)[:, :, None]
    free_BXJ = (highest_BX1I <= s * jnp.arange(J)[None, None, :, None]).sum(-1).astype(jnp.int32)
    key = pl.BlockSpec((None, s, None, H), lambda j, b, n: (b, j, n // (N // K), 0))
    mine = pl.BlockSpec((None, s, None, H), lambda j, b, n: (b, j, n, 0))
    queries = pl.BlockSpec((None, T, None, H), lambda j, b, n: (b, 0, n, 0))
    rows = pl.BlockSpec((None, None, T), lambda j, b, n: (b, n, 0))
    low = pl.BlockSpec((None, None, T), lambda j, b, n: (b, own(n), 0))
    of_block = pl.BlockSpec((None, None, 1), lambda j, b, n: (b, n, j))
    free = pl.BlockSpec((None, None, 1), lambda j, b, n: (b, own(n), j))
    bias = pl.BlockSpec((None, bias_NZ.shape[1]), lambda j, b, n: (n, 0))
    of_keys = jax.ShapeDtypeStruct((B, T, N, H), k_BTKH.dtype if K == N else jnp.float32)
    given = [queries, key, key, queries, rows, rows, low, free, of_block, bias]
    made = [(mine, of_keys), (mine, of_keys)]
    run = _call(functools.partial(dkv_kernel, how.scale), (J, B, N), tiling, given, made)
    d_k_BTNH, d_v_BTNH = run(*arrays, free_BXJ, end_BNJ, scaled_NZ)
    d_k_BTKH, d_v_BTKH = (
        x.reshape(B, T, K, N // K, H).sum(3).astype(k_BTKH.dtype) for x in (d_k_BTNH, d_v_BTNH)
    )
    d_bias_NZ = d_slope_BNT.sum((0, 2))[:, None] if bias_NZ.shape[1] == 1 else None
    d_sink_N = None
    if sink_N is not None:
        # A weight is at most one. Padding has no softmax sum, but its delta is zero.
        weight_BNT = jnp.exp2(jnp.minimum(sink_N[None, :, None] * LOG2E - lse2_BNT, 0.0))
        d_sink_N = -(weight_BNT * delta_BNT).sum((0, 2))
    return d_q_BTNH, d_k_BTKH, d_v_BTKH, d_bias_NZ, d_sink_N, None, None


def _coarser(start_BNI, block, other, length):
    """Returns the starts for blocks of another size, a multiple or a divisor of `block`."""
    if other >= block:
        return start_BNI.reshape(*start_BNI.shape[:2], length // other, other // block).min(-1)
    return jnp.repeat(start_BNI, block // other, axis=2)


def _readers(start_BNI, t, s, length):
    """Returns end_BNJ: query blocks from this one on do not read key block J."""
    reads_BNJI = (start_BNI // s)[:, :, None, :] <= jnp.arange(length // s)[None, None, :, None]
    return jnp.where(
        reads_BNJI, (jnp.arange(length // t, dtype=jnp.int32) + 1)[None, None, None], 0
    ).max(-1)


_attention.defvjp(_forward, _backward)
