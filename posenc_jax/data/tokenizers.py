"""Tokenizers: lossless, with the number of bytes of each id.

Bits per byte divide by bytes, so a tokenizer that loses text would silently make the evaluation
wrong. Such models are refused when they are opened.
"""

import hashlib
import pathlib
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np

SYMBOL_IDS = 128  # keys and values of retrieval tasks: the last ids below the special ones
_SPECIALS = 4  # BOS, SEP, PAD, ANS: always the last four ids, in this order
SPACE = "\u2581"  # SentencePiece's code for a space; it cannot encode the character itself
ROUND_TRIP_TEXT = (
    "  A key=10\t9\r\n\n  de\u0301ja\u0300 vu \ufb01n \u00bd \u2581 \u65e5\u672c \U0001f642 "
)


class Tokenizer(Protocol):
    """Text to ids and back; `decode(encode(text)) == text` for every UTF-8 text.

    sep, ans: separator and answer mark of the tasks. first_symbol: first of the consecutive ids
    that retrieval tasks take as keys and values. ends: ids that end a text when a model generates
    them. end: the one of `ends` that is trained as an end target (`posenc_jax.data.end_targets`),
    None for a vocabulary without an end token.
    """

    vocab_size: int
    bos: int
    sep: int
    pad: int
    ans: int
    first_symbol: int
    ends: tuple[int, ...]
    end: int | None
    byte_lengths_V: np.ndarray
    fingerprint: str

    def encode(self, text: bytes) -> np.ndarray:
        """Returns the ids (int32) of a text, without special ids."""

    def decode(self, ids: Iterable[int]) -> bytes:
        """Returns the bytes of ids; special ids have none."""


class _PieceTable:
    """Base of tokenizers: decoding and special ids, from the bytes of each normal id."""

    def __init__(self, pieces: list[bytes], fingerprint: str):
        first = len(pieces)
        self.bos, self.sep, self.pad, self.ans = range(first, first + _SPECIALS)
        self.first_symbol = first - SYMBOL_IDS
        self.end: int | None = self.bos
        self.ends: tuple[int, ...] = (self.bos,)
        self.vocab_size = first + _SPECIALS
        self._pieces = [*pieces, *[b""] * _SPECIALS]
        self.byte_lengths_V: np.ndarray = np.array([len(piece) for piece in self._pieces], np.int32)
        self.byte_lengths_V.flags.writeable = False
        self.fingerprint = fingerprint

    def decode(self, ids: Iterable[int]) -> bytes:
        return b"".join(self._pieces[i] for i in ids)


class ByteTokenizer(_PieceTable):
    """Ids 0-255 are bytes; BOS 256, SEP 257, PAD 258, ANS 259."""

    def __init__(self):
        super().__init__([bytes([i]) for i in range(256)], "bytes")

    def encode(self, text: bytes) -> np.ndarray:
        return np.frombuffer(text, np.uint8).astype(np.int32)


class SentencePieceTokenizer(_PieceTable):
    """A SentencePiece model with the four special ids after its pieces.

    Loading switches off two settings of the model that change the text: the added leading space and
    the removal of repeated spaces. Raises ValueError for a model that still loses text.
    """

    def __init__(self, model: bytes, name: str):
        try:
            pieces = self._load(model)
            super().__init__(pieces, hashlib.sha256(model).hexdigest())
            same = self.decode(self._ids(ROUND_TRIP_TEXT)) == ROUND_TRIP_TEXT.encode()
        except Exception as error:  # protobuf and SentencePiece raise any kind
            raise ValueError(
                f"data.tokenizer={name} is not a SentencePiece model, or a damaged one "
                f"({' '.join(str(error).split())[:100]})"
            ) from error
        if not same:
            raise ValueError(
                f"data.tokenizer={name}: decoding the ids does not return the encoded text, so "
                "bits per byte would be wrong; train it with --normalization_rule_name=identity "
                "--byte_fallback=true"
            )

    def _load(self, model: bytes) -> list[bytes]:
        """Loads the model and returns the bytes of its pieces."""
        # Imported here: the protobuf runtime is slow to import, and bytes do not need it.
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2

        proto = sentencepiece_model_pb2.ModelProto.FromString(model)
        if not proto.pieces:
            raise ValueError("no pieces")
        proto.normalizer_spec.add_dummy_prefix = False
        proto.normalizer_spec.remove_extra_whitespaces = False
        kind = sentencepiece_model_pb2.ModelProto.SentencePiece
        pieces = []
        for piece in proto.pieces:
            if piece.type == kind.BYTE:
                pieces.append(bytes([int(piece.piece[3:5], 16)]))
            elif piece.type in (kind.NORMAL, kind.USER_DEFINED):
                pieces.append(piece.piece.replace(SPACE, " ").encode())
            else:
                pieces.append(b"")
        self._processor = sentencepiece.SentencePieceProcessor(
            model_proto=proto.SerializeToString()
        )
        # Ids of the bytes of U+2581, for a text that contains this character itself.
        self._space_byte_ids = [
            self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()
        ]
        return pieces

    def encode(self, text: bytes) -> np.ndarray:
        return np.array(self._ids(text.decode("utf-8")), np.int32)

    def _ids(self, text: str) -> list[int]:
        return escaped_ids(self._processor.encode, self._space_byte_ids, text)


def escaped_ids(
    encode: Callable[[str], list[int]], space_byte_ids: list[int], text: str
) -> list[int]:
    """Returns the ids of a text in which SPACE becomes the ids of its bytes."""
    first, *rest = text.split(SPACE)
    ids = encode(first)
    for part in rest:
        ids += space_byte_ids + encode(part)
    return ids


def open_tokenizer(name: str) -> Tokenizer:
    """Returns "bytes", or a SentencePiece model or tokenizer.json; ValueError if not lossless."""
    if name == "bytes":
        return ByteTokenizer()
    path = pathlib.Path(name)
    if not path.is_file():
        raise ValueError(
            f"data.tokenizer={name}: no such file; say 'bytes' or the path of a SentencePiece "
            ".model or of a tokenizer.json"
        )
    if path.suffix == ".json":
        from posenc_jax.data.imported_tokenizer import read_tokenizer  # needs the extra interop

        return read_tokenizer(path)
    return SentencePieceTokenizer(path.read_bytes(), name)
