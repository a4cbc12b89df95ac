"""Several processes of one run: how they find each other, agree, and end together.

A process that dies is noticed by JAX's heartbeats within HEARTBEAT_SECONDS; JAX then aborts the others
from C++, where no Python can speak any more. The last words are therefore kept by a tiny process beside
each trainer, and said when the trainer is gone without having taken leave.
"""

import atexit
import contextlib
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from posenc_jax.training.config import PER_HOST, RunConfig

HEARTBEAT_SECONDS = 10  # a worker silent for so long is lost; JAX's own default is 100
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_SAID = 1024  # bytes of a refusal that are passed on
REMEDY = "start all processes again with the same command: the run goes on from its last checkpoint"


def launcher(environment: Mapping[str, str]) -> str | None:
    """Returns who started several processes of this run ("slurm", "openmpi", "tpu"), or None.

    These are what JAX detects by itself and what the environment tells for certain; one process of
    one task needs no rendezvous.
    """
    if all(name in environment for name in _SLURM) and int(environment["SLURM_NTASKS"]) > 1:
        return "slurm"
    if "OMPI_MCA_orte_hnp_uri" in environment and int(environment["OMPI_COMM_WORLD_SIZE"]) > 1:
        return "openmpi"
    hosts = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES", ""))
    if "," in hosts or int(environment.get("MEGASCALE_NUM_SLICES", 1)) > 1:
        return "tpu"
    return None


def connect(coordinator: str, processes: int | None, process: int | None) -> None:
    """Joins the other processes of the run; does nothing where there is one process.

    Args:
      coordinator: host:port of process 0; "auto" lets JAX ask its surroundings (TPU VMs); empty takes
        what `launcher` sees. processes, process: how many, and which one this is, from 0.

    Raises:
      ValueError: flags that do not belong together.
    """
    by_hand = coordinator not in ("", "auto")
    if by_hand != (processes is not None) or by_hand != (process is not None):
        raise ValueError(
            "--coordinator=host:port, --processes and --process belong together; "
            "under Slurm, OpenMPI or on a TPU pod leave all three out"
        )
    if by_hand and not coordinator.rpartition(":")[2].isdigit():
        raise ValueError(f"--coordinator={coordinator} must read host:port")
    if by_hand and not 0 <= process < processes:
        raise ValueError(f"--process={process} must lie in [0, {processes}), the number of --processes")  # fmt: skip
    if processes == 1 or not (coordinator or launcher(os.environ)):
        return
    _leave_last_words()
    jax.distributed.initialize(
        coordinator_address=coordinator if by_hand else None,
        num_processes=processes,
        process_id=process,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=3 * HEARTBEAT_SECONDS,
    )


def _leave_last_words() -> None:
    line = (
        f"this process (pid {os.getpid()}) is gone without having taken leave: it was killed, or another process of "
        f"the run was lost (silent for {HEARTBEAT_SECONDS} s; its host may say more); {REMEDY}"
    )
    global _witness
    _witness = subprocess.Popen(
        ["sh", "-c", 'read taken_leave || echo "$0" >&2', line],
        stdin=subprocess.PIPE,
        start_new_session=True,  # a signal to the group must not end it first
    )
    atexit.register(_take_leave)


_witness: subprocess.Popen | None = None


def _take_leave() -> None:
    if _witness is not None:
        with contextlib.suppress(BrokenPipeError):
            _witness.communicate(b"\n")


@contextlib.contextmanager
def exit_together(*alike: type[Exception]) -> Iterator[None]:
    """Ends this process at once when it fails alone, so that no other waits for it in a collective.

    Args:
      alike: exceptions that all processes raise at the same step; they pass, as all do where there is
        one process.
    """
    try:
        yield
    except (*alike, SystemExit):
        raise
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        who = f"process {jax.process_index()} of {jax.process_count()}"
        if isinstance(error, jax.errors.JaxRuntimeError):
            said = " ".join(str(error).split())[:300]
            print(f"{who} failed, or lost another one ({said}); {REMEDY}", file=sys.stderr)
        else:
            traceback.print_exc()
            print(f"{who} failed; the others end with it; {REMEDY}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        _take_leave()
        os._exit(1)  # the ordinary way out waits for the others


@contextlib.contextmanager
def agree_on_refusal(config: RunConfig) -> Iterator[None]:
    """What one process refuses within the block, all refuse, and so different settings.

    Raises:
      ValueError: in every process, in the words of the first one that raised it.
    """
    problem: Exception | None = None
    try:
        yield
    except (ValueError, OSError) as error:
        if jax.process_count() == 1:
            raise
        problem = error
    if jax.process_count() == 1:
        return
    mine = hashlib.sha256(json.dumps(_shared(config)).encode()).digest()
    said = str(problem).encode()[:_SAID] if problem else b""
    row = np.frombuffer(mine + said.ljust(_SAID, b"\0"), np.uint8)
    rows = multihost_utils.process_allgather(row)
    if problem is not None:
        raise problem
    for process, other in enumerate(rows):
        words = other[len(mine) :].tobytes().rstrip(b"\0").decode(errors="replace")
        if words:
            raise ValueError(f"process {process}: {words}")
        if other[: len(mine)].tobytes() != rows[0][: len(mine)].tobytes():
            raise ValueError(f"process {process} was started with other settings than process 0")


def _shared(config: RunConfig) -> dict:
    """The settings that all processes of a run must have in common."""
    return {
        section: {k: v for k, v in values.items() if k not in PER_HOST.get(section, ())}
        for section, values in dataclasses.asdict(config).items()
    }


def rows_of_process(
    sharding: jax.NamedSharding, rows: int, axis: int, ndim: int
) -> tuple[int, int]:
    """Returns (index, count): this process feeds the index-th of `count` equal shares of the rows.

    Processes that hold the same rows (a model axis that spans hosts) have the same index.

    Raises:
      ValueError: a mesh on which the rows of a process do not lie side by side.
    """
    shape = [1] * ndim
    shape[axis] = rows
    spec = jax.P(*(sharding.spec[i] if i == axis else None for i in range(ndim)))
    held = jax.NamedSharding(sharding.mesh, spec).addressable_devices_indices_map(tuple(shape))
    spans = {place[axis].indices(rows)[:2] for place in held.values()}
    first, last = min(s for s, _ in spans), max(e for _, e in spans)
    mine = last - first
    if sum(e - s for s, e in spans) != mine or rows % mine or first % mine:
        raise ValueError(
            f"the rows of process {jax.process_index()} do not lie side by side on this mesh; "
            "set config.train.data_devices so that a host holds whole shares of the batch"
        )
    return first // mine, rows // mine
