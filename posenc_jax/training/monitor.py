"""Monitor of one leg of training: measures every step, writes rows of metrics and the progress
bar.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax

from posenc_jax.checkpoints.hash_chain import HashChain
from posenc_jax.training.config import RunConfig
from posenc_jax.training.meter import Meter
from posenc_jax.training.progress import MetricLog, Progress


class Monitor:
    """Measures in every process, writes in process 0; a context manager.

    Args:
      workdir, config: of the run. first: steps finished before this leg. began: see `Meter`. flops:
      of the model in a step. chain: its links are part of every row.
    """

    def __init__(
        self,
        workdir: Path,
        config: RunConfig,
        first: int,
        began: str | None,
        flops: float,
        chain: HashChain,
    ):
        t = config.train
        self._chain = chain
        self._every, self._steps = t.log_every, t.steps
        self._log: MetricLog | None = None
        self._bar: Progress | None = None
        self._dispatched: dict[str, jax.Array] = {}
        if jax.process_index() == 0:
            self._log = MetricLog(workdir, config, first)
            self._bar = Progress(config.arm, first, t.steps)
        self._meter = Meter(
            tokens=t.batch_size * t.length,
            flops=flops,
            began=began,
            before=self._log.last if self._log else {},
            first=first,
        )

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, kind, *exc) -> None:
        if self._log is not None:
            self._log.close(failed=kind is not None)
        if self._bar is not None:
            self._bar.close()

    @property
    def last(self) -> dict:
        """The last row of the log; for process 0."""
        return self._log.last if self._log else {}

    def waiting(self, feed: Iterable) -> Iterator:
        """Yields the feed's batches; counts the wait for each if no step runs by its end."""
        return self._meter.waiting(feed, self._idle)

    def started(self, metrics: dict[str, jax.Array]) -> None:
        """Records the metrics of the step that was just dispatched."""
        self._dispatched = metrics

    def _idle(self) -> bool:
        arrays = self._dispatched.values()
        return all(array.is_ready() for array in arrays)  # type: ignore[attr-defined]  # jax's stub

    def saving(self) -> contextlib.AbstractContextManager:
        """Counts the time of the `with` block as saving."""
        return self._meter.saving()

    def finished(
        self, step: int, metrics: dict[str, jax.Array], measured: dict[str, float | None], due: bool
    ) -> None:
        """Waits until a step is finished; writes its metrics every `log_every` steps.

        A step with further `measured` values, or one that is `due`, always has a row.
        """
        jax.block_until_ready(metrics)
        self._meter.finished()
        if step % self._every and step != self._steps and not measured and not due:
            return
        row = {name: float(value) for name, value in jax.device_get(metrics).items()}
        links = self._chain.through(step)
        if self._log is not None and self._bar is not None:
            timing = self._meter.row()
            self._log.write({"step": step, **row, **measured, **timing, **links})
            rate = timing.get("tokens_per_second")
            shown = {} if rate is None else {"tokens_per_s": f"{rate:,.0f}"}
            self._bar.update(step, loss=f"{row['loss']:.3f}", **shown)
