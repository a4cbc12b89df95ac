"""A run's folder: whose it is, what made it, and that one trainer at a time works in it."""

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

# What a reader is told of a folder whose checkpoint and config.json disagree.
REREAD = "bring back the config.json or the checkpoint that belongs to this folder"


def check_same_config(workdir: Path, config: RunConfig) -> None:
    """Raises ValueError, naming the differences, when the folder holds another run's config."""
    stored = workdir / "config.json"
    if stored.exists():
        found = differences(config, read(stored))
        if found:
            raise ValueError(
                f"{workdir} holds another run ({'; '.join(found[:4])}"
                f"{f'; and {len(found) - 4} more' if len(found) > 4 else ''}); choose another --workdir"
            )
    elif workdir.exists() and not workdir.is_dir():
        raise ValueError(f"{workdir} is a file; choose another --workdir")
    elif workdir.exists() and any(child.name != ".lock" for child in workdir.iterdir()):
        raise ValueError(f"{workdir} is neither empty nor a run's folder; choose another --workdir")


def ownership(config: RunConfig, inputs: Inputs) -> dict:
    """Returns what every checkpoint of a run says of the run: its config, text and tokenizer."""
    return {
        "config": dataclasses.asdict(config),
        "corpus_fingerprint": inputs.corpus.fingerprint,
        "tokenizer_fingerprint": inputs.tokenizer.fingerprint,
    }


def identity(owner: dict) -> str:
    """Returns SHA-256 of what makes a run this one: its deciding settings, its text and its tokenizer."""
    decides = owner | {"config": deciding(from_sections(owner["config"]))}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def check_owner(
    workdir: Path, step: int, ours: dict, theirs: dict, remedy: str = "choose another --workdir"
) -> None:
    """Raises ValueError, naming the differences, when a checkpoint was saved by another run.

    Args:
      ours: of `ownership`; what is left out of it is not compared. theirs: of the checkpoint's record.
    """
    found = differences(from_sections(ours["config"]), from_sections(theirs["config"]))
    found += [
        f"{name}: {ours[name][:12]} here, {theirs[name][:12]} there"
        for name in ("corpus_fingerprint", "tokenizer_fingerprint")
        if name in ours and ours[name] != theirs[name]
    ]
    if found:
        raise ValueError(
            f"checkpoint {step} in {workdir} was saved by another run ({'; '.join(found[:4])}"
            f"{f'; and {len(found) - 4} more' if len(found) > 4 else ''}); {remedy}"
        )


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Holds the folder for this process while the `with` block runs; a kill frees it too.

    Raises:
      ValueError: another trainer is at work in it.
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
