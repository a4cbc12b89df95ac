"""A trained run, opened to be read: its configuration under a stretch, a checkpoint, the lengths that fit."""

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import jax

from posenc_jax.checkpoints.manager import CheckpointManager, has_checkpoint
from posenc_jax.encodings import extend_length, parse, unparse
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder
from posenc_jax.results.files import read_json, replace_text, write_json
from posenc_jax.training.config import RunConfig, read
from posenc_jax.training.inputs import Inputs, open_inputs
from posenc_jax.training.sharding import make_mesh
from posenc_jax.training.step import state_builder
from posenc_jax.training.workdir import REREAD, check_owner, identity, ownership

LAST = "last"


def stored_config(workdir: Path) -> RunConfig:
    """Returns the configuration of a run that has a checkpoint.

    Raises:
      ValueError: any other folder, or one whose run.json is that of another run.
    """
    if not (workdir / "config.json").exists() or not has_checkpoint(workdir):
        raise ValueError(
            f"{workdir} holds no trained run; python train.py --workdir={workdir} makes one"
        )
    config = read(workdir / "config.json")
    _refuse_other_record(workdir / "run.json", config)
    return config


def _refuse_other_record(path: Path, config: RunConfig) -> None:
    ours = {
        "arm": config.arm, "scheme": config.model.scheme, "seed": config.train.seed, "tier": config.train.tier,
        "train_length": config.placed_length,
    }  # fmt: skip
    said = read_json(path) if path.exists() else {}
    found = [
        f"{name}: {mine!r} in config.json, {said[name]!r} in run.json"
        for name, mine in ours.items()
        if name in said and said[name] != mine
    ]
    if found:
        raise ValueError(f"{path} is that of another run ({'; '.join(found)}); {REREAD}")


