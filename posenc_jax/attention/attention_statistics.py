"""Attention statistics of heads: weights by distance, entropy, needles.

All functions take causal attention inside one document without padding, with consecutive positions,
as probes use it. Weights obey the windows of heads; logits cover all pairs. Blocks of R queries are
reduced over all S keys one after another, so no T x S array exists. Sums over pairs of equal
distance use a skew: rows of width W, flattened and reshaped to width W + 1, have equal distances in
equal columns.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from posenc_jax.attention.dense import MASK_VALUE, capped
from posenc_jax.attention.mask import window_array
from posenc_jax.encodings.analysis import SMALLEST_POSITIVE
from posenc_jax.encodings.base import Params
from posenc_jax.encodings.scheme import PlacedLayer

BLOCK = 32  # queries per block


class PositionedQK(NamedTuple):
    """Rotated queries and keys, float32, one key per query head."""

    q_BTNH: jax.Array
    k_BTNH: jax.Array
    pos_BT: jax.Array
    cum_log_forget_BTN: jax.Array | None


class AttentionStatistics(NamedTuple):
    """Statistics of one layer, per sequence. Z = T distances, 0 first; Q measured queries.

    Attributes:
      weight_BNZ: summed attention weight at each distance; with a sink, less than one per query in
        all.
      content_BNZ: summed content logit, with temperature and 1/sqrt(H), without bias.
      mean_BNZ, spread_BNZ: mean logit at each distance, and the sum of squared deviations from it.
      entropy_BNQ: entropy of a query's weights, including the sink, nats. sink_BNQ: weight of the
        first token.
      blind_BNQ: dtype -> share of visible keys whose weight, relative to the largest (sink
        included), is 0 in it.
      q_power_BNH, k_power_BNH: mean square of every dim before the rotation; for rotations with
        several columns per dim, the sum over those columns.
    """

    weight_BNZ: jax.Array
    content_BNZ: jax.Array
    mean_BNZ: jax.Array
    spread_BNZ: jax.Array
    entropy_BNQ: jax.Array
    sink_BNQ: jax.Array
    blind_BNQ: dict[str, jax.Array]
    q_power_BNH: jax.Array
    k_power_BNH: jax.Array


class NeedleStatistics(NamedTuple):
    """Statistics of A pairs of a query and a key (the needle) per sequence.

    Attributes:
      weight_BNA: attention weight on the needle; the sink takes its part.
      margin_BNA: content logit of the needle minus the log of the mean exponential of the other
        keys' content logits up to the query, nats; without the sink.
      reach_BNA: the largest distance at which a key with this margin, among equal other keys, keeps
        weight 1/2 under the bias of the query; -1 if there is none.
    """

    weight_BNA: jax.Array
    margin_BNA: jax.Array
    reach_BNA: jax.Array


def positioned_qk(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    layer: PlacedLayer,
    params: Params,
    pos_BT: jax.Array,
    cum_log_forget_BTN: jax.Array | None,
) -> PositionedQK:
    """Returns rotated queries and keys (or features); arguments as for `attend`."""
    q_BTNH, k_BTKH = (x.astype(jnp.float32) for x in (q_BTNH, k_BTKH))
    if layer.form is not None:
        q_BTNH, k_BTKH = layer.form.features(q_BTNH), layer.form.features(k_BTKH)
    k_BTNH = jnp.repeat(k_BTKH, layer.num_heads // k_BTKH.shape[2], axis=2)
    q_BTNH = layer.rotate(params, q_BTNH, pos_BT, "query")
    return PositionedQK(
        q_BTNH, layer.rotate(params, k_BTNH, pos_BT, "key"), pos_BT, cum_log_forget_BTN
    )


def logit_rows(
    one: PositionedQK, layer: PlacedLayer, params: Params, rows_R: jax.Array, softcap: float
) -> tuple[jax.Array, jax.Array]:
    """Returns (content_NRS, bias_NRS), float32, for R queries of one sequence and all its keys.

    The logit is their sum. Linear attention has no logits; content is then the product of the
    rotated features, unscaled, and the bias is 0.

    Args:
      one: one sequence of a `PositionedQK` (no B). rows_R: indices of the queries. softcap: as in
        `AttentionSettings`.
    """
    q_RNH = one.q_BTNH[rows_R]
    content_NRS = jnp.einsum("RNH,SNH->NRS", q_RNH, one.k_BTNH)
    if layer.form is not None:
        return content_NRS, jnp.zeros_like(content_NRS)
    content_NRS = content_NRS / math.sqrt(layer.groups[0].context.head_dim)
    q_pos_1R, k_pos_1S = one.pos_BT[rows_R][None], one.pos_BT[None]
    tau_1NRS = layer.temperature(params, q_pos_1R, k_pos_1S)
    if tau_1NRS is not None:
        content_NRS = content_NRS * tau_1NRS[0]
    content_NRS = capped(content_NRS, softcap)
    log_forget: tuple = (None, None)
    if one.cum_log_forget_BTN is not None:
        log_forget = one.cum_log_forget_BTN[rows_R][None], one.cum_log_forget_BTN[None]
    bias_1NRS = layer.bias(params, q_pos_1R, k_pos_1S, *log_forget)
    return content_NRS, jnp.zeros_like(content_NRS) if bias_1NRS is None else bias_1NRS[0]


def attention_statistics(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    layer: PlacedLayer,
    params: Params,
    *,
    pos_BT: jax.Array,
    cum_log_forget_BTN: jax.Array | None,
    sink_N: jax.Array | None,
    first: int,
    softcap: float = 0.0,
) -> AttentionStatistics:
    """Returns the statistics of a layer over its queries from index `first` on.

    Arguments as for `attend`; all tokens of a row belong to one document.

    Raises:
      ValueError: linear attention, whose weights are not those of a softmax.
    """
    if layer.form is not None:
        raise ValueError(
            "linear attention has no softmax: its weights may be negative and have no entropy"
        )
    positioned = positioned_qk(q_BTNH, k_BTKH, layer, params, pos_BT, cum_log_forget_BTN)
    rows = functools.partial(logit_rows, layer=layer, params=params, softcap=softcap)
    sums = lax.map(lambda one: _row_statistics(one, rows, layer, sink_N, first), positioned)
    # The power of the vectors that are rotated; a rotation keeps the sum over each of its pairs.
    if layer.columns_per_dim > 1:
        H = q_BTNH.shape[-1]
        wide = (x.reshape(*x.shape[:-1], -1, H) for x in positioned[:2])
        power = [(x**2).sum(-2).mean(1) for x in wide]
        return AttentionStatistics(*sums, *power)
    power = [(x.astype(jnp.float32) ** 2).mean(1) for x in (q_BTNH, k_BTKH)]
    power[1] = jnp.repeat(power[1], layer.num_heads // k_BTKH.shape[2], axis=1)
    return AttentionStatistics(*sums, *power)


def _row_statistics(
    one: PositionedQK, rows: Callable, layer: PlacedLayer, sink_N: jax.Array | None, first: int
) -> tuple:
    S, N, _ = one.q_BTNH.shape
    R = min(BLOCK, S - first)
    zero_NZ = jnp.zeros((N, S))

    def step(carry, start):
        weight_NZ, content_NZ, count_Z, mean_NZ, spread_NZ = carry
        index_R = start + jnp.arange(R)
        rows_R = jnp.minimum(index_R, S - 1)
        content_NRS, bias_NRS = rows(one, rows_R=rows_R)
        logit_NRS = content_NRS + bias_NRS
        seen_1RS = _earlier(index_R, S) & (index_R < S)[None, :, None]
        seen_NRS = seen_1RS & _inside(layer, index_R, S)
        weight_NRS, entropy_NR, blind = _softmax(logit_NRS, seen_NRS, sink_N)

        def summed(x_NRS):  # by distance
            return _to_distance(_skewed(x_NRS).sum(1), start, R, S)

        seen_1Rc = _skewed(seen_1RS.astype(jnp.float32))
        count_1c = seen_1Rc.sum(1)
        logit_NRc = _skewed(jnp.where(seen_1RS, logit_NRS, 0.0))
        mean_Nc = logit_NRc.sum(1) / jnp.maximum(count_1c, 1)
        squares_Nc = (seen_1Rc * (logit_NRc - mean_Nc[:, None]) ** 2).sum(1)
        here_Z, here_NZ, squares_NZ = (
            _to_distance(x, start, R, S) for x in (count_1c, mean_Nc, squares_Nc)
        )
        # Chan et al. 1979: merging means and squared deviations avoids the rounding error of a sum
        # of squares.
        both_Z = count_Z + here_Z
        share_Z = here_Z / jnp.maximum(both_Z, 1)
        gap_NZ = here_NZ - mean_NZ
        carry = (
            weight_NZ + summed(weight_NRS),
            content_NZ + summed(jnp.where(seen_1RS, content_NRS, 0.0)),
            both_Z,
            mean_NZ + gap_NZ * share_Z,
            spread_NZ + squares_NZ + gap_NZ**2 * count_Z * share_Z,
        )
        return carry, (entropy_NR, weight_NRS[:, :, 0], blind)

    starts = first + R * jnp.arange(-(-(S - first) // R))
    empty = (zero_NZ, zero_NZ, jnp.zeros((1, S)), zero_NZ, zero_NZ)
    (weight_NZ, content_NZ, _, mean_NZ, spread_NZ), rows = lax.scan(step, empty, starts)

    def joined(x_INR):  # from blocks to queries, without the padding of the last block
        return x_INR.swapaxes(0, 1).reshape(N, -1)[:, : S - first]

    return (weight_NZ, content_NZ, mean_NZ, spread_NZ, *jax.tree.map(joined, rows))


def _earlier(rows_R: jax.Array, S: int) -> jax.Array:
    """Returns seen_1RS: keys at the query's index or before."""
    return (jnp.arange(S)[None] <= rows_R[:, None])[None]


