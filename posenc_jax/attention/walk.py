"""Walking key blocks, forward and backward: the two loops that blockwise and ring attention are made of.

Tiles are worked on one after another, but on a GPU, where one alone fills neither the device nor the time that
starting a kernel takes: many go side by side there (`Plan.lanes`). Each walks its own key blocks, and those side by
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

from posenc_jax.attention import cutoff
from posenc_jax.attention.dense import NEVER
from posenc_jax.attention.tiles import Floats, Places, Plan, Tile, blocks_in_sight, dot
from posenc_jax.encodings.part import Params


class Found(NamedTuple):
    """What rows have found among the keys they have met, float32; a row that has found nothing has lse NEVER."""

    out_BNTH: jax.Array
    lse_BNT: jax.Array


def proof(plan: Plan, params: Params) -> tuple[jax.Array | None] | None:
    """Returns (table_NE,) for `cutoff.tails`; None where nothing can be left out."""
    if not plan.epsilon or not cutoff.provable(plan.layer, params):
        return None
    return (cutoff.log_tail(plan.layer, params, plan.longest),)


def nothing(shape: tuple[int, ...]) -> Found:
    """Returns what rows of queries of a shape, [..., H], have found before they met a key."""
    return Found(jnp.zeros(shape, jnp.float32), jnp.full(shape[:-1], NEVER, jnp.float32))


def weighable(lse_BNT: jax.Array) -> jax.Array:
    """Returns lse_BNT with zeros for blind rows, so that exp(NEVER - lse) is zero for them too."""
    return jnp.where(lse_BNT > NEVER / 2, lse_BNT, 0.0)


def meet(
    plan: Plan, floats: Floats, places: Places, proven: tuple | None, found: Found | None = None
) -> tuple[Found, jax.Array]:
    """Returns what rows have found after these keys as well, and stop_BNI: the first key block that block I read.

    Args:
      proven: from `proof`. found: among other keys before, if any; they count in what may be left out here.
    """
    s = plan.k_block
    sight = blocks_in_sight(plan, places)
    tail = None
    if proven is not None:
        tail = cutoff.tails(
            *proven, plan.longest, floats.k_BKSH, floats.k_clock_BSN, *places[:4], s
        )  # fmt: skip
    rows = functools.partial(_rows, plan, floats, places, sight, tail)
    counts = plan.tiles(floats)
    if plan.lanes > 1:

        def one(index):
            *news, j = rows(Tile(plan, floats, places, index), found)
            return *news, jnp.full((plan.tile_heads, 1), j)

        done = side_by_side(plan.lanes, counts, (1, 2, 0), one)
        out_BNTH, lse_BNT, stop_BNI = map(_whole, done)
        return Found(out_BNTH, lse_BNT), stop_BNI

    def task(index, state):
        (out_BNTH, lse_BNT), stop_BNI = state
        tile = Tile(plan, floats, places, index)
        out_GTH, lse_GT, j = rows(tile, None if found is None else Found(out_BNTH, lse_BNT))
        at = (tile.b, tile.n, tile.i * plan.q_block)
        news = Found(
            lax.dynamic_update_slice(out_BNTH, out_GTH[None], (*at, 0)),
            lax.dynamic_update_slice(lse_BNT, lse_GT[None], at),
        )
        stop_111 = jnp.full((1, plan.tile_heads, 1), j)
        return news, lax.dynamic_update_slice(stop_BNI, stop_111, (tile.b, tile.n, tile.i))

    B, N = floats.q_BNTH.shape[:2]
    blank_BNI = jnp.zeros((B, N, counts[2]), jnp.int32)
    start = nothing(floats.q_BNTH.shape) if found is None else found
    return lax.fori_loop(0, math.prod(counts), task, (start, blank_BNI))


def _rows(plan: Plan, floats: Floats, places: Places, sight, tail, tile: Tile, found: Found | None):
    """Returns what a tile's rows have found in the end, out_GTH and lse_GT, and the first key block they read."""
    s = plan.k_block
    first_BI, end_BI = sight
    q_GTH = tile.queries(floats.q_BNTH)
    q_norm_GT = jnp.sqrt((q_GTH**2).sum(-1))
    q_pos_T, q_seg_T = tile.q_row(places.q_pos_BT), tile.q_row(places.q_seg_BT)
    clock_GT = None if floats.q_clock_BTN is None else tile.clock(tile.q_row(floats.q_clock_BTN))

    def more(j, lse_GT):
        """How many blocks to read next: those that may matter for all that is known now."""
        count = jnp.int32(0)
        for before in reversed(range(plan.at_once)):
            matters = j - before > first_BI[tile.b, tile.i]
            if tail is not None:
                at = jnp.maximum(j - before, 0)
                matters &= cutoff.may_matter(
                    tail, tile.b, tile.head, tile.kv_G, at, q_norm_GT, q_pos_T, q_seg_T, clock_GT,
                    lse_GT, at * s, plan.epsilon,
                ).any()  # fmt: skip
            count = jnp.where((count == 0) & matters, before + 1, count)
        return count

    def read(blocks, carry):
        j, acc_GTH, top_GT, sum_GT, _ = carry
        j = j - blocks
        k_GSH, v_GSH = (tile.keys(x, j, blocks) for x in (floats.k_BKSH, floats.v_BKSH))
        logits_GTS = tile.logits(j, blocks)(tile.content(q_GTH, k_GSH), *tile.learned(j, blocks))
        new_GT = jnp.maximum(top_GT, logits_GTS.max(-1))
        weight_GTS = jnp.exp(logits_GTS - new_GT[..., None])
        fade_GT = jnp.exp(top_GT - new_GT)
        sum_GT = sum_GT * fade_GT + weight_GTS.sum(-1)
        acc_GTH = acc_GTH * fade_GT[..., None] + dot(weight_GTS, v_GSH, 2, 1)
        return j, acc_GTH, new_GT, sum_GT, more(j, new_GT + jnp.log(sum_GT))

    reads = [functools.partial(read, n) for n in range(1, plan.at_once + 1)]

    def step(carry):
        return lax.switch(carry[-1] - 1, reads, carry)

    end = end_BI[tile.b, tile.i]
    before = nothing(q_GTH.shape) if found is None else Found(*map(tile.queries, found))
    acc_GTH, top_GT = before
    sum_GT = (top_GT > NEVER / 2).astype(jnp.float32)
    carry = (end, acc_GTH, top_GT, sum_GT, more(end, top_GT))
    j, acc_GTH, top_GT, sum_GT, _ = lax.while_loop(lambda carry: carry[-1] > 0, step, carry)
    # A row that saw nothing has weight exp(NEVER - NEVER) all over, or no sum at all.
    sees_GT = top_GT > NEVER / 2
    sum_GT = jnp.where(sees_GT, sum_GT, 1.0)
    out_GTH = jnp.where(sees_GT[..., None], acc_GTH / sum_GT[..., None], 0.0)
    return out_GTH, jnp.where(sees_GT, top_GT + jnp.log(sum_GT), NEVER), j


