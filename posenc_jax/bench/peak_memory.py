"""Peak memory of a run: counted by the operating system, planned by the compiler, or counted by
PyTorch.

The operating system counts pages for every candidate, and includes memory that an allocator keeps.
The compiler's plan is exact, and exists for programs of XLA only. The system does not count memory
of an accelerator: there `peak` takes the plan, or for PyTorch the count of its allocator.
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
    """Returns (bytes, source) of the peak memory of `run`, results included, beyond what was
    allocated before.

    The source is "system" on CPU (`peak_bytes`; bytes may be None). On an accelerator it is
    "compiler" for a run with `planned_bytes`, and "torch" for tensors of PyTorch on the same GPU.

    Args:
      run: a function without arguments that has run before; it runs once more.
    """
    if jax.default_backend() != "cpu":
        if hasattr(run, "planned_bytes"):
            jax.block_until_ready(run())
            return run.planned_bytes, "compiler"
        if pytorch.device() == "cuda":
            return pytorch.peak_allocated(run), "torch"
    return peak_bytes(run), "system"


def peak_bytes(run: Callable[[], Any]) -> int | None:
    """Returns the peak of this process's resident bytes during `run`, less the bytes before; None
    on systems other than Linux.

    Args:
      run: a function without arguments. Run it once before; otherwise the memory of its compilation
        is counted too.
    """
    try:
        gc.collect()
        # Returns freed pages to the system; otherwise the run would use them uncounted.
        ctypes.CDLL(None).malloc_trim(0)
        _RESET.write_text("5")  # resets the high-water mark to the resident pages
        before = _resident("VmHWM")
    except (OSError, AttributeError, KeyError):
        return None
    out = jax.block_until_ready(run())
    peak = _resident("VmHWM") - before
    del out
    return max(peak, 0)


class Compiled:
    """A compiled function with its arguments; planned_bytes: see the function of that name."""

    def __init__(self, function: Callable, arguments: tuple):
        self._arguments = arguments
        self._run = jax.jit(function).lower(*arguments).compile()
        self.planned_bytes = planned_bytes(self._run)

    def __call__(self):
        return self._run(*self._arguments)


def memory_plan(program: jax.stages.Compiled):
    """Returns the compiler's memory plan; ValueError if the backend reports none."""
    memory = program.memory_analysis()
    if memory is None:
        raise ValueError("this backend does not say how much memory a program takes")
    return memory


def planned_bytes(program: jax.stages.Compiled) -> int:
    """Returns the bytes of temporaries and results, without results in donated arguments."""
    memory = memory_plan(program)
    return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


def _resident(field: str) -> int:
    lines = (line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    return 1024 * int(dict(lines)[field].split()[0])
