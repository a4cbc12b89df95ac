"""Progress of a run: a bar or plain lines on stderr; metrics as JSONL, TensorBoard and W&B."""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from tqdm import tqdm

from posenc_jax.results.files import json_lines, readable_lines, replace_text
from posenc_jax.results.record_schema import check_logged
from posenc_jax.training.config import RunConfig
from posenc_jax.training.meter import steady_seconds


class Progress:
    """A bar when stderr is a terminal; else a line every few seconds, for logs."""

    def __init__(self, title: str, first: int, total: int, seconds_between_lines: float = 15.0):
        self._title, self._total = title, total
        self._every, self._last = seconds_between_lines, time.monotonic()
        self._start: tuple[float, int] | None = None  # time and step of the first update
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total, initial=first, desc=title, unit="step", dynamic_ncols=True
            )

    def update(self, done: int, **shown: str) -> None:
        """Shows the number of finished steps and a few values.

        The time left is estimated from the steps after the first update: those before were
        compiled.
        """
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        began, first = self._start = self._start or (now, done)
        if now - self._last > self._every or done == self._total:
            self._last = now
            values = [f"{k} {v}" for k, v in shown.items()]
            if done > first:
                left = int((now - began) / (done - first) * (self._total - done))
                values.append(f"{left // 60}:{left % 60:02d} left")
            line = "  ".join([self._title, f"{done}/{self._total}", *values])
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


class EventLog:
    """TensorBoard's copy of the log, written in the thread of the caller.

    The thread of tensorboardX's own writer ends at the first disk error, and the run then waits for
    it for ever. Here the first error ends only this log. A line reports it at the next step, and
    not at once: if the same error also ends the run, the run prints its own line.

    Args:
      folder: of the event files. first_step: TensorBoard hides what earlier files say from this
        step on.
    """

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._events: EventsWriter | None = EventsWriter(str(folder / "events"))
        self._lost: tuple[int, OSError] | None = (
            None  # step and error, until a line has reported it
        )
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, name: str, value: float, step: int) -> None:
        """Adds one value of one step."""
        if self._lost and step > self._lost[0]:
            self._say()
        self._write(Event(step=step, summary=scalar(name, value)))

    def close(self, failed: bool) -> None:
        """Closes the file.

        Args:
          failed: the run ends with an error, which is the line that matters.
        """
        self._attempt(EventsWriter.close, 0)
        if not failed:
            self._say()

    def _write(self, event: Event) -> None:
        event.wall_time = steady_seconds()
        self._attempt(lambda events: (events.write_event(event), events.flush()), event.step)

    def _attempt(self, action: Callable[[EventsWriter], object], step: int) -> None:
        if (events := self._events) is None:
            return
        try:
            action(events)
        except OSError as error:
            with contextlib.suppress(OSError):
                events._py_recordio_writer.close()  # without another flush
            self._events, self._lost = None, (step, error)

    def _say(self) -> None:
        if self._lost is None:
            return
        (_, error), self._lost = self._lost, None
        print(
            f"TensorBoard's log ends here ({error.strerror}); metrics.jsonl has all",
            file=sys.stderr,
        )


class MetricLog:
    """metrics.jsonl (the source of truth), TensorBoard beside it, and Weights & Biases if asked
    for.

    A resume drops the rows of steps that will be taken again, so that every step has at most one
    row.

    Attributes:
      last: the last row that was kept or written, {} when there is none.
    """

    def __init__(self, workdir: Path, config: RunConfig, first_step: int):
        path = workdir / "metrics.jsonl"
        kept, self.last = [], {}
        if path.exists():
            rows, damaged = readable_lines(path)
            for number, row in rows:
                try:
                    check_logged(row, "")
                except ValueError:
                    damaged.append(number)
                    continue
                if row["step"] <= first_step:
                    kept.append(row)
                    self.last = row
            if damaged:
                print(
                    f"{path}: line {', '.join(map(str, sorted(damaged)))} is damaged and left out",
                    file=sys.stderr,
                )
        replace_text(path, json_lines(kept))
        self._file = path.open("a")
        self._board = EventLog(workdir / "tensorboard", first_step)
        self._wandb = _wandb_run(workdir, config) if config.train.wandb_project else None

    def write(self, row: dict) -> None:
        """Appends one row; it must hold "step"."""
        self.last = row
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        shown = {f"train/{name}": value for name, value in row.items() if name != "step"}
        shown = {name: value for name, value in shown.items() if isinstance(value, int | float)}
        for name, value in shown.items():
            if math.isfinite(value):  # the writer warns of others; metrics.jsonl has them
                self._board.add(name, value, row["step"])
        if self._wandb is not None:
            self._wandb.log(shown, step=row["step"])

    def close(self, failed: bool) -> None:
        """Flushes and closes all.

        Args:
          failed: the run ends with an error.
        """
        self._file.close()
        self._board.close(failed)
        if self._wandb is not None:
            self._wandb.finish()


def check_wandb(config: RunConfig) -> None:
    """Raises ValueError when Weights & Biases is configured and not installed."""
    if config.train.wandb_project and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"config.train.wandb_project={config.train.wandb_project} needs Weights & Biases: "
            'pip install -e ".[wandb]", or leave the setting out'
        )


def _wandb_run(workdir: Path, config: RunConfig):
    """Returns the run's page, kept after a resume; WANDB_MODE=offline writes to the workdir."""
    import wandb

    return wandb.init(
        project=config.train.wandb_project,
        id=hashlib.sha256(str(workdir.resolve()).encode()).hexdigest()[:16],
        resume="allow",
        name=f"{config.arm} seed {config.train.seed}",
        dir=str(workdir),
        config=dataclasses.asdict(config),
    )
