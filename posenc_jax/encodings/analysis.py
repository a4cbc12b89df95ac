"""Analysis of an untrained scheme: retrieval horizons, blind distances, unseen rotary pairs.

The functions evaluate the scheme at given positions, learned parts at their initial values. The
query is at the last of `length` positions; distance 0 is its own key.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.encodings.base import HeadContext, Params, Rotation
from posenc_jax.encodings.layer import PlacedHeadGroup
from posenc_jax.encodings.rotary import angles
from posenc_jax.encodings.scheme import PlacedLayer, PlacedScheme

CHUNK = 16_384  # distances whose bias is computed at once
# Smallest positive number of each dtype, subnormals included; smaller weights are exactly zero.
SMALLEST_POSITIVE = {"float32": 2.0**-149, "bfloat16": 2.0**-133, "float16": 2.0**-24}


@dataclasses.dataclass(frozen=True)
class HeadAnalysis:
    """Analysis of one head of one layer.

    Attributes:
      layer, head: indices. wavelengths: of the rotary pairs, tokens per turn (empty: no rotation).
      sight: the window of the scheme, tokens; None: no window. biased: whether it has a bias.
      slope: bias lost from distance 0 to 1, nats; negative for a bias that rises.
      bias_over_L: bias lost from distance 0 to L, nats, in training.
      horizon: content margin in nats -> largest distance at which a needle with this margin over
        every other key keeps weight 1/2 among `length` keys; -1 if not even at distance 0; None in
        linear attention, which has no softmax. Temperature and rotation change the margin.
      blind: dtype -> largest distance whose weight, relative to distance 0, is not exactly zero;
        None if all `length` distances have weight.
      unseen_pairs: number of rotary pairs that do not complete a turn within the training length,
        without those that a stretch keeps inside of the arc seen in training up to `length`.
      temperature: tau of the last query for the farthest key.
      gain_at_L, gain_at_end: factor of the rotation on the content logit at distance L and at the
        farthest key, see `content_gain`.
    """

    layer: int
    head: int
    wavelengths: tuple[float, ...]
    sight: int | None
    biased: bool
    slope: float
    bias_over_L: float
    horizon: dict[float, int | None]
    blind: dict[str, int | None]
    unseen_pairs: int
    temperature: float
    gain_at_L: float
    gain_at_end: float


def bias_of_distance(layer: PlacedLayer, params: Params, length: int) -> np.ndarray:
    """Returns b_NZ, float64: the bias of a query at length - 1 for a key d tokens back."""
    query_11 = jnp.full((1, 1), length - 1, jnp.int32)
    pieces = []
    for start in range(0, length, CHUNK):
        distance = np.arange(start, min(start + CHUNK, length))
        keys_1S = jnp.asarray(length - 1 - distance, jnp.int32)[None]
        bias = layer.bias(params, query_11, keys_1S)
        flat = np.zeros((layer.num_heads, len(distance)))
        pieces.append(flat if bias is None else np.asarray(bias[0, :, 0], np.float64))
    return np.concatenate(pieces, axis=1)


def temperature_of_distance(layer: PlacedLayer, params: Params, length: int) -> np.ndarray:
    """Returns tau_NZ, float64: the temperature of a query at length - 1 for a key d tokens back."""
    keys_1S = jnp.arange(length - 1, -1, -1, jnp.int32)[None]
    tau = layer.temperature(params, jnp.full((1, 1), length - 1, jnp.int32), keys_1S)
    if tau is None:
        return np.ones((layer.num_heads, length))
    return np.broadcast_to(np.asarray(tau[0, :, 0], np.float64), (layer.num_heads, length))


def temperature_of_position(
    layer: PlacedLayer, params: Params, position_S: np.ndarray
) -> np.ndarray:
    """Returns tau_NS, float64: the temperature of a query at each position for the first key."""
    queries_1S = jnp.asarray(position_S, jnp.int32)[None]
    tau = layer.temperature(params, queries_1S, jnp.zeros((1, 1), jnp.int32))
    if tau is None:
        return np.ones((layer.num_heads, len(position_S)))
    return np.asarray(tau[0, :, :, 0], np.float64)


def retrieval_horizon(bias_Z: np.ndarray, margin: float | np.ndarray) -> int:
    """Returns the largest distance at which a needle keeps weight 1/2, or -1.

    The content logit of the needle exceeds that of all other keys, which are equal, by `margin`
    nats (one number, or one per distance). It keeps weight 1/2 where margin + b(d) is at least the
    log of the summed weight of the others.
    """
    weight_Z = np.exp(bias_Z - bias_Z.max())
    others_Z = np.maximum(weight_Z.sum() - weight_Z, 0.0)
    kept = np.exp(margin) * weight_Z >= others_Z
    return int(np.flatnonzero(kept)[-1]) if kept.any() else -1


def blind_distance(bias_Z: np.ndarray, smallest: float) -> int | None:
    """Returns the largest distance whose weight is at least `smallest`; None if all weights are."""
    seen = np.flatnonzero(bias_Z - bias_Z[0] >= math.log(smallest))
    return None if seen[-1] == len(bias_Z) - 1 else int(seen[-1])


def content_gain(
    rotation: Rotation | None, context: HeadContext, distance_S: np.ndarray
) -> np.ndarray:
    """Returns gain_S, float64: the mean factor of a rotation on the content logit, without its
    cosines; dims that do not rotate have the factor 1.

    It is 1 for a pure rotation, at most 1 for xPos and the square of YaRN's amplitude under yarn.
    """
    if rotation is None or not rotation.wavelengths(context):
        return np.ones(len(distance_S))
    gain_Sh = rotation.pair_gains(context, distance_S)
    pairs, all_pairs = gain_Sh.shape[1], max(gain_Sh.shape[1], context.head_dim // 2)
    return (gain_Sh.sum(-1) + all_pairs - pairs) / all_pairs


def analyze_heads(
    scheme: PlacedScheme,
    params: list[Params],
    length: int,
    margins: tuple[float, ...],
    trained: PlacedScheme | None = None,
) -> list[HeadAnalysis]:
    """Returns the analysis of every head; equal layers are computed once.

    Args:
      scheme: placed. params: learned parameters per layer. length: number of keys. margins: nats.
      trained: the scheme in training, where `scheme` is a length extension of it; None: `scheme`.
    """
    out: list[HeadAnalysis] = []
    known: dict[PlacedLayer, list[HeadAnalysis]] = {}
    trained = trained or scheme
    layers = zip(scheme.layers, trained.layers, params, strict=True)
    for number, (layer, before, learned) in enumerate(layers):
        if layer in known and not learned:
            out += [dataclasses.replace(head, layer=number) for head in known[layer]]
            continue
        known[layer] = _analyze_layer(layer, before, learned, length, margins)
        out += [dataclasses.replace(head, layer=number) for head in known[layer]]
    return out


def _analyze_layer(layer, trained, params, length, margins) -> list[HeadAnalysis]:
    bias_NZ = bias_of_distance(layer, params, length)
    tau_NZ = temperature_of_distance(layer, params, length)
    distance_Z, heads = np.arange(length), []
    L = layer.groups[0].context.train_length
    over_L_N = _bias_over(trained, params, L, max(length - 1, L))
    for group, before in zip(layer.groups, trained.groups, strict=True):
        rotation = group.heads.rotation
        gain_Z = content_gain(rotation, group.context, distance_Z)
        gain_at_L = content_gain(rotation, group.context, np.array([L]))[0]
        for n in range(group.first, group.stop):
            b_Z, sight = bias_NZ[n], layer.window_N[n]
            seen_Z = b_Z if sight is None else np.where(distance_Z < sight, b_Z, -np.inf)
            horizon = {
                m: None if layer.form else retrieval_horizon(seen_Z, m * tau_NZ[n] * gain_Z)
                for m in margins
            }
            blind = {name: blind_distance(seen_Z, tiny) for name, tiny in SMALLEST_POSITIVE.items()}
            heads.append(
                HeadAnalysis(
                    layer=0,
                    head=n,
                    wavelengths=rotation.wavelengths(group.context) if rotation else (),
                    sight=sight,
                    biased=group.heads.bias is not None,
                    slope=float(b_Z[0] - b_Z[min(1, length - 1)]),
                    bias_over_L=float(over_L_N[n]),
                    horizon=horizon,
                    blind=blind,
                    unseen_pairs=_unseen_pairs(group, before, length),
                    temperature=float(tau_NZ[n, -1]),
                    gain_at_L=float(gain_at_L),
                    gain_at_end=float(gain_Z[-1]),
                )
            )
    return heads


def _bias_over(layer: PlacedLayer, params: Params, distance: int, last: int) -> np.ndarray:
    """Returns b(0) - b(distance) of every head, for the query at position `last`."""
    query_11 = jnp.full((1, 1), last, jnp.int32)
    bias = layer.bias(params, query_11, jnp.array([[last, last - distance]], jnp.int32))
    if bias is None:
        return np.zeros(layer.num_heads)
    return np.asarray(bias[0, :, 0, 0] - bias[0, :, 0, 1], np.float64)


def _unseen_pairs(group: PlacedHeadGroup, trained: PlacedHeadGroup, length: int) -> int:
    """Returns how many pairs do not complete a turn within L, and leave the arc seen in training
    where a stretch changed their wavelength.
    """
    if group.heads.rotation is None or trained.heads.rotation is None:
        return 0
    waves = group.heads.rotation.wavelengths(group.context)
    before = trained.heads.rotation.wavelengths(trained.context)
    L = group.context.train_length
    return sum(
        old > L and (new == old or length / new > L / old * (1 + 1e-6))
        for new, old in zip(waves, before, strict=True)
    )


def rotary_kernel(
    wavelengths: tuple[float, ...], distance_S: np.ndarray, gain_Sh: np.ndarray | None = None
) -> np.ndarray:
    """Returns the mean over pairs of gain times cosine: the logit of equal vectors relative to
    d = 0.

    Args:
      gain_Sh: from `Rotation.pair_gains`; None: 1, a pure rotation. A gain at d = 0 cancels.
    """
    return _phasors(wavelengths, distance_S, gain_Sh).real.mean(-1)


def decay_bound(
    wavelengths: tuple[float, ...], distance_S: np.ndarray, gain_Sh: np.ndarray | None = None
) -> np.ndarray:
    """Returns RoFormer's bound on the decay: the mean over j of |sum of the first j pairs'
    phasors|, with gains as for `rotary_kernel`.

    Source: Su et al. 2021, sec. 3.4.3, eq. 37. It bounds the logit of fixed vectors; the
    expectation over random vectors is zero at every distance.
    """
    return np.abs(np.cumsum(_phasors(wavelengths, distance_S, gain_Sh), axis=-1)).mean(-1)


def _phasors(wavelengths, distance_S, gain_Sh) -> np.ndarray:
    phase_Sh = np.exp(2j * np.pi * distance_S[:, None] / np.asarray(wavelengths)[None, :])
    return phase_Sh if gain_Sh is None else phase_Sh * gain_Sh


def rotation_curves(
    group: PlacedHeadGroup, distance_S: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `rotary_kernel` and `decay_bound` of a head group, relative to d = 0."""
    rotation, context = group.heads.rotation or Rotation(), group.context
    gain_Sh = rotation.pair_gains(context, distance_S)
    gain_Sh = gain_Sh / rotation.pair_gains(context, np.zeros(1)).mean()
    waves = rotation.wavelengths(context)
    return rotary_kernel(waves, distance_S, gain_Sh), decay_bound(waves, distance_S, gain_Sh)


