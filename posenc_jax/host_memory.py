"""Memory that stays: XLA takes a program's scratch from the C library anew on every run, and gives it back.

glibc hands requests of this size straight to the system. Each 4 KB page is then zeroed at its first write, by
an interrupt, in every step: 32,000 times in the training step of `scripts/bench.py step`, of which it took a
seventh. What is kept instead is written again without the system's help.
"""

import ctypes
import importlib.util
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of <malloc.h>
_OF_THE_USER = ("glibc.malloc.mmap_", "glibc.malloc.trim_", "glibc.malloc.arena_")


def keep_freed_memory() -> bool:
    """Has this process keep what it frees, and all its threads take from one pool; returns whether it does.

    To be called before JAX has computed anything, as a thread keeps the pool that it once took from. The
    process then stays at the most that it held at one time, which itself changes by little. Nothing is done
    where JAX is to find an accelerator, whose programs have no scratch here; without glibc; and for whoever
    has told glibc about maps, trimming or pools (`MALLOC_*`, `GLIBC_TUNABLES`).
    """
    told = os.environ.get("GLIBC_TUNABLES", "")
    by_the_user = any(word in told for word in _OF_THE_USER) or any(
        name.startswith("MALLOC_") for name in os.environ
    )
    if sys.platform != "linux" or by_the_user or _accelerated():
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    settings = {_TRIM_THRESHOLD: -1, _MMAP_MAX: 0, _ARENA_MAX: 1}
    taken = [library.mallopt(name, value) for name, value in settings.items()]
    return all(taken)


def _accelerated() -> bool:
    """Whether JAX may find another device than the CPU, told without starting it."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] != "cpu"
    return any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
