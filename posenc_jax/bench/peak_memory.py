"""The memory a run takes: as the operating system counts it while it runs, and as its compiler planned it.

The first is one number for every candidate, whoever wrote it, in pages and with what an allocator keeps;
the second is exact, and exists for what XLA compiles. The system does not see an accelerator's own memory:
there `peak` takes the plan of what XLA compiles and, for PyTorch, the count of its allocator.
"""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from posenc_jax.bench import pytorch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak(run: Callable[[], Any]) -> tuple[int | None, str]:
    """Returns (bytes, source): what `run` takes beyond what was held before, its results included.

    The source is "system" on CPU (`peak_bytes`; bytes are None where it does not tell). On an accelerator
    it is "compiler" for a run with `planned_bytes`, the plan and not a measurement, and "torch" for
    PyTorch on the same GPU, the most that its tensors took. Runs it once.

    Args:
      run: a function of nothing that has run before.
    """
    if jax.default_backend() != "cpu":
        if hasattr(run, "planned_bytes"):
            jax.block_until_ready(run())
            return run.planned_bytes, "compiler"
        if pytorch.device() == "cuda":
            return pytorch.peak_allocated(run), "torch"
    return peak_bytes(run), "system"


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
      planned_bytes: see `planned_bytes`.
    """

    def __init__(self, function: Callable, arguments: tuple):
        self._arguments = arguments
        self._run = jax.jit(function).lower(*arguments).compile()
        self.planned_bytes = planned_bytes(self._run)

    def __call__(self):
        return self._run(*self._arguments)


def planned_bytes(program: jax.stages.Compiled) -> int:
    """Returns the scratch and results that the compiler sets aside, beyond the arguments.

    A result in the memory of an argument that is given away adds nothing.
    """
    memory = program.memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


def _resident(field: str) -> int:
    lines = (line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    return 1024 * int(dict(lines)[field].split()[0])