def angle_errors(wavelengths: tuple[float, ...], length: int) -> dict[str, float]:
    """Returns the largest angle error in radians at positions up to length - 1, per method.

    "ours" is `rotary.angles`; "float32 product" multiplies position and frequency in float32;
    "bfloat16 positions" rounds the position to bfloat16 first.
    """
    freq_h = 2 * np.pi / np.asarray(wavelengths, np.float64)
    pos_T = np.unique(np.r_[np.linspace(0, length - 1, 4096).astype(np.int64), length - 1])
    exact_Th = pos_T[:, None] * freq_h.astype(np.longdouble)

    def largest(angle_Th: np.ndarray) -> float:
        turns = np.abs(np.asarray(angle_Th, np.longdouble) - exact_Th) / (2 * np.pi) % 1.0
        return float(2 * np.pi * np.minimum(turns, 1 - turns).max())

    rounded_T = np.asarray(jnp.asarray(pos_T, jnp.bfloat16).astype(jnp.float32), np.float64)
    return {
        "ours": largest(np.asarray(angles(jnp.asarray(pos_T, jnp.int32), freq_h), np.float64)),
        "float32 product": largest(pos_T[:, None].astype(np.float32) * freq_h.astype(np.float32)),
        "bfloat16 positions": largest(rounded_T[:, None] * freq_h),
    }


