"""An imported checkpoint as the folder of a run, which evaluation, generation and fine-tuning
open.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from posenc_jax.checkpoints.hash_chain import HashChain
from posenc_jax.checkpoints.manager import CheckpointManager
from posenc_jax.data.document_files import text_folder_files
from posenc_jax.data.tokenizers import open_tokenizer
from posenc_jax.interop import huggingface
from posenc_jax.interop.huggingface import Loaded
from posenc_jax.results.files import replace_text
from posenc_jax.training.config import RunConfig, model_section
from posenc_jax.training.config_sections import DataSection, TrainSection
from posenc_jax.training.inputs import open_inputs
from posenc_jax.training.run_record import make_record, write_finished
from posenc_jax.training.workdir import lock_workdir, ownership

STEP = 1  # of the only checkpoint


@dataclasses.dataclass(frozen=True)
class ImportSettings:
    """What the folder of an imported run says beside the checkpoint.

    Attributes:
      tokenizer: "bytes" or a path, for a checkpoint without one; "" takes the checkpoint's own.
      length: L, the unit of evaluation lengths, in tokens; 0 takes the model's context length.
      text_folder: folder of UTF-8 text to evaluate on; "" takes the Python standard library.
      command: for the record.
    """

    tokenizer: str = ""
    length: int = 0
    text_folder: str = ""
    command: str = ""


def load_checkpoint(source: Path) -> Loaded:
    """Returns the checkpoint in a Hugging Face folder or a GGUF file; ValueError as their
    `load`.
    """
    if source.is_dir():
        return huggingface.load(source)
    if source.suffix == ".gguf" and source.is_file():
        from posenc_jax.interop import gguf_checkpoint  # needs the package gguf

        return gguf_checkpoint.load(source)
    raise ValueError(
        f"{source} is neither a folder with config.json and safetensors nor a .gguf file"
    )


def import_checkpoint(source: Path, workdir: Path, settings: ImportSettings) -> RunConfig:
    """Writes the folder of a finished run with the parameters of another project's checkpoint.

    Everything is read and checked before anything is written.

    Raises:
      ValueError: a checkpoint that is not understood, no tokenizer or two, text that cannot be
        split, or a folder in use.
    """
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise ValueError(f"{workdir} is there and not empty; choose another --workdir")
    if settings.text_folder:
        text_folder_files(settings.text_folder)  # refuses before a large checkpoint is read
    config, params, tokenizer = load_checkpoint(source)
    if (tokenizer is None) != bool(settings.tokenizer):
        what = (
            "has no tokenizer; name one by --tokenizer (bytes, or a path)"
            if tokenizer is None
            else "has a tokenizer; leave --tokenizer out"
        )
        raise ValueError(f"{source} {what}")
    run = run_config(config, source, settings)
    run.model_config((tokenizer or open_tokenizer(settings.tokenizer)).vocab_size)
    with lock_workdir(workdir):
        if tokenizer is not None:
            path = str(tokenizer.save(workdir))
            run = dataclasses.replace(run, data=dataclasses.replace(run.data, tokenizer=path))
        _write(run, _on_device(params), source, workdir, settings.command)
    return run


def run_config(config, source: Path, settings: ImportSettings) -> RunConfig:
    """Returns the configuration of a run whose decoder is `config`.

    Args:
      config: a `ModelConfig`. source: names the arm.
    """
    text: dict[str, Any] = (
        {"corpus": "text_folder", "folder": settings.text_folder} if settings.text_folder else {}
    )
    return RunConfig(
        model=model_section(config),
        data=DataSection(tokenizer=settings.tokenizer or "bytes", **text),
        train=TrainSection(
            arm=source.stem if source.is_file() else source.resolve().name,
            length=settings.length or config.train_length,
            steps=STEP,
            save_every=STEP,
            batch_size=1,
        ),
    )


def _write(run: RunConfig, params: dict, source: Path, workdir: Path, command: str) -> None:
    inputs = open_inputs(run)
    record = make_record(run, command, inputs, params, stored={})
    record |= {"tokens": 0, "imported_from": str(source)}
    chain = HashChain(None)
    entries = {"owner": ownership(run, inputs), "links": chain.through(STEP)}
    with CheckpointManager(workdir, keep=1) as checkpoints:
        checkpoints.save(STEP, {"params": params}, entries)
        checkpoints.wait()
    replace_text(workdir / "config.json", run.to_json())
    write_finished(workdir, record, 0.0, {"params": params, "skipped": jnp.int32(0)}, chain)


def _on_device(tree: dict) -> dict:
    """Returns the arrays on the device; each NumPy array is let go before the next is copied."""
    for name in tree:
        tree[name] = (
            _on_device(tree[name]) if isinstance(tree[name], dict) else jax.device_put(tree[name])
        )
    return tree
