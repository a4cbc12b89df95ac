"""One entry to attention: turns q and k to their positions, builds bias and mask, picks a kernel."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from posenc_jax.attention.blockwise.api import blockwise_attention
from posenc_jax.attention.dense import dense_attention
from posenc_jax.attention.kernels.vendor import (
    KERNELS,
    temperature_depends_on_key,
    unsupported_reason,
    vendor_attention,
)
from posenc_jax.attention.linear import causal_linear_attention, linear_attention
from posenc_jax.attention.mask import head_windows, visible, visible_by_head
from posenc_jax.attention.ring.api import ring_attention
from posenc_jax.attention.sharding import drop_unit_axes, find_ring, shard_keys_like_queries
from posenc_jax.encodings.backend import current_backend
from posenc_jax.encodings.base import Params
from posenc_jax.encodings.scheme import PlacedLayer

IMPLEMENTATIONS = ("auto", "dense", "blockwise", *KERNELS)
# Logits of one head and row up to which dense is as fast, and its memory small; blocks are slower on a GPU.
DENSE_LOGITS, DENSE_LOGITS_ON_GPU = 384 * 384, 512 * 512
_FOLDED = "the vendor's kernel, a linear bias folded in"
_HOW = {
    "flash": "our kernel, any fixed bias of distance inside; one that falls ends the work early",
    "cudnn": _FOLDED,
    "splash": _FOLDED,
}


class ImplementationChoice(NamedTuple):
    """The way attention takes, and why, in words."""

    name: str
    why: str


def choose_implementation(
    layer: PlacedLayer,
    queries: int,
    keys: int,
    implementation: str,
    *,
    head_dim: int,
    dtype: str,
    causal: bool = True,
    aligned: bool = True,
    device: str | None = None,
    sequence: int = 1,
    sink: bool = False,
    consecutive: bool = True,
    window: int | None = None,
) -> ImplementationChoice:
    """Returns the path that `attend` takes for a layer, and why.

    Args:
      layer: the scheme of the layer. queries, keys: T and S. head_dim: H. dtype: of queries.
      implementation, causal, aligned: as for `attend`.
      device: "cpu", "gpu" or "tpu"; none: what programs are traced for.
      sequence: devices that the tokens of a row lie on. sink: heads have a sink logit.
      consecutive: positions of a document rise by one, so that slots are as far apart as positions.
      window: as for `attend`.

    Raises:
      ValueError: an unknown implementation, or one that cannot serve this layer.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention must be one of {IMPLEMENTATIONS}, not {implementation!r}")
    if sink and layer.form is not None:
        raise ValueError("linear attention has no softmax, and a sink no sum to stand in: set model.sink_logit to False")  # fmt: skip
    if sequence > 1:
        return _around_a_ring(layer, implementation, sequence, in_order=causal and aligned)
    where = {"head_dim": head_dim, "dtype": dtype, "causal": causal, "aligned": aligned, "sink": sink,
             "consecutive": consecutive, "window": window}  # fmt: skip
    if implementation in KERNELS:
        reason = unsupported_reason(implementation, layer, **where)
        if reason:
            raise ValueError(f"attention {implementation!r} cannot serve this layer: {reason}")
        return ImplementationChoice(implementation, "asked for")
    if layer.form is not None:
        if implementation == "blockwise":
            raise ValueError("attention 'blockwise' has a softmax; linear attention takes 'auto' or 'dense'")  # fmt: skip
        if implementation == "dense":
            return ImplementationChoice("linear, dense", "asked for")
        return ImplementationChoice("linear", "the scheme's form of attention")
    if implementation != "auto":
        return ImplementationChoice(implementation, "asked for")
    if queries * keys <= DENSE_LOGITS:
        return ImplementationChoice("dense", f"{queries} x {keys} logits are few")
    many = f"{queries} x {keys} logits are many: memory linear in length, and a bias that falls ends the work early"  # fmt: skip
    device, reasons = device or current_backend(), []
    for kernel in (kernel for kernel, its_device in KERNELS.items() if its_device == device):
        reason = unsupported_reason(kernel, layer, **where) or _not_by_itself(kernel, layer, dtype)
        if reason is None:
            return ImplementationChoice(kernel, f"{device}: {_HOW[kernel]}")
        reasons.append(f"not {kernel}: {reason}")
    if device == "gpu" and queries * keys <= DENSE_LOGITS_ON_GPU:
        return ImplementationChoice(
            "dense", "; ".join([f"{queries} x {keys} logits are few", *reasons])
        )
    return ImplementationChoice("blockwise", "; ".join([many, *reasons]))