def scheme_warnings(heads: list[HeadAnalysis], length: int, train_length: int) -> list[str]:
    """Returns warnings about what the heads cannot see or have not seen; empty if none."""
    warnings = []
    total = len(heads)
    sights = sorted({h.sight for h in heads if h.sight is not None})
    if sights:
        count = sum(h.sight is not None for h in heads)
        size = f"{sights[0]:,}" if len(sights) == 1 else f"{sights[0]:,} to {sights[-1]:,}"
        warnings.append(
            f"{count} of {total} heads have a window of {size} tokens, at any length and under any "
            "stretch"
        )
    free = [h for h in heads if h.sight is None or (h.blind["float32"] or 0) < h.sight - 1]
    for name in ("float32", "bfloat16"):
        blind = [d for h in free if (d := h.blind[name]) is not None]
        if short := sorted(set(blind)):
            count = len(blind)
            where = f"{short[0]:,}" if len(short) == 1 else f"{short[0]:,} to {short[-1]:,}"
            warnings.append(
                f"{count} of {total} heads cannot see past {where} tokens in {name}: weights "
                "beyond are exactly 0"
            )
            break
    linear = sum(None in h.horizon.values() for h in heads)
    if linear:
        warnings.append(
            f"{linear} of {total} heads attend linearly: no softmax, so no horizon and no blind "
            "distance"
        )
    for margin in heads[0].horizon:
        reach = [d for h in heads if (d := h.horizon[margin]) is not None]
        if reach and margin <= 10 and max(reach) < length - 1:
            far = max(reach)
            warnings.append(
                f"no head holds a needle of content margin {margin:g} at distance {length - 1:,}; "
                f"the farthest reaches {max(far, 0):,}"
            )
    turning = [h for h in heads if h.wavelengths]
    unseen = sum(h.unseen_pairs for h in turning)
    if unseen and length > train_length:
        pairs = sum(len(h.wavelengths) for h in turning)
        warnings.append(
            f"{unseen} of {pairs} rotary pairs turn less than once within {train_length:,} tokens: "
            f"reading to {length:,} meets angles never seen in training, unless a bias hides them"
        )
    lost = [h.bias_over_L for h in heads if h.biased]
    if lost and min(lost) < 1 and length > train_length:
        warnings.append(
            f"{sum(nats < 1 for nats in lost)} of {total} heads lose less than 1 nat over L = "
            f"{train_length:,} (the least: {min(lost):.2g}): training hardly shows them the bias "
            "they meet beyond it"
        )
    fading = [h for h in heads if h.gain_at_end < 0.99]
    if fading:
        at_L, at_end = (
            min(getattr(h, name) for h in fading) for name in ("gain_at_L", "gain_at_end")
        )
        warnings.append(
            f"in {len(fading)} of {total} heads the rotation also shrinks content: a logit is on "
            f"average {at_L:.2g} times as large at distance {train_length:,} and {at_end:.2g} "
            f"times at {length - 1:,}"
        )
    return warnings


def initial_parameters(scheme: PlacedScheme, key: jax.Array) -> list[Params]:
    """Returns the initial learned parameters of every layer."""
    return [layer.init(jax.random.fold_in(key, i)) for i, layer in enumerate(scheme.layers)]
