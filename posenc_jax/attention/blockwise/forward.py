"""Walking key blocks forward: the loop that blockwise and ring attention are made of; its way back is in `backward`.

Tiles are worked on one after another, but on a GPU, where one alone fills neither the device nor the time that
starting a kernel takes: many go side by side there (`BlockwiseConfig.lanes`). Each walks its own key blocks, and those side by
side are of one head and of neighbouring queries as far as there are such, so that they end together.
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
    TokenPositions,
    dot,
    upper_half_end,
    visible_blocks,
)
from posenc_jax.attention.dense import MASK_VALUE
from posenc_jax.encodings.base import Params


class SoftmaxState(NamedTuple):
    """What rows have found among the keys they have met, float32; a row that has found nothing has lse NEVER."""

    out_BNTH: jax.Array
    lse_BNT: jax.Array


def tail_mass_table(config: BlockwiseConfig, params: Params) -> tuple[jax.Array | None] | None:
    """Returns (table_NE,) for `cutoff.tail_bounds`; None where nothing can be left out."""
    if not config.epsilon or not cutoff.has_tail_bound(config.layer, params):
        return None
    return (cutoff.log_tail_mass(config.layer, params, config.longest),)


def initial_state(q_xTH: jax.Array, v_xSH: jax.Array) -> SoftmaxState:
    """Returns what rows of these queries have found before they met a key of these values."""
    rows = q_xTH.shape[:-1]
    blank = jnp.zeros((*rows, v_xSH.shape[-1]), jnp.float32)
    return SoftmaxState(blank, jnp.full(rows, MASK_VALUE, jnp.float32))


def add_sink(softmax_state: SoftmaxState, sink_N: jax.Array | None) -> SoftmaxState:
    """Returns `initial_state` with the sinks of heads, logits of no key and no value, in the softmax sums."""
    if sink_N is None:
        return softmax_state
    lse_BNT = jnp.broadcast_to(
        sink_N.astype(jnp.float32)[None, :, None], softmax_state.lse_BNT.shape
    )
    return softmax_state._replace(lse_BNT=lse_BNT)


def sink_gradient(
    sink_N: jax.Array | None, lse_BNT: jax.Array, delta_BNT: jax.Array
) -> jax.Array | None:
    """Returns d_sink_N, unless None: a sink's weight times what its value, zero, lacks of the result's gradient.

    Args:
      lse_BNT: over all keys and the sink. delta_BNT: the sum of d_out * out over H.
    """
    if sink_N is None:
        return None
    return -(jnp.exp(sink_N[None, :, None] - lse_BNT) * delta_BNT).sum((0, 2))


def finite_lse(lse_BNT: jax.Array) -> jax.Array:
    """Returns lse_BNT with zeros for blind rows, so that exp(NEVER - lse) is zero for them too."""
    return jnp.where(lse_BNT > MASK_VALUE / 2, lse_BNT, 0.0)


def blockwise_forward(
    config: BlockwiseConfig,
    operands: Operands,
    positions: TokenPositions,
    tail_table: tuple | None,
    softmax_state: SoftmaxState | None = None,
) -> tuple[SoftmaxState, jax.Array]:
    """Returns what rows have found after these keys as well, and stop_BNI: the first key block that block I read.

    Args:
      tail_table: from `tail_mass_table`. softmax_state: among other keys before, if any; they count in what may be left out here.
    """
    s = config.k_block
    sight = *visible_blocks(config, positions), upper_half_end(config, positions)
    tail = None
    if tail_table is not None:
        tail = cutoff.tail_bounds(
            *tail_table, config.longest, operands.k_BKSH, operands.k_cum_log_forget_BSN, *positions[:4], s
        )  # fmt: skip
    rows = functools.partial(_rows, config, operands, positions, sight, tail)
    counts = config.tiles(operands)
    if config.lanes > 1:

        def one(index):
            *news, j = rows(Tile(config, operands, positions, index), softmax_state)
            return *news, jnp.full((config.tile_heads, 1), j)

        done = map_lanes(config.lanes, counts, (1, 2, 0), one)
        out_BNTH, lse_BNT, stop_BNI = map(merge_tiles, done)
        return SoftmaxState(out_BNTH, lse_BNT), stop_BNI

    def task(index, state):
        (out_BNTH, lse_BNT), stop_BNI = state
        tile = Tile(config, operands, positions, index)
        out_GTH, lse_GT, j = rows(
            tile, None if softmax_state is None else SoftmaxState(out_BNTH, lse_BNT)
        )
        at = (tile.b, tile.n, tile.i * config.q_block)
        news = SoftmaxState(
            lax.dynamic_update_slice(out_BNTH, out_GTH[None], (*at, 0)),
            lax.dynamic_update_slice(lse_BNT, lse_GT[None], at),
        )
        stop_111 = jnp.full((1, config.tile_heads, 1), j)
        return news, lax.dynamic_update_slice(stop_BNI, stop_111, (tile.b, tile.n, tile.i))

    B, N = operands.q_BNTH.shape[:2]
    blank_BNI = jnp.zeros((B, N, counts[2]), jnp.int32)
    start = (
        initial_state(operands.q_BNTH, operands.v_BKSH) if softmax_state is None else softmax_state
    )
    return lax.fori_loop(0, math.prod(counts), task, (start, blank_BNI))


def _rows(
    config: BlockwiseConfig,
    operands: Operands,
    positions: TokenPositions,
    sight,
    tail,
    tile: Tile,
    softmax_state: SoftmaxState | None,
):
    """Returns what a tile's rows have found in the end, out_GTH and lse_GT, and the first key block they read."""
    s = config.k_block
    of = (jnp.min, jnp.max, jnp.max)
    first, end, whole = (
        x if x is None else config.widest(x, tile.head, f)[tile.b, tile.i]
        for x, f in zip(sight, of, strict=True)
    )
    q_GTH = tile.queries(operands.q_BNTH)
    q_norm_GT = jnp.sqrt((q_GTH**2).sum(-1)) / operands.root_H
    q_pos_T, q_seg_T = tile.q_row(positions.q_pos_BT), tile.q_row(positions.q_seg_BT)
    cum_log_forget_GT = (
        None
        if operands.q_cum_log_forget_BTN is None
        else tile.cum_log_forget(tile.q_row(operands.q_cum_log_forget_BTN))
    )

    def more(j, lse_GT):
        """How many blocks to read next: those that may matter for all that is known now."""
        count = jnp.int32(0)
        for before in reversed(range(config.at_once)):
            matters = j - before > first
            if tail is not None:
                at = jnp.maximum(j - before, 0)
                matters &= cutoff.exceeds_epsilon(
                    tail, tile.b, tile.head, tile.kv_G, at, q_norm_GT, q_pos_T, q_seg_T, cum_log_forget_GT,
                    lse_GT, at * s, config.epsilon,
                ).any()  # fmt: skip
            count = jnp.where((count == 0) & matters, before + 1, count)
        return count

    def read(blocks, carry):
        j, acc_GTH, m_GT, l_GT, _ = carry
        j = j - blocks
        k_GSH, v_GSH = (tile.keys(x, j, blocks) for x in (operands.k_BKSH, operands.v_BKSH))
        logits_GTS = tile.logits(j, blocks)(tile.content(q_GTH, k_GSH), *tile.learned(j, blocks))
        new_m_GT = jnp.maximum(m_GT, logits_GTS.max(-1))
        weight_GTS = jnp.exp(logits_GTS - new_m_GT[..., None])
        alpha_GT = jnp.exp(m_GT - new_m_GT)
        l_GT = l_GT * alpha_GT + weight_GTS.sum(-1)
        acc_GTH = acc_GTH * alpha_GT[..., None] + dot(weight_GTS, v_GSH, 2, 1)
        return j, acc_GTH, new_m_GT, l_GT, more(j, new_m_GT + jnp.log(l_GT))

    def read_diagonal(carry):
        """Two blocks, of which the upper half of the rows does not see the later one."""
        j, acc_GTH, m_GT, l_GT, _ = carry
        j, half, lower = j - 2, config.q_block // 2, tile.lower()

        def below(x_GTx, y_GTx):
            return jnp.concatenate([x_GTx[:, :half], y_GTx], axis=1)

        (k_GSH, v_GSH), (near_k_GSH, near_v_GSH) = (
            [tile.keys(x, j + n) for x in (operands.k_BKSH, operands.v_BKSH)] for n in (0, 1)
        )
        logits_GTS = tile.logits(j)(tile.content(q_GTH, k_GSH), *tile.learned(j))
        near_GTS = lower.logits(j + 1)(
            lower.content(q_GTH[:, half:], near_k_GSH), *lower.learned(j + 1)
        )
        most_GT = logits_GTS.max(-1)
        new_m_GT = jnp.maximum(
            m_GT, below(most_GT, jnp.maximum(most_GT[:, half:], near_GTS.max(-1)))
        )
        weight_GTS = jnp.exp(logits_GTS - new_m_GT[..., None])
        near_GTS = jnp.exp(near_GTS - new_m_GT[:, half:, None])
        alpha_GT = jnp.exp(m_GT - new_m_GT)
        mass_GT = weight_GTS.sum(-1)
        l_GT = l_GT * alpha_GT + below(mass_GT, mass_GT[:, half:] + near_GTS.sum(-1))
        found_GTH = dot(weight_GTS, v_GSH, 2, 1)
        found_GTH = below(found_GTH, found_GTH[:, half:] + dot(near_GTS, near_v_GSH, 2, 1))
        acc_GTH = acc_GTH * alpha_GT[..., None] + found_GTH
        return j, acc_GTH, new_m_GT, l_GT, more(j, new_m_GT + jnp.log(l_GT))

    reads = [functools.partial(read, n) for n in range(1, config.at_once + 1)]

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
    if whole is not None and config.at_once == 2:
        reads.append(read_diagonal)
        count = jnp.where((count == 2) & (whole == end - 1), 3, count)
    carry = (end, acc_GTH, m_GT, l_GT, count)
    j, acc_GTH, m_GT, l_GT, _ = lax.while_loop(lambda carry: carry[-1] > 0, step, carry)
    # A row that saw nothing has weight exp(NEVER - NEVER) all over, or no sum at all.
    sees_GT = m_GT > MASK_VALUE / 2
    l_GT = jnp.where(sees_GT, l_GT, 1.0)
    out_GTH = jnp.where(sees_GT[..., None], acc_GTH / l_GT[..., None], 0.0)
    return out_GTH, jnp.where(sees_GT, m_GT + jnp.log(l_GT), MASK_VALUE), j


