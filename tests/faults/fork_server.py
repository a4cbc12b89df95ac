"""Fork server: starts trainers as forks of a process that has already imported train.py.

The server executes the imports of train.py and waits. It checks before every fork that it has one thread and
no backend of JAX. A fork therefore is in the state of `python train.py` after its imports, and from then on
behaves as any trainer.

Run as `python -m faults.fork_server` in the repository; reads orders and answers, one line of JSON each.
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
    """A process that forks trainers; a context manager.

    Args:
      environment: of the trainers; their imports and first backend read XLA_FLAGS and JAX_*.
    """

    def __init__(self, environment: dict[str, str]):
        # scipy's BLAS starts threads at its import; training does not use it.
        environment = {**environment, "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faults.fork_server"],
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._orders = 0

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, *exc) -> None:
        self._process.communicate()  # closes its input, which ends the server and its forks

    def start(self, arguments: list[str], said: Path, corrupted: dict | None = None) -> "Fork":
        """Forks `train.py` with `arguments`; its output goes to files in `said`. See `corrupted_batches`."""
        self._orders += 1
        out, err = (said / f"{os.getpid()}-{self._orders}.{name}" for name in ("out", "err"))
        for path in (out, err):
            path.touch()  # a kill may precede their creation by the fork
        order = {"arguments": arguments, "out": str(out), "err": str(err), "corrupted": corrupted}
        return Fork(self, self.ask(order)["pid"], out, err)

    def ask(self, order: dict) -> dict:
        """Sends one order and returns the answer."""
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the fork server has ended, exit code {self._process.wait()}")
        return json.loads(answer)


class Fork:
    """A forked trainer, with the used methods of `subprocess.Popen`."""

    def __init__(self, server: ForkServer, pid: int, out: Path, err: Path):
        self._server, self.pid, self._out, self._err = server, pid, out, err
        self.returncode: int | None = None
        self.peak_mb: float | None = None  # set at its end; counts pages shared with the server

    def poll(self) -> int | None:
        """Returns the exit code, or None while it runs."""
        if self.returncode is None:
            answer = self._server.ask({"ended": self.pid})
            self.returncode, self.seconds, self.peak_mb = (
                answer[name] for name in ("code", "seconds", "peak_mb")
            )
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal if the trainer has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def communicate(self) -> tuple[str, str]:
        """Waits for the end; returns (stdout, stderr)."""
        while self.poll() is None:
            time.sleep(0.002)
        return self._out.read_text(), self._err.read_text()


def serve() -> None:
    """Forks a trainer for every order until the input ends; then kills all that still run."""
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
    """Runs `train.py` in the fork and ends the process."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    files = [os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in ("out", "err")]
    for number, file in enumerate((nothing, *files)):
        os.dup2(file, number)
    sys.argv = ["train.py", *order["arguments"]]
    if order["corrupted"]:
        from faults import corrupted_batches

        corrupted_batches.arm(**order["corrupted"])
    ended_by(lambda: train["cli"].run_main(train["main"]))


def ended_by(main: Callable[[], None]) -> NoReturn:
    """Runs `main` and ends the process as Python does, but without freeing the imported modules.

    Freeing the memory that a fork shares with its server takes more than a second.
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
