"""Run folder: checks that it belongs to this run, its lock, and the provenance of a run."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import jax

from posenc_jax.results.environment import environment
from posenc_jax.training.config import RunConfig, deciding, differences, from_sections, read
from posenc_jax.training.inputs import Inputs

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")  # fmt: skip

# For a folder whose checkpoint and config.json disagree.
RESTORE_REMEDY = "bring back the config.json or the checkpoint that belongs to this folder"


def check_same_config(workdir: Path, config: RunConfig) -> None:
    """Raises ValueError, naming the differences, for a folder with another run's config."""
    stored = workdir / "config.json"
    if stored.exists():
        differing = differences(config, read(stored))
        if differing:
            raise ValueError(
                f"{workdir} holds another run ({_listed(differing)}); choose another --workdir"
            )
    elif workdir.exists() and not workdir.is_dir():
        raise ValueError(f"{workdir} is a file; choose another --workdir")
    elif workdir.exists() and any(child.name != ".lock" for child in workdir.iterdir()):
        raise ValueError(f"{workdir} is neither empty nor a run's folder; choose another --workdir")


def ownership(config: RunConfig, inputs: Inputs) -> dict:
    """Returns the owner of a checkpoint: config, text and tokenizer of its run."""
    return {
        "config": dataclasses.asdict(config),
        "corpus_fingerprint": inputs.corpus.fingerprint,
        "tokenizer_fingerprint": inputs.tokenizer.fingerprint,
    }


def identity(owner: dict) -> str:
    """Returns SHA-256 over the identifying settings, the text and the tokenizer of a run."""
    identifying = owner | {"config": deciding(from_sections(owner["config"]))}
    return hashlib.sha256(json.dumps(identifying, sort_keys=True).encode()).hexdigest()


def check_owner(
    workdir: Path, step: int, ours: dict, theirs: dict, remedy: str = "choose another --workdir"
) -> None:
    """Raises ValueError, naming the differences, for a checkpoint of another run.

    Args:
      ours: owner as of `ownership`; entries it lacks are not compared. theirs: owner in the record.
    """
    differing = differences(from_sections(ours["config"]), from_sections(theirs["config"]))
    differing += [
        f"{name}: {ours[name][:12]} here, {theirs[name][:12]} there"
        for name in ("corpus_fingerprint", "tokenizer_fingerprint")
        if name in ours and ours[name] != theirs[name]
    ]
    if differing:
        raise ValueError(
            f"checkpoint {step} in {workdir} was saved by another run ({_listed(differing)}); {remedy}"
        )


def _listed(differing: list[str]) -> str:
    more = f"; and {len(differing) - 4} more" if len(differing) > 4 else ""
    return "; ".join(differing[:4]) + more


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Locks the folder for this process during the `with` block; a kill releases the lock.

    Raises:
      ValueError: another trainer holds the lock, or the folder cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = os.open(workdir / ".lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise ValueError(
            f"{workdir} cannot be written ({error.strerror}); choose another --workdir"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ValueError(
            f"another trainer is at work in {workdir}; stop it or choose another --workdir"
        ) from None
    try:
        yield
    finally:
        os.close(lock)


def provenance() -> dict:
    """Returns versions, hardware and environment variables, for the records of runs and benches."""
    devices = jax.devices()
    return {
        "versions": {"python": platform.python_version()}
        | {p: metadata.version(p) for p in PACKAGES},
        "hardware": f"{len(devices)} x {devices[0].device_kind}, {os.cpu_count()} cores, {_processor()}",
        "processes": jax.process_count(),
        "environment": environment(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()
