"""Forward pass of blockwise attention: online softmax (FlashAttention-2, Dao 2023, alg. 1).

Tiles run one after another on a CPU or TPU. On a GPU one tile is too small to fill the device, so
many run in parallel (`BlockwiseConfig.parallel_tiles`). Parallel tiles belong to one head and to
neighbouring queries where possible, so that they need about the same number of key blocks.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from posenc_jax.attention.blockwise import cutoff
from posenc_jax.attention.blockwise.tiles import (
    BlockwiseConfig,
    Operands,
    Tile,
    TokenSides,
    dot,
    earlier_half_end,
    visible_blocks,
)
from posenc_jax.attention.dense import MASK_VALUE
from posenc_jax.encodings.base import Params


class SoftmaxState(NamedTuple):
    """Online softmax of the keys read until now, float32.

    lse is MASK_VALUE for a query that has seen no key.
    """

    out_BNTH: jax.Array
    lse_BNT: jax.Array


def tail_mass_table(config: BlockwiseConfig, params: Params) -> tuple[jax.Array | None] | None:
    """Returns (table_NE,) for `cutoff.tail_bounds`; None where nothing can be left out."""
    if not config.epsilon or not cutoff.has_tail_bound(config.layer):
        return None
    return (cutoff.log_tail_mass(config.layer, params, config.cutoff_entries),)


def initial_state(q_xTH: jax.Array, v_xSH: jax.Array) -> SoftmaxState:
    """Returns the state before any key is read."""
    rows = q_xTH.shape[:-1]
    blank = jnp.zeros((*rows, v_xSH.shape[-1]), jnp.float32)
    return SoftmaxState(blank, jnp.full(rows, MASK_VALUE, jnp.float32))


def add_sink(softmax_state: SoftmaxState, sink_N: jax.Array | None) -> SoftmaxState:
    """Returns the initial state with the sink logits in the softmax sums."""
    if sink_N is None:
        return softmax_state
    lse_BNT = jnp.broadcast_to(
        sink_N.astype(jnp.float32)[None, :, None], softmax_state.lse_BNT.shape
    )
    return softmax_state._replace(lse_BNT=lse_BNT)


def sink_gradient(
    sink_N: jax.Array | None, lse_BNT: jax.Array, delta_BNT: jax.Array
) -> jax.Array | None:
    """Returns d_sink_N = -sum(weight of the sink * delta); None without sinks.

    Args:
      lse_BNT: over all keys and the sink. delta_BNT: the sum of d_out * out over H.
    """
    if sink_N is None:
        return None
    return -(jnp.exp(sink_N[None, :, None] - lse_BNT) * delta_BNT).sum((0, 2))


def finite_lse(lse_BNT: jax.Array) -> jax.Array:
    """Returns lse_BNT with 0 for queries that see no key, so that exp(MASK_VALUE - lse) is 0."""
    return jnp.where(lse_BNT > MASK_VALUE / 2, lse_BNT, 0.0)


def blockwise_forward(
    config: BlockwiseConfig,
    operands: Operands,
    sides: TokenSides,
    tail_table: tuple[jax.Array | None] | None,
    softmax_state: SoftmaxState | None = None,
) -> tuple[SoftmaxState, jax.Array]:
    """Returns the softmax state after these keys, and stop_BNI: the first key block that query
    block I read.

    Args:
      tail_table: from `tail_mass_table`.
      softmax_state: of the keys read before, on other devices of a ring; None: no keys were read
        before.
    """
    s = config.k_block
    block_range = *visible_blocks(config, sides), earlier_half_end(config, sides)
    tail = None
    if tail_table is not None:
        tail = cutoff.tail_bounds(
            *tail_table,
            config.cutoff_entries,
            operands.k_BKSH,
            sides.queries,
            sides.keys._replace(cum_log_forget_BTN=operands.k_cum_log_forget_BSN),
            s,
        )
    rows = functools.partial(_tile_rows, config, operands, sides, block_range, tail)
    counts = config.tile_counts(operands)
    if config.parallel_tiles > 1:

        def one(index):
            *state, j = rows(Tile(config, operands, sides, index), softmax_state)
            return *state, jnp.full((config.tile_heads, 1), j)

        done = map_in_parallel(config.parallel_tiles, counts, (1, 2, 0), one)
        out_BNTH, lse_BNT, stop_BNI = map(merge_tiles, done)
        return SoftmaxState(out_BNTH, lse_BNT), stop_BNI

    def task(index, state):
        (out_BNTH, lse_BNT), stop_BNI = state
        tile = Tile(config, operands, sides, index)
        out_GTH, lse_GT, j = rows(
            tile, None if softmax_state is None else SoftmaxState(out_BNTH, lse_BNT)
        )
        at = (tile.b, tile.n, tile.i * config.q_block)
        state = SoftmaxState(
            lax.dynamic_update_slice(out_BNTH, out_GTH[None], (*at, 0)),
            lax.dynamic_update_slice(lse_BNT, lse_GT[None], at),
        )
        stop_111 = jnp.full((1, config.tile_heads, 1), j)
        return state, lax.dynamic_update_slice(stop_BNI, stop_111, (tile.b, tile.n, tile.i))

    B, N = operands.q_BNTH.shape[:2]
    blank_BNI = jnp.zeros((B, N, counts[2]), jnp.int32)
    start = softmax_state or initial_state(operands.q_BNTH, operands.v_BKSH)
    return lax.fori_loop(0, math.prod(counts), task, (start, blank_BNI))


def _tile_rows(
    config: BlockwiseConfig,
    operands: Operands,
    sides: TokenSides,
    block_range,
    tail,
    tile: Tile,
    softmax_state: SoftmaxState | None,
):
    """Returns out_GTH and lse_GT of a tile's rows, and the first key block they read."""
    s = config.k_block
    reductions = (jnp.min, jnp.max, jnp.max)
    first, end, earlier_end = (
        x if x is None else config.over_windows(x, tile.head, reduce)[tile.b, tile.i]
        for x, reduce in zip(block_range, reductions, strict=True)
    )
    q_GTH = tile.queries(operands.q_BNTH)
    q_norm_GT = jnp.sqrt((q_GTH**2).sum(-1)) / operands.root_H
    cum_log_forget_GT = (
        None
        if operands.q_cum_log_forget_BTN is None
        else tile.cum_log_forget(tile.query_slice(operands.q_cum_log_forget_BTN))
    )
    query_rows = cutoff.QueryRows(
        q_norm_GT,
        tile.query_slice(sides.queries.pos_BT),
        tile.query_slice(sides.queries.seg_BT),
        cum_log_forget_GT,
    )

    def more(j, lse_GT):
        """Returns the number of key blocks to read next; 0: the rest cannot change the result."""
        count = jnp.int32(0)
        for before in reversed(range(config.at_once)):
            matters = j - before > first
            if tail is not None:
                at = jnp.maximum(j - before, 0)
                matters &= cutoff.exceeds_epsilon(
                    tail,
                    tile.b,
                    tile.head,
                    tile.kv_G,
                    at,
                    query_rows,
                    lse_GT,
                    at * s,
                    config.epsilon,
                ).any()
            count = jnp.where((count == 0) & matters, before + 1, count)
        return count

    def updated(carry, j, m_GT, mass_GT, sum_GTH):
        """Returns the carry with the maximum m, and with new weights and weighted values added."""
        _, acc_GTH, old_m_GT, l_GT, _ = carry
        alpha_GT = jnp.exp(old_m_GT - m_GT)
        l_GT = l_GT * alpha_GT + mass_GT
        return j, acc_GTH * alpha_GT[..., None] + sum_GTH, m_GT, l_GT, more(j, m_GT + jnp.log(l_GT))

    def read(blocks, carry):
        j = carry[0] - blocks
        k_GSH, v_GSH = (tile.keys(x, j, blocks) for x in (operands.k_BKSH, operands.v_BKSH))
        logits_GTS = tile.logits_function(j, blocks)(
            tile.content(q_GTH, k_GSH), *tile.logit_inputs(j, blocks)
        )
        m_GT = jnp.maximum(carry[2], logits_GTS.max(-1))
        weight_GTS = jnp.exp(logits_GTS - m_GT[..., None])
        return updated(carry, j, m_GT, weight_GTS.sum(-1), dot(weight_GTS, v_GSH, 2, 1))

    def read_diagonal(carry):
        """Reads two blocks; only the later half of the queries sees the second."""
        j, half, later = carry[0] - 2, config.q_block // 2, tile.later_half()

        def below(x_GTx, y_GTx):
            return jnp.concatenate([x_GTx[:, :half], y_GTx], axis=1)

        (k_GSH, v_GSH), (near_k_GSH, near_v_GSH) = (
            [tile.keys(x, j + n) for x in (operands.k_BKSH, operands.v_BKSH)] for n in (0, 1)
        )
        logits_GTS = tile.logits_function(j)(tile.content(q_GTH, k_GSH), *tile.logit_inputs(j))
        near_GTS = later.logits_function(j + 1)(
            later.content(q_GTH[:, half:], near_k_GSH), *later.logit_inputs(j + 1)
        )
        most_GT = logits_GTS.max(-1)
        most_GT = below(most_GT, jnp.maximum(most_GT[:, half:], near_GTS.max(-1)))
        m_GT = jnp.maximum(carry[2], most_GT)
        weight_GTS = jnp.exp(logits_GTS - m_GT[..., None])
        near_GTS = jnp.exp(near_GTS - m_GT[:, half:, None])
        mass_GT = weight_GTS.sum(-1)
        mass_GT = below(mass_GT, mass_GT[:, half:] + near_GTS.sum(-1))
        sum_GTH = dot(weight_GTS, v_GSH, 2, 1)
        sum_GTH = below(sum_GTH, sum_GTH[:, half:] + dot(near_GTS, near_v_GSH, 2, 1))
        return updated(carry, j, m_GT, mass_GT, sum_GTH)

    reads: list[Callable] = [functools.partial(read, n) for n in range(1, config.at_once + 1)]

    def step(carry):
        return lax.switch(carry[-1] - 1, reads, carry)

    before = (
        initial_state(q_GTH, operands.v_BKSH)
        if softmax_state is None
        else SoftmaxState(*map(tile.queries, softmax_state))
    )
    acc_GTH, m_GT = before
    l_GT = (m_GT > MASK_VALUE / 2).astype(jnp.float32)
    count = more(end, m_GT)
    if earlier_end is not None and end is not None and config.at_once == 2:
        reads.append(read_diagonal)
        count = jnp.where((count == 2) & (earlier_end == end - 1), 3, count)
    carry = (end, acc_GTH, m_GT, l_GT, count)
    j, acc_GTH, m_GT, l_GT, _ = lax.while_loop(lambda carry: carry[-1] > 0, step, carry)
    # A query that sees no key has weight exp(MASK_VALUE - MASK_VALUE) for every key, or an empty
    # sum.
    sees_GT = m_GT > MASK_VALUE / 2
    l_GT = jnp.where(sees_GT, l_GT, 1.0)
    out_GTH = jnp.where(sees_GT[..., None], acc_GTH / l_GT[..., None], 0.0)
    return out_GTH, jnp.where(sees_GT, m_GT + jnp.log(l_GT), MASK_VALUE), j


