"""The device that programs are traced for: what is best on it, or the same every time, is chosen by it."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_ELSEWHERE = contextvars.ContextVar("device", default=None)


def current_backend() -> str:
    """Returns the device that programs are traced for: "cpu", "gpu" or "tpu"."""
    return _ELSEWHERE.get() or jax.default_backend()


@contextlib.contextmanager
def assume_backend(device: str) -> Iterator[None]:
    """Traces programs for a device that is not what this process computes on."""
    token = _ELSEWHERE.set(device)
    try:
        yield
    finally:
        _ELSEWHERE.reset(token)


@contextlib.contextmanager
def float32_matmuls() -> Iterator[None]:
    """Traces products of float32 as such: by default a GPU rounds their factors to 10 bits, and a TPU to 8."""
    how = contextlib.nullcontext()
    if current_backend() != "cpu":
        how = jax.default_matmul_precision("highest")
    with how:
        yield
