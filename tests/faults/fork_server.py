"""Trainers without the seconds that Python needs to import one: forks of a process that has done nothing else.

The server runs train.py as far as its imports, and waits. It has one thread and no backend of JAX, which it
looks at before every fork, so that a fork starts where `python train.py` is after its imports and is a
process of its own from there: it can be killed, told to stop, and saves as any other.

Run as `python -m faults.fork_server` in the repository; reads orders and answers them, a line of JSON each.
"""

import atexit
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parent.parent.parent
_IMPORTED = (
    "posenc_jax.training.loop",
    "posenc_jax.training.multi_seed",
    "faults.corrupted_batches",
    "tensorflow_datasets",
)  # what train.py imports inside its functions, and what those do


class ForkServer:
    """A process that forks trainers; use it in `with`.

    Args:
      environment: of the trainers. Its XLA_FLAGS and JAX_* are read by imports and the first backend.
    """

    def __init__(self, environment: dict[str, str]):
        # scipy's BLAS would start threads as it is imported; nothing in training calls it.
        environment = {**environment, "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faults.fork_server"],
            cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._orders = 0

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, *exc) -> None:
        self._process.communicate()  # its input ends, and with it the server and what it forked

    def start(self, arguments: list[str], said: Path, corrupted: dict | None = None) -> "Fork":
        """Forks `train.py` with `arguments`; what it says goes to files at `said`. See `corrupted_batches`."""
        self._orders += 1
        out, err = (said / f"{os.getpid()}-{self._orders}.{name}" for name in ("out", "err"))
        for path in (out, err):
            path.touch()  # a kill may come before the fork has opened them
        order = {"arguments": arguments, "out": str(out), "err": str(err), "spoiled": corrupted}
        return Fork(self, self.ask(order)["pid"], out, err)

    def ask(self, order: dict) -> dict:
        """Sends one order and returns the answer."""
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the server of forks is gone, exit code {self._process.wait()}")
        return json.loads(answer)


class Fork:
    """A forked trainer, with what `subprocess.Popen` has of methods that are used here."""

    def __init__(self, server: ForkServer, pid: int, out: Path, err: Path):
        self._server, self.pid, self._out, self._err = server, pid, out, err
        self.returncode: int | None = None
        self.peak_mb: float | None = (
            None  # known at its end; pages that it shares with the server count
        )

    def poll(self) -> int | None:
        """Returns the exit code, or None while it runs."""
        if self.returncode is None:
            answer = self._server.ask({"ended": self.pid})
            self.returncode, self.seconds, self.peak_mb = (
                answer[name] for name in ("code", "seconds", "peak_mb")
            )
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def communicate(self) -> tuple[str, str]:
        """Waits for the end; returns (stdout, stderr)."""
        while self.poll() is None:
            time.sleep(0.002)
        return self._out.read_text(), self._err.read_text()


def serve() -> None:
    """Forks a trainer for every order until the input ends; then kills what still runs."""
    from jax._src import xla_bridge

    sys.path.insert(0, str(ROOT))
    train = runpy.run_path("train.py", run_name="train")
    for name in _IMPORTED:
        importlib.import_module(name)
    running = set()
    for line in sys.stdin:
        order = json.loads(line)
        if "ended" in order:
            pid, status, used = os.wait4(order["ended"], os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if pid else None
            running -= {pid}
            seconds = used.ru_utime + used.ru_stime
            answer = {"code": code, "seconds": seconds, "peak_mb": used.ru_maxrss / 1024}
        else:
            if len(os.listdir("/proc/self/task")) > 1 or xla_bridge._backends:
                raise RuntimeError("a process with threads or a backend of JAX must not be forked")
            pid = os.fork()
            if not pid:
                _train(train, order)
            running.add(pid)
            answer = {"pid": pid}
        sys.__stdout__.write(json.dumps(answer) + "\n")
        sys.__stdout__.flush()
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _train(train: dict, order: dict) -> None:
    """What `python train.py` does after its imports, in the fork; ends it."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    files = [os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in ("out", "err")]
    for number, file in enumerate((nothing, *files)):
        os.dup2(file, number)
    sys.argv = ["train.py", *order["arguments"]]
    if order["spoiled"]:
        from faults import corrupted_batches

        corrupted_batches.arm(**order["spoiled"])
    ended_by(lambda: train["cli"].enter(train["main"]))


def ended_by(main: Callable[[], None]) -> NoReturn:
    """Runs `main` and ends the process as Python does, but leaves the memory of what was imported to the system.

    Taking apart what a fork shares with its server costs more than a second.
    """
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
