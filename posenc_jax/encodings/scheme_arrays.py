"""Arrays and numbers that describe a placed scheme, for figures and tables."""

import jax.numpy as jnp
import numpy as np

from posenc_jax.encodings.base import Params
from posenc_jax.encodings.grammar import unparse_part
from posenc_jax.encodings.rotary import ScaledFrequencies
from posenc_jax.encodings.scheme import PlacedLayer, PlacedScheme


def scheme_arrays(
    scheme: PlacedScheme, params: list[Params], distance_S: np.ndarray, grid_G: np.ndarray
) -> tuple[list[dict], dict[str, np.ndarray]]:
    """Returns (heads, arrays): a description of every head, and the values of its parts.

    Args:
      params: the learned parameters of each layer ({} for none).
      distance_S: distances, in tokens, from a query at position max(distance_S).
      grid_G: positions at which the full bias matrix is sampled.

    The arrays: `bias_LNS` at the distances and `grid_bias_LNGG`, both nan for masked keys (after
    the query, or outside of the head's window), and `temperature_LNG` of the first key at the
    positions of the grid. Without such a part the bias is 0 and the temperature 1. The bias of a
    forget gate is that of tokens with x = 0.
    """
    last = int(distance_S.max())
    query_11 = jnp.full((1, 1), last, jnp.int32)
    keys_1S = jnp.asarray(last - distance_S, jnp.int32)[None]
    grid_1G = jnp.asarray(grid_G, jnp.int32)[None]
    away_GG = grid_G[:, None] - grid_G[None, :]
    heads, bias, grid_bias, temperature = [], [], [], []
    for number, (layer, learned) in enumerate(zip(scheme.layers, params, strict=True)):
        N = layer.num_heads
        bias_1N1S = layer.bias(learned, query_11, keys_1S)
        row = (
            np.zeros((N, len(distance_S))) if bias_1N1S is None else np.asarray(bias_1N1S[0, :, 0])
        )
        window_N = np.array([np.inf if w is None else w for w in layer.window_N])
        bias.append(np.where(distance_S < window_N[:, None], row, np.nan))
        full = layer.bias(learned, grid_1G, grid_1G)
        matrix = np.zeros((N, len(grid_G), len(grid_G))) if full is None else np.array(full[0])
        hidden_NGG = (away_GG < 0) | (away_GG >= window_N[:, None, None])
        grid_bias.append(np.where(hidden_NGG, np.nan, matrix))
        tau = layer.temperature(learned, grid_1G, grid_1G[:, :1])  # of the farthest key, the first
        temperature.append(
            np.ones((N, len(grid_G))) if tau is None else np.asarray(tau[0, :, :, 0])
        )
        for group in layer.groups:
            rotation = group.heads.rotation
            waves = list(rotation.wavelengths(group.context)) if rotation else None
            for n in range(group.first, group.stop):
                heads.append(
                    {
                        "layer": number,
                        "head": n,
                        "wavelengths": waves,
                        "rotates": rotation is not None,
                        "window": layer.window_N[n],
                        "slope": _slope(distance_S, row[n]),
                    }
                )
    arrays = {
        "distance_S": distance_S,
        "bias_LNS": np.stack(bias),
        "grid_G": grid_G,
        "grid_bias_LNGG": np.stack(grid_bias),
        "temperature_LNG": np.stack(temperature),
    }
    return heads, arrays


def _slope(distance_S: np.ndarray, bias_S: np.ndarray) -> float | None:
    """Returns the nats lost from distance 0 to 1; None if they are 0."""
    return float(-np.interp(1.0, distance_S, bias_S)) or None


