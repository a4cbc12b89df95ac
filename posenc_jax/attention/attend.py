"""The entry point of attention: rotates q and k, builds bias and mask, chooses a kernel."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from posenc_jax.attention.arguments import (
    CAUSAL,
    NO_OPTIONAL_INPUTS,
    AttentionSettings,
    OptionalInputs,
    TokenSide,
)
from posenc_jax.attention.blockwise.api import BlockwiseSettings, blockwise_attention
from posenc_jax.attention.dense import dense_attention
from posenc_jax.attention.kernels.vendor import (
    KERNELS,
    KernelConditions,
    unsupported_reason,
    vendor_attention,
)
from posenc_jax.attention.linear import causal_linear_attention, linear_attention
from posenc_jax.attention.mask import head_windows, visible, visible_by_head
from posenc_jax.attention.ring.api import ring_attention
from posenc_jax.attention.sharding import drop_unit_axes, find_ring, shard_keys_like_queries
from posenc_jax.attention.tokens import (
    check_positions,
    integer_side,
    readable_keys,
    zero_padding,
    zero_where_unread,
)
from posenc_jax.encodings.backend import current_backend
from posenc_jax.encodings.base import Form, Params
from posenc_jax.encodings.layer import temperature_depends_on_key
from posenc_jax.encodings.scheme import PlacedLayer

IMPLEMENTATIONS = ("auto", "dense", "blockwise", *KERNELS)
# Logits of one head and row up to which dense attention is as fast and its memory is small.
DENSE_LOGITS, DENSE_LOGITS_ON_GPU = 384 * 384, 512 * 512
_FOLDED = "a vendor kernel with a folded linear bias"
_HOW = {
    "flash": "our kernel, with a fixed bias of distance and a cut-off",
    "cudnn": _FOLDED,
    "splash": _FOLDED,
}


class ImplementationChoice(NamedTuple):
    """The implementation of attention that is used, and the reason in words."""

    name: str
    why: str


def choose_implementation(
    layer: PlacedLayer,
    queries: int,
    keys: int,
    implementation: str,
    conditions: KernelConditions,
    *,
    device: str | None = None,
    sequence: int = 1,
) -> ImplementationChoice:
    """Returns the implementation that `attend` uses for a layer, and the reason.

    Args:
      layer: the scheme of the layer. queries, keys: T and S. implementation: as in
        `AttentionSettings`.
      conditions: the properties of the call that kernels depend on.
      device: "cpu", "gpu" or "tpu"; None: the device that programs are traced for.
      sequence: number of devices that hold the tokens of a row.

    Raises:
      ValueError: an unknown implementation, or one that cannot serve this layer.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention must be one of {IMPLEMENTATIONS}, not {implementation!r}")
    if conditions.softcap and layer.form is not None:
        raise ValueError("linear attention has no logits to cap: set model.attention_softcap to 0")
    if conditions.sink and layer.form is not None:
        raise ValueError(
            "linear attention has no softmax, so it takes no sink logit: set model.sink_logit to "
            "False"
        )
    if sequence > 1:
        return _ring_choice(
            layer, implementation, sequence, in_order=conditions.causal and conditions.aligned
        )
    if implementation in KERNELS:
        reason = unsupported_reason(implementation, layer, conditions)
        if reason:
            raise ValueError(f"attention {implementation!r} cannot serve this layer: {reason}")
        return ImplementationChoice(implementation, "requested")
    if layer.form is not None:
        if implementation == "blockwise":
            raise ValueError(
                "attention 'blockwise' has a softmax; linear attention takes 'auto' or 'dense'"
            )
        if implementation == "dense":
            return ImplementationChoice("linear, dense", "requested")
        return ImplementationChoice("linear", "the scheme's form of attention")
    if implementation != "auto":
        return ImplementationChoice(implementation, "requested")
    if queries * keys <= DENSE_LOGITS:
        return ImplementationChoice("dense", f"{queries} x {keys} logits are few")
    many = (
        f"{queries} x {keys} logits are many: blockwise attention has memory linear in length and "
        "a cut-off for decreasing biases"
    )
    device, reasons = device or current_backend(), []
    for kernel in (kernel for kernel, its_device in KERNELS.items() if its_device == device):
        reason = unsupported_reason(kernel, layer, conditions) or _not_by_itself(
            kernel, layer, conditions.dtype
        )
        if reason is None:
            return ImplementationChoice(kernel, f"{device}: {_HOW[kernel]}")
        reasons.append(f"not {kernel}: {reason}")
    if device == "gpu" and queries * keys <= DENSE_LOGITS_ON_GPU:
        return ImplementationChoice(
            "dense", "; ".join([f"{queries} x {keys} logits are few", *reasons])
        )
    return ImplementationChoice("blockwise", "; ".join([many, *reasons]))


