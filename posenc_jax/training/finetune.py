"""Fine-tuning: a run whose parameters begin as those of another run's last sound checkpoint.

Its encoding is placed with the length that the other run was placed with, `train.original_length`, and its
scheme says by how much it is stretched, so it begins as what a stretched reading of the other run is.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from posenc_jax.checkpoints.fingerprint import sha256
from posenc_jax.checkpoints.manager import CheckpointManager, has_checkpoint
from posenc_jax.model.decoder import Decoder
from posenc_jax.training.config import RunConfig, from_sections, read
from posenc_jax.training.inputs import Inputs
from posenc_jax.training.workdir import REREAD, check_owner

# What two models may differ in whose parameters mean the same; the tokenizer is compared by itself.
_FREE = ("scheme", "attention", "vocab_size", "train_length", "consecutive")


def find_init_checkpoint(config: RunConfig, workdir: Path) -> CheckpointManager | None:
    """Returns the checkpoints that a run begins from; None if it begins by itself or has begun already.

    Raises:
      ValueError: no run there, the run itself, or one of another architecture or length; each differing
        field is named.
    """
    name = config.train.init_from
    if not name:
        return None
    folder = Path(name)
    if folder.resolve() == workdir.resolve():
        raise ValueError(
            f"config.train.init_from={name} is the run's own --workdir; choose another --workdir"
        )
    if has_checkpoint(workdir):
        return None
    if not (folder / "config.json").exists():
        raise ValueError(f"config.train.init_from={name} holds no run: it has no config.json")
    if not has_checkpoint(folder):
        raise ValueError(f"config.train.init_from={name} has no checkpoint; train it first")
    there = read(folder / "config.json")
    ours, theirs = (dataclasses.asdict(c.model_config(vocab_size=1)) for c in (config, there))
    found = [
        f"model.{field}: {ours[field]!r} here, {theirs[field]!r} there"
        for field in ours
        if field not in _FREE and ours[field] != theirs[field]
    ]
    if found:
        raise ValueError(
            f"config.train.init_from={name} has another architecture ({'; '.join(found)}); "
            "take its model settings"
        )
    if config.placed_length != there.placed_length:
        raise ValueError(
            f"config.train.original_length={config.train.original_length} places the scheme at L = "
            f"{config.placed_length}, but {name} is placed at {there.placed_length}: "
            f"set config.train.original_length={there.placed_length}"
        )
    return CheckpointManager(folder, keep=1, clean=False)


def check_init_compatible(
    config: RunConfig, inputs: Inputs, model: Decoder, source: CheckpointManager, step: int
) -> None:
    """Raises ValueError for a source of another tokenizer, of other parameters, or not its folder's own; names them."""
    name, owner = config.train.init_from, source.record(step)["owner"]
    stored = {"config": dataclasses.asdict(read(Path(name) / "config.json"))}
    check_owner(Path(name), step, stored, owner, REREAD)
    ours, theirs = inputs.tokenizer.fingerprint, owner["tokenizer_fingerprint"]
    if ours != theirs:
        there = from_sections(owner["config"]).data
        raise ValueError(
            f"config.train.init_from={name} was trained with another tokenizer ({ours[:12]} here, "
            f"{theirs[:12]} there: config.data.tokenizer={there.tokenizer}, config.data.task={there.task})"
        )
    dummy_BT = jnp.ones((1, 8), jnp.int32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), dummy_BT, dummy_BT, dummy_BT))
    source.compare_parameters(step, shapes["params"])


def init_provenance(config: RunConfig, source: CheckpointManager, step: int, params) -> dict:
    """Returns where parameters came from, for the records of the run: whose, which, and their hashes.

    Of a source that was fine-tuned itself, where it came from is in it too.
    """
    record = source.record(step)
    earlier = from_sections(record["owner"]["config"]).train.init_from
    return {
        "workdir": config.train.init_from,
        "step": step,
        **record["links"],
        **record["owner"],
        "parameters_sha256": sha256({"params": params}),
        **({"source": record["source"]} if earlier else {}),
    }
