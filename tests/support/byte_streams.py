"""Token streams of bytes with documents given by hand or drawn at random."""

import types

import numpy as np
from posenc_jax.data.tokenizers import open_tokenizer

BYTES = open_tokenizer("bytes").byte_lengths_V


def stream_of(*documents):
    tokens = np.concatenate([np.r_[256, d] for d in documents])
    starts = np.r_[0, np.cumsum([len(d) + 1 for d in documents])]
    return types.SimpleNamespace(tokens=tokens, starts=starts)


def text(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, n)
