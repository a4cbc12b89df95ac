"""One entry to attention: turns q and k to their positions, builds bias and mask, picks a kernel."""

import jax
import jax.numpy as jnp

from posenc_jax.attention.dense import dense_attention
from posenc_jax.attention.linear import linear_attention, linear_attention_in_order
from posenc_jax.attention.mask import visible
from posenc_jax.encodings.part import Params
from posenc_jax.encodings.scheme import PlacedLayer

IMPLEMENTATIONS = ("auto", "dense")


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    layer: PlacedLayer,
    params: Params,
    *,
    q_pos_BT: jax.Array,
    k_pos_BS: jax.Array,
    q_seg_BT: jax.Array,
    k_seg_BS: jax.Array,
    q_clock_BTN: jax.Array | None = None,
    k_clock_BSN: jax.Array | None = None,
    causal: bool = True,
    aligned: bool = False,
    implementation: str = "auto",
) -> jax.Array:
    """Returns out_BTNH: attention under a positional scheme.

    Args:
      q_BTNH: queries as projected (not rotated).
      k_BSKH: keys as projected; N must be a multiple of K.
      v_BSKH: values; the result has their dtype.
      layer: the scheme of this layer, from `Scheme.place(...).layers[i]`.
      params: what `layer.init(key)` returned.
      q_pos_BT, k_pos_BS: positions inside the document, integer.
      q_seg_BT, k_seg_BS: document of each token inside the row; 0 is padding.
      q_clock_BTN, k_clock_BSN: for a scheme whose bias the tokens decide (`layer.gated`): running sums
        of `layer.ticks` (`encodings.running_clock`).
      causal: keys after the query's position are out of sight.
      aligned: queries and keys are the same tokens in the same slots, in the order of their positions,
        those of a document together; linear attention then takes time linear in T.
      implementation: "dense", or "auto" for the best one that can serve (today: dense).

    Raises:
      ValueError: unknown implementation, K does not divide N, or a gated scheme without clocks.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention must be one of {IMPLEMENTATIONS}, not {implementation!r}")
    num_heads, num_kv_heads = q_BTNH.shape[2], k_BSKH.shape[2]
    if num_heads % num_kv_heads:
        raise ValueError(
            f"{num_heads} query heads do not divide over {num_kv_heads} key/value heads"
        )
    if num_heads != layer.num_heads:
        raise ValueError(f"scheme was placed on {layer.num_heads} heads; queries have {num_heads}")

    if layer.gated and (q_clock_BTN is None or k_clock_BSN is None):
        raise ValueError(
            "tokens decide a bias of this scheme: pass q_clock_BTN and k_clock_BSN, running sums of layer.ticks"
        )

    v_BSNH = _per_query_head(v_BSKH, num_heads)
    if layer.form is not None:
        q_BTNH = layer.form.features(q_BTNH)
        k_BSNH = _per_query_head(layer.form.features(k_BSKH), num_heads)
        turned_q = layer.rotate(params, q_BTNH, q_pos_BT, "query")
        turned_k = layer.rotate(params, k_BSNH, k_pos_BS, "key")
        tensors = (q_BTNH, k_BSNH, turned_q, turned_k, v_BSNH)
        if aligned and causal:
            return linear_attention_in_order(*tensors, q_pos_BT, q_seg_BT)
        return linear_attention(
            *tensors, visible(q_pos_BT, k_pos_BS, q_seg_BT, k_seg_BS, causal=causal)
        )

    tau_BNTS = layer.temperature(params, q_pos_BT, k_pos_BS)
    if tau_BNTS is not None and tau_BNTS.shape[-1] == 1:  # no key matters: it goes with the queries
        tau_BTN1 = tau_BNTS.swapaxes(1, 2)
        q_BTNH = (q_BTNH.astype(jnp.float32) * tau_BTN1).astype(q_BTNH.dtype)
        tau_BNTS = None
    q_BTNH = layer.rotate(params, q_BTNH, q_pos_BT, "query")
    if layer.shares_keys(num_kv_heads):
        k_BSNH = _per_query_head(layer.rotate(params, k_BSKH, k_pos_BS, "key"), num_heads)
    else:  # a key/value head serves queries that rotate differently
        k_BSNH = layer.rotate(params, _per_query_head(k_BSKH, num_heads), k_pos_BS, "key")
    return dense_attention(
        q_BTNH,
        k_BSNH,
        v_BSNH,
        layer.bias(params, q_pos_BT, k_pos_BS, q_clock_BTN, k_clock_BSN),
        visible(q_pos_BT, k_pos_BS, q_seg_BT, k_seg_BS, causal=causal),
        tau_BNTS,
    )


def _per_query_head(x_BSKH: jax.Array, num_heads: int) -> jax.Array:
    B, S, K, H = x_BSKH.shape
    if num_heads == K:
        return x_BSKH
    wide = jnp.broadcast_to(x_BSKH[:, :, :, None], (B, S, K, num_heads // K, H))
    return wide.reshape(B, S, num_heads, H)
