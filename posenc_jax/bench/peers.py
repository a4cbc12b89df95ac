"""Other people's attention: jax.nn, and PyTorch where it is installed (pip install -e ".[peers]")."""

import importlib.util
from collections.abc import Callable
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.attention.cutoff import windows
from posenc_jax.bench.memory import Compiled
from posenc_jax.encodings import alibi_slopes, parse

Runs = dict[str, Callable]
HOLD_A_BIAS = (
    "jax.nn, dense ALiBi",
    "jax.nn, cuDNN, dense ALiBi",
    "torch SDPA, dense ALiBi",
)  # N T T numbers, beside q, k and v
FLEX = ("torch FlexAttention, ALiBi", "torch FlexAttention, ALiBi, cut per head")
MASKED = 2**32  # numbers that a mask of blocks is made from; above it they do not fit


def attention(tensors: tuple, backward: bool, dense: bool) -> tuple[Runs, dict[str, str]]:
    """Returns (runs, missing): functions of nothing by name, and why the others are not there.

    Args:
      tensors: q, k, v, [1, T, N, H]. backward: also the gradients. dense: whether candidates that hold
        all N T T logits or biases are to be tried.
    """
    runs, missing = _jax_nn(tensors, backward, dense)
    if importlib.util.find_spec("torch") is None:
        missing["torch"] = 'not installed; pip install -e ".[peers]"'
        return runs, missing
    more, absent = _torch(tensors, backward, dense)
    return runs | more, missing | absent


def versions() -> dict[str, str]:
    """Returns the versions of the peers that are installed."""
    found = {}
    for name in ("jax", "torch", "flash_attn"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _distances(length: int) -> np.ndarray:
    return np.arange(length)[:, None] - np.arange(length)[None, :]


def _jax_nn(tensors: tuple, backward: bool, dense: bool) -> tuple[Runs, dict[str, str]]:
    T, N = tensors[0].shape[1:3]
    fused = jax.default_backend() == "gpu" and tensors[0].dtype == jnp.bfloat16
    runs, missing = {}, {}

    def run(bias_1NTT, implementation):
        def call(q, k, v, bias_1NTT):
            def f(q, k, v):
                return jax.nn.dot_product_attention(
                    q, k, v, bias=bias_1NTT, is_causal=True, implementation=implementation
                )

            if not backward:
                return (f(q, k, v),)
            out, pull = jax.vjp(f, q, k, v)
            return out, *pull(q)

        return Compiled(call, (*tensors, bias_1NTT))

    if fused:
        runs["jax.nn, cuDNN, no bias"] = run(None, "cudnn")
    names = (HOLD_A_BIAS[0], "jax.nn, no bias", *([HOLD_A_BIAS[1]] if fused else []))
    if not dense:  # the plain path holds all logits, bias or no bias
        return runs, missing | dict.fromkeys(names, f"{N} x {T} x {T} logits are too many")
    bias = -alibi_slopes(N)[:, None, None] * np.maximum(_distances(T), 0)
    bias_1NTT = jnp.asarray(bias, tensors[0].dtype)[None]
    runs |= {names[0]: run(bias_1NTT, "xla"), names[1]: run(None, "xla")}
    if fused:
        runs[names[2]] = run(bias_1NTT, "cudnn")
    return runs, missing


def _torch(tensors: tuple, backward: bool, dense: bool) -> tuple[Runs, dict[str, str]]:
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    from torch.nn.functional import scaled_dot_product_attention

    T, N, H = tensors[0].shape[1:]
    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    kind = getattr(torch, tensors[0].dtype.name)
    q, k, v = (
        torch.tensor(np.asarray(x, np.float32), dtype=kind, device=device).transpose(1, 2).contiguous()
        for x in tensors
    )  # fmt: skip
    slope_N = torch.tensor(alibi_slopes(N), dtype=torch.float32, device=device)

    def run(function):
        def forward():
            with torch.no_grad():
                return (_Result(function(q, k, v)),)

        def both():
            leaves = [x.clone().requires_grad_() for x in (q, k, v)]
            out = function(*leaves)
            out.backward(q)
            return (_Result(out.detach()),)

        return both if backward else forward

    runs, missing = {"torch SDPA, no bias": run(lambda *x: scaled_dot_product_attention(*x, is_causal=True))}, {}  # fmt: skip
    if dense:
        apart = torch.tensor(_distances(T), dtype=torch.float32, device=device)
        biases = torch.where(apart >= 0, -slope_N[:, None, None] * apart, float("-inf"))[None].to(
            kind
        )
        runs[HOLD_A_BIAS[2]] = run(lambda *x: scaled_dot_product_attention(*x, attn_mask=biases))
    else:
        missing[HOLD_A_BIAS[2]] = f"{N} x {T} x {T} biases are too many"
    if device == "cuda":
        name = "FlashAttention, alibi_slopes"
        if importlib.util.find_spec("flash_attn") is None:
            missing[name] = "flash_attn is not installed"
        elif tensors[0].dtype != jnp.bfloat16:
            missing[name] = "it wants --dtype=bfloat16"
        else:
            runs[name] = run(_flash_attention(slope_N))
    if backward and device == "cpu":
        return runs, missing | dict.fromkeys(FLEX, "its backward pass does not run on CPU")

    def alibi(score, b, h, q_index, k_index):
        return score - slope_N[h] * (q_index - k_index)

    bound = float(max((np.linalg.norm(np.asarray(x, np.float32), axis=-1) ** 2).max() for x in tensors[:2])) / H**0.5  # fmt: skip
    place = {"num_layers": 1, "num_heads": N, "head_dim": H, "model_dim": N * H, "train_length": T}
    window_N = torch.tensor(windows(parse("alibi").place(**place).layers[0], {}, bound, T)).to(device)  # fmt: skip
    masks = {
        FLEX[0]: (None, lambda b, h, i, j: i >= j),
        FLEX[1]: (N, lambda b, h, i, j: (i >= j) & (i - j < window_N[h])),
    }
    for name, (heads, mask) in masks.items():
        if (heads or 1) * T**2 > MASKED:
            missing[name] = f"its mask of blocks is made from {heads or 1} x {T} x {T} numbers"
            continue
        try:
            seen = create_block_mask(mask, None, heads, T, T, device=device)
            flex = torch.compile(flex_attention)
            call = run(lambda *x, flex=flex, seen=seen: flex(*x, score_mod=alibi, block_mask=seen))
            call()
            runs[name] = call
        except (
            Exception
        ) as error:  # a compiler of theirs that fails is a missing row, not our failure
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    return runs, missing


def _flash_attention(slope_N) -> Callable:
    from flash_attn import flash_attn_func

    def attention(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return flash_attn_func(q, k, v, causal=True, alibi_slopes=slope_N).transpose(1, 2)

    return attention


class _Result:
    """A torch tensor [1, N, T, H] that reads as an array [1, T, N, H]."""

    def __init__(self, tensor):
        self._tensor = tensor

    def block_until_ready(self):
        """Waits for a GPU, as `jax.block_until_ready` asks of what it is given."""
        if self._tensor.is_cuda:
            import torch

            torch.cuda.synchronize()
        return self

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._tensor.transpose(1, 2).float().cpu(), dtype)
