"""Entry points without the seconds that Python needs to import them: forks of a process that has done nothing
else.

`typed` starts `python SCRIPT ...` as a user does. `Forks.run` ends in the same way and has imported already:
a fork runs the script as `__main__`, and is a process of its own from there.
"""

import importlib
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
from pathlib import Path

from faults.fork_server import ended_by
from support import machine

ROOT = Path(__file__).parents[2]
_IMPORTED = (
    "configs.lm",
    "matplotlib.pyplot",
    "posenc_jax.evaluation.evaluate",
    "posenc_jax.report",
    "posenc_jax.study.runner",
    "posenc_jax.training.loop",
    "posenc_jax.training.multi_seed",
    "tensorflow_datasets",
)  # what the scripts import inside their functions


def typed(*arguments, cwd=ROOT, **environment) -> subprocess.CompletedProcess:
    """What comes of `python ARGUMENTS`."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **machine.ONE_DEVICE, **environment},
    )


class Forks:
    """A process that forks scripts, one at a time; use it in `with`."""

    def __init__(self, folder: Path):
        self._said = {name: folder / name for name in ("out", "err")}
        # A library of scipy would start threads as it is imported.
        environment = {**os.environ, **machine.ONE_DEVICE, "OPENBLAS_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.entries"],
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, *exc) -> None:
        self._process.communicate()

    def run(self, *arguments, seconds: int | None = None) -> subprocess.CompletedProcess:
        """What comes of `python ARGUMENTS` in the repository; a signal ends it after `seconds` of CPU."""
        order = {name: str(path) for name, path in self._said.items()} | {"seconds": seconds}
        self._process.stdin.write(json.dumps(order | {"argv": [*map(str, arguments)]}) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        said = (path.read_text() for path in self._said.values())
        return subprocess.CompletedProcess(arguments, code, *said)


def serve() -> None:
    """Forks a script for every order until the input ends."""
    from jax._src import xla_bridge

    for name in _IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        if len(os.listdir("/proc/self/task")) > 1 or xla_bridge._backends:
            raise RuntimeError("a process with threads or a backend of JAX must not be forked")
        pid = os.fork()
        if not pid:
            _become(**json.loads(line))
            return
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _become(argv: list[str], out: str, err: str, seconds: int | None) -> None:
    if seconds is not None:
        used = sum(os.times()[:2])  # a fork begins at 0
        resource.setrlimit(resource.RLIMIT_CPU, (int(used) + seconds,) * 2)
        signal.alarm(20 * seconds)  # for one that waits for ever
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    files = (os.open(os.devnull, os.O_RDONLY), os.open(out, flags), os.open(err, flags))
    for number, file in enumerate(files):
        os.dup2(file, number)
    sys.argv, sys.path[0] = argv, str((ROOT / argv[0]).parent)
    ended_by(lambda: runpy.run_path(argv[0], run_name="__main__"))


if __name__ == "__main__":
    serve()
