"""Non-finite values on one of eight devices, and huge finite losses: skipped or clipped updates."""

import math
import random
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from posenc_jax.checkpoints.fingerprint import leaves
from posenc_jax.checkpoints.manager import CheckpointManager
from posenc_jax.data.tokenizers import open_tokenizer
from posenc_jax.model.decoder import Decoder
from posenc_jax.results import manifest
from posenc_jax.training.config import read
from posenc_jax.training.sharding import make_mesh
from posenc_jax.training.step import state_builder

from faults.small_run import SAVE_EVERY, STEPS, SmallRun, finished, record, rows, without_progress
from faults.trial import Trial

DEVICES, IN_A_ROW = 8, 3
MESHES = ((8, 1, 1), (4, 2, 1), (2, 2, 2))  # data x fsdp x model
_ALL = STEPS // SAVE_EVERY  # checkpoints of a run


def one_device(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """One device's rows, or its piece of one gradient, are not finite in one step.

    All devices must skip the update and count it once; the final state must equal that of a run without
    this step.
    """
    for index in range(trials):
        for what in ("rows", "gradient"):
            mesh, step, device = rng.choice(MESHES), rng.randint(1, STEPS), rng.randrange(DEVICES)
            corrupted, code, err = _trained(run, f"nan-{index}", mesh, what, [step], device=device)
            alike = {"device": device} if what == "gradient" else {}
            left_out, _, _ = _trained(run, f"out-{index}", mesh, "left_out", [step], **alike)
            bad = "Traceback" in err or _not_finite(corrupted) > 0
            wrong = 1  # an unfinished run is another one
            if finished(corrupted):
                bad |= [row["skipped"] for row in rows(corrupted)] != [
                    float(n >= step) for n in range(1, STEPS + 1)
                ]
                ours, theirs = leaves_of(corrupted), leaves_of(left_out)
                wrong = sum(ours[name] != theirs[name] for name in theirs)
            yield Trial(
                f"NaN in {'one device' if what == 'rows' else 'one piece of a gradient'}",
                f"{_words(mesh)}, device {device}, step {step}",
                wrong,
                bad,
                exit_codes=str(code),
                output=err,
            )


def in_a_row(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """A permanently bad device: the run ends with exit code 1 and one line, with sound checkpoints."""
    for index in range(trials):
        mesh, device = rng.choice(MESHES), rng.randrange(DEVICES)
        step = rng.randint(SAVE_EVERY + 1, STEPS - IN_A_ROW)
        bad_steps = range(step, step + IN_A_ROW)
        limit = f"--config.train.bad_steps={IN_A_ROW}"
        corrupted, code, err = _trained(
            run, f"row-{index}", mesh, "rows", bad_steps, limit, device=device
        )
        sound, _, _ = _trained(run, f"sound-{index}", mesh, "nothing", [])
        kept = [n for n in _sums(corrupted) if n < step]
        wrong = sum(_sums(corrupted)[n] != _sums(sound)[n] for n in kept)
        said = f"{IN_A_ROW} updates in a row were not finite, up to step {bad_steps[-1]}"
        bad = code != 1 or len(err.strip().splitlines()) != 1 or said not in err
        bad |= not kept or _not_finite(corrupted) > 0
        yield Trial(
            f"NaN {IN_A_ROW} times in a row",
            f"{_words(mesh)}, device {device}, from step {step}",
            wrong,
            bad,
            said=err.strip(),
            exit_codes=str(code),
            output=err,
        )


def spike(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """A batch with a huge finite loss: the update is clipped, or skipped if its norm overflows; the run
    recovers.

    Recovered: finite parameters in every checkpoint, and a mean loss over the last five steps within
    RECOVERED nats of the undisturbed run's.
    """
    undisturbed, _, _ = _trained(run, "calm", (1, 1, 1), "nothing", [])
    for index in range(trials):
        step, size = rng.randint(2, STEPS - 10), 10 ** rng.uniform(5, 37)
        workdir, code, err = _trained(run, f"spike-{index}", (1, 1, 1), "spike", [step], size=size)
        bad, found = code != 0 or _not_finite(workdir) > 0, rows(workdir)
        after = _mean_of_last(found) - _mean_of_last(rows(undisturbed))
        hit = found[step - 1] if len(found) >= step else {}
        what = "left out" if hit.get("skipped") else "clipped"
        same = [row["loss"] for row in found[: step - 1]] == [
            row["loss"] for row in rows(undisturbed)[: step - 1]
        ]
        huge = what == "left out" or hit["grad_norm"] > 100
        bad |= not (same and huge and after < RECOVERED)
        yield Trial(
            "a loss spike",
            f"{size:.0e} in step {step}: {what}; the last five steps {after:+.3f} nats",
            undetected=bad,
            exit_codes=str(code),
            output=err,
        )


RECOVERED = 0.5


def _trained(run: SmallRun, name: str, mesh, what: str, steps, *settings: str, **how):
    """Trains to the end and keeps every checkpoint; returns (workdir, exit code, stderr)."""
    workdir = run.fresh(name)
    axes = ("data", "fsdp", "model")
    sizes = [f"--config.train.{axis}_devices={n}" for axis, n in zip(axes, mesh, strict=True)]
    process = run.fork(
        workdir,
        f"--config.train.keep={_ALL}",
        *sizes,
        *settings,
        devices=math.prod(mesh),
        corrupted={"what": what, "steps": list(steps), **how},
    )
    _, err = process.communicate()
    return workdir, process.returncode, without_progress(err)


def leaves_of(workdir: Path) -> dict[str, str]:
    """Returns the SHA-256 of every leaf of a finished run."""
    return record(workdir)["state_sha256"]


def _words(mesh) -> str:
    return " x ".join(map(str, mesh)) + " devices"


def _mean_of_last(found: list[dict], count: int = 5) -> float:
    return sum(row["loss"] for row in found[-count:]) / count


def _sums(workdir: Path) -> dict[int, dict]:
    """The fingerprints of the leaves in every checkpoint, the same on any mesh."""
    folders = (workdir / "checkpoints").iterdir()
    return {int(folder.name): manifest.verify(folder)["sums"] for folder in folders}


def _not_finite(workdir: Path) -> int:
    """Counts the leaves that are not finite, in all checkpoints of a run, read as a resume reads them."""
    config = read(workdir / "config.json")
    vocabulary = open_tokenizer(config.data.tokenizer).vocab_size
    mesh, count = make_mesh(1, 1), 0
    with jax.set_mesh(mesh), CheckpointManager(workdir, _ALL, clean=False) as checkpoints:
        _, shapes = state_builder(config, Decoder(config.model_config(vocabulary)), mesh)
        for step in checkpoints.steps():
            state = jax.device_get(checkpoints.restore(step, shapes))
            count += sum(not np.isfinite(leaf).all() for _, leaf in leaves(state))
    return count
