"""Dense attention: the definition, in float32, with all T x S logits in memory."""

import math

import jax
import jax.numpy as jnp

MASK_VALUE = -1e30  # finite, so that a query that sees no key gets zeros and not NaN


def capped(logits: jax.Array, softcap: float) -> jax.Array:
    """Returns softcap tanh(logits / softcap); the logits themselves where softcap is 0."""
    return softcap * jnp.tanh(logits / softcap) if softcap else logits


def dense_attention(
    q_BTNH: jax.Array,
    k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    bias_BNTS: jax.Array | None,
    mask: jax.Array,
    tau_BNTS: jax.Array | None = None,
    sink_N: jax.Array | None = None,
    softcap: float = 0.0,
) -> jax.Array:
    """Returns softmax(tau q k / sqrt(H) + bias) v per head; zeros for a query that sees no key.

    Args:
      q_BTNH: rotated queries.
      k_BSNH: rotated keys, one per query head.
      v_BSNH: values, one per query head; the result has their dtype, and H is their head dim.
      bias_BNTS: float32, or None; added after the 1/sqrt(H) scale, itself unscaled.
      mask: True where a query sees a key; mask_BTS, or mask_BNTS where heads have different
        windows.
      tau_BNTS: float32 or None; multiplies the content logit alone.
      sink_N: float32 or None; a logit per head of a key that every query sees and whose value is
        zero.
      softcap: as in `AttentionSettings`.
    """
    logits_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BSNH, preferred_element_type=jnp.float32)
    logits_BNTS = logits_BNTS / math.sqrt(v_BSNH.shape[-1])
    if tau_BNTS is not None:
        logits_BNTS = logits_BNTS * tau_BNTS
    logits_BNTS = capped(logits_BNTS, softcap)
    if bias_BNTS is not None:
        logits_BNTS = logits_BNTS + bias_BNTS
    mask_BNTS = mask if mask.ndim == 4 else mask[:, None]
    logits_BNTS = jnp.where(mask_BNTS, logits_BNTS, MASK_VALUE)
    top_BNT1 = logits_BNTS.max(-1, keepdims=True)
    if sink_N is not None:
        top_BNT1 = jnp.maximum(top_BNT1, sink_N[None, :, None, None])
    top_BNT1 = jax.lax.stop_gradient(top_BNT1)
    weight_BNTS = jnp.exp(logits_BNTS - top_BNT1)
    out_BTNH = jnp.einsum("BNTS,BSNH->BTNH", weight_BNTS, v_BSNH.astype(jnp.float32))
    # The sum is divided instead of every weight, which saves a pass over T x S.
    sum_BNT1 = weight_BNTS.sum(-1, keepdims=True)
    if sink_N is not None:
        sum_BNT1 = sum_BNT1 + jnp.exp(sink_N[None, :, None, None] - top_BNT1)
    out_BTNH = out_BTNH / sum_BNT1.swapaxes(1, 2)
    sees_BTN1 = mask_BNTS.any(-1).swapaxes(1, 2)[..., None]
    return jnp.where(sees_BTN1, out_BTNH, 0.0).astype(v_BSNH.dtype)
