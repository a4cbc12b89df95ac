"""Statistics of attention heads (M1 to M11), from sums over rows of text (docs/evaluation.md).

`head_sums` runs a model over rows of text and returns one `HeadSums` per softmax layer; the
functions below compute measures from the sums, in NumPy and float64. L layers, N heads, Z
distances.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.attention.attention_statistics import (
    AttentionStatistics,
    attention_statistics,
    needle_statistics,
)
from posenc_jax.encodings import PlacedLayer
from posenc_jax.encodings.base import Params
from posenc_jax.evaluation.capture import capture_rows
from posenc_jax.model.config import ModelConfig
from posenc_jax.tasks.instances import Instance


@dataclasses.dataclass(frozen=True)
class HeadSums:
    """Sums of one layer over B rows of T tokens, for the queries from `first` on; float64.

    Attributes:
      pairs_Z: pairs of query and key at each distance. weight_NZ, content_NZ, logit_NZ: mean
        attention weight, content logit and whole logit at each distance. within_NZ: summed squares
        of the whole logit about that mean. entropy_N, sink_N: mean over queries. blind_N: by dtype,
        mean share of blind keys. q_power_NH, k_power_NH: mean squares of each dim before the
        rotation.
    """

    pairs_Z: np.ndarray
    weight_NZ: np.ndarray
    content_NZ: np.ndarray
    logit_NZ: np.ndarray
    within_NZ: np.ndarray
    entropy_N: np.ndarray
    sink_N: np.ndarray
    blind_N: dict[str, np.ndarray]
    q_power_NH: np.ndarray
    k_power_NH: np.ndarray
    first: int
    rows: int

    @property
    def queries(self) -> int:
        """Number of queries, over all rows."""
        return self.rows * (len(self.pairs_Z) - self.first)


def head_sums(
    config: ModelConfig, params, rows_RT: np.ndarray, batch_tokens: int, first: int
) -> list[HeadSums | None]:
    """Returns the sums of each layer over rows of text, None for a layer of linear attention.

    Args:
      config, params: of the model. rows_RT: tokens, a document each. batch_tokens: tokens per
        batch.
      first: index of the first query; all queries see every distance up to it.
    """

    def reduce(_, q, k, layer, learned, pos_BT, cum_log_forget_BTN, sink_N):
        if layer.form is not None:
            return None
        where = {"pos_BT": pos_BT, "cum_log_forget_BTN": cum_log_forget_BTN, "sink_N": sink_N}
        where["softcap"] = config.attention_softcap
        return attention_statistics(q, k, layer, learned, first=first, **where)

    pieces = capture_rows(config, params, rows_RT, batch_tokens, lambda: reduce)
    return [
        None if pieces[0][i] is None else merge_sums([piece[i] for piece in pieces], first)
        for i in range(config.num_layers)
    ]


def merge_sums(pieces: Sequence[AttentionStatistics], first: int) -> HeadSums:
    """Returns the sums over all batches; `first` as for `attention_statistics`."""
    whole = jax.tree.map(lambda *x: np.concatenate(x).astype(np.float64), *pieces)
    B, _, T = whole.weight_BNZ.shape
    each_Z = T - np.maximum(np.arange(T), first).astype(
        np.float64
    )  # pairs at a distance, in one row
    logit_NZ = whole.mean_BNZ.mean(0)
    between_NZ = each_Z * ((whole.mean_BNZ - logit_NZ) ** 2).sum(0)
    return HeadSums(
        pairs_Z=B * each_Z,
        weight_NZ=whole.weight_BNZ.sum(0) / (B * each_Z),
        content_NZ=whole.content_BNZ.sum(0) / (B * each_Z),
        logit_NZ=logit_NZ,
        within_NZ=whole.spread_BNZ.sum(0) + between_NZ,
        entropy_N=whole.entropy_BNQ.mean((0, 2)),
        sink_N=whole.sink_BNQ.mean((0, 2)),
        blind_N={name: x.mean((0, 2)) for name, x in whole.blind_BNQ.items()},
        q_power_NH=whole.q_power_BNH.mean(0),
        k_power_NH=whole.k_power_BNH.mean(0),
        first=first,
        rows=B,
    )


def mass_between(sums: HeadSums, low: int, high: int) -> np.ndarray:
    """Returns mass_N (M1): the mean weight a query puts on keys at distances in [low, high)."""
    total_NZ = sums.weight_NZ * sums.pairs_Z
    return total_NZ[:, low:high].sum(-1) / sums.queries


def mean_distance(sums: HeadSums) -> np.ndarray:
    """Returns distance_N (M1): the weighted mean distance of a query's keys, tokens."""
    return (sums.weight_NZ * sums.pairs_Z) @ np.arange(len(sums.pairs_Z)) / sums.queries


