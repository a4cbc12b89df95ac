"""PyTorch beside JAX in one process: device, precision, waiting for results, and memory."""

import gc
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def installed() -> bool:
    """Whether PyTorch is installed (extra: peers)."""
    return importlib.util.find_spec("torch") is not None


def device() -> str:
    """Returns "cuda" where JAX is on a GPU and PyTorch sees it too, else "cpu"."""
    if jax.default_backend() != "gpu" or not installed():
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def match_jax_tf32() -> None:
    """On CUDA, sets float32 products of PyTorch to TF32, the default of JAX there."""
    if device() == "cuda":
        import torch

        torch.set_float32_matmul_precision("high")


def release_memory() -> None:
    """Frees GPU memory that the allocator of PyTorch holds unused, for JAX."""
    if device() == "cuda":
        import torch

        gc.collect()
        torch.cuda.empty_cache()


def peak_allocated(run: Callable[[], Any]) -> int:
    """Returns the peak bytes of tensors on the GPU during `run`, beyond those before."""
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
    """A tensor that converts to an array or a float, and on which `jax.block_until_ready` waits."""

    def __init__(self, tensor):
        self._tensor = tensor

    def block_until_ready(self):
        """Waits for the GPU and returns itself."""
        if self._tensor.is_cuda:
            import torch

            torch.cuda.synchronize()
        return self

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._tensor.float().cpu(), dtype)

    def __float__(self):
        return float(self._tensor)