def _ring_choice(
    layer: PlacedLayer, implementation: str, sequence: int, in_order: bool
) -> ImplementationChoice:
    split = f"tokens of a row lie on {sequence} devices"
    if layer.form is not None:
        if implementation != "auto" or not in_order:
            raise ValueError(
                f"{split}: linear attention goes through tokens in order (aligned, causal), by "
                "'auto' alone"
            )
        return ImplementationChoice("linear", f"{split}: devices exchange their sums")
    if implementation not in ("auto", "blockwise"):
        raise ValueError(
            f"{split}: attention must be 'auto' or 'blockwise', not {implementation!r}"
        )
    return ImplementationChoice("blockwise", f"{split}: keys go around a ring up to the cut-off")


def _not_by_itself(kernel: str, layer: PlacedLayer, dtype: str) -> str | None:
    """Returns why a kernel that could serve is used only on request, or None."""
    if dtype != "bfloat16":
        return f"it would round the inputs of {dtype} products"
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
    queries: TokenSide,
    keys: TokenSide | None = None,
    settings: AttentionSettings = CAUSAL,
    optional: OptionalInputs = NO_OPTIONAL_INPUTS,
) -> jax.Array:
    """Returns out_BTNH: attention under a positional scheme.

    If T and S are split over one explicit axis of the mesh, keys are passed around a ring
    (`posenc_jax.attention.ring.api`); linear attention exchanges sums instead of keys.

    Args:
      q_BTNH: queries as projected, not rotated.
      k_BSKH: keys as projected; N must be a multiple of K. If the query heads are split over more
        devices than K divides over, each device gets copies of the keys that its queries read.
      v_BSKH: values; the result has their dtype.
      layer: the scheme of this layer, from `Scheme.place(...).layers[i]`.
      params: the learned parameters, from `layer.init(key)`.
      queries, keys: the tokens of both sides. keys=None: the same tokens. Padding, and keys that no
        query can see, may have any values and positions: neither the result nor a gradient depends
        on them, even if they are NaN.

    Raises:
      ValueError: an unknown implementation or one that cannot serve the layer, arrays that do not
        fit together, a forget gate without `cum_log_forget_BTN` or without causality, a token
        temperature without `x_BTD`, positions or segments that are not integer. Outside jit also
        two keys of one document at the same position under causality.
    """
    same = keys is None or settings.aligned
    queries, keys = integer_side(queries), integer_side(queries if keys is None else keys)
    if settings.causal:
        check_positions(keys)
    layout = jax.typeof(q_BTNH).sharding.spec
    arrays = (q_BTNH, k_BSKH, v_BSKH, params, queries, keys, optional)
    q_BTNH, k_BSKH, v_BSKH, params, queries, keys, optional = drop_unit_axes(arrays)
    _check_inputs(q_BTNH, k_BSKH, layer, queries, keys, settings, optional)
    real_BT = queries.seg_BT != 0
    q_BTNH = zero_where_unread(q_BTNH, real_BT)
    if not settings.finite_keys:
        read_BS = real_BT if same else readable_keys(queries, keys, settings)
        k_BSKH, v_BSKH = (zero_where_unread(x, read_BS) for x in (k_BSKH, v_BSKH))
    if optional.x_BTD is not None:
        optional = optional._replace(x_BTD=zero_where_unread(optional.x_BTD, real_BT))
    queries, keys = zero_padding(queries), zero_padding(keys)
    out_BTNH = _attend(q_BTNH, k_BSKH, v_BSKH, layer, params, queries, keys, settings, optional)
    out_BTNH = zero_where_unread(out_BTNH, real_BT)  # its gradient at padding may be NaN, too
    if jax.typeof(out_BTNH).sharding.spec == layout:
        return out_BTNH
    return jax.sharding.reshard(out_BTNH, layout)


