"""Faults that one check alone detects: lost writes, another config, other bits in a leaf, other steps of a
chain.
"""

import contextlib
import dataclasses
import io
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from posenc_jax.checkpoints.hash_chain import HashChain
from posenc_jax.checkpoints.manager import CheckpointManager
from posenc_jax.results import manifest
from posenc_jax.results.files import write_json
from posenc_jax.results.schema import WRONG_INPUT
from posenc_jax.training.config import deciding, from_sections
from posenc_jax.training.workdir import check_owner, check_same_config

from faults.small_run import SmallRun, finished, record
from faults.trial import Trial, codes


def power_loss(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """What a power loss may leave of a save and of run.json: every byte must be on disk before its name
    is.
    """
    for index in range(trials):
        workdir = run.fresh(f"power-{index}")
        with _recorded_writes() as disk:
            with CheckpointManager(workdir, 2) as checkpoints:
                for step in (1, 2):
                    checkpoints.save(step, _state(rng), {})
            write_json(workdir / "run.json", {"steps": 2})
        lost = disk.lost()
        yield Trial(
            "power loss",
            f"{len(disk.renames)} renames",
            undetected=bool(lost) or len(disk.renames) < 3,
            said="; ".join(lost[:3]),
        )


class _Disk:
    """Forced writes and renames, in their order; everything else is lost with the power."""

    def __init__(self):
        self.forced: dict[tuple[int, int], tuple[int, int]] = {}  # by device and inode: size, time
        self.renames: list[tuple[str, list[str]]] = []
        self.named: set[str] = set()  # folders with new names that nothing has forced to disk

    def force(self, descriptor: int) -> None:
        entry = os.fstat(descriptor)
        self.forced[entry.st_dev, entry.st_ino] = entry.st_size, entry.st_mtime_ns
        self.named.discard(os.readlink(f"/proc/self/fd/{descriptor}"))

    def rename(self, old, new) -> None:
        old, new = Path(old), Path(new)
        files = [p for p in (old.rglob("*") if old.is_dir() else (old,)) if p.is_file()]
        self.renames.append((str(new), [str(p) for p in files if not self._is_forced(p)]))
        self.named.add(str(new.parent))

    def _is_forced(self, path: Path) -> bool:
        entry = path.stat()
        return self.forced.get((entry.st_dev, entry.st_ino)) == (entry.st_size, entry.st_mtime_ns)

    def lost(self) -> list[str]:
        """Returns what a power loss could take away from names that are there."""
        files = [
            f"{Path(name).name} was named before {Path(p).name} was on disk"
            for name, left in self.renames
            for p in left
        ]
        return files + [f"names in {folder} may be lost" for folder in sorted(self.named)]


@contextlib.contextmanager
def _recorded_writes() -> Iterator[_Disk]:
    """Records what this process forces to disk and renames into place."""
    disk, fsync, replace, rename = _Disk(), os.fsync, os.replace, Path.rename

    def recorded_fsync(descriptor):
        fsync(descriptor)
        disk.force(descriptor)

    def recorded_replace(old, new):
        disk.rename(old, new)
        replace(old, new)

    def recorded_rename(old, new):
        if Path(new).name.isdigit():  # orbax renames below a folder that has no number yet
            disk.rename(old, new)
        return rename(old, new)

    os.fsync, os.replace, Path.rename = recorded_fsync, recorded_replace, recorded_rename
    try:
        yield disk
    finally:
        os.fsync, os.replace, Path.rename = fsync, replace, rename


def _state(rng: random.Random) -> dict:
    random_state = np.random.default_rng(rng.randrange(2**32))
    values = {name: random_state.normal(size=(16, 8)).astype(np.float32) for name in ("a", "b")}
    return {"params": jax.device_put(values, jax.devices()[0])}


def other_config(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """One identifying setting differs from the folder's, or from its checkpoint's: both must be refused by
    name.
    """
    run.reference()
    workdir = run.folder / "undisturbed"
    sections = json.loads((workdir / "config.json").read_text())
    whole = from_sections(sections)
    done = 0
    while done < trials:
        section = rng.choice(list(sections))
        key = rng.choice(list(sections[section]))
        value = sections[section][key]
        other = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v * 1.5 + 0.1}.get(
            type(value)
        )
        if other is None:
            continue
        changed = json.loads(json.dumps(sections))
        changed[section][key] = other(value)
        try:
            config = from_sections(changed)
        except ValueError:
            continue  # no config at all
        if deciding(config) == deciding(whole):
            continue
        said = [
            _said(lambda: check_same_config(workdir, config)),  # noqa: B023
            _said(lambda: _check_owner(workdir, config, whole)),  # noqa: B023
        ]
        seen = all(f"{section}.{key}" in line for line in said)
        yield Trial("another config", f"{section}.{key}", undetected=not seen, said=said[0])
        done += 1


def _check_owner(workdir: Path, ours, theirs) -> None:
    same = {"corpus_fingerprint": "a" * 64, "tokenizer_fingerprint": "b" * 64}
    ours, theirs = ({"config": dataclasses.asdict(config)} | same for config in (ours, theirs))
    check_owner(workdir, 1, ours, theirs)


def _said(call) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


def other_run(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """By train.py: a finished run refuses another learning rate; another seed has other links."""
    want = run.reference()
    for index in range(trials):
        workdir = run.fresh(f"rate-{index}")
        shutil.copytree(run.folder / "undisturbed", workdir)
        rate = rng.uniform(1e-4, 1e-3)
        process = run.fork(workdir, f"--config.optimizer.learning_rate={rate}")
        out, err = process.communicate()
        named = "optimizer.learning_rate" in err and len(err.splitlines()) == 1
        yield Trial(
            "another config, typed",
            f"learning_rate={rate}",
            undetected=not (process.returncode == WRONG_INPUT and named),
            said=err.strip(),
            exit_codes=codes(process),
            output=f"{err}{out}",
        )
        workdir = run.fresh(f"seed-{index}")
        process = run.fork(workdir, f"--config.train.seed={index + 1}")
        out, err = process.communicate()
        same = [link for link in ("chain", "data_chain") if record(workdir)[link] == want[link]]
        yield Trial(
            "another seed",
            f"seed {index + 1}",
            undetected=bool(same) or not finished(workdir),
            said=f"equal: {', '.join(same)}" if same else "",
            exit_codes=codes(process),
            output=f"{err}{out}",
        )


def other_bits(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """A leaf that came back with other bits than it had, though every file is as it was written."""
    for index in range(trials):
        workdir, state = run.fresh(f"bits-{index}"), _state(rng)
        with CheckpointManager(workdir, 2) as checkpoints:
            checkpoints.save(1, state, {})
        folder = workdir / "checkpoints" / "1"
        contents = manifest.verify(folder)
        leaf = rng.choice(sorted(contents["sums"]))
        digits = list(contents["sums"][leaf])
        at = rng.randrange(len(digits))
        digits[at] = "0" if digits[at] != "0" else "1"
        contents["sums"][leaf] = "".join(digits)
        (folder / manifest.NAME).unlink()
        manifest.seal(folder, contents)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        with contextlib.redirect_stderr(io.StringIO()), CheckpointManager(workdir, 2) as again:
            said = _said(lambda: again.restore(1, shapes))  # noqa: B023
        yield Trial(
            "other bits in a leaf", leaf, undetected=f"{leaf} came back" not in said, said=said
        )
        shutil.rmtree(workdir)


def other_steps(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """One bit of a batch, a loss or a gradient norm differs in one step: the links after it must differ."""
    for index in range(trials):
        random_steps = np.random.default_rng(rng.randrange(2**32))
        steps = [
            {
                "batch": random_steps.integers(0, 99, (2, 8), np.int32),
                "loss": np.float32(random_steps.normal()),
                "norm": np.float32(random_steps.normal()),
            }
            for _ in range(4)
        ]
        step, name = rng.randrange(4), rng.choice(("batch", "loss", "norm"))
        changed = [dict(one) for one in steps]
        bits = np.array(changed[step][name]).reshape(-1).view(np.uint32).copy()
        bits[rng.randrange(len(bits))] ^= 1 << rng.randrange(32)
        changed[step][name] = bits.view(steps[step][name].dtype).reshape(
            np.shape(steps[step][name])
        )
        before, after = _links(steps), _links(changed)
        same = [link for link in before if before[link] == after[link]]
        seen = same == ([] if name == "batch" else ["data_chain"])
        yield Trial("another step", f"trial {index}: {name} of step {step}", undetected=not seen)


def _links(steps: list[dict]) -> dict[str, str]:
    chain = HashChain(None)
    for number, one in enumerate(steps, 1):
        batch = {"tokens_BT": jax.numpy.asarray(one["batch"])}
        chain.add(number, batch, {"loss": one["loss"], "grad_norm": one["norm"]})
    return chain.through(len(steps))
