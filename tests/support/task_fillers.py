"""Fillers of task instances under the byte tokenizer: from a small corpus full of traps, and from
sentences.
"""

import numpy as np
from posenc_jax.data.tokenizers import open_tokenizer
from posenc_jax.tasks.filler import Filler

TOKENIZER = open_tokenizer("bytes")


class TextStream:
    """A stream full of traps: cues, long numbers, bytes of the key alphabet, many documents."""

    def __init__(self, tokenizer):
        draw = np.random.default_rng(3)
        words = [
            b"key=12345",
            b" key=",
            b"0123456789",
            b"caf\xc3\xa9",
            b"and",
            b" so on ",
            b"99999",
        ]
        documents = [
            b"".join(words[i] for i in draw.integers(0, len(words), 40)) for _ in range(25)
        ]
        parts = [np.append(tokenizer.bos, tokenizer.encode(text)) for text in documents]
        self.tokens = np.concatenate(parts)
        self.bos = tokenizer.bos


FILLER = Filler(TextStream(TOKENIZER), TOKENIZER)


SENTENCES = Filler(None, TOKENIZER, corpus=False)
