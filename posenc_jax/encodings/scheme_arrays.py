"""What a placed scheme looks like, as plain arrays: for pictures and tables, without training."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from posenc_jax.encodings.base import Params
from posenc_jax.encodings.grammar import unparse_part
from posenc_jax.encodings.scheme import PlacedLayer, PlacedScheme


def scheme_arrays(
    scheme: PlacedScheme, params: list[Params], distance_S: np.ndarray, grid_G: np.ndarray
) -> tuple[list[dict], dict[str, np.ndarray]]:
    """Returns (heads, arrays): a description of every head and the values of its parts.

    Args:
      scheme: the placed scheme. params: one entry of learned parameters per layer ({} for none).
      distance_S: distances, in tokens, back from a query that stands at the largest of them.
      grid_G: positions at which the full bias matrix is sampled.

    The arrays: `bias_LNS` at the distances, `grid_bias_LNGG`, both nan where no key is in sight (after the query, or
    out of the head's window), `temperature_LNG` at the grid's positions, on the logit of the first key; zeros and ones
    where a head has no such part. A bias that tokens decide is shown for tokens at rest.
    """
    last = int(distance_S.max())
    query_11 = jnp.full((1, 1), last, jnp.int32)
    keys_1S = jnp.asarray(last - distance_S, jnp.int32)[None]
    grid_1G = jnp.asarray(grid_G, jnp.int32)[None]
    away_GG = grid_G[:, None] - grid_G[None, :]
    heads, bias, grid_bias, temperature = [], [], [], []
    for number, (layer, learned) in enumerate(zip(scheme.layers, params, strict=True)):
        N = layer.num_heads
        row = layer.bias(learned, query_11, keys_1S)
        row = np.zeros((N, len(distance_S))) if row is None else np.asarray(row[0, :, 0])
        window_N = np.array([np.inf if w is None else w for w in layer.window_N])
        bias.append(np.where(distance_S < window_N[:, None], row, np.nan))
        matrix = layer.bias(learned, grid_1G, grid_1G)
        matrix = np.zeros((N, len(grid_G), len(grid_G))) if matrix is None else np.array(matrix[0])
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
    """Returns the nats lost over the first token of distance, None where nothing is."""
    return float(-np.interp(1.0, distance_S, bias_S)) or None


def pair_vector(head_dim: int, pairing: str) -> np.ndarray:
    """Returns e_H with every rotary pair at (1, 0): <R(i) e, R(j) e> sums the cosines of the pairs."""
    pair = np.zeros((2, head_dim // 2) if pairing == "half" else (head_dim // 2, 2))
    pair[(0, slice(None)) if pairing == "half" else (slice(None), 0)] = 1.0
    return pair.ravel()


def planar_arrays(
    layer: PlacedLayer, params: Params, columns: int, radius: int
) -> dict[str, np.ndarray]:
    """Returns what a query in the middle of a grid sees of the keys up to `radius` rows and columns away.

    `bias_NRR` in nats, zeros without a bias; `kernel_NRR`, the mean cosine over rotary pairs, ones
    without a rotation; `away_R`, the offsets. A radius that the columns do not hold is cut to them.
    """
    radius = min(radius, (columns - 1) // 2)
    away_R = np.arange(-radius, radius + 1)
    middle = radius * columns + radius
    places = (middle + away_R[:, None] * columns + away_R[None, :]).ravel()
    query_11, keys_1S = jnp.full((1, 1), middle, jnp.int32), jnp.asarray(places, jnp.int32)[None]
    shape = (layer.num_heads, len(away_R), len(away_R))
    bias = layer.bias(params, query_11, keys_1S)
    bias_NRR = np.zeros(shape) if bias is None else np.asarray(bias[0, :, 0]).reshape(shape)
    kernel_NRR = np.ones(shape)
    for group in layer.groups:
        if group.heads.rotation is not None:
            e_H = pair_vector(
                group.context.head_dim, getattr(group.heads.rotation, "pairing", "half")
            )
            x = jnp.broadcast_to(jnp.asarray(e_H, jnp.float32), (1, keys_1S.shape[1], layer.num_heads, len(e_H)))  # fmt: skip
            q = layer.rotate(params, x[:, :1], query_11, "query")
            k = layer.rotate(params, x, keys_1S, "key")
            product_NS = np.asarray(jnp.einsum("BTNH,BSNH->NS", q, k))
            cosine = product_NS / product_NS[:, len(places) // 2, None]  # the key in the middle
            mine = slice(group.first, group.stop)
            kernel_NRR[mine] = cosine[mine].reshape(-1, *shape[1:])
    return {"bias_NRR": bias_NRR, "kernel_NRR": kernel_NRR, "away_R": away_R}


def absolute_similarity(scheme: PlacedScheme, params: Params, grid_G: np.ndarray) -> np.ndarray:
    """Returns cosine_GG of the absolute vectors a(i) and a(j) at the grid's positions."""
    vector_GD = np.asarray(
        scheme.embed(params, jnp.asarray(grid_G, jnp.int32)[None])[0], np.float64
    )
    vector_GD /= np.linalg.norm(vector_GD, axis=-1, keepdims=True)
    return vector_GD @ vector_GD.T


def rope_scaling_ratios(scheme: PlacedScheme) -> dict[str, np.ndarray]:
    """Returns by stretch, in the words of the scheme language, each pair's frequency over the plain one."""
    ratios = {}
    for layer in dict.fromkeys(scheme.layers):
        for group in layer.groups:
            rotation = group.heads.rotation
            if getattr(rotation, "stretch", None) is not None:
                plain = dataclasses.replace(rotation, stretch=None).frequencies(group.context)
                ratio_h = rotation.frequencies(group.context) / plain
                name = f"{unparse_part(rotation.stretch)}, amplitude {rotation.stretch.amplitude(group.context.train_length):.3f}"  # fmt: skip
                ratios[name] = ratio_h
    return ratios


def layer_parameters(scheme: PlacedScheme, params: Params) -> list[Params]:
    """Returns the learned scheme parameters of every layer from a decoder's parameters."""
    return [
        params.get(f"layer_{i}", {}).get("attention", {}).get("scheme", {})
        for i in range(len(scheme.layers))
    ]
