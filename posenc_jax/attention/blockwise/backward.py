"""Backward pass of blockwise attention (FlashAttention-2, Dao 2023, alg. 2)."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from posenc_jax.attention.blockwise.forward import map_in_parallel, merge_tiles
from posenc_jax.attention.blockwise.tiles import (
    BlockwiseConfig,
    Operands,
    Tile,
    TokenSides,
    dot,
    earlier_half_end,
    visible_blocks,
)
from posenc_jax.encodings.base import Params


def blockwise_backward(
    config: BlockwiseConfig,
    operands: Operands,
    sides: TokenSides,
    rows: tuple,
    stop_BNI: jax.Array,
    grads: Operands,
) -> Operands:
    """Returns `grads`, float32, plus the gradients from these queries and keys.

    Args:
      rows: three arrays of the queries: d_out_BNTH; lse_BNT over all keys, from `finite_lse`;
        delta_BNT, the sum of d_out * out over H.
      stop_BNI: from `blockwise_forward` of the same keys.
    """
    _, end_XBI = visible_blocks(config, sides)
    earlier_end_XBI = earlier_half_end(config, sides)
    if config.parallel_tiles > 1:
        return _parallel_backward(config, operands, sides, rows, (stop_BNI, end_XBI), grads)

    def task(index, grads):
        tile = Tile(config, operands, sides, index)

        def step(tile, j, carry):
            q_GHT, d_out_GHT = (tile.queries(x).swapaxes(1, 2) for x in (operands.q_BNTH, rows[0]))
            d_q_GTH, grads = carry
            pair = _tile_gradients(operands, rows, tile, j)
            return d_q_GTH + dot(pair.d_content_GTS, pair.k_GSH, 2, 1), Operands(
                grads.q_BNTH,
                tile.add_to_keys(grads.k_BKSH, j, dot(q_GHT, pair.d_content_GTS, 2, 1)),
                tile.add_to_keys(grads.v_BKSH, j, dot(d_out_GHT, pair.weight_GTS, 2, 1)),
                jax.tree.map(jnp.add, grads.params, pair.d_params),
                tile.add_to_sequence(
                    grads.q_cum_log_forget_BTN, tile.i, pair.d_q_cum_log_forget_TN
                ),
                tile.add_to_sequence(grads.k_cum_log_forget_BSN, j, pair.d_k_cum_log_forget_SN),
            )

        stop = stop_BNI[tile.b, tile.n, tile.i]
        end = config.over_windows(end_XBI, tile.head, jnp.max)[tile.b, tile.i]
        d_q_GTH = tile.queries(grads.q_BNTH)
        if earlier_end_XBI is not None:
            later, half = tile.later_half(), config.q_block // 2
            earlier_end = config.over_windows(earlier_end_XBI, tile.head, jnp.max)[tile.b, tile.i]
            earlier_end = jnp.maximum(earlier_end, stop)
            d_later, grads = lax.fori_loop(
                earlier_end, end, functools.partial(step, later), (d_q_GTH[:, half:], grads)
            )
            d_q_GTH = jnp.concatenate([d_q_GTH[:, :half], d_later], 1)
            end = earlier_end
        d_q_GTH, grads = lax.fori_loop(stop, end, functools.partial(step, tile), (d_q_GTH, grads))
        at = (tile.b, tile.n, tile.i * config.q_block, 0)
        return grads._replace(q_BNTH=lax.dynamic_update_slice(grads.q_BNTH, d_q_GTH[None], at))

    grads = _keys_last(grads)
    return _keys_last(lax.fori_loop(0, math.prod(config.tile_counts(operands)), task, grads))


def _keys_last(grads: Operands) -> Operands:
    """Returns the gradients with the last two dims of keys and values swapped.

    XLA for CPU computes [H, T] times [T, S] three times as fast as [T, S] transposed times [T, H].
    In the first form only the small matrix is transposed, once per tile.
    """
    return grads._replace(k_BKSH=grads.k_BKSH.swapaxes(2, 3), v_BKSH=grads.v_BKSH.swapaxes(2, 3))


class _TileGradients(NamedTuple):
    """The gradients of one tile, before the products with queries and with the output gradient."""

    k_GSH: jax.Array
    weight_GTS: jax.Array
    d_content_GTS: jax.Array
    d_params: Params
    d_q_cum_log_forget_TN: jax.Array | None
    d_k_cum_log_forget_SN: jax.Array | None


def _tile_gradients(operands: Operands, rows: tuple, tile: Tile, j) -> _TileGradients:
    q_GTH = tile.queries(operands.q_BNTH)
    d_out_GTH, lse_GT, delta_GT = (tile.queries(x) for x in rows)
    k_GSH, v_GSH = tile.keys(operands.k_BKSH, j), tile.keys(operands.v_BKSH, j)
    logits_GTS, transpose = jax.vjp(
        tile.logits_function(j), tile.content(q_GTH, k_GSH), *tile.logit_inputs(j)
    )
    weight_GTS = jnp.exp(logits_GTS - lse_GT[..., None])
    d_logits_GTS = weight_GTS * (dot(d_out_GTH, v_GSH, 2, 2) - delta_GT[..., None])
    d_content_GTS, *d_learned = transpose(d_logits_GTS)
    return _TileGradients(k_GSH, weight_GTS, d_content_GTS / operands.root_H, *d_learned)


def _parallel_backward(
    config: BlockwiseConfig,
    operands: Operands,
    sides: TokenSides,
    rows: tuple,
    block_range: tuple,
    grads: Operands,
) -> Operands:
    """`blockwise_backward` with parallel tiles, in two passes: first dq per query block, then
    dk and dv per key block.

    In one pass over query blocks, parallel tiles would add to the same keys in an order that is not
    fixed.
    """
    stop_BNI, end_XBI = block_range
    G, (B, M, q_blocks) = config.tile_heads, config.tile_counts(operands)

    def query_gradients(index):
        tile = Tile(config, operands, sides, index)

        def step(j, carry):
            pair = _tile_gradients(operands, rows, tile, j)
            d_q_GTH = dot(pair.d_content_GTS, pair.k_GSH, 2, 1)
            return jax.tree.map(
                jnp.add, carry, (d_q_GTH, pair.d_params, pair.d_q_cum_log_forget_TN)
            )

        blank = (
            jnp.zeros((G, config.q_block, k_columns)),
            jax.tree.map(jnp.zeros_like, grads.params),
            None
            if operands.q_cum_log_forget_BTN is None
            else jnp.zeros((config.q_block, operands.q_cum_log_forget_BTN.shape[2])),
        )
        stop = stop_BNI[tile.b, tile.n, tile.i]
        end = config.over_windows(end_XBI, tile.head, jnp.max)[tile.b, tile.i]
        return lax.fori_loop(stop, end, step, blank)

    def key_gradients(index):
        b, m, j = jnp.unravel_index(index, key_counts)

        def add_head_tile(r, carry):
            first, head = (b * M + m * sharers + r) * q_blocks, (m * sharers + r) * G
            stop_I = stop_BNI[b, head]
            end_I = config.over_windows(end_XBI, head + sides.first_head, jnp.max)[b]
            reads_I = (stop_I <= j) & (j < end_I)  # query blocks that read key block j
            start = jnp.argmax(reads_I)
            last = jnp.where(reads_I.any(), q_blocks - jnp.argmax(reads_I[::-1]), start)

            def step(i, carry):
                tile = Tile(config, operands, sides, first + i)
                pair = _tile_gradients(operands, rows, tile, j)
                factors = (pair.d_content_GTS, operands.q_BNTH), (pair.weight_GTS, rows[0])
                products = (dot(x_GTS, tile.queries(y), 1, 1) for x_GTS, y in factors)
                added = (*map(tile.by_key_head, products), pair.d_k_cum_log_forget_SN)
                return jax.tree.map(lambda x, y: x + jnp.where(reads_I[i], y, 0), carry, added)

            return lax.fori_loop(start, last, step, carry)

        blank_k, blank_v = (jnp.zeros((K // key_counts[1], s, n)) for n in (k_columns, H))
        d_cum_log_forget = (
            None
            if operands.k_cum_log_forget_BSN is None
            else jnp.zeros((s, operands.k_cum_log_forget_BSN.shape[2]))
        )
        return lax.fori_loop(0, sharers, add_head_tile, (blank_k, blank_v, d_cum_log_forget))

    K, S, k_columns = operands.k_BKSH.shape[1:]
    H = operands.v_BKSH.shape[-1]
    s = config.k_block
    sharers = max(config.queries_per_kv // G, 1)  # tiles of G heads that share a key head
    key_counts = (B, M // sharers, S // s)
    d_q, d_params, d_q_cum_log_forget = map_in_parallel(
        config.parallel_tiles, (B, M, q_blocks), (1, 2, 0), query_gradients
    )
    d_k, d_v, d_k_cum_log_forget = map_in_parallel(
        config.parallel_tiles, key_counts, (1, 2, 0), key_gradients
    )
    d_q_cum_log_forget, d_k_cum_log_forget = (
        None if x is None else _merge_blocks(x.sum(1))
        for x in (d_q_cum_log_forget, d_k_cum_log_forget)
    )
    added = Operands(
        merge_tiles(d_q),
        merge_tiles(d_k),
        merge_tiles(d_v),
        jax.tree.map(lambda x: x.sum((0, 1, 2)), d_params),
        d_q_cum_log_forget,
        d_k_cum_log_forget,
    )
    return jax.tree.map(jnp.add, grads, added)


def _merge_blocks(x_BXTN: jax.Array) -> jax.Array:
    B, X, T, N = x_BXTN.shape
    return x_BXTN.reshape(B, X * T, N)
