"""Meter of time and memory: rates, waits, saves, MFU and goodput for the rows of metrics.jsonl.

A leg is one start of the command. Its first step, which is compiled, is in no rate.
"""

import contextlib
import datetime
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax

from posenc_jax.costs.hardware import HARDWARE

# JAX's names of the TPUs in costs/hardware.py; a GPU's kind is its driver's name.
_TPU_KINDS = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "trillium",
    "TPU v6e": "trillium",
}

_STARTED = time.time() - time.monotonic()


def steady_seconds() -> float:
    """Returns seconds since the epoch by a clock that never goes back."""
    return _STARTED + time.monotonic()


class Meter:
    """Sums up the time of steps, waits and saves.

    Fields of a row, over the steps since the previous row:
      step_seconds: of a step, without saving. tokens_per_second: of the whole run, saving included.
      data_wait_share: share of the time spent waiting for a batch that came after the last step had
        ended (an upper bound of the device's idle time). save_share: share of the time spent
        saving.
      mfu: model FLOPs over the bfloat16 peak of the chips, where it is known.
    Fields over all legs of the run:
      productive_seconds: of the steps that count. goodput: their share of the wall-clock time; the
        rest is waits between legs, compilation, saving, and steps that were lost and taken again.

    Args:
      tokens: of a step. flops: of the model in a step, forward and backward. began: time of the
        run's first start, ISO 8601, or None if unknown. before: the last row that counts, or {}.
        first: steps finished before this leg. clock: returns seconds since the epoch.
    """

    def __init__(
        self,
        *,
        tokens: int,
        flops: float,
        began: str | None,
        before: Mapping,
        first: int,
        clock: Callable[[], float] = steady_seconds,
    ):
        self._tokens, self._flops, self._clock = tokens, flops, clock
        self._began = datetime.datetime.fromisoformat(began).timestamp() if began else None
        self._productive = before.get("productive_seconds", 0.0)
        if before:  # steps that were saved after the last row get that row's step_seconds
            self._productive += (first - before["step"]) * before.get("step_seconds", 0.0)
        self._last: float | None = None
        self._saved_in_step = 0.0
        self._start_window()

    def _start_window(self) -> None:
        self._steps, self._spent, self._waited, self._saved = 0, 0.0, 0.0, 0.0

    def waiting(self, feed: Iterable, idle: Callable[[], bool]) -> Iterator:
        """Yields the feed's batches; counts the wait for each if devices are `idle` by then."""
        batches = iter(feed)
        while True:
            start = self._clock()
            batch = next(batches, None)
            self._waited += (self._clock() - start) * idle()
            if batch is None:
                return
            yield batch

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Counts the time of the `with` block as saving."""
        start = self._clock()
        try:
            yield
        finally:
            self._saved_in_step += self._clock() - start

    def finished(self) -> None:
        """Counts a step that has finished now."""
        now, saved = self._clock(), self._saved_in_step
        self._saved_in_step = 0.0
        if self._last is None:
            self._waited = 0.0
        else:
            self._steps += 1
            self._saved += saved
            self._spent += now - self._last - saved
            self._productive += now - self._last - saved
        self._last = now

    def row(self) -> dict[str, float]:
        """Returns the fields of a row; without rates if no step was measured since the last."""
        row: dict[str, float] = {**memory()}
        if self._began is not None:
            wall = max(self._clock() - self._began, self._productive)
            row["productive_seconds"] = round(self._productive, 3)
            row["goodput"] = round(self._productive / wall, 4) if wall else 0.0
        whole = self._spent + self._saved
        if self._steps and self._spent > 0:
            per_second = self._steps / whole
            row["tokens_per_second"] = round(self._tokens * per_second, 1)
            row["step_seconds"] = round(self._spent / self._steps, 6)
            row["data_wait_share"] = round(self._waited / whole, 4)
            row["save_share"] = round(self._saved / whole, 4)
            peak = peak_flops_per_second(jax.devices()[0].device_kind)
            if peak is not None:
                chips = jax.device_count()
                row["mfu"] = round(self._flops * self._steps / self._spent / (peak * chips), 4)
        self._start_window()
        return row


def memory() -> dict[str, int]:
    """Returns the peak memory of the fullest local device, or else of the process."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    if peaks:
        return {"device_peak_bytes": max(peaks)}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"process_peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def peak_flops_per_second(kind: str) -> float | None:
    """Returns a device's bfloat16 FLOPs a second by its kind; None without a data sheet."""
    for chip in HARDWARE.values():
        if kind == chip.kind or _TPU_KINDS.get(kind) == chip.name:
            return chip.flops_per_second
    return None