def _attend(
    q_BTNH, k_BSKH, v_BSKH, layer: PlacedLayer, params, queries, keys, settings, optional
) -> jax.Array:
    """Returns `attend` of arrays whose shardings name no mesh axis of one device."""
    ring = find_ring(q_BTNH)
    conditions = KernelConditions(
        head_dim=q_BTNH.shape[3],
        dtype=q_BTNH.dtype.name,
        causal=settings.causal,
        aligned=settings.aligned,
        sink=optional.sink_N is not None,
        consecutive=optional.count_BT is None and queries.order_BT is None,
        window=settings.window,
        softcap=settings.softcap > 0,
    )
    lengths, sequence = (q_BTNH.shape[1], k_BSKH.shape[1]), ring.size if ring else 1
    path = choose_implementation(
        layer, *lengths, settings.implementation, conditions, sequence=sequence
    )
    # Temperatures that depend on the number of visible keys use the position of the last one.
    last_BT = queries.pos_BT
    if optional.count_BT is not None:
        last_BT = zero_where_unread(optional.count_BT - 1, queries.seg_BT != 0)
    q_BTNH, layer = layer.tempered(params, q_BTNH, optional.x_BTD, last_BT)
    k_BSKH, v_BSKH = shard_keys_like_queries(q_BTNH, k_BSKH, v_BSKH)
    if layer.form is not None:
        in_order = settings.aligned and settings.causal and settings.window is None
        in_order &= queries.order_BT is None
        if ring is not None and not in_order:
            raise ValueError(
                f"linear attention has no window where the tokens of a row lie on {ring.size} "
                "devices"
            )
        tensors = _linear_tensors(
            layer.form, q_BTNH, k_BSKH, v_BSKH, layer, params, queries.pos_BT, keys.pos_BT
        )
        if in_order and path.name == "linear":
            return causal_linear_attention(*tensors, queries)
        mask_BTS = visible(queries, keys, causal=settings.causal, window=settings.window)
        return linear_attention(*tensors, mask_BTS)

    num_heads, by_key = q_BTNH.shape[2], temperature_depends_on_key(layer)
    if by_key and optional.count_BT is not None and _counts_keys(layer):
        raise ValueError(
            "random positions: one layer cannot have both a temperature that depends on the number "
            "of visible keys and one that depends on the distance; put them on separate layers, "
            "with ','"
        )
    if not by_key:
        tau_BNT1 = layer.temperature(params, last_BT, keys.pos_BT)
        if tau_BNT1 is not None:
            tau_BTN1 = tau_BNT1.swapaxes(1, 2)
            q_BTNH = (q_BTNH.astype(jnp.float32) * tau_BTN1).astype(q_BTNH.dtype)
    q_BTNH = layer.rotate(params, q_BTNH, queries.pos_BT, "query")
    if not layer.shares_keys(k_BSKH.shape[2]):  # query heads of one key head rotate differently
        k_BSKH, v_BSKH = (_per_query_head(x, num_heads) for x in (k_BSKH, v_BSKH))
    k_BSKH = layer.rotate(params, k_BSKH, keys.pos_BT, "key")
    if path.name == "blockwise":
        attention = blockwise_attention if ring is None else ring_attention
        blockwise = BlockwiseSettings(settings.causal, settings.window, softcap=settings.softcap)
        return attention(
            q_BTNH, k_BSKH, v_BSKH, layer, params, queries, keys, blockwise, optional.sink_N
        )
    if path.name in KERNELS:
        learned = (params, optional.sink_N)
        return vendor_attention(
            path.name, q_BTNH, k_BSKH, v_BSKH, layer, learned, queries.seg_BT, settings.window
        )
    log_forget = (queries.cum_log_forget_BTN, keys.cum_log_forget_BTN)
    return dense_attention(
        q_BTNH,
        _per_query_head(k_BSKH, num_heads),
        _per_query_head(v_BSKH, num_heads),
        layer.bias(params, queries.pos_BT, keys.pos_BT, *log_forget),
        visible_by_head(
            queries, keys, causal=settings.causal, window_N=head_windows(layer, settings.window)
        ),
        layer.temperature(params, queries.pos_BT, keys.pos_BT) if by_key else None,
        optional.sink_N,
        settings.softcap,
    )


