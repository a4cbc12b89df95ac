"""The cut-off of biased attention: a proven bound on the weight of unread keys.

The content logit of query i and key j is at most |q_i| |k_j| / sqrt(H) (Cauchy and Schwarz), with
or without a rotation. So the keys at distances d >= W together weigh at most exp(|q_i| max |k| /
sqrt(H)) * sum over d >= W of exp(b(d)). They may be left out when this is below epsilon times the
softmax sum of the keys already read. Norms, positions and the softmax sum are measured in the
graph, per row. If |content| <= U and the query sees its own key, the cut-off comes no later than W
>= (2 U - ln epsilon - ln(1 - e^-m)) / m for a slope m (:func:`cutoff_windows`).
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.attention.arguments import TokenSide
from posenc_jax.encodings.base import GatedBias, Params
from posenc_jax.encodings.layer import temperature_depends_on_key
from posenc_jax.encodings.scheme import PlacedLayer

EXACT_EPSILON = 2.0**-24  # half a unit in the last place of float32
STRIDE = 64  # distances per entry of the table of tail masses
ROUNDING = 1e-3  # nats; allowance for float32 rounding in the bound


class TailBounds(NamedTuple):
    """Upper bounds on the weight of the keys before each block; see `tail_bounds` and
    `exceeds_epsilon`.

    Attributes:
      table_NE: ln of the sum of exp(b(d)) over distances d >= E * STRIDE, per head; None for a
        forget gate.
      norm_BKJ: the largest key norm before block J; J is one more than there are blocks.
      seg_BJ, pos_BJ: segment (-1: no key) and position of the last key before block J.
      cum_log_forget_BJN: cumulative log-forget of that key; None without a forget gate.
      sure_J: whether the bound holds for these keys.
    """

    table_NE: jax.Array | None
    norm_BKJ: jax.Array
    seg_BJ: jax.Array
    pos_BJ: jax.Array
    cum_log_forget_BJN: jax.Array | None
    sure_J: jax.Array


class QueryRows(NamedTuple):
    """The rows of a tile of queries, as `exceeds_epsilon` needs them; norm_GT = |q| / sqrt(H)."""

    norm_GT: jax.Array
    pos_T: jax.Array
    seg_T: jax.Array
    cum_log_forget_GT: jax.Array | None


def has_tail_bound(layer: PlacedLayer) -> bool:
    """Whether the bound exists for a head group or layer.

    It does not exist without a bias, for a bias that depends on more than the distance of two
    tokens, and under a temperature that depends on the key.
    """
    biases = [group.heads.bias for group in layer.groups]
    gated = all(isinstance(part, GatedBias) for part in biases)
    relative = all(part is None or part.relative for part in biases) and not layer.gated
    return (gated or relative) and any(biases) and not temperature_depends_on_key(layer)


def tail_bounds(
    table_NE: jax.Array | None,
    longest: int,
    k_BKSH: jax.Array,
    queries: TokenSide,
    keys: TokenSide,
    block: int,
) -> TailBounds:
    """Returns the `TailBounds` of key blocks of size `block`, for a layer that `has_tail_bound`.

    No key is left out where keys are not ordered by segment and position, or lie further from a
    query than the table reaches.

    Args:
      table_NE, longest: from `log_tail_mass` of the layer, over `longest` distances; None for a
        forget gate.
    """
    S, (k_pos_BS, k_seg_BS, k_cum_log_forget_BSN, _) = k_BKSH.shape[2], keys
    before_BS, ordered_BS = key_order(k_pos_BS, k_seg_BS)
    starts_BJ = before_BS[:, ::block]
    seg_BJ, pos_BJ = (_earlier(x, starts_BJ, empty=-1) for x in (k_seg_BS, k_pos_BS))

    def largest_norm(j):
        keys_BKSH = jax.lax.dynamic_slice_in_dim(k_BKSH, j * block, block, axis=2)
        return jnp.sqrt((keys_BKSH.astype(jnp.float32) ** 2).sum(-1).max(-1))

    # A loop reads the keys in place; otherwise XLA for CPU rotates them a second time, into memory.
    norm_JBK = jax.lax.map(largest_norm, jnp.arange(S // block))
    norm_BKJ = jax.lax.cummax(jnp.moveaxis(norm_JBK, 0, 2), axis=2)
    norm_BKJ = jnp.pad(norm_BKJ, ((0, 0), (0, 0), (1, 0)))
    cum_log_forget_BJN, sure = None, ordered_BS.all()
    if table_NE is None:
        seg_BS = _earlier(k_seg_BS, before_BS[:, :-1], empty=-1)
        cum_log_forget_BSN = jax.vmap(lambda x_SN, slot_S: x_SN[jnp.maximum(slot_S, 0)])(
            k_cum_log_forget_BSN, before_BS
        )
        falls_BSN = (seg_BS != k_seg_BS)[..., None] | (
            k_cum_log_forget_BSN <= cum_log_forget_BSN[:, :-1]
        )
        sure &= (falls_BSN | (k_seg_BS == 0)[..., None]).all()
        cum_log_forget_BJN = cum_log_forget_BSN[:, ::block]
    else:
        first = jnp.where(k_seg_BS != 0, k_pos_BS, jnp.iinfo(jnp.int32).max).min()
        sure &= jnp.where(queries.seg_BT != 0, queries.pos_BT, first).max() - first < longest
    sure_J = jnp.broadcast_to(sure, seg_BJ.shape[1:])
    return TailBounds(table_NE, norm_BKJ, seg_BJ, pos_BJ, cum_log_forget_BJN, sure_J)


def key_order(k_pos_BS: jax.Array, k_seg_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns before_BS, the slot of the last key before each slot and before the end (-1: none),
    and ordered_BS.

    A key is ordered when its segment is higher than that of the key before it, or equal and its
    position is higher. Padding is always ordered.
    """
    slot_1S = jnp.arange(k_seg_BS.shape[1])[None]
    last_BS = jax.lax.cummax(jnp.where(k_seg_BS != 0, slot_1S, -1), axis=1)
    before_BS = jnp.pad(last_BS, ((0, 0), (1, 0)), constant_values=-1)
    seg_BS, pos_BS = (_earlier(x, before_BS[:, :-1], empty=-1) for x in (k_seg_BS, k_pos_BS))
    later_BS = (seg_BS < k_seg_BS) | ((seg_BS == k_seg_BS) & (pos_BS < k_pos_BS))
    return before_BS, later_BS | (k_seg_BS == 0)