def _around_a_ring(
    layer: PlacedLayer, implementation: str, sequence: int, in_order: bool
) -> ImplementationChoice:
    split = f"tokens of a row lie on {sequence} devices"
    if layer.form is not None:
        if implementation != "auto" or not in_order:
            raise ValueError(f"{split}: linear attention goes through tokens in order (aligned, causal), by 'auto' alone")  # fmt: skip
        return ImplementationChoice("linear", f"{split}: each tells the others its sums")
    if implementation not in ("auto", "blockwise"):
        raise ValueError(f"{split}: attention must be 'auto' or 'blockwise', not {implementation!r}")  # fmt: skip
    return ImplementationChoice(
        "blockwise", f"{split}: keys go around a ring, as far as they can matter"
    )


def _not_by_itself(kernel: str, layer: PlacedLayer, dtype: str) -> str | None:
    """Returns why a kernel that could serve is taken only when it is asked for, or None."""
    if dtype != "bfloat16":
        return f"it would round the factors of {dtype} products"
    if kernel != "flash" and any(
        group.heads.bias is not None and group.heads.bias.learns for group in layer.groups
    ):
        return "slopes are learned, and their gradient would be a sum of rounded numbers"
    return None


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
    q_cum_log_forget_BTN: jax.Array | None = None,
    k_cum_log_forget_BSN: jax.Array | None = None,
    x_BTD: jax.Array | None = None,
    sink_N: jax.Array | None = None,
    q_count_BT: jax.Array | None = None,
    causal: bool = True,
    window: int | None = None,
    aligned: bool = False,
    implementation: str = "auto",
) -> jax.Array:
    """Returns out_BTNH: attention under a positional scheme.

    Args:
      q_BTNH: queries as projected (not rotated). Where T and S are split over one explicit axis of the mesh,
        keys go around a ring (`posenc_jax.attention.ring.api`); of linear attention, sums are told instead.
      k_BSKH: keys as projected; N must be a multiple of K. Where the queries' heads are split over more devices
        than K divides over, each device gets copies of those that its queries read.
      v_BSKH: values; the result has their dtype.
      layer: the scheme of this layer, from `Scheme.place(...).layers[i]`.
      params: what `layer.init(key)` returned.
      q_pos_BT, k_pos_BS: positions inside the document, integer.
      q_seg_BT, k_seg_BS: document of each token inside the row; 0 is padding.
      q_cum_log_forget_BTN, k_cum_log_forget_BSN: for a scheme whose bias the tokens decide (`layer.gated`): running sums
        of `layer.log_forget` (`encodings.cumulative_log_forget`).
      x_BTD: what the queries were projected from, for a scheme whose temperature the tokens decide
        (`layer.tempered_by_tokens`).
      sink_N: float32, a logit beside those of a head's keys, of a key that everybody sees and whose value is zero:
        a row's weights add up to less than one (gpt-oss; Xiao et al. 2023, StreamingLLM, sec. 3.3).
      q_count_BT: keys in sight of each query, where positions do not rise by one (random positions); a temperature
        that follows that number reads it. None: one more than the position.
      causal: keys after the query's position are out of sight.
      window: keys at that distance or further are out of sight, in both directions, of all heads; where the scheme
        gives heads a window of their own the smaller of both counts.
      aligned: queries and keys are the same tokens in the same slots, those of a document in consecutive
        ones with positions that rise, by one where there is no q_count_BT; linear attention then takes time
        linear in T, and vendor kernels can serve.
      implementation: "dense" (the definition), "blockwise" (memory linear in length), "flash" (our kernel for
        NVIDIA GPUs, fixed biases of distance), "cudnn" or "splash" (vendor kernels, a linear bias folded in, bfloat16), or
        "auto"; see `choose_implementation`. All give the same numbers up to rounding.

    Raises:
      ValueError: unknown implementation or one that cannot serve, K does not divide N, a gated scheme
        without clocks or without causality, or a temperature of tokens without x_BTD.
    """
    arrays = {
        "q_BTNH": q_BTNH, "k_BSKH": k_BSKH, "v_BSKH": v_BSKH, "params": params,
        "q_pos_BT": q_pos_BT, "k_pos_BS": k_pos_BS, "q_seg_BT": q_seg_BT, "k_seg_BS": k_seg_BS,
        "q_cum_log_forget_BTN": q_cum_log_forget_BTN, "k_cum_log_forget_BSN": k_cum_log_forget_BSN, "q_count_BT": q_count_BT, "x_BTD": x_BTD,
        "sink_N": sink_N,
    }  # fmt: skip
    out_BTNH = _attend(
        **drop_unit_axes(arrays), layer=layer, causal=causal, window=window, aligned=aligned,
        implementation=implementation,
    )  # fmt: skip
    layout = jax.typeof(q_BTNH).sharding.spec
    if jax.typeof(out_BTNH).sharding.spec == layout:
        return out_BTNH
    return jax.sharding.reshard(out_BTNH, layout)