def fitting_multiples(config: RunConfig, wanted: tuple[int, ...], asked: bool) -> tuple[int, ...]:
    """Returns those of the wanted multiples that fit the scheme; ValueError where one is asked for by name."""
    L = config.placed_length
    longest = config.model_config(vocab_size=1).placed.longest()
    fitting = tuple(k for k in wanted if longest is None or k * L + L // 2 <= longest or k == 1)
    if asked and fitting != wanted:
        k = min(set(wanted) - set(fitting))
        raise ValueError(
            f"--lengths={k} asks for {k * L + L // 2} positions ({k} L and L/2 targets); "
            f"{config.model.scheme!r} has {longest}: ask for lengths up to {max((longest - L // 2) // L, 1)}"
        )
    return fitting


def compiled_lengths(
    config: RunConfig, stretch: str | None, multiples: tuple[int, ...]
) -> list[int]:
    """Returns the few input lengths that all items are padded to.

    Most rows have kL inputs; those of a fixed target L/2 more, which the next multiple takes in, unless
    a scheme is read differently there.
    """
    L = config.placed_length
    longest = config.model_config(vocab_size=1).placed.longest()
    lengths = [L, *(k * L for k in multiples), max(multiples) * L + L // 2]
    if len({extended_config(config, stretch, n) for n in lengths}) > 1:
        lengths += [k * L + L // 2 for k in multiples]
    return sorted({n if longest is None else min(n, longest) for n in lengths})


def extended_config(config: RunConfig, stretch: str | None, length: int) -> RunConfig:
    """Returns the configuration whose scheme is read under `stretch` for rows of up to `length`.

    Of a fine-tuned run a stretch goes on from the length that it was tuned to.
    """
    if stretch is None:
        return config
    scheme = extend_length(
        parse(config.model.scheme),
        stretch,
        length=length,
        train_length=config.train.length,
        placed_length=config.placed_length,
    )
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, scheme=unparse(scheme))
    )


def with_arm_name(config: RunConfig, arm: str) -> RunConfig:
    """Returns the configuration under another arm's name."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, arm=arm))


def extension_folder(workdir: Path, stretch: str, config: RunConfig) -> Path:
    """Makes the folder of a reading, with the records of the run that it reads."""
    folder = workdir / "stretched" / re.sub(r"[^A-Za-z0-9.]+", "_", stretch)
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "config.json", config.to_json())
    record = json.loads((workdir / "run.json").read_text())
    record |= {"arm": config.arm, "scheme": config.model.scheme, "read_with": stretch}
    write_json(folder / "run.json", record)
    return folder


class RestoredCheckpoint(NamedTuple):
    """A checkpoint that was verified and belongs to its folder's run.

    step: steps finished. params: of the decoder, float32. identity: digests of the run, and of every leaf of
    the checkpoint; rows of two with one identity are alike. unfinished: the run has steps left to take.
    """

    step: int
    params: dict
    identity: dict[str, str]
    unfinished: bool


def restore_checkpoint(
    workdir: Path, config: RunConfig, inputs: Inputs, checkpoint: str
) -> RestoredCheckpoint:
    """Returns the checkpoint that is "last", "best" or of a step; says on stderr if the run is unfinished.

    Raises:
      ValueError: no such checkpoint, or one of another run: its settings, text or tokenizer are not those
        of the folder's config.json.
    """
    owner = ownership(config, inputs)
    model_config = config.model_config(inputs.tokenizer.vocab_size)
    mesh = make_mesh(1, 1)
    with (
        jax.set_mesh(mesh),
        CheckpointManager(workdir, config.train.keep, clean=False) as checkpoints,
    ):
        _, shapes = state_builder(config, Decoder(model_config), mesh)
        step = checkpoints.chosen(checkpoint)
        check_owner(workdir, step, owner, checkpoints.record(step)["owner"], REREAD)
        state = checkpoints.restore(step, shapes)
        done, planned = checkpoints.steps()[-1], config.train.steps
        digests = {
            "run_sha256": identity(owner),
            "checkpoint_sha256": checkpoints.digest(step),
        }
    if done < planned:
        print(
            f"{workdir} is unfinished: {done:,} of {planned:,} steps; rows of it are marked so",
            file=sys.stderr,
        )
    return RestoredCheckpoint(step, jax.device_get(state["params"]), digests, done < planned)


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """The last checkpoint of a run, for readers other than `evaluate`.

    Attributes:
      workdir: of the run. config: its own; the arm names the stretch. stretch: the rule it is read
        with, or None. inputs: opened. step: of the checkpoint. params: of the decoder, float32.
      unfinished: the run has steps left to take.
    """

    workdir: Path
    config: RunConfig
    stretch: str | None
    inputs: Inputs
    step: int
    params: dict
    unfinished: bool

    @property
    def longest(self) -> int | None:
        """Positions that the scheme has; None for any number."""
        return self.config.model_config(vocab_size=1).placed.longest()

    def multiples(self, asked: tuple[int, ...] | None) -> tuple[int, ...]:
        """Returns the lengths to read, in units of L; None takes those of the run's own that fit.

        Raises:
          ValueError: a length asked for that does not fit the scheme.
        """
        wanted = tuple(sorted(set(asked or self.config.evaluation.multiples)))
        if wanted[0] < 1:
            raise ValueError(
                f"--lengths must be whole multiples of the training length, not {wanted}"
            )
        return fitting_multiples(self.config, wanted, asked=asked is not None)

    def compiled_lengths(self, multiples: tuple[int, ...]) -> list[int]:
        """Returns the few input lengths, in tokens, that `evaluate` pads its rows to."""
        return compiled_lengths(self.config, self.stretch, multiples)

    def model_config(self, length: int) -> ModelConfig:
        """Returns the decoder's configuration as rows of up to `length` tokens are read."""
        config = extended_config(self.config, self.stretch, length)
        return config.model_config(self.inputs.tokenizer.vocab_size)

    def folder(self, length: int) -> Path:
        """Returns where results go: the run's folder, or that of the stretched reading of `length`."""
        if self.stretch is None:
            return self.workdir
        config = extended_config(self.config, self.stretch, length)
        return extension_folder(self.workdir, self.stretch, config)


def load_run(workdir: Path, stretch: str | None) -> LoadedRun:
    """Restores the last checkpoint of a run.

    Raises:
      ValueError: no checkpoint or one of another run, or a stretch that is none or changes nothing in
        this scheme.
    """
    trained = stored_config(workdir)
    config = trained if stretch is None else with_arm_name(trained, f"{trained.arm} {stretch}")
    extended_config(
        config, stretch, config.train.length
    )  # refuses a bad rule before anything is opened
    inputs = open_inputs(config)
    found = restore_checkpoint(workdir, trained, inputs, LAST)
    return LoadedRun(workdir, config, stretch, inputs, found.step, found.params, found.unfinished)