def map_lanes(lanes: int, counts: tuple[int, ...], order: tuple[int, ...], work: Callable):
    """Returns what `work` returns of every index below prod(counts), with dims `counts` in front.

    Args:
      lanes: how many indices are worked on at a time, at most. counts: sizes of what an index stands for,
        the last one running fastest. order: dims of counts from the slowest to the fastest in which work goes on.
    """
    total = math.prod(counts)
    rounds = -(-total // lanes)
    width = -(-total // rounds)
    index = np.arange(total).reshape(counts).transpose(order).ravel()
    index_RW = np.pad(index, (0, rounds * width - total), mode="edge").reshape(rounds, width)
    done = lax.map(jax.vmap(work), jnp.asarray(index_RW))

    def placed(x_RWx):
        rest = x_RWx.shape[2:]
        x = x_RWx.reshape(rounds * width, *rest)[:total]
        x = x.reshape(*(counts[d] for d in order), *rest)
        return jnp.moveaxis(x, range(len(order)), order)

    return jax.tree.map(placed, done)


def merge_tiles(x_BMXGTx: jax.Array) -> jax.Array:
    """Returns x_BNTx of tiles side by side: of M times G heads and X times T rows."""
    B, M, X, G, T, *rest = x_BMXGTx.shape
    return x_BMXGTx.swapaxes(2, 3).reshape(B, M * G, X * T, *rest)
