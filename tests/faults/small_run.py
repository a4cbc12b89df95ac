"""Small runs in separate processes, and their comparison with an undisturbed run."""

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from faults.fork_server import ROOT, Fork, ForkServer

STEPS, SAVE_EVERY = 30, 5
DOCUMENTS, WORDS = 40, 1000  # of the corpus, which every start reads again
_TAIL = 4096  # bytes of metrics.jsonl, some rows of it
STALLED = 120.0  # seconds without a step after which a run is killed; twice that for its first step


class SmallRun:
    """A run of the smoke configuration with one layer, on generated text; a context manager.

    All runs below `folder` are the same run, started as `python train.py` or forked.

    Args:
      folder: for workdirs, the corpus and the compiler's cache.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._reference: dict | None = None
        self._servers: dict[int, ForkServer] = {}
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "SmallRun":
        return self

    def __exit__(self, *exc) -> None:
        self._open.close()

    def start(self, workdir: Path, *overrides: str, devices: int = 1) -> subprocess.Popen:
        """Starts `python train.py` in `workdir`."""
        return subprocess.Popen(
            [sys.executable, "train.py", *self._arguments(workdir, overrides)],
            cwd=ROOT,
            env=self._environment(devices),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def fork(
        self, workdir: Path, *overrides: str, devices: int = 1, corrupted: dict | None = None
    ) -> Fork:
        """Starts the same run as a fork; see `fork_server` and `corrupted_batches`."""
        if devices not in self._servers:
            server = ForkServer(self._environment(devices))
            self._servers[devices] = self._open.enter_context(server)
        return self._servers[devices].start(
            self._arguments(workdir, overrides), self.folder, corrupted
        )

    def _arguments(self, workdir: Path, overrides: tuple[str, ...]) -> list[str]:
        text = self.folder / "text"
        if not text.exists():
            _write_text(text)
        return [
            "--config=configs/smoke.py:rope+alibi",
            "--config.data.corpus=text_folder",
            f"--config.data.folder={text}",
            f"--config.data.data_dir={self.folder / 'data'}",
            f"--config.train.steps={STEPS}",
            f"--config.train.save_every={SAVE_EVERY}",
            "--config.train.log_every=1",
            "--config.model.num_layers=1",
            *overrides,
            f"--workdir={workdir}",
        ]

    def _environment(self, devices: int) -> dict[str, str]:
        return {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        }

    def fresh(self, name: str) -> Path:
        """Returns the path of a workdir that does not exist yet."""
        workdir = self.folder / name
        shutil.rmtree(workdir, ignore_errors=True)
        return workdir

    def reference(self) -> dict:
        """Returns the record of the undisturbed run, trained by `python train.py` at first use."""
        if self._reference is None:
            workdir = self.fresh("undisturbed")
            out, err = outputs(self.start(workdir), workdir)
            if not finished(workdir):
                raise RuntimeError(f"the undisturbed run does not finish: {out}{err}")
            self._reference = record(workdir)
        return self._reference

    def finish(self, workdir: Path, *overrides: str, devices: int = 1) -> tuple[int, int, str, str]:
        """Runs `workdir` to its end; returns (step that it went on from, exit code, stdout, stderr)."""
        process = self.start(workdir, *overrides, devices=devices)
        out, err = outputs(process, workdir)
        return resumed(out) or 0, process.returncode, out, err

    def wrong(self, workdir: Path, want: dict | None = None) -> int:
        """Returns how many leaves and links differ from those of `want`; all, if it is unfinished.

        Args:
          want: the record of a run; None for the undisturbed one.
        """
        want = self.reference() if want is None else want
        leaves = want["state_sha256"]
        if not finished(workdir):
            return len(leaves) + 2
        have = record(workdir)
        links = sum(have[name] != want[name] for name in ("chain", "data_chain"))
        return links + sum(have["state_sha256"].get(name) != leaves[name] for name in leaves)


def outputs(process: subprocess.Popen, workdir: Path) -> tuple[str, str]:
    """Waits for the end of a run; returns (stdout, stderr). A run without a step for STALLED is killed."""
    since, seen = time.monotonic(), last_logged(workdir)
    limit = 2 * STALLED
    while process.poll() is None:
        time.sleep(0.05)
        if (step := last_logged(workdir)) != seen:
            since, seen, limit = time.monotonic(), step, STALLED
        if time.monotonic() - since > limit:
            process.kill()
    return process.communicate()


def resumed(out: str) -> int | None:
    """Returns the step that a trainer resumes from, by its output; None without such a line."""
    said = re.search(r"resuming .* after step (\d+)", out)
    return int(said[1]) if said else None


def without_progress(err: str) -> str:
    """Returns a trainer's stderr without its progress lines."""
    return "\n".join(line for line in err.splitlines() if f"/{STEPS}  loss" not in line)


def record(workdir: Path) -> dict:
    """Returns run.json."""
    return json.loads((workdir / "run.json").read_text())


def finished(workdir: Path) -> bool:
    """Whether a run's record says that it is finished."""
    return (workdir / "run.json").exists() and record(workdir)["finished"]


def rows(workdir: Path) -> list[dict]:
    """Returns the rows of metrics.jsonl; the run must have ended by itself."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def last_logged(workdir: Path) -> int:
    """Returns the last step in metrics.jsonl, 0 when there is none; cheap, for polling."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read().splitlines()
    for line in reversed(lines):
        with contextlib.suppress(json.JSONDecodeError):  # one that is cut, by a kill or by the tail
            return json.loads(line)["step"]
    return 0


def _write_text(folder: Path) -> None:
    rng = random.Random("text")
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randrange(2, 9))) for _ in range(300)]
    folder.mkdir(parents=True)
    for index in range(DOCUMENTS):
        text = " ".join(rng.choices(words, k=WORDS))
        (folder / f"{index}.txt").write_text(text)