def _attend(
    *, q_BTNH, k_BSKH, v_BSKH, params, q_pos_BT, k_pos_BS, q_seg_BT, k_seg_BS, q_cum_log_forget_BTN,
    k_cum_log_forget_BSN, q_count_BT, x_BTD, sink_N, layer: PlacedLayer, causal, window, aligned, implementation,
) -> jax.Array:  # fmt: skip
    """Returns `attend` of arrays that no axis of one device lays out."""
    ring = find_ring(q_BTNH)
    path = choose_implementation(
        layer, q_BTNH.shape[1], k_BSKH.shape[1], implementation, head_dim=q_BTNH.shape[3],
        dtype=q_BTNH.dtype.name, causal=causal, aligned=aligned, sequence=ring.size if ring else 1,
        sink=sink_N is not None,
        consecutive=q_count_BT is None,
        window=window,
    )  # fmt: skip
    num_heads, num_kv_heads = q_BTNH.shape[2], k_BSKH.shape[2]
    if num_heads % num_kv_heads:
        raise ValueError(
            f"{num_heads} query heads do not divide over {num_kv_heads} key/value heads"
        )
    if num_heads != layer.num_heads:
        raise ValueError(f"scheme was placed on {layer.num_heads} heads; queries have {num_heads}")
    if sink_N is not None and sink_N.shape != (num_heads,):
        raise ValueError(f"sink_N holds one logit per query head, {num_heads}; its shape is {sink_N.shape}")  # fmt: skip

    if layer.gated and not causal:
        raise ValueError(
            "a bias that the tokens decide fades what came before: it needs causal=True"
        )
    if layer.gated and (q_cum_log_forget_BTN is None or k_cum_log_forget_BSN is None):
        raise ValueError(
            "tokens decide a bias of this scheme: pass q_cum_log_forget_BTN and k_cum_log_forget_BSN, running sums of layer.ticks"
        )

    if layer.tempered_by_tokens and x_BTD is None:
        raise ValueError(
            "tokens decide a temperature of this scheme: pass x_BTD, what the queries were projected from"
        )

    last_BT = q_pos_BT if q_count_BT is None else q_count_BT - 1  # what counts keys reads
    q_BTNH, layer = layer.tempered(params, q_BTNH, x_BTD, last_BT)
    k_BSKH, v_BSKH = shard_keys_like_queries(q_BTNH, k_BSKH, v_BSKH)
    num_kv_heads = k_BSKH.shape[2]
    if layer.form is not None:
        v_BSNH = _per_query_head(v_BSKH, num_heads)
        q_BTNH = layer.form.features(q_BTNH)
        k_BSNH = _per_query_head(layer.form.features(k_BSKH), num_heads)
        turned_q = layer.rotate(params, q_BTNH, q_pos_BT, "query")
        turned_k = layer.rotate(params, k_BSNH, k_pos_BS, "key")
        tensors = (q_BTNH, k_BSNH, turned_q, turned_k, v_BSNH)
        in_order = aligned and causal and window is None
        if ring is not None and not in_order:
            raise ValueError(f"linear attention has no window where the tokens of a row lie on {ring.size} devices")  # fmt: skip
        if in_order and path.name == "linear":
            return causal_linear_attention(*tensors, q_pos_BT, q_seg_BT)
        return linear_attention(
            *tensors, visible(q_pos_BT, k_pos_BS, q_seg_BT, k_seg_BS, causal=causal, window=window)
        )

    by_key = temperature_depends_on_key(layer)
    if by_key and q_count_BT is not None and _counts_keys(layer):
        raise ValueError(
            "random positions: a temperature of the keys in sight cannot stand in one layer with a temperature of the "
            "distance; put them on layers of their own, with ','"
        )
    if not by_key:  # a temperature of the query alone goes with the queries
        tau_BNT1 = layer.temperature(params, last_BT, k_pos_BS)
        if tau_BNT1 is not None:
            tau_BTN1 = tau_BNT1.swapaxes(1, 2)
            q_BTNH = (q_BTNH.astype(jnp.float32) * tau_BTN1).astype(q_BTNH.dtype)
    q_BTNH = layer.rotate(params, q_BTNH, q_pos_BT, "query")
    if not layer.shares_keys(
        num_kv_heads
    ):  # a key/value head serves queries that rotate differently
        k_BSKH, v_BSKH = (_per_query_head(x, num_heads) for x in (k_BSKH, v_BSKH))
    k_BSKH = layer.rotate(params, k_BSKH, k_pos_BS, "key")
    if path.name == "blockwise":
        attention = blockwise_attention if ring is None else ring_attention
        return attention(
            q_BTNH, k_BSKH, v_BSKH, layer, params,
            q_pos_BT=q_pos_BT, k_pos_BS=k_pos_BS, q_seg_BT=q_seg_BT, k_seg_BS=k_seg_BS,
            q_cum_log_forget_BTN=q_cum_log_forget_BTN, k_cum_log_forget_BSN=k_cum_log_forget_BSN, sink_N=sink_N, causal=causal, window=window,
        )  # fmt: skip
    if path.name in KERNELS:
        return vendor_attention(
            path.name, q_BTNH, k_BSKH, v_BSKH, layer, (params, sink_N), q_seg_BT, window
        )
    return dense_attention(
        q_BTNH,
        _per_query_head(k_BSKH, num_heads),
        _per_query_head(v_BSKH, num_heads),
        layer.bias(params, q_pos_BT, k_pos_BS, q_cum_log_forget_BTN, k_cum_log_forget_BSN),
        visible_by_head(
            q_pos_BT,
            k_pos_BS,
            q_seg_BT,
            k_seg_BS,
            causal=causal,
            window_N=head_windows(layer, window),
        ),
        layer.temperature(params, q_pos_BT, k_pos_BS) if by_key else None,
        sink_N,
    )


def _counts_keys(layer: PlacedLayer) -> bool:
    """Whether a temperature of the layer follows the number of keys in sight."""
    parts = [group.heads.temperature for group in layer.groups]
    return any(part is not None and not part.relative for part in parts)


def _per_query_head(x_BSKH: jax.Array, num_heads: int) -> jax.Array:
    B, S, K, H = x_BSKH.shape
    if num_heads == K:
        return x_BSKH
    wide = jnp.broadcast_to(x_BSKH[:, :, :, None], (B, S, K, num_heads // K, H))
    return wide.reshape(B, S, num_heads, H)
