"""Loads a trained run for evaluation: configuration, length extension, checkpoint, lengths that
fit.
"""

import dataclasses
import re
import sys
from pathlib import Path
from typing import NamedTuple

import jax

from posenc_jax.checkpoints.manager import CheckpointManager, has_checkpoint
from posenc_jax.encodings import Scheme, extend_length, unparse
from posenc_jax.evaluation.lengths import Multiple, check_multiples, tokens_of
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder
from posenc_jax.results.files import read_json, replace_text, write_json
from posenc_jax.training.config import RunConfig, read
from posenc_jax.training.inputs import Inputs, open_inputs
from posenc_jax.training.sharding import make_mesh
from posenc_jax.training.step import state_builder
from posenc_jax.training.workdir import (
    RESTORE_REMEDY,
    check_owner,
    identity,
    ownership,
    saved_record,
)

LAST = "last"


def stored_config(workdir: Path) -> RunConfig:
    """Returns the configuration of a run with a checkpoint; ValueError for another folder."""
    if not (workdir / "config.json").exists() or not has_checkpoint(workdir):
        raise ValueError(
            f"{workdir} holds no trained run; python train.py --workdir={workdir} makes one"
        )
    config = read(workdir / "config.json")
    _refuse_other_record(workdir / "run.json", config)
    return config


def _refuse_other_record(path: Path, config: RunConfig) -> None:
    ours = {
        "arm": config.arm,
        "scheme": config.model.scheme,
        "seed": config.train.seed,
        "tier": config.train.tier,
        "train_length": config.placed_length,
    }
    record = read_json(path) if path.exists() else {}
    differing = [
        f"{name}: {value!r} in config.json, {record[name]!r} in run.json"
        for name, value in ours.items()
        if name in record and record[name] != value
    ]
    if differing:
        raise ValueError(
            f"{path} is that of another run ({'; '.join(differing)}); {RESTORE_REMEDY}"
        )


def fitting_multiples(
    config: RunConfig, wanted: tuple[Multiple, ...], strict: bool
) -> tuple[Multiple, ...]:
    """Returns the wanted multiples that fit the scheme.

    Args:
      strict: raise ValueError for a multiple that does not fit.

    Raises:
      ValueError: a multiple whose k L is no number of tokens.
    """
    L = config.placed_length
    longest = config.placed.longest()
    check_multiples(wanted, L)
    fitting = tuple(
        k for k in wanted if longest is None or k <= 1 or tokens_of(k, L) + L // 2 <= longest
    )
    if strict and longest is not None and fitting != wanted:
        k = min(set(wanted) - set(fitting))
        raise ValueError(
            f"--lengths={k} asks for {tokens_of(k, L) + L // 2} positions ({k} L and L/2 targets); "
            f"{config.model.scheme!r} has {longest}: ask for lengths up to "
            f"{max((longest - L // 2) // L, 1)}"
        )
    return fitting


