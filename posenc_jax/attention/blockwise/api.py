"""Blockwise attention: online softmax over tiles, bias and mask made inside each tile from positions.

Memory is linear in length, forward and backward: kept are the result, the logarithm of each softmax
sum and where each row of tiles stopped; the backward pass makes the tiles again (Dao et al. 2022, FlashAttention,
alg. 1 and 4). Every (sequence, head, query block) walks its own key blocks from the last one in sight
towards the first, and stops as soon as what is left cannot matter (`posenc_jax.attention.blockwise.cutoff`): a head with a
steep bias costs what its reach costs, at any length, and waits for no other.

Dims of a tile: G heads, T queries of one block, S keys of one block.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.attention.blockwise import cutoff
from posenc_jax.attention.blockwise.backward import blockwise_backward
from posenc_jax.attention.blockwise.forward import (
    add_sink,
    blockwise_forward,
    finite_lse,
    initial_state,
    sink_gradient,
    tail_mass_table,
)
from posenc_jax.attention.blockwise.tiles import (
    BlockwiseConfig,
    Operands,
    TokenPositions,
    even_block,
    pad,
)
from posenc_jax.attention.kernels.remat_names import name_residuals
from posenc_jax.attention.mask import head_windows
from posenc_jax.attention.sharding import per_shard
from posenc_jax.encodings.backend import current_backend
from posenc_jax.encodings.base import Params
from posenc_jax.encodings.scheme import PlacedLayer

MAX_PARALLEL_LOGITS = (
    2**23
)  # logits that are worked on at a time, 32 MiB of them, where not one tile at a time


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
    q_cum_log_forget_BTN: jax.Array | None = None,
    k_cum_log_forget_BSN: jax.Array | None = None,
    sink_N: jax.Array | None = None,
    causal: bool = True,
    window: int | None = None,
    epsilon: float = cutoff.EXACT_EPSILON,
    blocks: tuple[int, int] | None = None,
    lanes: int | None = None,
) -> jax.Array:
    """Returns softmax(tau q k / sqrt(H) + bias) v per head, as `dense_attention`; blind rows are zero.

    Args:
      q_BTNH: queries, rotated, with any temperature that depends on the query alone multiplied in.
      k_BSKH, v_BSKH: rotated keys, and values; K divides N. The result has the values' dtype.
      layer, params: bias and the temperatures that depend on the key; learned ones get gradients.
      q_pos_BT, k_pos_BS, q_seg_BT, k_seg_BS, q_cum_log_forget_BTN, k_cum_log_forget_BSN, sink_N, causal: as for `attend`. Any
        positions and segments are served; blocks in which nobody sees anything are skipped.
      window: keys at that distance or further are out of sight; heads that the layer gives a smaller one keep it.
      epsilon: largest share of a row's softmax sum that may be left out; `cutoff.EXACT_EPSILON` is below what
        float32 resolves, 0 leaves out nothing.
      blocks: queries and keys in a tile, at most; None for what was measured to be fast. Where tiles are
        worked on one by one, the forward pass reads two blocks of keys at once if it needs both.
      lanes: tiles worked on side by side, at most; None: as many as fill a GPU, and one elsewhere.
    """
    operands = (
        q_BTNH,
        k_BSKH,
        v_BSKH,
        (params, sink_N),
        q_cum_log_forget_BTN,
        k_cum_log_forget_BSN,
    )
    positions = (q_pos_BT, q_seg_BT, k_pos_BS, k_seg_BS)
    local = functools.partial(
        _of_these_heads, layer=layer, causal=causal, window=window,
        epsilon=epsilon if causal else 0.0, blocks=blocks, lanes=lanes,
    )  # fmt: skip
    return per_shard(local, operands, positions)


def _of_these_heads(operands, positions, first_head, **settings) -> jax.Array:
    """Returns out_BTNH for the query heads of this device: all of them, or those from `first_head`."""
    pieces = [
        _attention(*group) for group in head_groups(operands, positions, first_head, **settings)
    ]
    return concatenate_heads(pieces, operands)


def head_groups(
    operands,
    positions,
    first_head,
    *,
    layer: PlacedLayer,
    window,
    blocks,
    lanes,
    devices=1,
    **settings,
) -> list[tuple[BlockwiseConfig, Operands, TokenPositions, jax.Array | None]]:
    """Returns the work of this device's query heads, group by group, padded to whole blocks, and their sinks.

    Args:
      operands, positions, first_head: as `sharding.per_shard` hands them out. window: the model's own. blocks, lanes,
        settings: of the `BlockwiseConfig`s.
      devices: that the keys of a row lie on, as many on each.
    """
    q_BTNH, k_BSKH, v_BSKH, (params, sink_N), q_cum_log_forget_BTN, k_cum_log_forget_BSN = operands
    N, K = q_BTNH.shape[2], k_BSKH.shape[2]
    if layer.num_heads == N:  # group by group: a bias is then made for its own heads alone
        groups = [
            (group.first, group.stop, *cutoff.single_group_layer(layer, params, g))
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
        in_turn = current_backend() != "gpu" if lanes is None else lanes == 1
        q_block, k_block = blocks or ((128, 128) if joint else (512, 256 if in_turn else 512))
        t, s = even_block(q_BTNH.shape[1], q_block), even_block(k_BSKH.shape[1], k_block)
        at_once = 1 if joint or not in_turn or k_BSKH.shape[1] <= s else 2
        G = stop - first if joint else 1
        width = 1 if in_turn else lanes or max(MAX_PARALLEL_LOGITS // (G * t * s), 2)
        longest = devices * (k_BSKH.shape[1] + -k_BSKH.shape[1] % s)
        seen_N = head_windows(alone, window)
        config = BlockwiseConfig(
            alone, shares, G, t, s, at_once, width, longest, seen_N, **settings
        )
        q_cum_log_forget, k_cum_log_forget = None, None
        if alone.gated:
            clocked = slice(first, stop) if layer.num_heads == N else slice(None)
            q_cum_log_forget, k_cum_log_forget = (
                pad(c[:, :, clocked], 1, n)
                for c, n in ((q_cum_log_forget_BTN, t), (k_cum_log_forget_BSN, s))
            )
        pieces.append(
            (
                config,
                Operands(
                    pad(q_BTNH[:, :, first:stop].swapaxes(1, 2), 2, t),
                    *(pad(x[:, :, owners].swapaxes(1, 2), 2, s) for x in (k_BSKH, v_BSKH)),
                    learned, q_cum_log_forget, k_cum_log_forget,
                ),
                TokenPositions(*(pad(x, 1, n) for x, n in zip(positions, (t, t, s, s), strict=True)), first_head),
                None if sink_N is None else jax.lax.dynamic_slice_in_dim(sink_N, first_head + first, stop - first),
            )
        )  # fmt: skip
    return pieces


def concatenate_heads(pieces: list[jax.Array], operands) -> jax.Array:
    """Returns out_BTNH from the out_BNTH of the groups of heads."""
    q_BTNH, _, v_BSKH, *_ = operands
    out_BNTH = pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=1)
    return out_BNTH[:, :, : q_BTNH.shape[1]].swapaxes(1, 2).astype(v_BSKH.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    config: BlockwiseConfig, operands: Operands, positions: TokenPositions, sink_N: jax.Array | None
) -> jax.Array:
    return _forward(config, operands, positions, sink_N)[0]


def _forward(
    config: BlockwiseConfig, operands: Operands, positions: TokenPositions, sink_N: jax.Array | None
):
    start = (
        None
        if sink_N is None
        else add_sink(initial_state(operands.q_BNTH, operands.v_BKSH), sink_N)
    )
    softmax_state, stop_BNI = blockwise_forward(
        config, operands, positions, tail_mass_table(config, operands.params), start
    )
    out_BNTH, lse_BNT, stop_BNI = name_residuals(
        (softmax_state.out_BNTH, finite_lse(softmax_state.lse_BNT), stop_BNI)
    )
    return out_BNTH, (operands, positions, sink_N, out_BNTH, lse_BNT, stop_BNI)


def _backward(config: BlockwiseConfig, residuals, d_out_BNTH: jax.Array):
    operands, positions, sink_N, out_BNTH, lse_BNT, stop_BNI = residuals
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), operands)
    delta_BNT = (d_out_BNTH * out_BNTH).sum(-1)
    grads = blockwise_backward(
        config, operands, positions, (d_out_BNTH, lse_BNT, delta_BNT), stop_BNI, blank
    )
    grads = jax.tree.map(lambda d, x: d.astype(x.dtype), grads, operands)
    return grads, None, sink_gradient(sink_N, lse_BNT, delta_BNT)


_attention.defvjp(_forward, _backward)
