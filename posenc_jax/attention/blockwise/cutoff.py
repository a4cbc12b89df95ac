"""The cut-off: how far a head must look before what lies further cannot matter, with proof.

The content logit of query i and key j is at most |q_i| |k_j| / sqrt(H) (Cauchy and Schwarz), rotated or
not. So all keys at distance d >= W together weigh at most exp(|q_i| max |k| / sqrt(H)) times
sum over d >= W of exp(b(d)), and may be left out once that is below epsilon times the weight found nearer
by. Both sides are measured: norms, positions and the softmax sum itself, in the graph, per row. With
|content| <= U and the own key in sight, that is never later than the published rule of thumb
W >= (2 U - ln epsilon - ln(1 - e^-m)) / m for a slope m (:func:`cutoff_windows`).
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.encodings.base import GatedBias, Params
from posenc_jax.encodings.scheme import PlacedLayer

EXACT_EPSILON = 2.0**-24  # half a unit in the last place of float32
STRIDE = 64  # distances whose tails share an entry of the table
ROUNDING = 1e-3  # nats; what float32 may lose in the sums that the proof is made of


class TailBounds(NamedTuple):
    """What the keys before each block can weigh at most; see `tail_bounds` and `exceeds_epsilon`.

    Attributes:
      table_NE: ln of the sum of exp(b(d)) over distances d >= E * STRIDE, per head; None under a clock.
      norm_BKJ: the largest key norm before block J; J is one more than there are blocks.
      seg_BJ, pos_BJ: segment (-1: no key) and position of the last key before block J.
      cum_log_forget_BJN: its clock, for a bias that the tokens decide, else None.
      sure_J: whether the proof holds for these keys.
    """

    table_NE: jax.Array | None
    norm_BKJ: jax.Array
    seg_BJ: jax.Array
    pos_BJ: jax.Array
    cum_log_forget_BJN: jax.Array | None
    sure_J: jax.Array


def has_tail_bound(layer: PlacedLayer, params: Params) -> bool:
    """Whether there is a proof for a head group or layer.

    There is none without a bias, for one that needs more than the distance of two tokens, and under a
    temperature that depends on the key.
    """
    biases = [group.heads.bias for group in layer.groups]
    gated = all(isinstance(part, GatedBias) for part in biases)
    relative = all(part is None or part.relative for part in biases) and not layer.gated
    return (gated or relative) and any(biases) and not _tempered(layer, params)


def tail_bounds(
    table_NE: jax.Array | None,
    longest: int,
    k_BKSH: jax.Array,
    k_cum_log_forget_BSN: jax.Array | None,
    q_pos_BT: jax.Array,
    q_seg_BT: jax.Array,
    k_pos_BS: jax.Array,
    k_seg_BS: jax.Array,
    block: int,
) -> TailBounds:
    """Returns the `TailBounds` over key blocks of `block` of one head group or layer that is `has_tail_bound`.

    Where keys do not stand in the order of their segments and positions, or further away from a query
    than the table knows, nothing is ever left out.

    Args:
      table_NE, longest: from `log_tail_mass` of the layer, over that many distances; None under a clock.
    """
    S = k_BKSH.shape[2]
    before_BS, ordered_BS = key_order(k_pos_BS, k_seg_BS)
    starts_BJ = before_BS[:, ::block]
    seg_BJ, pos_BJ = (_earlier(x, starts_BJ, empty=-1) for x in (k_seg_BS, k_pos_BS))

    def largest_norm(j):
        keys_BKSH = jax.lax.dynamic_slice_in_dim(k_BKSH, j * block, block, axis=2)
        return jnp.sqrt((keys_BKSH.astype(jnp.float32) ** 2).sum(-1).max(-1))

    # A loop takes the keys as they lie; XLA for CPU would otherwise rotate them a second time, into memory.
    norm_JBK = jax.lax.map(largest_norm, jnp.arange(S // block))
    norm_BKJ = jax.lax.cummax(jnp.moveaxis(norm_JBK, 0, 2), axis=2)
    norm_BKJ = jnp.pad(norm_BKJ, ((0, 0), (0, 0), (1, 0)))
    cum_log_forget_BJN, sure = None, ordered_BS.all()
    if table_NE is None:
        seg_BS = _earlier(k_seg_BS, before_BS[:, :-1], empty=-1)
        cum_log_forget_BSN = jax.vmap(lambda clock, at: clock[jnp.maximum(at, 0)])(
            k_cum_log_forget_BSN, before_BS
        )
        slower_BSN = (seg_BS != k_seg_BS)[..., None] | (
            k_cum_log_forget_BSN <= cum_log_forget_BSN[:, :-1]
        )
        sure &= (slower_BSN | (k_seg_BS == 0)[..., None]).all()
        cum_log_forget_BJN = cum_log_forget_BSN[:, ::block]
    else:
        first = jnp.where(k_seg_BS != 0, k_pos_BS, jnp.iinfo(jnp.int32).max).min()
        sure &= jnp.where(q_seg_BT != 0, q_pos_BT, first).max() - first < longest
    sure_J = jnp.broadcast_to(sure, seg_BJ.shape[1:])
    return TailBounds(table_NE, norm_BKJ, seg_BJ, pos_BJ, cum_log_forget_BJN, sure_J)


def key_order(k_pos_BS: jax.Array, k_seg_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns before_BS, the slot of the last key before each slot and before the end (-1: none), and ordered_BS.

    Ordered is a key that comes after that one, by segment or in it by position; padding always is.
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
    q_norm_GT: jax.Array,
    q_pos_T: jax.Array,
    q_seg_T: jax.Array,
    q_cum_log_forget_GT: jax.Array | None,
    lse_GT: jax.Array,
    keys: jax.Array | int,
    epsilon: float,
) -> jax.Array:
    """Returns matters_GT: whether keys before block j can add more than `epsilon` of its sum to a row.

    Args:
      tail: of the layer. b: the row of the batch. head: the first head of the tile. kv_G: their keys' heads.
      q_norm_GT: |q| / sqrt(H). lse_GT: ln of the softmax sum so far. keys: how many stand before block j.
    """
    seg, pos = tail.seg_BJ[b, j], tail.pos_BJ[b, j]
    heads_G = head + jnp.arange(q_norm_GT.shape[0])
    if tail.table_NE is not None:
        end = tail.table_NE.shape[1] - 1
        away_T = jnp.where(seg == q_seg_T, jnp.clip((q_pos_T - pos) // STRIDE, 0, end), 0)
        bias_GT = tail.table_NE[heads_G[:, None], away_T[None]]
    else:  # no key weighs more than the last one, whose clock has run furthest
        cum_log_forget_G1 = tail.cum_log_forget_BJN[b, j][heads_G][:, None]
        bias_GT = (
            q_cum_log_forget_GT
            - cum_log_forget_G1
            + jnp.log(jnp.maximum(keys, 1).astype(jnp.float32))
        )
        bias_GT = jnp.where((seg <= q_seg_T)[None], bias_GT, jnp.inf)
    norm_G1 = tail.norm_BKJ[b, kv_G, j][:, None]
    small_GT = q_norm_GT * norm_G1 + bias_GT - lse_GT <= math.log(epsilon) - ROUNDING
    # Of a row's own document nothing is left once the last key is of an earlier one.
    done_T = (seg < q_seg_T)[None]
    # A NaN is never small: it must come out.
    return (q_seg_T != 0)[None] & ~((small_GT | done_T) & tail.sure_J[j])


def log_tail_mass(layer: PlacedLayer, params: Params, longest: int) -> jax.Array | None:
    """Returns table_NE: ln of the sum of exp(b(d)) over E * STRIDE <= d < longest, per head.

    None where the tokens decide the bias.
    """
    if layer.gated:
        return None
    bias_NZ = bias_by_distance(layer, params, longest)
    bias_NZ = jnp.pad(bias_NZ, ((0, 0), (0, -longest % STRIDE)), constant_values=-jnp.inf)
    part_NE = jax.nn.logsumexp(bias_NZ.reshape(len(bias_NZ), -1, STRIDE), axis=-1)
    table_NE = jax.lax.cumlogsumexp(part_NE, axis=1, reverse=True)
    return jnp.pad(table_NE, ((0, 0), (0, 1)), constant_values=-jnp.inf)


def bias_by_distance(layer: PlacedLayer, params: Params, longest: int) -> jax.Array:
    """Returns bias_NZ of the distances below `longest`, of a layer whose bias needs no more than the distance."""
    last = jnp.array([[longest - 1]])
    return layer.bias(params, last, jnp.arange(longest)[::-1][None])[0, :, 0]


def cutoff_windows(
    layer: PlacedLayer, params: Params, bound: float, longest: int, epsilon: float = EXACT_EPSILON
) -> np.ndarray:
    """Returns window_N: keys at that distance or further weigh less than `epsilon`, all together.

    For reports, before there are any queries: `bound` holds for every |content logit|, temperature
    included (under qk-norm: gain^2 sqrt(H)), and the own key is in sight. Attention itself measures, and
    stops no later. A head that the scheme gives a window has that one or a smaller one, whatever the bound; `longest`
    where there is none. A bias that needs more than a distance ends nothing, nor does one under an infinite bound.
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
    """Returns the layer that head group g would be alone, and its learned parameters."""
    alone = PlacedLayer((dataclasses.replace(layer.groups[g], first=0),))
    return alone, {f"0.{k.split('.', 1)[1]}": v for k, v in params.items() if k.startswith(f"{g}.")}


def _tempered(layer: PlacedLayer, params: Params) -> bool:
    probe = jnp.zeros((1, 2), jnp.int32)
    tau = jax.eval_shape(lambda p: layer.temperature(p, probe, probe), params)
    return tau is not None and tau.shape[-1] != 1


def _earlier(x_BS: jax.Array, at_BS: jax.Array, empty: int) -> jax.Array:
    return jnp.where(at_BS < 0, empty, jnp.take_along_axis(x_BS, jnp.maximum(at_BS, 0), axis=1))
