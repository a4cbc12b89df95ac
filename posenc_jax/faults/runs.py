"""Small runs in processes of their own, and how they are compared with an undisturbed one."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
STEPS, SAVE_EVERY = 30, 5


class SmallRun:
    """A run of the smoke configuration below `folder`; every one of them is the same run.

    Args:
      folder: for workdirs, the prepared corpus and the compiler's cache.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._reference: dict | None = None

    def start(self, workdir: Path, *overrides: str, devices: int = 1) -> subprocess.Popen:
        """Starts training in `workdir`, in a process of its own."""
        settings = [
            "--config=configs/smoke.py:rope+alibi",
            f"--config.data.data_dir={self.folder / 'data'}",
            f"--config.train.steps={STEPS}",
            f"--config.train.save_every={SAVE_EVERY}",
            "--config.train.log_every=1",
        ]
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT),
        }
        return subprocess.Popen(
            [sys.executable, "train.py", *settings, *overrides, f"--workdir={workdir}"],
            cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def fresh(self, name: str) -> Path:
        """Returns the path of a workdir that does not exist yet."""
        workdir = self.folder / name
        shutil.rmtree(workdir, ignore_errors=True)
        return workdir

    def reference(self) -> dict:
        """Returns the record of the undisturbed run, trained when it is first asked for."""
        if self._reference is None:
            workdir = self.fresh("undisturbed")
            out, err = self.start(workdir).communicate()
            if not finished(workdir):
                raise RuntimeError(f"the undisturbed run does not finish: {out}{err}")
            self._reference = record(workdir)
        return self._reference

    def finish(self, workdir: Path, *overrides: str, devices: int = 1) -> tuple[int, str, str]:
        """Runs `workdir` to its end; returns (step that it went on from, stdout, stderr)."""
        out, err = self.start(workdir, *overrides, devices=devices).communicate()
        resumed = re.search(r"resuming .* after step (\d+)", out)
        return (int(resumed[1]) if resumed else 0), out, err

    def wrong(self, workdir: Path) -> int:
        """Returns how many leaves and links differ from the undisturbed run's; all, if it is unfinished."""
        want = self.reference()
        leaves = want["state_sha256"]
        if not finished(workdir):
            return len(leaves) + 2
        have = record(workdir)
        links = sum(have[name] != want[name] for name in ("chain", "data_chain"))
        return links + sum(have["state_sha256"].get(name) != leaves[name] for name in leaves)


def record(workdir: Path) -> dict:
    """Returns run.json."""
    return json.loads((workdir / "run.json").read_text())


def finished(workdir: Path) -> bool:
    """Whether a run says that it took all its steps."""
    return (workdir / "run.json").exists() and record(workdir)["finished"]


def last_logged(workdir: Path) -> int:
    """Returns the last step in metrics.jsonl, 0 when there is none."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    steps = []
    for line in lines:
        try:
            steps.append(json.loads(line)["step"])
        except json.JSONDecodeError:
            continue  # cut short by a kill
    return max(steps, default=0)
