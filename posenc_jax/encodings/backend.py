"""The device for which programs are traced."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_ELSEWHERE: contextvars.ContextVar[str | None] = contextvars.ContextVar("device", default=None)


def current_backend() -> str:
    """Returns the device that programs are traced for: "cpu", "gpu" or "tpu"."""
    return _ELSEWHERE.get() or jax.default_backend()


@contextlib.contextmanager
def assume_backend(device: str) -> Iterator[None]:
    """Traces programs for another device than the one of this process."""
    token = _ELSEWHERE.set(device)
    try:
        yield
    finally:
        _ELSEWHERE.reset(token)


@contextlib.contextmanager
def float32_matmuls() -> Iterator[None]:
    """Traces float32 products in full precision; a GPU's default is 10 bits, a TPU's 8."""
    how: contextlib.AbstractContextManager = contextlib.nullcontext()
    if current_backend() != "cpu":
        how = jax.default_matmul_precision("highest")
    with how:
        yield
