"""Filler: the text between needles, and the ids of needles."""

import numpy as np

from posenc_jax.data.token_stream import TokenStream
from posenc_jax.data.tokenizers import SYMBOL_IDS, Tokenizer

SYMBOLS = SYMBOL_IDS // 2  # number of keys, and of values
_CUE = b"key="
CUES = ("FIRST", "LAST")  # the question of R8: which of a key's values
_LONGEST_TEXT = 2**24  # tokens of a corpus kept for filler: 32 MB, far more than a run repeats
_SENTENCES = (
    b"The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
)


class Filler:
    """Clean text of a split, or repeated sentences; passages start anywhere and wrap around the
    end.

    Cleaning removes BOS, replaces key and value ids by a plain character, and breaks the passkey's
    cue and every run of five digits. Raises ValueError if the tokenizer has too few ids or no
    single id for a digit.

    cue, digits, space, stop: ids of `key=`, of 0..9, of ` ` and of `.`. words: ids of each of CUES.
    keys, values: first ids of the alphabets. fingerprint: the tokenizer's.
    """

    def __init__(self, stream: TokenStream | None, tokenizer: Tokenizer, *, corpus: bool = True):
        if tokenizer.first_symbol <= 0:
            raise ValueError(
                f"retrieval tasks need more than {SYMBOL_IDS} ids for keys and values; this "
                f"tokenizer has {tokenizer.first_symbol + SYMBOL_IDS}"
            )
        self.fingerprint = tokenizer.fingerprint
        self.keys, self.values = tokenizer.first_symbol, tokenizer.first_symbol + SYMBOLS
        self.bos, self.sep = tokenizer.bos, tokenizer.sep
        self.cue = tokenizer.encode(_CUE)
        self.space, self.stop = tokenizer.encode(b" "), tokenizer.encode(b".")
        self.words = {word: tokenizer.encode(word.encode()) for word in CUES}
        digits = [tokenizer.encode(b"%d" % digit) for digit in range(10)]
        if any(len(ids) != 1 for ids in digits):
            raise ValueError("the passkey task needs a tokenizer with a single id for each digit")
        self.digits = np.concatenate(digits)
        if not corpus:
            text = tokenizer.encode(_SENTENCES)
        elif stream is None:
            raise ValueError("filler of corpus text needs a token stream")
        else:
            text = stream.tokens[:_LONGEST_TEXT]
            text = text[text != stream.bos]
        if not len(text):
            raise ValueError("filler needs text, and this split holds none")
        narrow = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
        self._text = self._cleaned(text, tokenizer).astype(narrow)

    def __len__(self) -> int:
        return len(self._text)

    def passages(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Returns the ids of passages, concatenated, from their starts and lengths."""
        begins = np.cumsum(lengths) - lengths
        index = np.repeat(starts - begins, lengths) + np.arange(lengths.sum())
        return self._text[index % len(self._text)]

    def _cleaned(self, text: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
        # np.roll wraps around as `passages` does. The tokens before a token decide whether it is
        # replaced, never those after it.
        digits_V = np.array(
            [
                sum(48 <= byte <= 57 for byte in tokenizer.decode([i]))
                for i in range(tokenizer.vocab_size)
            ],
            np.uint8,
        )
        digits = digits_V[text]
        run = np.ones(len(text), bool)
        for back in range(5):
            run &= np.roll(digits, back) > 0
        cue = np.ones(len(text), bool)
        for back, token in enumerate(self.cue[::-1]):
            cue &= np.roll(text, back) == token
        symbol = (text >= self.keys) & (text < self.keys + SYMBOL_IDS)
        return np.where(symbol | (digits > 1) | run | cue, self._plain(tokenizer), text)

    def _plain(self, tokenizer: Tokenizer) -> int:
        special = {*self.cue, *self.digits}
        preferred = [ids[0] for ids in map(tokenizer.encode, (b"?", b"_", b"x")) if len(ids) == 1]
        special |= set(range(self.keys, self.keys + SYMBOL_IDS))
        for token in [*preferred, *range(tokenizer.vocab_size)]:
            if tokenizer.byte_lengths_V[token] == 1 and token not in special:
                return int(token)
        raise ValueError(
            "retrieval tasks found no plain character in this tokenizer to replace keys with"
        )
