"""Blockwise attention: online softmax over tiles, bias and mask made inside each tile from positions.

Memory is linear in length, forward and backward: kept are the result, the logarithm of each softmax
sum and where each row of tiles stopped; the backward pass makes the tiles again (Dao et al. 2022, FlashAttention,
alg. 1 and 4). Every (sequence, head, query block) walks its own key blocks from the last one in sight
towards the first, and stops as soon as what is left cannot matter (`posenc_jax.attention.cutoff`): a head with a
steep bias costs what its reach costs, at any length, and waits for no other.

Dims of a tile: G heads, T queries of one block, S keys of one block.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from posenc_jax.attention import cutoff
from posenc_jax.attention.dense import NEVER
from posenc_jax.attention.residuals import kept
from posenc_jax.attention.shards import per_shard
from posenc_jax.attention.tiles import (
    Floats,
    Places,
    Plan,
    Tile,
    blocks_in_sight,
    dot,
    even_block,
    pad,
)
from posenc_jax.encodings.part import Params
from posenc_jax.encodings.scheme import PlacedLayer


def blockwise_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    layer: PlacedLayer,
    params: Params,
    *,
    q_pos_BT: jax.Array,
    k_pos_BS: jax.Array,
    q_seg_BT: jax.Array,
    k_seg_BS: jax.Array,
    q_clock_BTN: jax.Array | None = None,
    k_clock_BSN: jax.Array | None = None,
    causal: bool = True,
    window: int | None = None,
    epsilon: float = cutoff.EXACT,
    blocks: tuple[int, int] | None = None,
) -> jax.Array:
    """Returns softmax(tau q k / sqrt(H) + bias) v per head, as `dense_attention`; blind rows are zero.

    Args:
      q_BTNH: queries, rotated, with any temperature that depends on the query alone multiplied in.
      k_BSKH, v_BSKH: rotated keys, and values; K divides N. The result has the values' dtype.
      layer, params: bias and the temperatures that depend on the key; learned ones get gradients.
      q_pos_BT, k_pos_BS, q_seg_BT, k_seg_BS, q_clock_BTN, k_clock_BSN, causal: as for `attend`. Any
        positions and segments are served; blocks in which nobody sees anything are skipped.
      window: keys at that distance or further are out of sight.
      epsilon: largest share of a row's softmax sum that may be left out; `cutoff.EXACT` is below what
        float32 resolves, 0 leaves out nothing.
      blocks: queries and keys in a tile, at most; None for what was measured to be fast. The forward pass
        reads two blocks of keys at once where it needs both.
    """
    floats = (q_BTNH, k_BSKH, v_BSKH, params, q_clock_BTN, k_clock_BSN)
    places = (q_pos_BT, q_seg_BT, k_pos_BS, k_seg_BS)
    local = functools.partial(
        _of_these_heads, layer=layer, causal=causal, window=window,
        epsilon=epsilon if causal else 0.0, blocks=blocks,
    )  # fmt: skip
    return per_shard(local, floats, places)


class Found(NamedTuple):
    """What rows have found among the keys they have met, float32; a row that has found nothing has lse NEVER."""

    out_BNTH: jax.Array
    lse_BNT: jax.Array


def _of_these_heads(floats, places, first_head, **settings) -> jax.Array:
    """Returns out_BTNH for the query heads of this device: all of them, or those from `first_head`."""
    pieces = [_attention(*group) for group in head_groups(floats, places, first_head, **settings)]
    return joined(pieces, floats)


def head_groups(
    floats, places, first_head, *, layer: PlacedLayer, blocks, devices: int = 1, **settings
) -> list[tuple[Plan, Floats, Places]]:
    """Returns the work of this device's query heads, group by group, padded to whole blocks.

    Args:
      floats, places, first_head: as `shards.per_shard` hands them out. blocks, settings: of the `Plan`s.
      devices: that the keys of a row lie on, as many on each.
    """
    q_BTNH, k_BSKH, v_BSKH, params, q_clock_BTN, k_clock_BSN = floats
    N, K = q_BTNH.shape[2], k_BSKH.shape[2]
    if layer.num_heads == N:  # group by group: a bias is then made for its own heads alone
        groups = [
            (group.first, group.stop, *cutoff.layer_of_group(layer, params, g))
            for g, group in enumerate(layer.groups)
        ]
    else:
        groups = [(0, N, layer, params)]
    pieces = []
    for first, stop, alone, learned in groups:
        joint = any(
            group.heads.bias is not None and group.heads.bias.joint for group in alone.groups
        )
        shares = N // K
        owners = slice(first // shares, stop // shares)  # a slice copies less than a gather
        if first % shares or stop % shares:
            owners, shares = np.arange(first, stop) // shares, 1
        q_block, k_block = blocks or ((128, 128) if joint else (512, 256))
        t, s = even_block(q_BTNH.shape[1], q_block), even_block(k_BSKH.shape[1], k_block)
        at_once = 1 if joint or k_BSKH.shape[1] <= s else 2
        longest = devices * (k_BSKH.shape[1] + -k_BSKH.shape[1] % s)
        plan = Plan(alone, shares, stop - first if joint else 1, t, s, at_once, longest, **settings)
        q_clock, k_clock = None, None
        if alone.gated:
            clocked = slice(first, stop) if layer.num_heads == N else slice(None)
            q_clock, k_clock = (
                pad(c[:, :, clocked], 1, n) for c, n in ((q_clock_BTN, t), (k_clock_BSN, s))
            )
        pieces.append(
            (
                plan,
                Floats(
                    pad(q_BTNH[:, :, first:stop].swapaxes(1, 2), 2, t),
                    *(pad(x[:, :, owners].swapaxes(1, 2), 2, s) for x in (k_BSKH, v_BSKH)),
                    learned, q_clock, k_clock,
                ),
                Places(*(pad(x, 1, n) for x, n in zip(places, (t, t, s, s), strict=True)), first_head),
            )
        )  # fmt: skip
    return pieces


def joined(pieces: list[jax.Array], floats) -> jax.Array:
    """Returns out_BTNH from the out_BNTH of the groups of heads."""
    q_BTNH, _, v_BSKH, *_ = floats
    out_BNTH = pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=1)
    return out_BNTH[:, :, : q_BTNH.shape[1]].swapaxes(1, 2).astype(v_BSKH.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan: Plan, floats: Floats, places: Places) -> jax.Array:
    return _forward(plan, floats, places)[0]


def _forward(plan: Plan, floats: Floats, places: Places):
    found, stop_BNI = meet(plan, floats, places, proof(plan, floats.params), nothing(floats))
    out_BNTH, lse_BNT, stop_BNI = kept((found.out_BNTH, weighable(found.lse_BNT), stop_BNI))
    return out_BNTH, (floats, places, out_BNTH, lse_BNT, stop_BNI)


def proof(plan: Plan, params: Params) -> tuple[jax.Array | None] | None:
    """Returns (table_NE,) for `cutoff.tails`; None where nothing can be left out."""
    if not plan.epsilon or not cutoff.provable(plan.layer, params):
        return None
    return (cutoff.log_tail(plan.layer, params, plan.longest),)


def nothing(floats: Floats) -> Found:
    """Returns what rows have found before they met a key."""
    blank_BNTH = jnp.zeros(floats.q_BNTH.shape, jnp.float32)
    return Found(blank_BNTH, jnp.full(blank_BNTH.shape[:3], NEVER, jnp.float32))


def weighable(lse_BNT: jax.Array) -> jax.Array:
    """Returns lse_BNT with zeros for blind rows, so that exp(NEVER - lse) is zero for them too."""
    return jnp.where(lse_BNT > NEVER / 2, lse_BNT, 0.0)


def meet(
    plan: Plan, floats: Floats, places: Places, proven: tuple | None, found: Found
) -> tuple[Found, jax.Array]:
    """Returns what rows have found after these keys as well, and stop_BNI: the first key block that block I read.

    Args:
      proven: from `proof`. found: among other keys before; they count in what may be left out here.
    """
    B, N, T, _H = floats.q_BNTH.shape
    G, t, s = plan.tile_heads, plan.q_block, plan.k_block
    first_BI, end_BI = blocks_in_sight(plan, places)
    tail = None
    if proven is not None:
        tail = cutoff.tails(
            *proven, plan.longest, floats.k_BKSH, floats.k_clock_BSN, *places[:4], s
        )  # fmt: skip

    def task(index, state):
        found, stop_BNI = state
        tile = Tile(plan, floats, places, index)
        q_GTH = tile.queries(floats.q_BNTH)
        q_norm_GT = jnp.sqrt((q_GTH**2).sum(-1))
        q_pos_T, q_seg_T = tile.q_row(places.q_pos_BT), tile.q_row(places.q_seg_BT)
        clock_GT = (
            None if floats.q_clock_BTN is None else tile.clock(tile.q_row(floats.q_clock_BTN))
        )

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
            logits_GTS = tile.logits(j, blocks)(tile.content(q_GTH, k_GSH), *tile.learned(j, blocks))  # fmt: skip
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
        acc_GTH, top_GT = tile.queries(found.out_BNTH), tile.queries(found.lse_BNT)
        sum_GT = (top_GT > NEVER / 2).astype(jnp.float32)
        carry = (end, acc_GTH, top_GT, sum_GT, more(end, top_GT))
        j, acc_GTH, top_GT, sum_GT, _ = lax.while_loop(lambda carry: carry[-1] > 0, step, carry)
        # A row that saw nothing has weight exp(NEVER - NEVER) all over, or no sum at all.
        sees_GT = top_GT > NEVER / 2
        sum_GT = jnp.where(sees_GT, sum_GT, 1.0)
        out_GTH = jnp.where(sees_GT[..., None], acc_GTH / sum_GT[..., None], 0.0)
        lse_GT = jnp.where(sees_GT, top_GT + jnp.log(sum_GT), NEVER)
        at = (tile.b, tile.n, tile.i * t)
        found = Found(
            lax.dynamic_update_slice(found.out_BNTH, out_GTH[None], (*at, 0)),
            lax.dynamic_update_slice(found.lse_BNT, lse_GT[None], at),
        )
        stop_111 = jnp.full((1, G, 1), j)
        return found, lax.dynamic_update_slice(stop_BNI, stop_111, (tile.b, tile.n, tile.i))

    blank_BNI = jnp.zeros((B, N, T // t), jnp.int32)
    return lax.fori_loop(0, B * (N // G) * (T // t), task, (found, blank_BNI))


def _backward(plan: Plan, residuals, d_out_BNTH: jax.Array):
    floats, places, out_BNTH, lse_BNT, stop_BNI = residuals
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), floats)
    pull_BNT = (d_out_BNTH * out_BNTH).sum(-1)
    grads = pulled(plan, floats, places, (d_out_BNTH, lse_BNT, pull_BNT), stop_BNI, blank)
    return jax.tree.map(lambda d, x: d.astype(x.dtype), grads, floats), None


def pulled(
    plan: Plan, floats: Floats, places: Places, rows: tuple, stop_BNI: jax.Array, grads: Floats
) -> Floats:
    """Returns `grads`, float32, grown by what these keys and queries give each other.

    Args:
      rows: d_out_BNTH; lse_BNT over all keys, from `weighable`; pull_BNT, the sum of d_out * out over H.
      stop_BNI: from `meet` with the same keys.
    """
    B, N, T, H = floats.q_BNTH.shape
    t = plan.q_block
    _, end_BI = blocks_in_sight(plan, places)

    def task(index, grads):
        tile = Tile(plan, floats, places, index)
        q_GTH, d_q_GTH = tile.queries(floats.q_BNTH), tile.queries(grads.q_BNTH)
        d_out_GTH, lse_GT, pull_GT = (tile.queries(x) for x in rows)

        def step(j, carry):
            d_q_GTH, grads = carry
            k_GSH, v_GSH = tile.keys(floats.k_BKSH, j), tile.keys(floats.v_BKSH, j)
            logits_GTS, transpose = jax.vjp(
                tile.logits(j), tile.content(q_GTH, k_GSH), *tile.learned(j)
            )
            weight_GTS = jnp.exp(logits_GTS - lse_GT[..., None])
            d_logits_GTS = weight_GTS * (dot(d_out_GTH, v_GSH, 2, 2) - pull_GT[..., None])
            d_content_GTS, d_params, d_q_clock_TN, d_k_clock_SN = transpose(d_logits_GTS)
            d_content_GTS = d_content_GTS / math.sqrt(H)
            d_q_GTH = d_q_GTH + dot(d_content_GTS, k_GSH, 2, 1)
            return d_q_GTH, Floats(
                grads.q_BNTH,
                tile.add_to_keys(grads.k_BKSH, j, dot(d_content_GTS, q_GTH, 1, 1)),
                tile.add_to_keys(grads.v_BKSH, j, dot(weight_GTS, d_out_GTH, 1, 1)),
                jax.tree.map(jnp.add, grads.params, d_params),
                tile.add_to_row(grads.q_clock_BTN, tile.i, d_q_clock_TN),
                tile.add_to_row(grads.k_clock_BSN, j, d_k_clock_SN),
            )

        stop, end = stop_BNI[tile.b, tile.n, tile.i], end_BI[tile.b, tile.i]
        d_q_GTH, grads = lax.fori_loop(stop, end, step, (d_q_GTH, grads))
        at = (tile.b, tile.n, tile.i * t, 0)
        return grads._replace(q_BNTH=lax.dynamic_update_slice(grads.q_BNTH, d_q_GTH[None], at))

    return lax.fori_loop(0, B * (N // plan.tile_heads) * (T // t), task, grads)


_attention.defvjp(_forward, _backward)
