"""The memory a run takes: as the operating system counts it while it runs, and as its compiler planned it.

The first is one number for every candidate, whoever wrote it, in pages and with what an allocator keeps;
the second is exact, and exists for what XLA compiles.
"""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(run: Callable[[], Any]) -> int | None:
    """Returns the bytes that `run` takes at its worst beyond what was held before, its results included.

    Counts resident pages of this process, so a device with memory of its own is not seen; pages come in
    thousands of bytes. None where the system does not tell (anything but Linux).

    Args:
      run: a function of nothing that has run before: what compiles counts otherwise.
    """
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(
            0
        )  # or it would serve the run from pages that are freed but kept
        _RESET.write_text("5")  # the high-water mark falls to what is resident now
        before = _resident("VmHWM")
    except (OSError, AttributeError, KeyError):
        return None
    out = jax.block_until_ready(run())
    peak = _resident("VmHWM") - before
    del out
    return max(peak, 0)


class Compiled:
    """A function compiled for its arguments: calling it without any runs it on them.

    Attributes:
      planned_bytes: scratch and results that the compiler sets aside, beyond the arguments.
    """

    def __init__(self, function: Callable, arguments: tuple):
        self._arguments = arguments
        self._run = jax.jit(function).lower(*arguments).compile()
        memory = self._run.memory_analysis()
        self.planned_bytes = memory.temp_size_in_bytes + memory.output_size_in_bytes

    def __call__(self):
        return self._run(*self._arguments)


def _resident(field: str) -> int:
    lines = (line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    return 1024 * int(dict(lines)[field].split()[0])
