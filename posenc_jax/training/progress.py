"""Progress of a run: a bar or plain lines on stderr; metrics as JSONL, TensorBoard and W&B."""

import dataclasses
import hashlib
import importlib.util
import json
import math
import sys
import time
from pathlib import Path

from tensorboardX import SummaryWriter
from tqdm import tqdm

from posenc_jax.results.files import replace_text
from posenc_jax.training.config import RunConfig


class Progress:
    """A bar when stderr is a terminal; else a line every few seconds, for logs."""

    def __init__(self, title: str, first: int, total: int, seconds_between_lines: float = 15.0):
        self._title, self._total, self._first = title, total, first
        self._every, self._last, self._start = seconds_between_lines, time.time(), time.time()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total, initial=first, desc=title, unit="step", dynamic_ncols=True
            )

    def update(self, done: int, **shown: str) -> None:
        """Shows the number of finished steps and a few values."""
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(done - self._bar.n)
        elif time.time() - self._last > self._every or done == self._total:
            self._last = time.time()
            spent = self._last - self._start
            left = spent / max(done - self._first, 1) * (self._total - done)
            values = "  ".join(f"{k} {v}" for k, v in shown.items())
            clock = f"{int(left) // 60}:{int(left) % 60:02d} left"
            print(
                f"{self._title}  {done}/{self._total}  {values}  {clock}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


class MetricLog:
    """metrics.jsonl (the source of truth), TensorBoard beside it, and Weights & Biases if asked for.

    A resume drops the rows of steps that will be taken again, so that every step has at most one row.

    Attributes:
      last: the last row that was kept, {} when there is none.
    """

    def __init__(self, workdir: Path, config: RunConfig, first_step: int):
        path = workdir / "metrics.jsonl"
        kept, self.last = [], {}
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue  # a line that a kill cut short
                if row["step"] <= first_step:
                    kept.append(line)
                    self.last = row
        replace_text(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step)
        self._wandb = _wandb_run(workdir, config) if config.train.wandb_project else None

    def write(self, row: dict) -> None:
        """Appends one row; it must hold "step"."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        shown = {f"train/{name}": value for name, value in row.items() if name != "step"}
        shown = {name: value for name, value in shown.items() if isinstance(value, int | float)}
        for name, value in shown.items():
            if math.isfinite(value):  # the writer warns of others; metrics.jsonl has them
                self._board.add_scalar(name, value, row["step"])
        if self._wandb is not None:
            self._wandb.log(shown, step=row["step"])

    def close(self) -> None:
        """Flushes and closes all."""
        self._file.close()
        self._board.close()
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
    """Returns the run's page, the same one after a resume. WANDB_MODE=offline writes to the workdir only."""
    import wandb

    return wandb.init(
        project=config.train.wandb_project,
        id=hashlib.sha256(str(workdir.resolve()).encode()).hexdigest()[:16],
        resume="allow",
        name=f"{config.arm} seed {config.train.seed}",
        dir=str(workdir),
        config=dataclasses.asdict(config),
    )
