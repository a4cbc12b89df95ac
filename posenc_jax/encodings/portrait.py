"""What a placed scheme looks like, as plain arrays: for pictures and tables, without training."""

import jax.numpy as jnp
import numpy as np

from posenc_jax.encodings.part import Params
from posenc_jax.encodings.scheme import PlacedScheme


def portrait(
    scheme: PlacedScheme, params: list[Params], distance_S: np.ndarray, grid_G: np.ndarray
) -> tuple[list[dict], dict[str, np.ndarray]]:
    """Returns (heads, arrays): a description of every head and the values of its parts.

    Args:
      scheme: the placed scheme. params: one entry of learned parameters per layer ({} for none).
      distance_S: distances, in tokens, back from a query that stands at the largest of them.
      grid_G: positions at which the full bias matrix is sampled.

    The arrays: `bias_LNS` at the distances, `grid_bias_LNGG` (nan above the diagonal),
    `temperature_LNG` at the grid's positions, on the logit of the first key; zeros and ones where a
    head has no such part. A bias that tokens decide is shown for tokens at rest.
    """
    last = int(distance_S.max())
    query_11 = jnp.full((1, 1), last, jnp.int32)
    keys_1S = jnp.asarray(last - distance_S, jnp.int32)[None]
    grid_1G = jnp.asarray(grid_G, jnp.int32)[None]
    future_GG = grid_G[:, None] < grid_G[None, :]
    heads, bias, grid_bias, temperature = [], [], [], []
    for number, (layer, learned) in enumerate(zip(scheme.layers, params, strict=True)):
        N = layer.num_heads
        row = layer.bias(learned, query_11, keys_1S)
        bias.append(np.zeros((N, len(distance_S))) if row is None else np.asarray(row[0, :, 0]))
        matrix = layer.bias(learned, grid_1G, grid_1G)
        matrix = np.zeros((N, len(grid_G), len(grid_G))) if matrix is None else np.array(matrix[0])
        grid_bias.append(np.where(future_GG, np.nan, matrix))
        tau = layer.temperature(learned, grid_1G, grid_1G[:, :1])  # of the farthest key, the first
        temperature.append(
            np.ones((N, len(grid_G))) if tau is None else np.asarray(tau[0, :, :, 0])
        )
        for group in layer.groups:
            rotation = group.heads.rotation
            waves = list(rotation.wavelengths(group.place)) if rotation else None
            for n in range(group.first, group.stop):
                heads.append(
                    {
                        "layer": number,
                        "head": n,
                        "wavelengths": waves,
                        "rotates": rotation is not None,
                    }
                )
    for head in heads:
        unit = np.interp(1.0, distance_S, bias[head["layer"]][head["head"]])
        head["slope"] = float(-unit) if unit else None  # nats lost over the first token of distance
    arrays = {
        "distance_S": distance_S,
        "bias_LNS": np.stack(bias),
        "grid_G": grid_G,
        "grid_bias_LNGG": np.stack(grid_bias),
        "temperature_LNG": np.stack(temperature),
    }
    return heads, arrays


def layer_parameters(scheme: PlacedScheme, params: Params) -> list[Params]:
    """Returns the learned scheme parameters of every layer from a decoder's parameters."""
    return [
        params.get(f"layer_{i}", {}).get("attention", {}).get("scheme", {})
        for i in range(len(scheme.layers))
    ]
