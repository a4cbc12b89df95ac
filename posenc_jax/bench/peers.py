"""Other people's attention: jax.nn, and PyTorch where it is installed (pip install -e ".[peers]")."""

import importlib.util
from collections.abc import Callable
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.encodings import alibi_slopes

Runs = dict[str, Callable]
HOLD_A_BIAS = ("jax.nn, dense ALiBi", "torch SDPA, dense ALiBi")  # N T T numbers, beside q, k and v


def attention(tensors: tuple, backward: bool, dense: bool) -> tuple[Runs, dict[str, str]]:
    """Returns (runs, missing): functions of nothing by name, and why the others are not there.

    Args:
      tensors: q, k, v, [1, T, N, H], float32. backward: also the gradients. dense: whether candidates
        that hold all N T T logits or biases are to be tried.
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
    for name in ("jax", "torch"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _distances(length: int) -> np.ndarray:
    return np.arange(length)[:, None] - np.arange(length)[None, :]


def _jax_nn(tensors: tuple, backward: bool, dense: bool) -> tuple[Runs, dict[str, str]]:
    T, N = tensors[0].shape[1:3]
    names = (HOLD_A_BIAS[0], "jax.nn, no bias")
    if not dense:  # the plain path holds all logits, bias or no bias
        return {}, dict.fromkeys(names, f"{N} x {T} x {T} logits are too many")
    bias = -alibi_slopes(N)[:, None, None] * np.maximum(_distances(T), 0)
    bias_1NTT = jnp.asarray(bias, jnp.float32)[None]

    def run(bias_1NTT):
        @jax.jit
        def call(q, k, v, bias_1NTT):
            def f(q, k, v):
                return jax.nn.dot_product_attention(q, k, v, bias=bias_1NTT, is_causal=True)

            if not backward:
                return (f(q, k, v),)
            out, pull = jax.vjp(f, q, k, v)
            return out, *pull(q)

        return lambda: call(*tensors, bias_1NTT)

    return {names[0]: run(bias_1NTT), names[1]: run(None)}, {}


def _torch(tensors: tuple, backward: bool, dense: bool) -> tuple[Runs, dict[str, str]]:
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    from torch.nn.functional import scaled_dot_product_attention

    T, N = tensors[0].shape[1:3]
    q, k, v = (torch.tensor(np.asarray(x)).transpose(1, 2).contiguous() for x in tensors)
    slope_N = torch.tensor(alibi_slopes(N), dtype=torch.float32)

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
        apart = torch.tensor(_distances(T), dtype=torch.float32)
        biases = torch.where(apart >= 0, -slope_N[:, None, None] * apart, float("-inf"))[None]
        runs[HOLD_A_BIAS[1]] = run(lambda *x: scaled_dot_product_attention(*x, attn_mask=biases))
    else:
        missing[HOLD_A_BIAS[1]] = f"{N} x {T} x {T} biases are too many"
    if backward:
        missing["torch FlexAttention, ALiBi"] = "its backward pass does not run on CPU"
        return runs, missing

    def alibi(score, b, h, q_index, k_index):
        return score - slope_N[h] * (q_index - k_index)

    try:
        seen = create_block_mask(lambda b, h, i, j: i >= j, None, None, T, T, device="cpu")
        flex = torch.compile(flex_attention)
        call = run(lambda *x: flex(*x, score_mod=alibi, block_mask=seen))
        call()
        runs["torch FlexAttention, ALiBi"] = call
    except (
        Exception
    ) as error:  # a compiler of theirs that fails here is a missing row, not our failure
        missing["torch FlexAttention, ALiBi"] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"  # fmt: skip
    return runs, missing


class _Result:
    """A torch tensor [1, N, T, H] that reads as an array [1, T, N, H]; it is there when the call ends."""

    def __init__(self, tensor):
        self._tensor = tensor

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._tensor.transpose(1, 2), dtype)