def pair_vector(head_dim: int, pairing: str) -> np.ndarray:
    """Returns e_H, every rotary pair (1, 0): <R(i) e, R(j) e> is the sum of their cosines."""
    pair = np.zeros((2, head_dim // 2) if pairing == "half" else (head_dim // 2, 2))
    pair[(0, slice(None)) if pairing == "half" else (slice(None), 0)] = 1.0
    return pair.ravel()


def planar_arrays(
    layer: PlacedLayer, params: Params, columns: int, radius: int
) -> dict[str, np.ndarray]:
    """Returns bias and kernel of a query in the middle of a grid, for keys up to `radius` rows and
    columns away.

    `bias_NRR` in nats, zeros without a bias; `kernel_NRR`, the mean cosine over rotary pairs, ones
    without a rotation; `away_R`, the offsets. The radius is reduced to what the columns allow.
    """
    radius = min(radius, (columns - 1) // 2)
    away_R = np.arange(-radius, radius + 1)
    middle = radius * columns + radius
    keys_P = (middle + away_R[:, None] * columns + away_R[None, :]).ravel()
    query_11, keys_1S = jnp.full((1, 1), middle, jnp.int32), jnp.asarray(keys_P, jnp.int32)[None]
    shape = (layer.num_heads, len(away_R), len(away_R))
    bias = layer.bias(params, query_11, keys_1S)
    bias_NRR = np.zeros(shape) if bias is None else np.asarray(bias[0, :, 0]).reshape(shape)
    kernel_NRR = np.ones(shape)
    for group in layer.groups:
        if group.heads.rotation is not None:
            e_H = pair_vector(
                group.context.head_dim, getattr(group.heads.rotation, "pairing", "half")
            )
            x = jnp.broadcast_to(
                jnp.asarray(e_H, jnp.float32), (1, keys_1S.shape[1], layer.num_heads, len(e_H))
            )
            q = layer.rotate(params, x[:, :1], query_11, "query")
            k = layer.rotate(params, x, keys_1S, "key")
            product_NS = np.asarray(jnp.einsum("BTNH,BSNH->NS", q, k))
            cosine = product_NS / product_NS[:, len(keys_P) // 2, None]  # the key in the middle
            heads_of_group = slice(group.first, group.stop)
            kernel_NRR[heads_of_group] = cosine[heads_of_group].reshape(-1, *shape[1:])
    return {"bias_NRR": bias_NRR, "kernel_NRR": kernel_NRR, "away_R": away_R}


def absolute_similarity(scheme: PlacedScheme, params: Params, grid_G: np.ndarray) -> np.ndarray:
    """Returns cosine_GG of absolute vectors a(i), a(j) on the grid; ValueError without any."""
    a_1GD = scheme.embed(params, jnp.asarray(grid_G, jnp.int32)[None])
    if a_1GD is None:
        raise ValueError("the scheme has no absolute part")
    vector_GD = np.asarray(a_1GD[0], np.float64)
    vector_GD /= np.linalg.norm(vector_GD, axis=-1, keepdims=True)
    return vector_GD @ vector_GD.T


def rope_scaling_ratios(scheme: PlacedScheme) -> dict[str, np.ndarray]:
    """Returns, per RoPE scaling as text, each frequency over the unscaled one."""
    ratios = {}
    for layer in dict.fromkeys(scheme.layers):
        for group in layer.groups:
            rotation = group.heads.rotation
            if isinstance(rotation, ScaledFrequencies) and rotation.stretch is not None:
                plain = rotation.changed(stretch=None).frequencies(group.context)
                ratio_h = rotation.frequencies(group.context) / plain
                name = (
                    f"{unparse_part(rotation.stretch)}, amplitude "
                    f"{rotation.stretch.amplitude(group.context.train_length):.3f}"
                )
                ratios[name] = ratio_h
    return ratios


def layer_parameters(scheme: PlacedScheme, params: Params) -> list[Params]:
    """Returns the learned scheme parameters of every layer, from a decoder's parameters."""
    return [
        params.get(f"layer_{i}", {}).get("attention", {}).get("scheme", {})
        for i in range(len(scheme.layers))
    ]