def map_in_parallel(most: int, counts: tuple[int, ...], order: tuple[int, ...], work: Callable):
    """Returns `work(index)` for every index below prod(counts); `counts` are the leading dims.

    Args:
      most: largest number of indices that run in parallel.
      counts: dims of the index, the last one fastest.
      order: dims of `counts` in the order of execution, from the slowest to the fastest.

    Dims: R rounds, one after another; W indices of a round, in parallel.
    """
    total = math.prod(counts)
    rounds = -(-total // most)
    width = -(-total // rounds)
    index = np.arange(total).reshape(counts).transpose(order).ravel()
    index_RW = np.pad(index, (0, rounds * width - total), mode="edge").reshape(rounds, width)
    results = lax.map(jax.vmap(work), jnp.asarray(index_RW))

    def reordered(x_RWx):
        rest = x_RWx.shape[2:]
        x = x_RWx.reshape(rounds * width, *rest)[:total]
        x = x.reshape(*(counts[d] for d in order), *rest)
        return jnp.moveaxis(x, range(len(order)), order)

    return jax.tree.map(reordered, results)


def merge_tiles(x_BMXGTx: jax.Array) -> jax.Array:
    """Returns x_BNTx of tiles, with N = M * G heads and X * T rows."""
    B, M, X, G, T, *rest = x_BMXGTx.shape
    return x_BMXGTx.swapaxes(2, 3).reshape(B, M * G, X * T, *rest)
