"""Imports another project's checkpoint: python scripts/import_checkpoint.py --from=Llama-3.2-1B
--workdir=runs/llama.

The source is a Hugging Face folder (config.json and safetensors, one file or several) or a .gguf
file. The folder of a finished run is written, which scripts/evaluate.py opens: lengths, --stretch
and suites as for our own runs. A checkpoint without a tokenizer needs --tokenizer=bytes or a path.
Nothing in the folder is executed; what is not understood is named in one line, and nothing is
written (exit code 2).
"""

import os
import shlex
import sys
from pathlib import Path

import installed  # noqa: F401
from absl import flags

from posenc_jax import cli

_FROM = flags.DEFINE_string("from", None, "Hugging Face folder or GGUF file", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, made here", required=True)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", "", "bytes or a path, for a checkpoint without a tokenizer"
)
_LENGTH = flags.DEFINE_integer(
    "length", 0, "L in tokens, the unit of evaluation lengths; default: the model's context"
)
_TEXT_FOLDER = flags.DEFINE_string(
    "text_folder", "", "Folder of UTF-8 text to evaluate on; default: the Python standard library"
)


def main() -> None:
    """Imports the checkpoint of the flags."""
    from posenc_jax.interop.imported_run import ImportSettings, import_checkpoint

    command = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    settings = ImportSettings(_TOKENIZER.value, _LENGTH.value, _TEXT_FOLDER.value, command)
    run = import_checkpoint(Path(_FROM.value), Path(_WORKDIR.value), settings)
    print(f"{_WORKDIR.value}: {run.arm}, {run.model.num_layers} layers, {run.model.scheme}")


if __name__ == "__main__":
    cli.run_main(main)
