"""The cut-off: how far a head must look before what lies further cannot matter, with proof.

The content logit of query i and key j is at most |q_i| |k_j| / sqrt(H) (Cauchy and Schwarz), rotated or
not. So all keys at distance d >= W together weigh at most exp(|q_i| max |k| / sqrt(H)) times
sum over d >= W of exp(b(d)), and may be left out once that is below epsilon times the weight found nearer
by. Both sides are measured: norms, positions and the softmax sum itself, in the graph, per row. With
|content| <= U and the own key in sight, that is never later than the published rule of thumb
W >= (2 U - ln epsilon - ln(1 - e^-m)) / m for a slope m (:func:`windows`).
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.encodings.part import GatedBias, Params
from posenc_jax.encodings.scheme import PlacedLayer

EXACT = 2.0**-24  # half a unit in the last place of float32
STRIDE = 64  # distances whose tails share an entry of the table
_NOT_SURE = np.iinfo(np.int32).max  # a segment later than all others: any row may have keys there
_ROUNDING = 1e-3  # nats; what float32 may lose in the sums that the proof is made of


class Tails(NamedTuple):
    """What the keys before each block can weigh at most; see `tails` and `may_matter`.

    Attributes:
      table_NE: ln of the sum of exp(b(d)) over distances d >= E * STRIDE, per head; None under a clock.
      norm_BKJ: the largest key norm before block J, over sqrt(H).
      seg_BJ, pos_BJ: segment (-1: no key) and position of the last key before block J.
      clock_BJN: its clock, for a bias that the tokens decide, else None.
    """

    table_NE: jax.Array | None
    norm_BKJ: jax.Array
    seg_BJ: jax.Array
    pos_BJ: jax.Array
    clock_BJN: jax.Array | None


def tails(
    layer: PlacedLayer,
    params: Params,
    k_BKSH: jax.Array,
    k_clock_BSN: jax.Array | None,
    q_pos_BT: jax.Array,
    q_seg_BT: jax.Array,
    k_pos_BS: jax.Array,
    k_seg_BS: jax.Array,
    block: int,
) -> Tails | None:
    """Returns the `Tails` of one head group or layer over key blocks of `block`, or None when there are none.

    None: no bias, one that needs more than the distance of two tokens, or a temperature that depends on
    the key. Where keys do not stand in the order of their segments and positions, or lie further apart
    than there are slots, the table is infinite and nothing is ever left out.
    """
    biases = [group.heads.bias for group in layer.groups]
    gated = all(isinstance(part, GatedBias) for part in biases)
    relative = all(part is None or part.relative for part in biases) and not layer.gated
    if not (gated or relative) or not any(biases) or _tempered(layer, params):
        return None
    B, K, S, H = k_BKSH.shape
    last_BS = jax.lax.cummax(jnp.where(k_seg_BS != 0, jnp.arange(S)[None], -1), axis=1)
    before_BS = jnp.pad(last_BS, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    seg_BS, pos_BS = (_earlier(x, before_BS, empty=-1) for x in (k_seg_BS, k_pos_BS))
    ordered_BS = (k_seg_BS == 0) | (seg_BS < k_seg_BS)
    ordered_BS |= (seg_BS == k_seg_BS) & (pos_BS < k_pos_BS)

    norm_BKS = jnp.sqrt((k_BKSH.astype(jnp.float32) ** 2).sum(-1) / H)
    norm_BKJ = jax.lax.cummax(norm_BKS.reshape(B, K, S // block, block).max(-1), axis=2)
    norm_BKJ = jnp.pad(norm_BKJ, ((0, 0), (0, 0), (1, 0)))[:, :, :-1]
    starts = slice(None, None, block)
    if gated:
        clock_BSN = jax.vmap(lambda clock, at: clock[jnp.maximum(at, 0)])(k_clock_BSN, before_BS)
        slower_BSN = (seg_BS != k_seg_BS)[..., None] | (k_clock_BSN <= clock_BSN)
        certain = ordered_BS.all() & (slower_BSN | (k_seg_BS == 0)[..., None]).all()
        seg_BJ = jnp.where(certain, seg_BS[:, starts], _NOT_SURE)
        return Tails(None, norm_BKJ, seg_BJ, pos_BS[:, starts], clock_BSN[:, starts])
    first = jnp.where(k_seg_BS != 0, k_pos_BS, jnp.iinfo(jnp.int32).max).min()
    certain = ordered_BS.all() & (jnp.where(q_seg_BT != 0, q_pos_BT, first).max() - first < S)
    seg_BJ = jnp.where(certain, seg_BS[:, starts], _NOT_SURE)
    table_NE = jnp.where(certain, log_tail(layer, params, S), jnp.inf)
    return Tails(table_NE, norm_BKJ, seg_BJ, pos_BS[:, starts], None)


def may_matter(
    tail: Tails,
    b: jax.Array,
    head: jax.Array,
    kv_G: jax.Array,
    j: jax.Array,
    q_norm_GT: jax.Array,
    q_pos_T: jax.Array,
    q_seg_T: jax.Array,
    q_clock_GT: jax.Array | None,
    lse_GT: jax.Array,
    block: int,
    epsilon: float,
) -> jax.Array:
    """Returns whether keys before block j can add more than `epsilon` of its sum to any row.

    Args:
      tail: of the layer. b: the row of the batch. head: the first head of the tile. kv_G: their keys' heads.
      q_norm_GT: |q|. lse_GT: ln of the softmax sum over the keys from block j on.
      block: keys in a block.
    """
    seg, pos = tail.seg_BJ[b, j], tail.pos_BJ[b, j]
    heads_G = head + jnp.arange(q_norm_GT.shape[0])
    if tail.table_NE is not None:
        end = tail.table_NE.shape[1] - 1
        away_T = jnp.where(seg == q_seg_T, jnp.clip((q_pos_T - pos) // STRIDE, 0, end), 0)
        bias_GT = tail.table_NE[heads_G[:, None], away_T[None]]
    else:  # no key weighs more than the last one, whose clock has run furthest
        clock_G1 = tail.clock_BJN[b, j][heads_G][:, None]
        bias_GT = q_clock_GT - clock_G1 + jnp.log(jnp.maximum(j * block, 1).astype(jnp.float32))
        bias_GT = jnp.where((seg <= q_seg_T)[None], bias_GT, jnp.inf)
    norm_G1 = tail.norm_BKJ[b, kv_G, j][:, None]
    # Of a row's own document nothing is left once the last key is of an earlier one.
    done_T = (q_seg_T == 0) | (seg < q_seg_T)
    small_GT = q_norm_GT * norm_G1 + bias_GT - lse_GT <= math.log(epsilon) - _ROUNDING
    return ~(small_GT | done_T[None]).all()  # a NaN is never small: it must come out


def log_tail(layer: PlacedLayer, params: Params, longest: int) -> jax.Array:
    """Returns table_NE: ln of the sum of exp(b(d)) over E * STRIDE <= d < longest, per head."""
    bias_ND = _bias_by_distance(layer, params, longest)
    bias_ND = jnp.pad(bias_ND, ((0, 0), (0, -longest % STRIDE)), constant_values=-jnp.inf)
    part_NE = jax.nn.logsumexp(bias_ND.reshape(len(bias_ND), -1, STRIDE), axis=-1)
    table_NE = jax.lax.cumlogsumexp(part_NE, axis=1, reverse=True)
    return jnp.pad(table_NE, ((0, 0), (0, 1)), constant_values=-jnp.inf)


def _bias_by_distance(layer: PlacedLayer, params: Params, longest: int) -> jax.Array:
    last = jnp.array([[longest - 1]])
    return layer.bias(params, last, jnp.arange(longest)[::-1][None])[0, :, 0]


def windows(
    layer: PlacedLayer, params: Params, bound: float, longest: int, epsilon: float = EXACT
) -> np.ndarray:
    """Returns window_N: keys at that distance or further weigh less than `epsilon`, all together.

    For reports, before there are any queries: `bound` holds for every |content logit|, temperature
    included (under qk-norm: gain^2 sqrt(H)), and the own key is in sight. Attention itself measures, and
    stops no later. `longest` where there is no window; heads without a bias, or with one that needs more
    than a distance, have none.
    """
    window_N = np.full(layer.num_heads, longest)
    for g, group in enumerate(layer.groups):
        part = group.heads.bias
        if part is None or not part.relative or isinstance(part, GatedBias):
            continue
        alone, learned = layer_of_group(layer, params, g)
        bias_ND = np.asarray(_bias_by_distance(alone, learned, longest), np.float64)
        table_ND = np.logaddexp.accumulate(bias_ND[:, ::-1], axis=1)[:, ::-1]
        lost_ND = table_ND - bias_ND[:, :1] + 2 * bound
        window_N[group.first : group.stop] = (lost_ND > math.log(epsilon)).sum(1).clip(max=longest)
    return window_N


def layer_of_group(layer: PlacedLayer, params: Params, g: int) -> tuple[PlacedLayer, Params]:
    """Returns the layer that head group g would be alone, and its learned parameters."""
    alone = PlacedLayer((dataclasses.replace(layer.groups[g], first=0),))
    return alone, {f"0.{k.split('.', 1)[1]}": v for k, v in params.items() if k.startswith(f"{g}.")}


def _tempered(layer: PlacedLayer, params: Params) -> bool:
    probe = jnp.zeros((1, 2), jnp.int32)
    tau = jax.eval_shape(lambda p: layer.temperature(p, probe, probe), params)
    return tau is not None and tau.shape[-1] != 1


def _earlier(x_BS: jax.Array, at_BS: jax.Array, empty: int) -> jax.Array:
    return jnp.where(at_BS < 0, empty, jnp.take_along_axis(x_BS, jnp.maximum(at_BS, 0), axis=1))
