"""Peer attention for the bench: jax.nn, and PyTorch if it is installed (pip install -e
".[peers]").
"""

import functools
import importlib.util
from collections.abc import Callable
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.attention.blockwise.cutoff import cutoff_windows
from posenc_jax.bench import pytorch
from posenc_jax.bench.peak_memory import Compiled
from posenc_jax.encodings import alibi_slopes, parse

Makers = dict[str, Callable[[], Callable]]
# Candidates with a dense bias of N T T numbers, and with a mask of T T bools.
HOLD_A_BIAS = ("jax.nn, dense ALiBi", "jax.nn, cuDNN, dense ALiBi", "torch SDPA, dense ALiBi")
HOLDS_A_MASK = "torch SDPA, window"
FLEX = (
    "torch FlexAttention, ALiBi",
    "torch FlexAttention, ALiBi, cut per head",
    "torch FlexAttention, window",
)
MASKED = 2**32  # largest number of elements from which a block mask is made
_SHAPES = 64  # largest number of variants of compiled FlexAttention (lengths, masks, directions)


def attention(
    tensors: tuple, backward: bool, dense: bool, window: int
) -> tuple[Makers, dict[str, str]]:
    """Returns makers of calls (functions without arguments) by name, and the reasons for missing
    ones.

    A maker compiles, and may raise any error of its library.

    Args:
      tensors: q, k, v, [B, T, N, H]. backward: with gradients. dense: whether to include candidates
        that store all B N T T logits or N T T biases.
      window: tokens that a query sees in candidates whose names end in ", window".
    """
    makers, missing = _jax_nn(tensors, backward, dense, window)
    if not pytorch.installed():
        missing["torch"] = 'not installed; pip install -e ".[peers]"'
        return makers, missing
    more, absent = _torch(tensors, backward, dense, window)
    return makers | more, missing | absent


def bias_bytes(heads: int, length: int, itemsize: int) -> dict[str, int]:
    """Returns the bytes of the bias or the mask that a candidate has beside q, k and v, by name."""
    return dict.fromkeys(HOLD_A_BIAS, heads * length**2 * itemsize) | {HOLDS_A_MASK: length**2}


def versions() -> dict[str, str]:
    """Returns the versions of the peers that are installed."""
    installed = {}
    for name in ("jax", "torch", "flash_attn", "transformers", "x_transformers"):
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _distances(length: int) -> np.ndarray:
    return np.arange(length)[:, None] - np.arange(length)[None, :]


def _jax_nn(tensors: tuple, backward: bool, dense: bool, window: int):
    T, N = tensors[0].shape[1:3]
    fused = jax.default_backend() == "gpu" and tensors[0].dtype == jnp.bfloat16
    makers, missing = {}, {}

    def maker(bias_1NTT, implementation, sight=None):
        def call(q, k, v, bias_1NTT):
            def f(q, k, v):
                return jax.nn.dot_product_attention(
                    q,
                    k,
                    v,
                    bias=bias_1NTT,
                    is_causal=True,
                    implementation=implementation,
                    local_window_size=sight,
                )

            if not backward:
                return (f(q, k, v),)
            out, pull = jax.vjp(f, q, k, v)
            return out, *pull(q)

        return functools.partial(Compiled, call, (*tensors, bias_1NTT))

    sight = (window - 1, 0)
    if fused:
        makers["jax.nn, cuDNN, no bias"] = maker(None, "cudnn")
        makers["jax.nn, cuDNN, window"] = maker(None, "cudnn", sight)
    names = (HOLD_A_BIAS[0], "jax.nn, no bias", "jax.nn, window", *HOLD_A_BIAS[1 : 1 + fused])
    if not dense:  # the XLA path stores all logits
        return makers, missing | dict.fromkeys(names, "all its logits are too many")
    bias = -alibi_slopes(N)[:, None, None] * np.maximum(_distances(T), 0)
    bias_1NTT = jnp.asarray(bias, tensors[0].dtype)[None]
    makers |= {
        names[0]: maker(bias_1NTT, "xla"),
        names[1]: maker(None, "xla"),
        names[2]: maker(None, "xla", sight),
    }
    if fused:
        makers[HOLD_A_BIAS[1]] = maker(bias_1NTT, "cudnn")
    return makers, missing


