"""Blockwise attention: online softmax over tiles, with bias and mask computed in each tile.

Memory is linear in length in both passes. The forward pass saves the result, the logarithm of each
softmax sum and the first key block that each query block read; the backward pass recomputes the
tiles (Dao et al. 2022, FlashAttention, alg. 1 and 4). Every (sequence, head, query block) reads its
key blocks from the last visible one backwards and stops when the remaining keys cannot change the
result (`posenc_jax.attention.blockwise.cutoff`). The cost of a head with a steep bias is therefore
set by the slope and not by the length.

Dims of a tile: G heads, T queries of one block, S keys of one block.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.attention.arguments import TokenSide
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
    TokenSides,
    even_block,
    pad,
)
from posenc_jax.attention.kernels.remat_names import name_residuals
from posenc_jax.attention.mask import head_windows
from posenc_jax.attention.sharding import per_shard
from posenc_jax.encodings.backend import current_backend
from posenc_jax.encodings.base import Params
from posenc_jax.encodings.scheme import PlacedLayer

# Logits in memory at a time where tiles run in parallel: 32 MiB.
MAX_PARALLEL_LOGITS = 2**23


@dataclasses.dataclass(frozen=True)
class BlockwiseSettings:
    """Static settings of blockwise and ring attention.

    Attributes:
      causal, window: as in `AttentionSettings`.
      epsilon: largest share of a row's softmax sum that may be left out; `cutoff.EXACT_EPSILON` is
        below the resolution of float32, 0 leaves out nothing.
      blocks: largest numbers of queries and keys in a tile; None: the sizes that were measured to
        be fast. If tiles run one at a time, the forward pass reads two key blocks together when it
        needs both.
      softcap: as in `AttentionSettings`; a cap only shrinks content logits, so the cut-off holds.
      parallel_tiles: largest number of tiles that run in parallel; None: enough to fill a GPU, and
        one on other devices.
    """

    causal: bool = True
    window: int | None = None
    epsilon: float = cutoff.EXACT_EPSILON
    blocks: tuple[int, int] | None = None
    parallel_tiles: int | None = None
    softcap: float = 0.0


DEFAULT_SETTINGS = BlockwiseSettings()


def blockwise_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    layer: PlacedLayer,
    params: Params,
    queries: TokenSide,
    keys: TokenSide,
    settings: BlockwiseSettings = DEFAULT_SETTINGS,
    sink_N: jax.Array | None = None,
) -> jax.Array:
    """Returns softmax(tau q k / sqrt(H) + bias) v per head; zeros for a query that sees no key.

    Args:
      q_BTNH: rotated queries, multiplied by the temperatures that depend on the query alone.
      k_BSKH: rotated keys; K divides N. v_BSKH: values. The result has the values' dtype.
      layer, params: the bias and the temperatures that depend on the key; learned ones get
        gradients.
      queries, keys: any positions and segments. Tiles without a visible key are skipped.
      sink_N: as in `OptionalInputs`.
    """

    def local(operands, positions, first_head):
        groups = head_groups(operands, positions, first_head, layer, settings)
        return concatenate_heads([_attention(*group) for group in groups], operands)

    return per_shard(
        local, *shard_arguments(q_BTNH, k_BSKH, v_BSKH, (params, sink_N), queries, keys)
    )


def shard_arguments(q_BTNH, k_BSKH, v_BSKH, learned, queries: TokenSide, keys: TokenSide) -> tuple:
    """Returns (operands, positions) for `per_shard`; operands have gradients."""
    forget = (queries.cum_log_forget_BTN, keys.cum_log_forget_BTN)
    positions = (*queries[:2], queries.order_BT, *keys[:2], keys.order_BT)
    return (q_BTNH, k_BSKH, v_BSKH, learned, *forget), positions


def head_groups(
    operands,
    positions,
    first_head,
    layer: PlacedLayer,
    settings: BlockwiseSettings,
    devices: int = 1,
) -> list[tuple[BlockwiseConfig, Operands, TokenSides, jax.Array | None]]:
    """Returns the arguments of each head group of this device, padded to whole blocks.

    Args:
      operands, positions, first_head: as `sharding.per_shard` passes them.
      devices: number of devices that hold the keys of a row, each the same number of keys.
    """
    blocks, parallel_tiles = settings.blocks, settings.parallel_tiles
    ordered = positions[2] is not None  # the bound of the cut-off needs causality in positions
    epsilon = settings.epsilon / devices if settings.causal and not ordered else 0.0
    q_BTNH, k_BSKH, v_BSKH, (params, sink_N), q_cum_log_forget_BTN, k_cum_log_forget_BSN = operands
    N, K = q_BTNH.shape[2], k_BSKH.shape[2]
    if layer.num_heads == N:  # group by group, so that a bias is computed only for its own heads
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
        queries_per_kv = N // K
        # A slice copies less than a gather.
        key_heads: slice | np.ndarray = slice(first // queries_per_kv, stop // queries_per_kv)
        if first % queries_per_kv or stop % queries_per_kv:
            key_heads, queries_per_kv = np.arange(first, stop) // queries_per_kv, 1
        in_turn = current_backend() != "gpu" if parallel_tiles is None else parallel_tiles == 1
        q_block, k_block = blocks or ((128, 128) if joint else (512, 256 if in_turn else 512))
        t, s = even_block(q_BTNH.shape[1], q_block), even_block(k_BSKH.shape[1], k_block)
        at_once = 1 if joint or not in_turn or k_BSKH.shape[1] <= s else 2
        G = stop - first if joint else 1
        width = 1 if in_turn else parallel_tiles or max(MAX_PARALLEL_LOGITS // (G * t * s), 2)
        cutoff_entries = devices * (k_BSKH.shape[1] + -k_BSKH.shape[1] % s)
        window_N = head_windows(alone, settings.window)
        config = BlockwiseConfig(
            alone,
            queries_per_kv,
            G,
            t,
            s,
            at_once,
            width,
            cutoff_entries,
            window_N,
            settings.causal,
            epsilon,
            settings.softcap,
        )
        q_cum_log_forget, k_cum_log_forget = None, None
        if alone.gated:
            own_heads = slice(first, stop) if layer.num_heads == N else slice(None)
            q_cum_log_forget, k_cum_log_forget = (
                pad(x[:, :, own_heads], 1, n)
                for x, n in ((q_cum_log_forget_BTN, t), (k_cum_log_forget_BSN, s))
            )
        pieces.append(
            (
                config,
                Operands(
                    pad(q_BTNH[:, :, first:stop].swapaxes(1, 2), 2, t),
                    pad(k_BSKH[:, :, key_heads].swapaxes(1, 2), 2, s),
                    pad(v_BSKH[:, :, key_heads].swapaxes(1, 2), 2, s),
                    learned,
                    q_cum_log_forget,
                    k_cum_log_forget,
                ),
                TokenSides(
                    _padded_side(positions[:3], t), _padded_side(positions[3:], s), first_head
                ),
                None
                if sink_N is None
                else jax.lax.dynamic_slice_in_dim(sink_N, first_head + first, stop - first),
            )
        )
    return pieces


def _padded_side(side: tuple, block: int) -> TokenSide:
    pos_BT, seg_BT, order_BT = side
    order_BT = None if order_BT is None else pad(order_BT, 1, block)
    return TokenSide(pad(pos_BT, 1, block), pad(seg_BT, 1, block), order_BT=order_BT)


def concatenate_heads(pieces: list[jax.Array], operands) -> jax.Array:
    """Returns out_BTNH from the out_BNTH of the groups of heads."""
    q_BTNH, _, v_BSKH, *_ = operands
    out_BNTH = pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=1)
    return out_BNTH[:, :, : q_BTNH.shape[1]].swapaxes(1, 2).astype(v_BSKH.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    config: BlockwiseConfig, operands: Operands, sides: TokenSides, sink_N: jax.Array | None
) -> jax.Array:
    return _forward(config, operands, sides, sink_N)[0]


def _forward(
    config: BlockwiseConfig, operands: Operands, sides: TokenSides, sink_N: jax.Array | None
):
    start = (
        None
        if sink_N is None
        else add_sink(initial_state(operands.q_BNTH, operands.v_BKSH), sink_N)
    )
    softmax_state, stop_BNI = blockwise_forward(
        config, operands, sides, tail_mass_table(config, operands.params), start
    )
    out_BNTH, lse_BNT, stop_BNI = name_residuals(
        (softmax_state.out_BNTH, finite_lse(softmax_state.lse_BNT), stop_BNI)
    )
    return out_BNTH, (operands, sides, sink_N, out_BNTH, lse_BNT, stop_BNI)


def _backward(config: BlockwiseConfig, residuals, d_out_BNTH: jax.Array):
    operands, sides, sink_N, out_BNTH, lse_BNT, stop_BNI = residuals
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), operands)
    delta_BNT = (d_out_BNTH * out_BNTH).sum(-1)
    grads = blockwise_backward(
        config, operands, sides, (d_out_BNTH, lse_BNT, delta_BNT), stop_BNI, blank
    )
    grads = jax.tree.map(lambda d, x: d.astype(x.dtype), grads, operands)
    return grads, None, sink_gradient(sink_N, lse_BNT, delta_BNT)


_attention.defvjp(_forward, _backward)
