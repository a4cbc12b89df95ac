"""Several processes of one run: start, agreement on refusals, and a common end.

JAX's heartbeats detect a lost process within HEARTBEAT_SECONDS; JAX then aborts the others from
C++, where Python can print nothing. A small shell process beside each trainer therefore holds the
last message, and prints it when the trainer is gone without having released it.
"""

import atexit
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from posenc_jax.training.config import PER_HOST, RunConfig

HEARTBEAT_SECONDS = 10  # a process is lost after so long without one; JAX's default is 100
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_MESSAGE_BYTES = 1024  # of a refusal, sent to the other processes
REMEDY = "start all processes again with the same command: the run goes on from its last checkpoint"


def launcher(environment: Mapping[str, str]) -> str | None:
    """Returns the launcher of several processes ("slurm", "openmpi", "tpu"), or None.

    JAX detects these by itself, and the environment shows them for certain; a single process needs
    no rendezvous.
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
    """Joins the other processes of the run; does nothing for a single process.

    Args:
      coordinator: host:port of process 0; "auto" lets JAX find it (TPU VMs); empty follows
        `launcher`.
      processes: number of processes. process: index of this process, from 0.

    Raises:
      ValueError: flags that do not belong together.
    """
    by_hand = coordinator not in ("", "auto")
    if by_hand != (processes is not None) or by_hand != (process is not None):
        raise ValueError(
            "--coordinator=host:port, --processes and --process belong together; under Slurm, "
            "OpenMPI or on a TPU pod leave all three out"
        )
    if by_hand and not re.fullmatch(".+:[0-9]{1,5}", coordinator):
        raise ValueError(f"--coordinator={coordinator} must read host:port")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ValueError(
            f"--process={process} must lie in [0, {processes}), the number of --processes"
        )
    if processes == 1 or not (coordinator or launcher(os.environ)):
        return
    _start_witness()
    jax.distributed.initialize(
        coordinator_address=coordinator if by_hand else None,
        num_processes=processes,
        process_id=process,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=3 * HEARTBEAT_SECONDS,
    )


def _start_witness() -> None:
    line = (
        f"this process (pid {os.getpid()}) ended without a message: it was killed, or another "
        f"process of the run was lost (silent for {HEARTBEAT_SECONDS} s; its host may say more); "
        f"{REMEDY}"
    )
    global _witness
    _witness = subprocess.Popen(
        ["sh", "-c", 'read released || echo "$0" >&2', line],
        stdin=subprocess.PIPE,
        start_new_session=True,  # a signal to the group must not end it first
    )
    atexit.register(release_witness)


_witness: subprocess.Popen | None = None


def release_witness() -> None:
    """Ends the shell beside this process, which then prints nothing."""
    if _witness is not None:
        with contextlib.suppress(BrokenPipeError):
            _witness.communicate(b"\n")


@contextlib.contextmanager
def exit_together(*alike: type[Exception]) -> Iterator[None]:
    """Ends this process at once if only this one fails, so that no other process waits for it.

    Args:
      alike: exceptions that all processes raise at the same step. They propagate as usual; in a
        single process all exceptions do.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, (*alike, SystemExit)) or jax.process_count() == 1:
            raise
        name = f"process {jax.process_index()} of {jax.process_count()}"
        if isinstance(error, jax.errors.JaxRuntimeError):
            cause = " ".join(str(error).split())[:300]
            print(f"{name} failed, or lost another one ({cause}); {REMEDY}", file=sys.stderr)
        else:
            traceback.print_exc()
            print(f"{name} failed; the others end with it; {REMEDY}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        release_witness()
        os._exit(1)  # the ordinary way out waits for the others


@contextlib.contextmanager
def agree_on_refusal(config: RunConfig) -> Iterator[None]:
    """Makes every process raise the error that any process raises in the `with` block.

    Raises:
      ValueError: in every process: the first message, or that the processes have different
        settings.
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
    digest = hashlib.sha256(json.dumps(_shared(config)).encode()).digest()
    message = str(problem).encode()[:_MESSAGE_BYTES] if problem else b""
    row = np.frombuffer(digest + message.ljust(_MESSAGE_BYTES, b"\0"), np.uint8)
    rows = multihost_utils.process_allgather(row)
    if problem is not None:
        raise problem
    for process, row in enumerate(rows):
        message = row[len(digest) :].tobytes().rstrip(b"\0").decode(errors="replace")
        if message:
            raise ValueError(f"process {process}: {message}")
        if row[: len(digest)].tobytes() != rows[0][: len(digest)].tobytes():
            raise ValueError(f"process {process} was started with other settings than process 0")


def _shared(config: RunConfig) -> dict:
    """Returns the settings that all processes of a run must share."""
    return {
        section: {k: v for k, v in values.items() if k not in PER_HOST.get(section, ())}
        for section, values in dataclasses.asdict(config).items()
    }


def rows_of_process(
    sharding: jax.NamedSharding, rows: int, axis: int, ndim: int
) -> tuple[int, int]:
    """Returns (index, count): this process feeds the index-th of `count` equal shares of the rows.

    Processes with the same rows (a model axis that spans hosts) have the same index.

    Raises:
      ValueError: a mesh on which the rows of a process are not contiguous.
    """
    shape = [1] * ndim
    shape[axis] = rows
    spec = jax.P(*(sharding.spec[i] if i == axis else None for i in range(ndim)))
    indices = jax.NamedSharding(sharding.mesh, spec).addressable_devices_indices_map(tuple(shape))
    spans = {index[axis].indices(rows)[:2] for index in indices.values() if index is not None}
    first, last = min(s for s, _ in spans), max(e for _, e in spans)
    size = last - first
    if sum(e - s for s, e in spans) != size or rows % size or first % size:
        raise ValueError(
            f"the rows of process {jax.process_index()} are not contiguous on this mesh; set "
            "config.train.data_devices so that a host holds whole shares of the batch"
        )
    return first // size, rows // size