def _torch(tensors: tuple, backward: bool, dense: bool, window: int):
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    T, N = tensors[0].shape[1:3]
    device = pytorch.device()
    pytorch.match_jax_tf32()
    kind = getattr(torch, tensors[0].dtype.name)
    q, k, v = (
        torch.tensor(np.asarray(x, np.float32), dtype=kind, device=device)
        .transpose(1, 2)
        .contiguous()
        for x in tensors
    )
    slope_N = torch.tensor(alibi_slopes(N), dtype=torch.float32, device=device)

    leaves = [x.detach().requires_grad_() for x in (q, k, v)]

    def run(function):
        def forward():
            with torch.no_grad():
                return (pytorch.Pending(function(q, k, v).transpose(1, 2)),)

        def both():
            out = function(*leaves)
            gradients = torch.autograd.grad(out, leaves, q)
            return tuple(pytorch.Pending(x.detach().transpose(1, 2)) for x in (out, *gradients))

        return both if backward else forward

    def with_bias():
        distance = torch.tensor(_distances(T), dtype=torch.float32, device=device)
        bias_NTT = torch.where(distance >= 0, -slope_N[:, None, None] * distance, float("-inf"))
        bias_1NTT = bias_NTT[None].to(kind)
        return run(lambda *x: scaled_dot_product_attention(*x, attn_mask=bias_1NTT))

    def with_mask():
        slot_T = torch.arange(T, dtype=torch.int32, device=device)
        distance = slot_T[:, None] - slot_T[None, :]
        mask_TT = (distance >= 0) & (distance < window)
        return run(lambda *x: scaled_dot_product_attention(*x, attn_mask=mask_TT))

    makers = {
        "torch SDPA, no bias": lambda: run(
            lambda *x: scaled_dot_product_attention(*x, is_causal=True)
        )
    }
    missing = {}
    if dense:
        makers[HOLD_A_BIAS[2]] = with_bias
    else:
        missing[HOLD_A_BIAS[2]] = f"{N} x {T} x {T} biases are too many"
    if T**2 <= MASKED:
        makers[HOLDS_A_MASK] = with_mask
    else:
        missing[HOLDS_A_MASK] = f"{T} x {T} truth values are too many"
    if device == "cuda":
        name = "FlashAttention, alibi_slopes"
        if importlib.util.find_spec("flash_attn") is None:
            missing[name] = "flash_attn is not installed"
        elif tensors[0].dtype != jnp.bfloat16:
            missing[name] = "it wants --dtype=bfloat16"
        else:
            makers[name] = lambda: run(_flash_attention(slope_N))
    if backward and device == "cpu":
        return makers, missing | dict.fromkeys(FLEX, "its backward pass does not run on CPU")
    ways = (None, slope_N, None), (N, slope_N, None), (None, None, window)
    for name, (heads, slopes, sight) in zip(FLEX, ways, strict=True):
        if (heads or 1) * T**2 > MASKED:
            missing[name] = f"its mask of blocks is made from {heads or 1} x {T} x {T} numbers"
        else:
            way = (tensors, heads, slopes, sight, device)
            makers[name] = functools.partial(_run_flex, run, way)
    return makers, missing


def _run_flex(run: Callable, way: tuple) -> Callable:
    return run(_flex_attention(*way))


def _flex_attention(
    tensors: tuple, heads: int | None, slope_N, sight: int | None, device
) -> Callable:
    """Returns attention under ALiBi (without, if slope_N is None), with a block mask for a window
    of `sight` tokens.

    With `heads`, the mask of every head ends at the window of our cut-off.
    """
    import torch
    from torch.nn.attention.flex_attention import create_block_mask

    T, N, H = tensors[0].shape[1:]

    def alibi(score, b, h, q_index, k_index):
        return score - slope_N[h] * (q_index - k_index)

    def causal(b, h, i, j):
        return i >= j

    mask = causal if sight is None else lambda b, h, i, j: (i >= j) & (i - j < sight)
    if heads:
        squares = ((np.asarray(x, np.float32) ** 2).sum(-1).max() for x in tensors[:2])
        layer = (
            parse("alibi")
            .place(num_layers=1, num_heads=N, head_dim=H, model_dim=N * H, train_length=T)
            .layers[0]
        )
        window_N = torch.tensor(cutoff_windows(layer, {}, float(max(squares)) / H**0.5, T)).to(
            device
        )

        def mask(b, h, i, j):
            return (i >= j) & (i - j < window_N[h])

    blocks = create_block_mask(mask, None, heads, T, T, device=device)
    pytorch.release_memory()  # frees the T x T numbers behind the mask
    flex = _compiled_flex_attention()
    score = None if slope_N is None else alibi
    return lambda *x: flex(*x, score_mod=score, block_mask=blocks)


@functools.cache
def _compiled_flex_attention() -> Callable:
    import torch
    import torch._dynamo
    from torch.nn.attention.flex_attention import flex_attention

    # One kernel per length, as a user with a fixed length would have. Beyond the limit PyTorch
    # would warn and take a slow path; fullgraph makes that an error.
    torch._dynamo.config.cache_size_limit = _SHAPES
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def _flash_attention(slope_N) -> Callable:
    from flash_attn import flash_attn_func

    def attention(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return flash_attn_func(q, k, v, causal=True, alibi_slopes=slope_N).transpose(1, 2)

    return attention