def pulled(
    plan: Plan, floats: Floats, places: Places, rows: tuple, stop_BNI: jax.Array, grads: Floats
) -> Floats:
    """Returns `grads`, float32, grown by what these keys and queries give each other.

    Args:
      rows: d_out_BNTH; lse_BNT over all keys, from `weighable`; pull_BNT, the sum of d_out * out over H.
      stop_BNI: from `meet` with the same keys.
    """
    _, end_BI = blocks_in_sight(plan, places)
    if plan.lanes > 1:
        return _pulled_side_by_side(plan, floats, places, rows, (stop_BNI, end_BI), grads)

    def task(index, grads):
        tile = Tile(plan, floats, places, index)
        q_GHT, d_out_GHT = (tile.queries(x).swapaxes(1, 2) for x in (floats.q_BNTH, rows[0]))

        def step(j, carry):
            d_q_GTH, grads = carry
            pair = _pull(floats, rows, tile, j)
            return d_q_GTH + dot(pair.d_content_GTS, pair.k_GSH, 2, 1), Floats(
                grads.q_BNTH,
                tile.add_to_keys(grads.k_BKSH, j, dot(q_GHT, pair.d_content_GTS, 2, 1)),
                tile.add_to_keys(grads.v_BKSH, j, dot(d_out_GHT, pair.weight_GTS, 2, 1)),
                jax.tree.map(jnp.add, grads.params, pair.d_params),
                tile.add_to_row(grads.q_clock_BTN, tile.i, pair.d_q_clock_TN),
                tile.add_to_row(grads.k_clock_BSN, j, pair.d_k_clock_SN),
            )

        stop, end = stop_BNI[tile.b, tile.n, tile.i], end_BI[tile.b, tile.i]
        d_q_GTH, grads = lax.fori_loop(stop, end, step, (tile.queries(grads.q_BNTH), grads))
        at = (tile.b, tile.n, tile.i * plan.q_block, 0)
        return grads._replace(q_BNTH=lax.dynamic_update_slice(grads.q_BNTH, d_q_GTH[None], at))

    grads = _keys_last(grads)
    return _keys_last(lax.fori_loop(0, math.prod(plan.tiles(floats)), task, grads))


def _keys_last(grads: Floats) -> Floats:
    """Returns gradients whose last two dims, those of keys and values, have changed places.

    Summed over queries, a product of two matrices lies best as [H, T] times [T, S]: XLA for CPU takes three times as
    long for [T, S] transposed times [T, H], and for the first form the small matrix alone is turned, once a tile.
    """
    turned = (x.swapaxes(2, 3) for x in (grads.k_BKSH, grads.v_BKSH))
    return grads._replace(**dict(zip(("k_BKSH", "v_BKSH"), turned, strict=True)))


class _Pair(NamedTuple):
    """What one tile of queries and one block of keys give each other, before the products with either."""

    k_GSH: jax.Array
    weight_GTS: jax.Array
    d_content_GTS: jax.Array
    d_params: Params
    d_q_clock_TN: jax.Array | None
    d_k_clock_SN: jax.Array | None


