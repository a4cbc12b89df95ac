"""PyTorch in one process with JAX: where it computes, how it is waited for, what it allocates."""

import gc
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def installed() -> bool:
    """Whether PyTorch is (extra: peers)."""
    return importlib.util.find_spec("torch") is not None


def device() -> str:
    """Returns "cuda" where JAX is on a GPU and PyTorch sees it too, else "cpu"."""
    if jax.default_backend() != "gpu" or not installed():
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def match_jax_tf32() -> None:
    """On CUDA, gives PyTorch's float32 products the TF32 that JAX's have there by default."""
    if device() == "cuda":
        import torch

        torch.set_float32_matmul_precision("high")


def release_memory() -> None:
    """Returns to the GPU what PyTorch keeps for later and does not use: JAX needs room too."""
    if device() == "cuda":
        import torch

        gc.collect()
        torch.cuda.empty_cache()


def peak_allocated(run: Callable[[], Any]) -> int:
    """Returns the bytes of tensors on the GPU at the worst moment of `run`, beyond those held before."""
    import torch

    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = jax.block_until_ready(run())
    peak = torch.cuda.max_memory_allocated() - before
    del out
    return peak


class Pending:
    """A tensor that reads as an array or a float, and waits when `jax.block_until_ready` asks it to."""

    def __init__(self, tensor):
        self._tensor = tensor

    def block_until_ready(self):
        """Returns itself once a GPU has done all it was given."""
        if self._tensor.is_cuda:
            import torch

            torch.cuda.synchronize()
        return self

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._tensor.float().cpu(), dtype)

    def __float__(self):
        return float(self._tensor)