def relative_structure(sums: HeadSums) -> np.ndarray:
    """Returns score_N (P2): 1 - Var(z_ij - f(i - j)) / Var(z_ij), f the mean of each diagonal.

    1 where the logit depends on the distance only; nan where it never varies.
    """
    grand_N1 = (sums.logit_NZ @ sums.pairs_Z / sums.pairs_Z.sum())[:, None]
    between_N = (sums.logit_NZ - grand_N1) ** 2 @ sums.pairs_Z
    within_N = sums.within_NZ.sum(-1)
    with np.errstate(invalid="ignore"):
        return between_N / (between_N + within_N)


def monotonicity(sums: HeadSums) -> np.ndarray:
    """Returns tau_N (M7): Kendall's tau-b of mean weight against distance, -1 for a strict fall.

    Over the distances that every query sees; nan where the mean weight never varies.
    """
    from scipy import stats  # slow to import

    distance_Z = np.arange(sums.first + 1)
    with np.errstate(invalid="ignore"):
        return np.array(
            [stats.kendalltau(distance_Z, w_Z[distance_Z]).statistic for w_Z in sums.weight_NZ]
        )


def rotary_planes(layer: PlacedLayer, params: Params, head_dim: int) -> list[list[dict]]:
    """Returns for every head its rotary pairs: {"dims": (a, b), "wavelength": tokens}, fastest
    first.

    Derived from the rotation of every unit vector at position 1 (of a grid: column 1). A dim
    without a rotation is in no pair. A dim that becomes a cosine and a sine (PoPE) is {"dims":
    (a,), ..}.
    """
    N, H = layer.num_heads, head_dim
    unit_1HNH = jnp.broadcast_to(jnp.eye(H)[None, :, None], (1, H, N, H))
    out_1HNH = layer.rotate(params, unit_1HNH, jnp.ones((1, H), jnp.int32), "query")
    turn_NHH = np.asarray(out_1HNH[0], np.float64).swapaxes(0, 1)
    heads = []
    still_1HNH = layer.rotate(params, unit_1HNH, jnp.zeros((1, H), jnp.int32), "query")
    still_NHH = np.asarray(still_1HNH[0], np.float64).swapaxes(0, 1)
    for turn_HH, still_HH in zip(turn_NHH, still_NHH, strict=True):
        pairs: list[dict] = []
        for a in range(H if turn_HH[:, H:].any() else 0):
            turned, still = (x_HH[a, a] + 1j * x_HH[a, a + H] for x_HH in (turn_HH, still_HH))
            if angle := abs(np.angle(turned * np.conj(still))):
                pairs.append({"dims": (a,), "wavelength": float(2 * np.pi / angle)})
        if pairs:
            heads.append(sorted(pairs, key=lambda pair: pair["wavelength"]))
            continue
        turn_HH = turn_HH[:, :H]
        for a, b in zip(*np.nonzero(np.triu(np.abs(turn_HH), 1)), strict=True):
            angle = abs(np.arctan2(turn_HH[a, b], turn_HH[a, a]))
            pairs.append({"dims": (int(a), int(b)), "wavelength": float(2 * np.pi / angle)})
        heads.append(sorted(pairs, key=lambda pair: pair["wavelength"]))
    return heads