def _inside(layer: PlacedLayer, rows_R: jax.Array, S: int) -> jax.Array:
    """Returns inside_NRS: keys inside the window of each head."""
    away_1RS = (rows_R[:, None] - jnp.arange(S)[None])[None]
    return away_1RS < window_array(layer.window_N)[:, None, None]


def _softmax(logit_NRS, seen_NRS, sink_N):
    """Returns weights, entropy in nats, and per dtype the share of visible keys of weight 0."""
    logit_NRS = jnp.where(seen_NRS, logit_NRS, MASK_VALUE)
    top_NR = logit_NRS.max(-1)
    if sink_N is not None:
        top_NR = jnp.maximum(top_NR, sink_N[:, None])
    below_NRS = logit_NRS - top_NR[..., None]
    raw_NRS = jnp.where(seen_NRS, jnp.exp(below_NRS), 0.0)
    total_NR = raw_NRS.sum(-1)
    if sink_N is not None:
        total_NR = total_NR + jnp.exp(sink_N[:, None] - top_NR)
    total_NR = jnp.maximum(total_NR, 1e-30)  # 0 only in the padding
    weight_NRS = raw_NRS / total_NR[..., None]
    entropy_NR = jnp.log(total_NR) - (weight_NRS * jnp.where(seen_NRS, below_NRS, 0.0)).sum(-1)
    if sink_N is not None:
        below_NR = sink_N[:, None] - top_NR
        entropy_NR = entropy_NR - jnp.exp(below_NR) / total_NR * below_NR
    keys_NR = jnp.maximum(seen_NRS.sum(-1), 1)
    blind = {
        name: (seen_NRS & (below_NRS < math.log(SMALLEST_POSITIVE[name]))).sum(-1) / keys_NR
        for name in ("float32", "bfloat16")
    }
    return weight_NRS, entropy_NR, blind


