"""Run folder: checks that it belongs to this run, its lock, and the provenance of a run."""

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import jax

from posenc_jax.checkpoints.manager import CheckpointManager, has_checkpoint
from posenc_jax.checkpoints.store import CheckpointStore
from posenc_jax.results import manifest
from posenc_jax.results.environment import environment
from posenc_jax.results.files import read_json
from posenc_jax.results.locks import lock_folder
from posenc_jax.results.record_schema import OBJECT, OWNER, SAVED
from posenc_jax.training.config import RunConfig, deciding, differences, from_sections, read
from posenc_jax.training.inputs import Inputs

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
    "numpy",
)

# For a folder whose checkpoint and config.json disagree.
RESTORE_REMEDY = "bring back the config.json or the checkpoint that belongs to this folder"


def check_same_config(workdir: Path, config: RunConfig) -> None:
    """Raises ValueError, naming the differences, for a folder with another run's config."""
    stored = workdir / "config.json"
    if stored.exists() and has_checkpoint(workdir) and not _is_json(stored):
        _check_last_owner(workdir, config)
        print(f"{stored} is damaged; it is written again", file=sys.stderr)
    elif stored.exists():
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


def saved_record(checkpoints: CheckpointManager | CheckpointStore, step: int) -> dict:
    """Returns the record saved with a checkpoint of a run; Corrupted if of none."""
    where = f"the record of checkpoint {step}"
    record = manifest.checked(checkpoints.record(step), SAVED, where)
    owner = manifest.checked(record["owner"], OWNER, f"{where}, owner")
    if from_sections(owner["config"]).train.init_from:
        manifest.checked(record, {"source": OBJECT}, where)
    return record


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
            f"checkpoint {step} in {workdir} was saved by another run ({_listed(differing)}); "
            f"{remedy}"
        )


def _check_last_owner(workdir: Path, config: RunConfig) -> None:
    """Compares a config with that of the last undamaged checkpoint; raises as `check_owner`."""
    store = CheckpointStore(workdir.resolve() / "checkpoints", owner=False)
    step = store.newest(fall_back=True)
    if step is None:
        return
    owner = saved_record(store, step)["owner"]
    check_owner(workdir, step, {"config": dataclasses.asdict(config)}, owner)


def _is_json(path: Path) -> bool:
    try:
        read_json(path)
    except ValueError:
        return False
    return True


def _listed(differing: list[str]) -> str:
    more = f"; and {len(differing) - 4} more" if len(differing) > 4 else ""
    return "; ".join(differing[:4]) + more


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Locks the folder for this process during the `with` block; a kill releases the lock.

    Raises:
      ValueError: another trainer holds the lock, or the folder cannot be written or has a name that
        orbax takes for a pattern.
    """
    if pattern := re.search(r"[*?\[]", str(workdir.resolve())):
        raise ValueError(
            f"{workdir.resolve()}: orbax takes {pattern[0]} in a path for a pattern and loses what "
            "it saves there; choose another --workdir"
        )
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_folder(workdir))
        except BlockingIOError:
            raise ValueError(
                f"another trainer is at work in {workdir}; stop it or choose another --workdir"
            ) from None
        except OSError as error:
            raise ValueError(
                f"{workdir} cannot be written ({error.strerror}); choose another --workdir"
            ) from None
        yield


def provenance() -> dict:
    """Returns versions, hardware and environment variables, for the records of runs and benches."""
    devices = jax.devices()
    return {
        "versions": {"python": platform.python_version()}
        | {p: metadata.version(p) for p in PACKAGES},
        "hardware": f"{len(devices)} x {devices[0].device_kind}, {os.cpu_count()} cores, "
        f"{_processor()}",
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
