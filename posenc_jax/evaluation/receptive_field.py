"""Receptive field (M3): gradient of one token's loss to the earlier embeddings, by distance."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder


def gradient_by_distance(config: ModelConfig, params, tokens_T, target) -> jax.Array:
    """Returns norm_Z: |d loss / d embedding| of the token d before the one that predicts `target`.

    The loss is that of the token after the row's last. Every index of the row has its own row of
    the embedding table, so that the table's gradient is one vector per index; the head keeps the
    vocabulary.

    Args:
      config, params: of a decoder; it runs in float32. tokens_T: one document. target: the next
        token.
    """
    T, V = tokens_T.shape[0], config.vocab_size
    table_VD = params["embedding_VD"]
    head_VD = table_VD if config.tied_head else params["head_VD"]
    rows = max(T, V)
    own = dataclasses.replace(config.measured, vocab_size=rows, tied_head=False)
    head_WD = jnp.pad(head_VD, ((0, rows - V), (0, 0)))

    def loss(embedding_TD):
        table_WD = jnp.pad(embedding_TD, ((0, rows - T), (0, 0)))
        changed = {**params, "embedding_VD": table_WD, "head_VD": head_WD}
        if "head" in config.biases:
            changed["head_bias_V"] = jnp.pad(params["head_bias_V"], (0, rows - V))
        index_1T = jnp.arange(T)[None]
        logits_1TW, _ = Decoder(own).apply(
            {"params": changed}, index_1T, index_1T, jnp.ones_like(index_1T)
        )
        last_V = logits_1TW[0, -1, :V]
        return jax.nn.logsumexp(last_V) - last_V[target]

    gradient_TD = jax.grad(loss)(table_VD[tokens_T])
    return jnp.linalg.norm(gradient_TD, axis=-1)[::-1]


def reach_of_share(norm_Z: np.ndarray, share: float) -> int:
    """Returns the distance that holds `share` of the summed norm; ValueError for all zeros."""
    total = norm_Z.sum(dtype=np.float64)
    if not total > 0:
        raise ValueError("the loss has no gradient to any embedding")
    within_Z = np.cumsum(norm_Z, dtype=np.float64) / total
    return int(np.searchsorted(within_Z, share - 1e-12))