def exceeds_epsilon(
    tail: TailBounds,
    b: jax.Array,
    head: jax.Array,
    kv_G: jax.Array,
    j: jax.Array,
    rows: QueryRows,
    lse_GT: jax.Array,
    num_keys: jax.Array | int,
    epsilon: float,
) -> jax.Array:
    """Returns exceeds_GT: whether the keys before block j can add more than `epsilon` times its sum
    to a row.

    Args:
      tail: of the layer. b: row of the batch. head: first head of the tile. kv_G: key heads of the
        tile's heads.
      lse_GT: ln of the softmax sum so far. num_keys: number of keys before block j.
    """
    seg, pos = tail.seg_BJ[b, j], tail.pos_BJ[b, j]
    heads_G = head + jnp.arange(rows.norm_GT.shape[0])
    if tail.table_NE is not None:
        end = tail.table_NE.shape[1] - 1
        away_T = jnp.where(seg == rows.seg_T, jnp.clip((rows.pos_T - pos) // STRIDE, 0, end), 0)
        bias_GT = tail.table_NE[heads_G[:, None], away_T[None]]
    elif tail.cum_log_forget_BJN is None or rows.cum_log_forget_GT is None:
        raise ValueError("the bound of a forget gate needs its cumulative log-forget")
    else:  # of earlier keys the last one has the largest bias
        cum_log_forget_G1 = tail.cum_log_forget_BJN[b, j][heads_G][:, None]
        bias_GT = (
            rows.cum_log_forget_GT
            - cum_log_forget_G1
            + jnp.log(jnp.maximum(num_keys, 1).astype(jnp.float32))
        )
        bias_GT = jnp.where((seg <= rows.seg_T)[None], bias_GT, jnp.inf)
    norm_G1 = tail.norm_BKJ[b, kv_G, j][:, None]
    small_GT = rows.norm_GT * norm_G1 + bias_GT - lse_GT <= math.log(epsilon) - ROUNDING
    # A row sees no earlier key once the last key belongs to an earlier document.
    done_T = (seg < rows.seg_T)[None]
    # A NaN is never small, so it is read and reaches the result.
    return (rows.seg_T != 0)[None] & ~((small_GT | done_T) & tail.sure_J[j])


def log_tail_mass(layer: PlacedLayer, params: Params, longest: int) -> jax.Array | None:
    """Returns table_NE: ln sum of exp(b(d)), E * STRIDE <= d < longest; None for a forget gate."""
    if layer.gated:
        return None
    bias_NZ = bias_by_distance(layer, params, longest)
    bias_NZ = jnp.pad(bias_NZ, ((0, 0), (0, -longest % STRIDE)), constant_values=-jnp.inf)
    part_NE = jax.nn.logsumexp(bias_NZ.reshape(len(bias_NZ), -1, STRIDE), axis=-1)
    table_NE = jax.lax.cumlogsumexp(part_NE, axis=1, reverse=True)
    return jnp.pad(table_NE, ((0, 0), (0, 1)), constant_values=-jnp.inf)


def bias_by_distance(layer: PlacedLayer, params: Params, longest: int) -> jax.Array:
    """Returns bias_NZ of the distances below `longest`, for a bias of distance."""
    last = jnp.array([[longest - 1]])
    bias_BNTS = layer.bias(params, last, jnp.arange(longest)[::-1][None])
    return jnp.zeros((layer.num_heads, longest)) if bias_BNTS is None else bias_BNTS[0, :, 0]


def cutoff_windows(
    layer: PlacedLayer, params: Params, bound: float, longest: int, epsilon: float = EXACT_EPSILON
) -> np.ndarray:
    """Returns window_N: keys at that distance or further weigh less than `epsilon`, all together.

    For reports and caches, which have no queries yet. `bound` is the largest |content logit|,
    temperature included (under qk-norm: gain^2 sqrt(H)); the query sees its own key. Attention
    measures its bound and stops no later. The window of the scheme always holds. Without a window,
    and for a bias that depends on more than the distance or an infinite bound, the result is
    `longest`.
    """
    window_N = np.array([min(w or longest, longest) for w in layer.window_N])
    for g, group in enumerate(layer.groups):
        part = group.heads.bias
        if part is None or not part.relative or isinstance(part, GatedBias) or bound == math.inf:
            continue
        alone, learned = single_group_layer(layer, params, g)
        bias_NZ = np.asarray(bias_by_distance(alone, learned, longest), np.float64)
        table_NZ = np.logaddexp.accumulate(bias_NZ[:, ::-1], axis=1)[:, ::-1]
        lost_NZ = table_NZ - bias_NZ[:, :1] + 2 * bound
        heads = slice(group.first, group.stop)
        window_N[heads] = np.minimum(window_N[heads], (lost_NZ > math.log(epsilon)).sum(1))
    return window_N


def single_group_layer(layer: PlacedLayer, params: Params, g: int) -> tuple[PlacedLayer, Params]:
    """Returns a layer that consists of head group g alone, and its learned parameters."""
    alone = PlacedLayer((dataclasses.replace(layer.groups[g], first=0),))
    return alone, {f"0.{k.split('.', 1)[1]}": v for k, v in params.items() if k.startswith(f"{g}.")}


def _earlier(x_BS: jax.Array, at_BS: jax.Array, empty: int) -> jax.Array:
    return jnp.where(at_BS < 0, empty, jnp.take_along_axis(x_BS, jnp.maximum(at_BS, 0), axis=1))
