"""What a run's time and memory went to: the fields that a row of metrics.jsonl has beside the step's own.

A leg is one start of the command. Its first step, which is compiled before, is in no rate.
"""

import contextlib
import datetime
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax

from posenc_jax.costs.hardware import HARDWARE

# What JAX calls the TPUs of chips.py; a GPU's kind is the name that its driver gives it.
_TPU_KINDS = {
    "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p",
    "TPU v6 lite": "trillium", "TPU v6e": "trillium",
}  # fmt: skip


class Meter:
    """Measures steps, waits and saves, and sums them up for every row.

    Fields of a row, over the steps since the row before:
      step_seconds: of a step, without saving. tokens_per_second: of the whole run, saving included.
      data_wait_share: of the time, in which the loop was blocked on the feed, and when its batch came no
        step was under way any more (an upper bound of what the device missed). save_share: of the time,
        blocked on saving.
      mfu: model FLOPs of the steps over what the chips could do in bfloat16, where their peak is known.
    And since the run began, over all its legs:
      productive_seconds: of steps that still count; goodput: their share of the wall-clock time, waits
      between legs, compilation, saving and steps that were lost and taken again being the rest.

    Args:
      tokens: of a step. flops: of the model in a step, forward and backward. began: ISO 8601, or None
      for a run that does not say. before: the last row that still counts, or {}. first: steps finished
      before this leg. clock: in seconds since the epoch.
    """

    def __init__(
        self,
        *,
        tokens: int,
        flops: float,
        began: str | None,
        before: Mapping,
        first: int,
        clock: Callable[[], float] = time.time,
    ):
        self._tokens, self._flops, self._clock = tokens, flops, clock
        self._began = datetime.datetime.fromisoformat(began).timestamp() if began else None
        self._productive = before.get("productive_seconds", 0.0)
        if before:  # steps that were saved after the last row take what those of the row took
            self._productive += (first - before["step"]) * before.get("step_seconds", 0.0)
        self._last: float | None = None
        self._saved_in_step = 0.0
        self._start_window()

    def _start_window(self) -> None:
        self._steps, self._spent, self._waited, self._saved = 0, 0.0, 0.0, 0.0

    def waiting(self, feed: Iterable, idle: Callable[[], bool]) -> Iterator:
        """Yields what the feed yields; the time until it comes is waited if devices are `idle` by then."""
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
        """The time inside the block is saving, not stepping."""
        start = self._clock()
        try:
            yield
        finally:
            self._saved_in_step += self._clock() - start

    def finished(self) -> None:
        """Counts a step that has finished just now."""
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
        """Returns the fields since the row before; without rates when no step was measured since."""
        row = memory()
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
            peak = peak_flops(jax.devices()[0].device_kind)
            if peak is not None:
                chips = jax.device_count()
                row["mfu"] = round(self._flops * self._steps / self._spent / (peak * chips), 4)
        self._start_window()
        return row


def memory() -> dict[str, int]:
    """Returns the peak of the fullest local device, or that of the process where devices do not say."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    if peaks:
        return {"device_peak_bytes": max(peaks)}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"process_peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def peak_flops(kind: str) -> float | None:
    """Returns the bfloat16 FLOPs a second of a device by its kind; None where no data sheet is known."""
    for chip in HARDWARE.values():
        if kind == chip.kind or _TPU_KINDS.get(kind) == chip.name:
            return chip.flops
    return None