def _pull(floats: Floats, rows: tuple, tile: Tile, j) -> _Pair:
    q_GTH = tile.queries(floats.q_BNTH)
    d_out_GTH, lse_GT, pull_GT = (tile.queries(x) for x in rows)
    k_GSH, v_GSH = tile.keys(floats.k_BKSH, j), tile.keys(floats.v_BKSH, j)
    logits_GTS, transpose = jax.vjp(tile.logits(j), tile.content(q_GTH, k_GSH), *tile.learned(j))
    weight_GTS = jnp.exp(logits_GTS - lse_GT[..., None])
    d_logits_GTS = weight_GTS * (dot(d_out_GTH, v_GSH, 2, 2) - pull_GT[..., None])
    d_content_GTS, *d_learned = transpose(d_logits_GTS)
    return _Pair(k_GSH, weight_GTS, d_content_GTS / math.sqrt(q_GTH.shape[-1]), *d_learned)


def _pulled_side_by_side(
    plan: Plan, floats: Floats, places: Places, rows: tuple, sight: tuple, grads: Floats
) -> Floats:
    """`pulled`, twice over the tiles: queries walk keys for what is theirs, then keys walk queries.

    Side by side, tiles of one pass over the queries would add to the same keys in no fixed order.
    """
    stop_BNI, end_BI = sight
    G, (B, M, q_blocks) = plan.tile_heads, plan.tiles(floats)

    def of_queries(index):
        tile = Tile(plan, floats, places, index)

        def step(j, carry):
            pair = _pull(floats, rows, tile, j)
            d_q_GTH = dot(pair.d_content_GTS, pair.k_GSH, 2, 1)
            return jax.tree.map(jnp.add, carry, (d_q_GTH, pair.d_params, pair.d_q_clock_TN))

        blank = (
            jnp.zeros((G, plan.q_block, H)),
            jax.tree.map(jnp.zeros_like, grads.params),
            None if floats.q_clock_BTN is None else jnp.zeros((plan.q_block, floats.q_clock_BTN.shape[2])),
        )  # fmt: skip
        stop, end = stop_BNI[tile.b, tile.n, tile.i], end_BI[tile.b, tile.i]
        return lax.fori_loop(stop, end, step, blank)

    def of_keys(index):
        b, m, j = jnp.unravel_index(index, key_counts)

        def of_head_tile(r, carry):
            first = (b * M + m * sharers + r) * q_blocks
            stop_I, end_I = stop_BNI[b, (m * sharers + r) * G], end_BI[b]
            reads_I = (stop_I <= j) & (j < end_I)
            start = jnp.argmax(reads_I)
            last = jnp.where(reads_I.any(), q_blocks - jnp.argmax(reads_I[::-1]), start)

            def step(i, carry):
                tile = Tile(plan, floats, places, first + i)
                pair = _pull(floats, rows, tile, j)
                factors = (pair.d_content_GTS, floats.q_BNTH), (pair.weight_GTS, rows[0])
                products = (dot(x_GTS, tile.queries(y), 1, 1) for x_GTS, y in factors)
                news = (*map(tile.by_key_head, products), pair.d_k_clock_SN)
                return jax.tree.map(lambda x, new: x + jnp.where(reads_I[i], new, 0), carry, news)

            return lax.fori_loop(start, last, step, carry)

        blank_KSH = jnp.zeros((K // key_counts[1], s, H))
        d_clock = None if floats.k_clock_BSN is None else jnp.zeros((s, floats.k_clock_BSN.shape[2]))  # fmt: skip
        return lax.fori_loop(0, sharers, of_head_tile, (blank_KSH, blank_KSH, d_clock))

    K, S, H = floats.k_BKSH.shape[1:]
    s = plan.k_block
    sharers = max(plan.shares // G, 1)
    key_counts = (B, M // sharers, S // s)
    d_q, d_params, d_q_clock = side_by_side(plan.lanes, (B, M, q_blocks), (1, 2, 0), of_queries)
    d_k, d_v, d_k_clock = side_by_side(plan.lanes, key_counts, (1, 2, 0), of_keys)
    news = Floats(
        *map(_whole, (d_q, d_k, d_v)), jax.tree.map(lambda x: x.sum((0, 1, 2)), d_params),
        *(None if x is None else _in_order(x.sum(1)) for x in (d_q_clock, d_k_clock)),
    )  # fmt: skip
    return jax.tree.map(jnp.add, grads, news)


def side_by_side(lanes: int, counts: tuple[int, ...], order: tuple[int, ...], work: Callable):
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


def _whole(x_BMXGTx: jax.Array) -> jax.Array:
    """Returns x_BNTx of tiles: of M times G heads and X times T rows."""
    B, M, X, G, T, *rest = x_BMXGTx.shape
    return x_BMXGTx.swapaxes(2, 3).reshape(B, M * G, X * T, *rest)


def _in_order(x_BXTN: jax.Array) -> jax.Array:
    B, X, T, N = x_BXTN.shape
    return x_BXTN.reshape(B, X * T, N)
