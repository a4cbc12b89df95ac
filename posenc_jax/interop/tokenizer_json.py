"""Tokenizers of other people's checkpoints: a folder's tokenizer.json, and the vocabulary in a GGUF
file.
"""

from pathlib import Path

import numpy as np

from posenc_jax.data.imported_tokenizer import (
    SETTINGS,
    ImportedTokenizer,
    SpecialTokens,
    read_tokenizer,
)
from posenc_jax.interop.checkpoint_folder import plain_file
from posenc_jax.results.near_names import near_names

FILE = "tokenizer.json"
_CONTROL, _USER_DEFINED = 3, 4  # kinds of a token in GGUF
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SUFFIXES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Regular expressions that split a text, one after another, by GGUF's tokenizer.ggml.pre; the
# published tokenizer.json of GPT-2, SmolLM, Llama 3 and Qwen2.
SPLITS = {
    "gpt-2": (_WORDS,),
    "smollm": (r"\p{N}", _WORDS),
    "llama-bpe": (_SUFFIXES + r"|\p{N}{1,3}" + _REST,),
    "qwen2": (_SUFFIXES + r"|\p{N}" + _REST,),
}


def load(folder: Path, vocab_size: int = 0) -> ImportedTokenizer | None:
    """Returns the tokenizer of a Hugging Face folder; None if it has no tokenizer.json.

    Args:
      vocab_size: rows of the model's embedding; 0: the number of the tokenizer's ids.

    Raises:
      ValueError: a tokenizer that is damaged, or that loses text.
    """
    there = [
        name
        for name in (FILE, SETTINGS)
        if (folder / name).is_symlink() or (folder / name).exists()
    ]
    for name in there:
        plain_file(folder, name)
    return read_tokenizer(folder / FILE, vocab_size) if FILE in there else None


def of_gguf(metadata: dict, vocab_size: int, name: str) -> ImportedTokenizer:
    """Returns the tokenizer in the metadata of a GGUF file: byte-level BPE.

    Args:
      metadata: as of `GgufFile`. vocab_size: rows of the model's embedding. name: for errors.

    Raises:
      ValueError: another kind of vocabulary, an unknown way to split text, or fields that do not
        fit.
    """
    kind, split = (metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind != "gpt2":
        raise ValueError(f"{name}: tokenizer.ggml.model is {kind!r}; gpt2 (byte-level BPE) is read")
    if split not in SPLITS:
        raise ValueError(f"{name}: tokenizer.ggml.pre is {split!r}{near_names(str(split), SPLITS)}")
    tokens = _strings(metadata, "tokens", name)
    merges = _strings(metadata, "merges", name)
    kinds = metadata.get("tokenizer.ggml.token_type", np.ones(len(tokens), np.int32))
    if not isinstance(kinds, np.ndarray) or kinds.shape != (len(tokens),):
        raise ValueError(f"{name}: tokenizer.ggml.token_type must have a number for each token")
    if len(set(tokens)) < len(tokens):
        raise ValueError(f"{name}: tokenizer.ggml.tokens holds a token twice")
    added = [
        {
            "id": number, "content": token, "special": bool(kind == _CONTROL), "single_word": False,
            "lstrip": False, "rstrip": False, "normalized": False,
        }
        for number, (token, kind) in enumerate(zip(tokens, kinds.tolist(), strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]  # fmt: skip
    ids = {token: number for number, token in enumerate(tokens)}
    description = _byte_level_bpe(ids, merges, SPLITS[split]) | {"added_tokens": added}
    special = {
        which: _special(metadata, f"{key}_token_id", tokens, name)
        for which, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    return ImportedTokenizer(description, SpecialTokens(**special, vocab_size=vocab_size), name)


def _byte_level_bpe(ids: dict[str, int], merges: list[str], splits: tuple[str, ...]) -> dict:
    """Returns a tokenizer.json of byte-level BPE (Radford et al. 2019, sec. 2.2)."""
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    steps = [
        {"type": "Split", "pattern": {"Regex": r}, "behavior": "Isolated", "invert": False}
        for r in splits
    ]
    return {
        "version": "1.0",
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, byte_level]},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": splits == SPLITS["llama-bpe"],
            "vocab": ids,
            "merges": merges,
        },
    }


def _strings(metadata: dict, key: str, name: str) -> list[str]:
    found = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(found, list) or not found:
        raise ValueError(f"{name}: tokenizer.ggml.{key} must be a list of text")
    return found


def _special(metadata: dict, key: str, tokens: list[str], name: str) -> str:
    number = metadata.get(f"tokenizer.ggml.{key}")
    if number is None:
        return ""
    if type(number) is not int or not 0 <= number < len(tokens):
        raise ValueError(
            f"{name}: tokenizer.ggml.{key} is {number!r}, and there are {len(tokens)} tokens"
        )
    return tokens[number]
