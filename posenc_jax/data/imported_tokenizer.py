"""Tokenizers of imported models: Hugging Face's tokenizer.json, with the exact bytes of each id.

Tokenizer steps that change or add text are removed when tokenizer.json is read: Unicode
normalization (NFC), an added leading space, special ids around a text, and the recognition of
special tokens whose spelling occurs in a text. For text that these steps leave unchanged, the ids
equal those of the original tokenizer. So the bytes of a document's ids sum to the bytes of the
document, and bits per byte are comparable between tokenizers. This module also chooses the ids that
the retrieval tasks use as keys and values (symbols).
"""

import copy
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from posenc_jax.data.tokenizers import ROUND_TRIP_TEXT, SPACE, SYMBOL_IDS, escaped_ids
from posenc_jax.results.files import read_json, write_json

SETTINGS = "tokenizer_config.json"  # beside tokenizer.json: special tokens and vocab_size
_MOST_IDS = 2**22
# Text of needles and questions. A token whose stripped bytes occur in this text, or are empty, is
# not used as a symbol.
_TASK_TEXT = b"key= FIRST LAST. ? _ x"
_DIGIT = re.compile(rb"[0-9]")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_CHILDREN = ("normalizers", "pretokenizers")
_UNICODE_OR_SPACE = ("NFC", "Prepend")  # normalizers that are left out
_KEPT = ("Replace", "ByteLevel")


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of an imported model, as text, and its number of ids.

    Attributes:
      bos, eos, pad: "" where the model has none. BOS falls back to EOS, and PAD to BOS.
      vocab_size: rows of the model's embedding, at least the number of the tokenizer's ids; 0 means
        that number.
    """

    bos: str = ""
    eos: str = ""
    pad: str = ""
    vocab_size: int = 0


class ImportedTokenizer:
    """A tokenizer.json as a `Tokenizer`.

    The vocabulary has no special ids SEP and ANS (separator and answer mark of the tasks); a
    newline stands for both. `first_symbol` is the first of the consecutive ids used as keys and
    values. It lies in the upper half of the vocabulary if a usable run of ids exists there: near
    the middle, ids tend to be whole words of medium frequency.

    Args:
      description: the content of a tokenizer.json, BPE or Unigram. special: its special tokens.
        name: for errors.

    Raises:
      ValueError: a description that the package `tokenizers` refuses, a tokenizer that loses text,
        or special tokens that it does not have.
    """

    def __init__(self, description: dict, special: SpecialTokens, name: str):
        self.description, self.special = description, special
        text = json.dumps([description, dataclasses.asdict(special)], sort_keys=True)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        lossless = _lossless(description, name)
        self._tokenizer = _opened(lossless, name)
        self._pieces = _pieces(self._tokenizer, lossless, special.vocab_size, name)
        self.vocab_size = len(self._pieces)
        self.byte_lengths_V = np.array([len(piece) for piece in self._pieces], np.int32)
        self.byte_lengths_V.flags.writeable = False
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        # Ids of the bytes of U+2581, for a text that contains this character itself.
        self._space_byte_ids = [ids.get(f"<0x{byte:02X}>", -1) for byte in SPACE.encode()]
        self._has_space_byte_ids = min(self._space_byte_ids) >= 0
        self.bos = self._id_of(special.bos or special.eos, "BOS or EOS", name)
        self.pad = self._id_of(special.pad, "PAD", name) if special.pad else self.bos
        self.end = self._id_of(special.eos, "EOS", name) if special.eos else None
        self.ends = tuple(sorted({self.bos, self.bos if self.end is None else self.end}))
        if self.decode(self._ids(ROUND_TRIP_TEXT)) != ROUND_TRIP_TEXT.encode():
            raise ValueError(
                f"{name}: decoding the ids does not return the encoded text, so bits per byte "
                "would be wrong"
            )
        self.sep = self.ans = int(self.encode(b"\n")[-1])
        self.first_symbol = _first_symbol(self._pieces)

    def encode(self, text: bytes) -> np.ndarray:
        """Returns the ids (int32), without special ids.

        Raises:
          ValueError: the bytes of the ids do not add up to those of the text.
        """
        ids = np.array(self._ids(text.decode("utf-8")), np.int32)
        total = int(self.byte_lengths_V[ids].sum(dtype=np.int64))
        if total != len(text):
            raise ValueError(
                f"the tokenizer gives {total} bytes for a text of {len(text)}: bits per byte would "
                "be wrong"
            )
        return ids

    def decode(self, ids: Iterable[int]) -> bytes:
        """Returns the bytes of ids; special and unused ids have none."""
        return b"".join(self._pieces[i] for i in ids)

    def save(self, folder: Path) -> Path:
        """Writes the tokenizer.json and special tokens; returns the path for `open_tokenizer`."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "tokenizer.json", self.description)
        tokens = {f"{which}_token": getattr(self.special, which) for which in ("bos", "eos", "pad")}
        named = {key: token for key, token in tokens.items() if token}
        write_json(folder / SETTINGS, named | {"vocab_size": self.vocab_size})
        return folder / "tokenizer.json"

    def _ids(self, text: str) -> list[int]:
        if self._has_space_byte_ids:
            return escaped_ids(self._plain_ids, self._space_byte_ids, text)
        return self._plain_ids(text)

    def _plain_ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _id_of(self, token: str, which: str, name: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise ValueError(f"{name} has no id for its {which}, {token!r}")
        return found


def read_tokenizer(path: Path, vocab_size: int = 0) -> ImportedTokenizer:
    """Returns the tokenizer of a tokenizer.json, with the special tokens of the file beside it.

    Args:
      vocab_size: rows of the model's embedding; 0: as in the file beside it, or else the number of
        ids.

    Raises:
      ValueError: anything wrong with the two files.
    """
    beside = path.with_name(SETTINGS)
    settings = read_json(beside) if beside.is_file() else {}
    named = {
        which: _text_of(settings.get(f"{which}_token"), beside) for which in ("bos", "eos", "pad")
    }
    size = vocab_size or settings.get("vocab_size", 0)
    if type(size) is not int or not 0 <= size <= _MOST_IDS:
        raise ValueError(
            f"{beside}: vocab_size must be a whole number up to {_MOST_IDS}, not {size!r}"
        )
    return ImportedTokenizer(read_json(path), SpecialTokens(**named, vocab_size=size), str(path))


def _text_of(token: object, path: Path) -> str:
    """Returns a special token's text, which files hold bare or as a mapping with `content`."""
    content = token.get("content") if isinstance(token, dict) else token
    if content is None:
        return ""
    if not isinstance(content, str):
        raise ValueError(f"{path}: a special token must be text, not {content!r}")
    return content


def _opened(description: dict, name: str):
    try:
        from tokenizers import Tokenizer as FastTokenizer
    except ModuleNotFoundError:
        raise ValueError(
            f"{name} needs the package tokenizers: pip install 'posenc_jax[real]'"
        ) from None
    try:
        tokenizer = FastTokenizer.from_str(json.dumps(description))
    except Exception as error:  # the package raises plain Exception
        raise ValueError(f"{name} is no tokenizer.json: {error}") from None
    tokenizer.encode_special_tokens = True  # a special token that a text spells out is text
    return tokenizer


def _lossless(description: dict, name: str) -> dict:
    """Returns the description without what changes a text or adds to it."""
    model = description.get("model")
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    if kind not in ("BPE", "Unigram"):
        raise ValueError(f"{name} has model type {kind}; only BPE and Unigram are supported")
    kept = copy.deepcopy(description)
    kept |= dict.fromkeys(("truncation", "padding", "post_processor", "decoder"))
    kept["normalizer"] = _normalizer(kept.get("normalizer"), name)
    for part in _parts(kept.get("pre_tokenizer")):
        if part.get("type") == "ByteLevel":
            part["add_prefix_space"] = False
        if part.get("type") == "Metaspace":
            part |= {"prepend_scheme": "never", "add_prefix_space": False}
    for token in kept.get("added_tokens") or ():
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise ValueError(f"{name}: an added token must be a mapping with its content")
        token |= {"lstrip": False, "rstrip": False}  # otherwise spaces beside it are lost
    special = {token["content"] for token in kept.get("added_tokens") or () if token.get("special")}
    merges = kept["model"].get("merges")
    if isinstance(merges, list):  # the spelling of a special token must not be merged into its id
        kept["model"]["merges"] = [merge for merge in merges if _merged(merge) not in special]
    return kept


def _merged(merge: object) -> str:
    """Returns the token of a merge, which files hold as "a b" or ["a", "b"]."""
    return (
        merge.replace(" ", "", 1)
        if isinstance(merge, str)
        else "".join(map(str, merge if isinstance(merge, list) else ()))
    )


def _parts(part: object) -> Iterator[dict]:
    """Yields the parts of a normalizer or pre-tokenizer, those of sequences one by one."""
    if not isinstance(part, dict):
        return
    nested = [part[key] for key in _CHILDREN if isinstance(part.get(key), list)]
    if not nested:
        yield part
    for inner in nested:
        for one in inner:
            yield from _parts(one)


def _normalizer(normalizer: object, name: str) -> dict | None:
    steps = [part for part in _parts(normalizer) if part.get("type") not in _UNICODE_OR_SPACE]
    for step in steps:
        spaces = step.get("pattern") == {"String": " "} and step.get("content") == SPACE
        if step.get("type") not in _KEPT or (step["type"] == "Replace" and not spaces):
            raise ValueError(f"{name}: its normalizer {step.get('type')} changes the text")
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _pieces(tokenizer, description: dict, vocab_size: int, name: str) -> list[bytes]:
    """Returns the bytes of each id; unused ids up to `vocab_size` have none."""
    ids = tokenizer.get_vocab(with_added_tokens=True)
    highest = max(ids.values(), default=-1)
    limit = min(vocab_size or _MOST_IDS, _MOST_IDS)
    if highest >= limit:
        raise ValueError(f"{name} has id {highest}; ids must be below {limit}")
    parts = (*_parts(description["normalizer"]), *_parts(description.get("pre_tokenizer")))
    byte_level = any(part.get("type") == "ByteLevel" for part in parts)
    pieces = [b""] * (vocab_size or highest + 1)
    for token, token_id in ids.items():
        pieces[token_id] = _byte_level_piece(token) if byte_level else _escaped_piece(token)
    for token_id, added in tokenizer.get_added_tokens_decoder().items():
        pieces[token_id] = b"" if added.special else added.content.encode()
    unknown = description["model"].get("unk_token")
    if unknown in ids:
        pieces[ids[unknown]] = b""
    return pieces


def _escaped_piece(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()


def _byte_level_piece(token: str) -> bytes:
    if all(character in _BYTE_OF for character in token):
        return bytes(_BYTE_OF[character] for character in token)
    return token.encode()  # no text is ever encoded to this id


def _byte_of_character() -> dict[str, int]:
    """Returns the inverse of GPT-2's byte-to-character map: printable Latin-1 bytes are themselves,
    other bytes are characters 256, 257, ...
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTE_OF = _byte_of_character()


def _first_symbol(pieces: list[bytes]) -> int:
    """Returns the start of a run of SYMBOL_IDS ids that the tasks use for nothing else: the first
    run from the middle of the vocabulary on, or else the last run.

    Without such a run it returns a negative number, for which the retrieval tasks raise an error.
    """
    usable_V = np.array(
        [piece.strip() not in _TASK_TEXT and not _DIGIT.search(piece) for piece in pieces]
    )
    usable_before = np.concatenate([[0], np.cumsum(usable_V)])
    starts = np.flatnonzero(usable_before[SYMBOL_IDS:] - usable_before[:-SYMBOL_IDS] == SYMBOL_IDS)
    later = starts[starts >= len(pieces) // 2]
    return int(later[0] if len(later) else starts[-1]) if len(starts) else -SYMBOL_IDS