def frequency_use(sums: HeadSums, planes: list[list[dict]]) -> list[np.ndarray]:
    """Returns for every head the share of each rotary pair, and of the unrotated dims last (M5).

    The use of a pair is the root mean square of its queries times that of its keys, which bounds
    its part of the content logit (Barbero et al. 2024, sec. 3). The shares of a head sum to 1.
    """
    shares = []
    for q_H, k_H, pairs in zip(sums.q_power_NH, sums.k_power_NH, planes, strict=True):
        rest = np.setdiff1d(np.arange(len(q_H)), [d for pair in pairs for d in pair["dims"]])
        parts = [list(pair["dims"]) for pair in pairs] + [rest.astype(int)]
        use = np.array([np.sqrt(q_H[dims].sum() * k_H[dims].sum()) for dims in parts])
        shares.append(use / use.sum() if use.sum() else use)
    return shares


@dataclasses.dataclass(frozen=True)
class NeedleHeads:
    """Attention of each head to needles: A entries, one per answer token of all instances.

    Attributes:
      distance_A: tokens from the predicting position back to the needle's token.
      weight_NA, margin_NA, reach_NA: as in `attention.attention_statistics.NeedleStatistics`.
    """

    distance_A: np.ndarray
    weight_NA: np.ndarray
    margin_NA: np.ndarray
    reach_NA: np.ndarray


def needle_positions(instance: Instance) -> tuple[np.ndarray, np.ndarray]:
    """Returns (query_A, key_A): positions that predict the answer tokens, and of the needle's
    tokens.

    A token at p is predicted at p - 1. The same token of the needle is `distance` before p - 1, for
    every token of an answer, as answer and needle are the same ids in the same order.
    """
    query_A = np.concatenate([np.arange(a.start - 1, a.stop - 1) for a in instance.answers])
    back_A = np.concatenate([np.full(a.stop - a.start, a.distance) for a in instance.answers])
    return query_A, query_A - back_A


def needle_heads(
    config: ModelConfig, params, instances: list[Instance], batch_tokens: int
) -> list[NeedleHeads | None]:
    """Returns M9 and M10 of each layer over instances of one length and one number of answers.

    None for a layer of linear attention. Args: see `head_sums`.
    """

    def make_reduce(query_BA, key_BA):
        def reduce(_, q, k, layer, learned, pos_BT, cum_log_forget_BTN, sink_N):
            if layer.form is not None:
                return None
            where = {"pos_BT": pos_BT, "cum_log_forget_BTN": cum_log_forget_BTN, "sink_N": sink_N}
            where["softcap"] = config.attention_softcap
            return needle_statistics(q, k, layer, learned, needles=(query_BA, key_BA), **where)

        return reduce

    query_BA, key_BA = (np.stack(x) for x in zip(*map(needle_positions, instances), strict=True))
    rows_RT = np.stack([i.tokens for i in instances])
    pieces = capture_rows(config, params, rows_RT, batch_tokens, make_reduce, query_BA, key_BA)
    layers: list[NeedleHeads | None] = []
    for i in range(config.num_layers):
        if pieces[0][i] is None:
            layers.append(None)
            continue
        whole = jax.tree.map(lambda *x: np.concatenate(x), *(piece[i] for piece in pieces))
        flat = (x.swapaxes(0, 1).reshape(x.shape[1], -1) for x in whole)
        layers.append(NeedleHeads((query_BA - key_BA).ravel(), *flat))
    return layers


def measured_reach(needles: NeedleHeads) -> np.ndarray:
    """Returns reach_N (M10): the farthest needle that got weight 1/2 or more, -1 where none did."""
    return np.where(needles.weight_NA >= 0.5, needles.distance_A, -1).max(-1)


def agreement(needles: NeedleHeads) -> np.ndarray:
    """Returns share_N (M10) of needles where "within predicted reach" equals "weight >= 1/2"."""
    return ((needles.distance_A <= needles.reach_NA) == (needles.weight_NA >= 0.5)).mean(-1)
