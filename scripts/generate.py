"""Continues a text: python scripts/generate.py --workdir=runs/x --prompt="The sea".

The folder is that of a run of ours or of an imported checkpoint (scripts/import_checkpoint.py).
Without --prompt the text comes from standard input. The continuation is written to standard output
as it arises, without the prompt, until --max_tokens or a token that ends a text. --temperature=0
takes the most likely token; otherwise --top_k, --top_p and --seed say how one is drawn, and the
same seed gives the same text. --stretch reads with a length extension, as in scripts/evaluate.py.
Exit code 2 for wrong input.
"""

import codecs
import os
import sys
from pathlib import Path

import installed  # noqa: F401
from absl import flags

from posenc_jax import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run", required=True)
_PROMPT = flags.DEFINE_string("prompt", None, "Text to continue; default: standard input")
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 128, "Most tokens to write")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0: the most likely token")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Draw from that many most likely tokens; 0: from all")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw from the most likely tokens of this total share")
_SEED = flags.DEFINE_integer("seed", 0, "Of the drawn tokens", lower_bound=0, upper_bound=2**32 - 1)
_STRETCH = flags.DEFINE_string("stretch", None, "Length extension: yarn:4, pi:4, ntk:4, ...")


def main() -> None:
    """Writes the continuation of the prompt."""
    from posenc_jax.interop.text_continuation import continuation
    from posenc_jax.model.generate import Sampling

    sampling = Sampling(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value)
    prompt = sys.stdin.buffer.read() if _PROMPT.value is None else os.fsencode(_PROMPT.value)
    pieces = continuation(
        Path(_WORKDIR.value), prompt, _MAX_TOKENS.value, sampling, _SEED.value, _STRETCH.value
    )
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a token may be part of a letter
    try:
        for piece in pieces:
            sys.stdout.write(decoder.decode(piece))
            sys.stdout.flush()
        print(decoder.decode(b"", final=True), flush=True)
    except BrokenPipeError:  # the reader has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    cli.run_main(main)
