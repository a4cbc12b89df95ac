"""Fine-tuning: a run that starts from the parameters of another run's last undamaged checkpoint.

Its scheme is placed at the other run's length, `train.original_length`, and names its length
extension. At step 0 it therefore equals the other run evaluated under that extension.
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
from posenc_jax.training.workdir import RESTORE_REMEDY, check_owner, saved_record

# Fields that may differ between models with interchangeable parameters.
_MAY_DIFFER = ("scheme", "attention", "train_length", "consecutive", "slot_order")


def find_init_checkpoint(config: RunConfig, workdir: Path) -> CheckpointManager | None:
    """Returns the checkpoints of `init_from`; None without init_from or for a run that resumes.

    Raises:
      ValueError: no run there, the run itself, or one of another architecture or length; names each
        differing field.
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
    source = read(folder / "config.json")
    ours, theirs = (dataclasses.asdict(c.architecture) for c in (config, source))
    differing = [
        f"model.{field}: {ours[field]!r} here, {theirs[field]!r} there"
        for field in ours
        if field not in _MAY_DIFFER and ours[field] != theirs[field]
    ]
    if differing:
        raise ValueError(
            f"config.train.init_from={name} has another architecture ({'; '.join(differing)}); "
            "take its model settings"
        )
    if config.placed_length != source.placed_length:
        raise ValueError(
            f"config.train.original_length={config.train.original_length} places the scheme at L = "
            f"{config.placed_length}, but {name} is placed at {source.placed_length}: set "
            f"config.train.original_length={source.placed_length}"
        )
    return CheckpointManager(folder, keep=1, clean=False)


def check_init_compatible(
    config: RunConfig, inputs: Inputs, model: Decoder, source: CheckpointManager, step: int
) -> None:
    """Raises ValueError for a source of other tokenizer, parameters or config.json."""
    name, owner = config.train.init_from, saved_record(source, step)["owner"]
    stored = {"config": dataclasses.asdict(read(Path(name) / "config.json"))}
    check_owner(Path(name), step, stored, owner, RESTORE_REMEDY)
    ours, theirs = inputs.tokenizer.fingerprint, owner["tokenizer_fingerprint"]
    if ours != theirs:
        data = from_sections(owner["config"]).data
        raise ValueError(
            f"config.train.init_from={name} was trained with another tokenizer ({ours[:12]} here, "
            f"{theirs[:12]} there: config.data.tokenizer={data.tokenizer}, "
            f"config.data.task={data.task})"
        )
    dummy_BT = jnp.ones((1, 8), jnp.int32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), dummy_BT, dummy_BT, dummy_BT))
    source.compare_parameters(step, shapes["params"])


def init_provenance(config: RunConfig, source: CheckpointManager, step: int, params) -> dict:
    """Returns the provenance of initial parameters: run, step, owner and hashes.

    For a source that was fine-tuned itself it contains the source's provenance.
    """
    record = saved_record(source, step)
    earlier = from_sections(record["owner"]["config"]).train.init_from
    return {
        "workdir": config.train.init_from,
        "step": step,
        **record["links"],
        **record["owner"],
        "parameters_sha256": sha256({"params": params}),
        **({"source": record["source"]} if earlier else {}),
    }
