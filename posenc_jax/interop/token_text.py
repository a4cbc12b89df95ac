"""Token ids as readable text, from which the ids can be read back."""

import re
from collections.abc import Iterable

from posenc_jax.data.tokenizers import Tokenizer

_TOKEN = re.compile(r"<(\d+)(?::[^<>]*)?>|(.)", re.DOTALL)


class TokenText:
    """Lossless text of token ids, for any tokenizer.

    A token is written as itself if it is one printable character (or a newline) that the tokenizer
    encodes as that id. Any other token is written `<id>`, or `<id:piece>` if its bytes are
    printable. `<` is always written as an id, so that text is never mistaken for one.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._shown = [self._show(tokenizer, i) for i in range(tokenizer.vocab_size)]

    def write(self, ids: Iterable[int]) -> str:
        """Returns the ids as text."""
        return "".join(self._shown[i] for i in ids)

    def read(self, text: str) -> list[int]:
        """Returns the ids of a text that `write` made."""
        return [
            int(number) if number else int(self._tokenizer.encode(bare.encode())[0])
            for number, bare in _TOKEN.findall(text)
        ]

    @staticmethod
    def _show(tokenizer: Tokenizer, token: int) -> str:
        try:
            piece = tokenizer.decode([token]).decode()
        except UnicodeDecodeError:
            return f"<{token}>"
        plain = piece == "\n" or piece.isprintable()
        alone = len(piece) == 1 and piece != "<" and plain
        if alone and tokenizer.encode(piece.encode()).tolist() == [token]:
            return piece
        if piece and plain and not set(piece) & set("<>\n"):
            return f"<{token}:{piece}>"
        return f"<{token}>"