def _check_inputs(
    q_BTNH, k_BSKH, layer: PlacedLayer, queries: TokenSide, keys: TokenSide, settings, optional
) -> None:
    """Raises ValueError for arrays that do not fit together or are missing."""
    (_, T, N, _), (_, S, K, _) = q_BTNH.shape, k_BSKH.shape
    if N % K:
        raise ValueError(f"{N} query heads do not divide over {K} key/value heads")
    if layer.num_heads != N:
        raise ValueError(f"scheme was placed on {layer.num_heads} heads; queries have {N}")
    if (queries.pos_BT.shape[1], keys.pos_BT.shape[1]) != (T, S):
        raise ValueError(
            f"{T} queries and {S} keys have {queries.pos_BT.shape[1]} and {keys.pos_BT.shape[1]} "
            "positions"
        )
    if (queries.order_BT is None) != (keys.order_BT is None):
        raise ValueError("order_BT: give it to both the queries and the keys, or to neither")
    if queries.order_BT is not None and find_ring(q_BTNH) is not None:
        raise ValueError(
            "order_BT: where the tokens of a row are split over devices, causality compares "
            "positions"
        )
    if optional.sink_N is not None and optional.sink_N.shape != (N,):
        raise ValueError(
            f"sink_N holds one logit per query head, {N}; its shape is {optional.sink_N.shape}"
        )
    if layer.gated and not settings.causal:
        raise ValueError("a forget gate weakens earlier tokens: it needs causal=True")
    if layer.gated and (queries.cum_log_forget_BTN is None or keys.cum_log_forget_BTN is None):
        raise ValueError(
            "this scheme has a forget gate: give queries and keys their cum_log_forget_BTN, "
            "cumulative_log_forget(layer.log_forget(params, x_BTD), seg_BT)"
        )
    if layer.tempered_by_tokens and optional.x_BTD is None:
        raise ValueError(
            "a temperature of this scheme depends on the tokens: pass x_BTD, from which the "
            "queries were projected"
        )


def _linear_tensors(
    form: Form, q_BTNH, k_BSKH, v_BSKH, layer: PlacedLayer, params, q_pos_BT, k_pos_BS
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns features of q and k, their rotated features, and values, per query head."""
    num_heads = q_BTNH.shape[2]
    q_BTNH = form.features(q_BTNH)
    k_BSNH = _per_query_head(form.features(k_BSKH), num_heads)
    rotated_q_BTNH = layer.rotate(params, q_BTNH, q_pos_BT, "query")
    rotated_k_BSNH = layer.rotate(params, k_BSNH, k_pos_BS, "key")
    return q_BTNH, k_BSNH, rotated_q_BTNH, rotated_k_BSNH, _per_query_head(v_BSKH, num_heads)


def _counts_keys(layer: PlacedLayer) -> bool:
    """Whether a temperature of the layer depends on the number of visible keys."""
    parts = [group.heads.temperature for group in layer.groups]
    return any(part is not None and not part.relative for part in parts)


def _per_query_head(x_BSKH: jax.Array, num_heads: int) -> jax.Array:
    B, S, K, H = x_BSKH.shape
    if num_heads == K:
        return x_BSKH
    wide = jnp.broadcast_to(x_BSKH[:, :, :, None], (B, S, K, num_heads // K, H))
    return wide.reshape(B, S, num_heads, H)
