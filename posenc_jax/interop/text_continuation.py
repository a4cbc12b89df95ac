"""The continuation of a text by a run, piece by piece."""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from posenc_jax.evaluation.load_run import load_run
from posenc_jax.model.generate import Sampling
from posenc_jax.model.token_streaming import stream_tokens

MOST_TOKENS = 2**20  # of a text; the cache has a slot for each before the first is chosen


def continuation(
    workdir: Path,
    prompt: bytes,
    max_tokens: int,
    sampling: Sampling,
    seed: int,
    stretch: str | None,
) -> Iterator[bytes]:
    """Yields the bytes of each token that continues a prompt, until one that ends a text.

    The prompt is a document: BOS, then its tokens. The last checkpoint is used, in float32.

    Args:
      workdir: of a run, also of an imported one. prompt: UTF-8. stretch: a rule of
        `posenc_jax.encodings.length_extension`, or None.

    Raises:
      ValueError: before the first piece: no trained run, a prompt that is not UTF-8, settings out
        of range, or more positions than the scheme has.
    """
    try:
        prompt.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt is not UTF-8: byte {error.start}") from None
    if max_tokens < 1:
        raise ValueError(f"--max_tokens must be at least 1, not {max_tokens}")
    if max_tokens > MOST_TOKENS:
        raise ValueError(f"--max_tokens must be at most {MOST_TOKENS:,}, not {max_tokens:,}")
    run = load_run(workdir, stretch)
    tokenizer = run.inputs.tokenizer
    prompt_T = np.r_[tokenizer.bos, tokenizer.encode(prompt)].astype(np.int32)
    config = run.model_config(len(prompt_T) + max_tokens).measured
    params = jax.device_put(run.params)
    tokens = stream_tokens(params, config, prompt_T, max_tokens, sampling, jax.random.key(seed))
    return _until_end(tokens, tokenizer)


def _until_end(tokens: Iterator[int], tokenizer) -> Iterator[bytes]:
    for token in tokens:
        if token in tokenizer.ends:
            return
        yield tokenizer.decode([token]) if token < tokenizer.vocab_size else b""