def compiled_lengths(
    config: RunConfig, stretch: str | None, multiples: tuple[Multiple, ...]
) -> list[int]:
    """Returns the few input lengths that all items are padded to.

    Most rows have kL inputs. Rows with fixed targets have L/2 more and are padded to the next
    multiple, unless the length extension changes the scheme there.
    """
    L = config.placed_length
    longest = config.placed.longest()
    whole = [tokens_of(k, L) for k in multiples]
    lengths = [L, *whole, max(whole) + L // 2]
    if len({extended_scheme(config, stretch, n) for n in lengths}) > 1:
        lengths += [n + L // 2 for n in whole]
    return sorted({n if longest is None else min(n, longest) for n in lengths})


def extended_scheme(config: RunConfig, stretch: str | None, length: int) -> Scheme:
    """Returns the scheme under a length extension rule, for rows of up to `length` tokens.

    The extension of a fine-tuned run starts at the length that it was tuned to.
    """
    scheme = config.architecture.parsed_scheme
    if stretch is None:
        return scheme
    return extend_length(
        scheme,
        stretch,
        length=length,
        train_length=config.train.length,
        placed_length=config.placed_length,
    )


def extended_model(
    config: RunConfig, stretch: str | None, length: int, vocab_size: int
) -> ModelConfig:
    """Returns the decoder's configuration under a length extension, for `length` tokens."""
    model = config.model_config(vocab_size)
    if stretch is None:
        return model
    return dataclasses.replace(model, scheme=extended_scheme(config, stretch, length))


def with_arm_name(config: RunConfig, arm: str) -> RunConfig:
    """Returns the configuration under another arm's name."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, arm=arm))


def extension_folder(workdir: Path, stretch: str, config: RunConfig, length: int) -> Path:
    """Returns the folder of a run's results under a length extension rule; writes its config and
    record.

    Args:
      config: of the run; its arm names the rule. length: longest rows, for which the scheme is
        written down.
    """
    scheme = unparse(extended_scheme(config, stretch, length))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, scheme=scheme))
    folder = workdir / "stretched" / re.sub(r"[^A-Za-z0-9.]+", "_", stretch)
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "config.json", config.to_json())
    record = read_json(workdir / "run.json")
    record |= {"arm": config.arm, "scheme": scheme, "read_with": stretch}
    write_json(folder / "run.json", record)
    return folder


class RestoredCheckpoint(NamedTuple):
    """A verified checkpoint of the folder's run.

    step: steps finished. params: of the decoder, float32. identity: digests of the run and of the
    checkpoint's leaves; equal identities give equal rows. unfinished: the run has steps left.
    """

    step: int
    params: dict
    identity: dict[str, str]
    unfinished: bool


def restore_checkpoint(
    workdir: Path, config: RunConfig, inputs: Inputs, checkpoint: str
) -> RestoredCheckpoint:
    """Returns the checkpoint that is "last", "best" or of a step; says on stderr if the run is
    unfinished.

    Raises:
      ValueError: no such checkpoint, or one of another run: its settings, text or tokenizer are not
        those of the folder's config.json.
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
        check_owner(workdir, step, owner, saved_record(checkpoints, step)["owner"], RESTORE_REMEDY)
        params = checkpoints.parameters(step, shapes["params"])
        done, planned = checkpoints.steps()[-1], config.train.steps
        digests = {"run_sha256": identity(owner), "checkpoint_sha256": checkpoints.digest(step)}
    if done < planned:
        print(
            f"{workdir} is unfinished: {done:,} of {planned:,} steps; rows of it are marked so",
            file=sys.stderr,
        )
    return RestoredCheckpoint(step, jax.device_get(params), digests, done < planned)


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """The last checkpoint of a run, for callers other than `evaluate`.

    Attributes:
      workdir, config: of the run; the config's arm names the stretch. stretch: length extension
        rule, or None. inputs: opened. step: of the checkpoint. params: of the decoder, float32.
        unfinished: the run has steps left.
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
        """Number of positions that the scheme has; None for no limit."""
        return self.config.placed.longest()

    def multiples(self, requested: tuple[Multiple, ...] | None) -> tuple[Multiple, ...]:
        """Returns the lengths to evaluate at, in units of L; None takes the run's own that fit.

        Raises:
          ValueError: a requested length that does not fit the scheme, or is no number of tokens.
        """
        wanted = tuple(sorted(set(requested or self.config.evaluation.multiples)))
        return fitting_multiples(self.config, wanted, strict=requested is not None)

    def compiled_lengths(self, multiples: tuple[Multiple, ...]) -> list[int]:
        """Returns the few input lengths, in tokens, that `evaluate` pads its rows to."""
        return compiled_lengths(self.config, self.stretch, multiples)

    def model_config(self, length: int) -> ModelConfig:
        """Returns the decoder's configuration for rows of up to `length` tokens."""
        return extended_model(self.config, self.stretch, length, self.inputs.tokenizer.vocab_size)

    def folder(self, length: int) -> Path:
        """Returns the folder of results: the run's, or that of its length extension to `length`."""
        if self.stretch is None:
            return self.workdir
        return extension_folder(self.workdir, self.stretch, self.config, length)


def load_run(workdir: Path, stretch: str | None) -> LoadedRun:
    """Restores the last checkpoint; ValueError for none, another run's, or an idle stretch."""
    trained = stored_config(workdir)
    config = trained if stretch is None else with_arm_name(trained, f"{trained.arm} {stretch}")
    # A bad rule is refused before data are opened.
    scheme = extended_scheme(config, stretch, config.train.length)
    dataclasses.replace(config.architecture, scheme=scheme)
    inputs = open_inputs(config)
    restored = restore_checkpoint(workdir, trained, inputs, LAST)
    return LoadedRun(
        workdir, config, stretch, inputs, restored.step, restored.params, restored.unfinished
    )
