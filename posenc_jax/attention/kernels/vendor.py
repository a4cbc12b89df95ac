"""GPU and TPU kernels of attention (flash, cuDNN, splash), and which of them can serve a layer.

Our kernel (`posenc_jax.attention.kernels.flash`) computes the bias itself. The vendor kernels take
no bias; with bias folding (`posenc_jax.attention.kernels.bias_folding`) they serve ALiBi, with or
without a rotation, in memory O(T). All three mask and measure distances in slots, so queries and
keys must be the same tokens in the same slots (`aligned`).
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from posenc_jax.attention.blockwise.cutoff import bias_by_distance, log_tail_mass
from posenc_jax.attention.kernels.bias_folding import document_ordinals, fold_bias
from posenc_jax.attention.kernels.flash import BiasTable, flash_attention
from posenc_jax.attention.kernels.remat_names import ATTENTION_NAME
from posenc_jax.attention.mask import head_windows, window_array
from posenc_jax.attention.sharding import per_shard
from posenc_jax.encodings.base import Params, Rotation, Temperature
from posenc_jax.encodings.layer import temperature_depends_on_key
from posenc_jax.encodings.scheme import PlacedLayer

# Kernel -> device. On a device, the first kernel that can serve is used.
KERNELS = {"flash": "gpu", "cudnn": "gpu", "splash": "tpu"}
_CUDNN_WIDEST = 256  # columns; 128 before Hopper
_FLASH_WIDEST = 128
_CUDNN_MULTIPLE, _LANES = 8, 128
_SPLASH_BLOCK = 512


@dataclasses.dataclass(frozen=True)
class KernelConditions:
    """The properties of a call of attention that decide which kernels can serve it.

    Attributes:
      head_dim: H. dtype: of queries. causal, aligned: as in `AttentionSettings`. sink: heads have a
        sink logit.
      consecutive: positions of a document rise by one, so that slots and positions give the same
        distances.
      window: the model's own window in tokens, None without one.
      softcap: content logits are capped.
    """

    head_dim: int
    dtype: str
    causal: bool = True
    aligned: bool = True
    sink: bool = False
    consecutive: bool = True
    window: int | None = None
    softcap: bool = False


def unsupported_reason(kernel: str, layer: PlacedLayer, conditions: KernelConditions) -> str | None:
    """Returns why a kernel of `KERNELS` cannot serve a layer, in words; None when it can.

    The current device does not matter: a program may be compiled for another one.
    """
    if layer.form is not None:
        return "linear attention has no softmax"
    if kernel == "flash" and not (_linear(layer) or _by_distance(layer)):
        return (
            "a bias of this scheme is learned, or needs more than a distance, and is not linear in "
            "it"
        )
    if kernel != "flash" and not _linear(layer):
        return (
            "a bias of this scheme is not linear in distance, so it cannot be folded into queries "
            "and keys"
        )
    if kernel != "flash" and len(set(layer.window_N)) > 1:
        return (
            "its heads have windows of their own, and this kernel knows one for all: take 'auto' "
            "or 'blockwise'"
        )
    if conditions.softcap:
        return "it has no softcap of attention logits; take 'dense', 'blockwise' or 'auto'"
    if temperature_depends_on_key(layer):
        return "its temperature depends on the key"
    if not conditions.causal or not conditions.aligned:
        return (
            "it needs causal attention in which queries and keys are the same tokens in order "
            "(aligned), as in training"
        )
    if not conditions.consecutive and (conditions.window is not None or _reads_distances(layer)):
        return (
            "it counts distances in slots, and positions are random; take 'dense', 'blockwise' or "
            "'auto'"
        )
    if conditions.dtype != "bfloat16" and (kernel == "cudnn" or conditions.dtype != "float32"):
        return f"it computes in bfloat16, not {conditions.dtype}"
    if kernel != "flash" and conditions.sink:
        return (
            "its softmax knows no sink logit; take 'flash', 'blockwise' or 'auto', or set "
            "model.sink_logit to False"
        )
    columns = layer.columns_per_dim * conditions.head_dim
    wide = (
        f"head dim {conditions.head_dim}"
        if layer.columns_per_dim == 1
        else f"{columns} columns of turned queries"
    )
    if kernel == "flash" and columns > _FLASH_WIDEST:
        return f"{wide} exceeds {_FLASH_WIDEST}"
    if kernel == "cudnn" and columns + _CUDNN_MULTIPLE > _CUDNN_WIDEST:
        return f"{wide} and {_CUDNN_MULTIPLE} columns of the fold exceed {_CUDNN_WIDEST}"
    return None


def vendor_attention(
    kernel: str,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    layer: PlacedLayer,
    learned: tuple[Params, jax.Array | None],
    seg_BT: jax.Array,
    window: int | None,
) -> jax.Array:
    """Returns out_BTNH by a kernel of `KERNELS`: causal, aligned, documents apart; zeros for a
    query that sees no key.

    Args:
      q_BTNH, k_BTKH: rotated; q_BTNH multiplied by its temperature.
      layer: for the slopes. learned: its parameters, and sink_N (our kernel only) or None.
      seg_BT: documents, each in consecutive slots; 0 is padding. window: as in `AttentionSettings`.

    Raises:
      ValueError: for cuDNN before Hopper, a head dim above 120.
    """

    window_N = head_windows(layer, window)

    def local(operands, positions, first_head):
        q_BTNH, k_BTKH, v_BTKH, (params, sink_N), *_ = operands
        bias: jax.Array | BiasTable | None = layer.linear_slope_N(params)
        length = q_BTNH.shape[1]
        if bias is None and (table_NE := log_tail_mass(layer, params, length)) is not None:
            bias = BiasTable(bias_by_distance(layer, params, length), table_NE)
        here = functools.partial(
            jax.lax.dynamic_slice_in_dim, start_index=first_head, slice_size=q_BTNH.shape[2]
        )
        bias, sink_N = jax.tree.map(here, (bias, sink_N))
        window = window_N[0] if len(set(window_N)) == 1 else here(window_array(window_N))
        run = {"cudnn": _cudnn, "splash": _splash}.get(
            kernel, functools.partial(flash_attention, sink_N=sink_N)
        )
        out_BTNH = run(q_BTNH, k_BTKH, v_BTKH, bias, positions[0], window)
        seen_BT11 = (positions[0] != 0)[:, :, None, None]
        return jnp.where(seen_BT11, out_BTNH, 0).astype(v_BTKH.dtype)

    return per_shard(local, (q_BTNH, k_BTKH, v_BTKH, learned, None, None), (seg_BT,))


def _cudnn(q_BTNH, k_BTKH, v_BTKH, slope_N, seg_BT, window):
    H = v_BTKH.shape[-1]
    q_BTNX, k_BTKX = fold_bias(
        q_BTNH, k_BTKH, slope_N, _CUDNN_MULTIPLE, document_ordinals(seg_BT), H
    )
    X = q_BTNX.shape[-1]
    v_BTKX = jnp.pad(v_BTKH, ((0, 0), (0, 0), (0, 0), (0, X - H)))  # one head dim for q, k and v
    out_BTNX = jax.nn.dot_product_attention(
        q_BTNX,
        k_BTKX,
        v_BTKX.astype(q_BTNX.dtype),
        scale=1.0,
        is_causal=True,
        implementation="cudnn",
        local_window_size=None if window is None else (window - 1, 0),
    )
    return out_BTNX[..., :H]


def _splash(q_BTNH, k_BTKH, v_BTKH, slope_N, seg_BT, window):
    T = q_BTNH.shape[1]
    q_BTNX, k_BTKX = fold_bias(q_BTNH, k_BTKH, slope_N, _LANES, None, v_BTKH.shape[-1])
    v_BTKH = v_BTKH.astype(q_BTNX.dtype)
    short = -T % _LANES
    q, k, v = (
        jnp.pad(x, ((0, 0), (0, short), (0, 0), (0, 0))).swapaxes(1, 2)
        for x in (q_BTNX, k_BTKX, v_BTKH)
    )
    seg = jnp.pad(seg_BT, ((0, 0), (0, short)))
    here = _splash_kernel(q.shape[1], T + short, window, False)
    emulated = _splash_kernel(q.shape[1], T + short, window, True)
    out_BNTH = jax.lax.platform_dependent(q, k, v, seg, cpu=emulated, tpu=here)
    return out_BNTH[:, :, :T].swapaxes(1, 2)


def _splash_kernel(heads: int, length: int, window: int | None, interpret: bool) -> Callable:
    """Returns the kernel over a batch: q_BNTX, k_BKTX, v_BKTH, seg_BT to out_BNTH."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = (length, length)
    mask: masks.Mask = masks.CausalMask(shape)
    if window is not None:
        mask = masks.LocalMask(shape, (window - 1, 0), 0)
    block = next(b for b in (_SPLASH_BLOCK, 256, _LANES) if length % b == 0)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    kernel = splash.make_splash_mha_single_device(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        interpret=interpret,
        residual_checkpoint_name=ATTENTION_NAME,
    )

    def run(q_BNTX, k_BKTX, v_BKTH, seg_BT):
        return jax.vmap(kernel)(q_BNTX, k_BKTX, v_BKTH, splash.SegmentIds(seg_BT, seg_BT))

    return run


@functools.cache
def _linear(layer: PlacedLayer) -> bool:
    slopes = jax.eval_shape(lambda key: layer.linear_slope_N(layer.init(key)), jax.random.key(0))
    return slopes is not None


def _reads_distances(layer: PlacedLayer) -> bool:
    """Whether the layer has parts that the kernel applies: not rotation or temperature."""
    return any(
        not isinstance(part, Rotation | Temperature)
        for group in layer.groups
        for part in group.heads.parts()
    )


@functools.cache
def _by_distance(layer: PlacedLayer) -> bool:
    """Whether every bias is a fixed function of the distance of two tokens."""
    parts = [group.heads.bias for group in layer.groups]
    fixed = (part is None or (part.relative and not part.learns) for part in parts)
    return not layer.gated and all(fixed)