def _skewed(x_NRS: jax.Array) -> jax.Array:
    """Returns x_NRc, c = S + R + 1: pairs of equal distance are in one column."""
    N, R, S = x_NRS.shape
    wide = jnp.pad(x_NRS, ((0, 0), (0, 0), (0, R)))  # room for the entries that wrap around
    return jnp.pad(wide.reshape(N, -1), ((0, 0), (0, R))).reshape(N, R, S + R + 1)


def _to_distance(x_Nc: jax.Array, start, R: int, S: int) -> jax.Array:
    """Returns x_NZ: key s and query start + r are in column s - r, and d = start - column."""
    return jnp.take(x_Nc, (start - jnp.arange(S)) % (S + R + 1), axis=-1)


def needle_statistics(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    layer: PlacedLayer,
    params: Params,
    *,
    pos_BT: jax.Array,
    cum_log_forget_BTN: jax.Array | None,
    sink_N: jax.Array | None,
    needles: tuple[jax.Array, jax.Array],
    softcap: float = 0.0,
) -> NeedleStatistics:
    """Returns the statistics of `needles`, (query_BA, key_BA) into T; ValueError if linear."""
    if layer.form is not None:
        raise ValueError("linear attention has no softmax: a needle holds no share of its weights")

    def one_sequence(xs):
        one, query_A, key_A = xs
        content_NAS, bias_NAS = logit_rows(one, layer, params, query_A, softcap)
        S = content_NAS.shape[-1]
        seen_1AS = _earlier(query_A, S)
        needle_1AS = (jnp.arange(S)[None] == key_A[:, None])[None]
        seen_NAS = seen_1AS & _inside(layer, query_A, S)
        weight_NAS, _, _ = _softmax(content_NAS + bias_NAS, seen_NAS, sink_N)
        content_NA = jnp.where(needle_1AS, content_NAS, 0.0).sum(-1)
        others_NAS = jnp.where(seen_1AS & ~needle_1AS, content_NAS, MASK_VALUE)
        margin_NA = content_NA - (jax.nn.logsumexp(others_NAS, -1) - jnp.log(query_A)[None])

        # Weights among equal keys, without the sink; a key of weight 0 is never kept.
        share_NAS, _, _ = _softmax(bias_NAS, seen_NAS, None)
        kept_NAS = seen_NAS & (margin_NA[..., None] + jnp.log(share_NAS) >= jnp.log1p(-share_NAS))
        distance_1AS = (query_A[:, None] - jnp.arange(S)[None])[None]
        reach_NA = jnp.where(kept_NAS, distance_1AS, -1).max(-1)
        return jnp.where(needle_1AS, weight_NAS, 0.0).sum(-1), margin_NA, reach_NA

    positioned = positioned_qk(q_BTNH, k_BTKH, layer, params, pos_BT, cum_log_forget_BTN)
    return NeedleStatistics(*lax.map(one_sequence, (positioned, *needles)))


def last_logits(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    layer: PlacedLayer,
    params: Params,
    *,
    pos_BT: jax.Array,
    cum_log_forget_BTN: jax.Array | None,
    rows: int,
    softcap: float = 0.0,
) -> jax.Array:
    """Returns logit_BNRS of the last `rows` queries and all keys; see `logit_rows`."""
    T = q_BTNH.shape[1]
    positioned = positioned_qk(q_BTNH, k_BTKH, layer, params, pos_BT, cum_log_forget_BTN)
    rows_R = jnp.arange(T - rows, T)
    return lax.map(lambda one: sum(logit_rows(one, layer, params, rows_R, softcap)), positioned)
