"""Small trained tokenizers of the shapes that checkpoints have, and one as the vocabulary of a GGUF file."""

import json
import re
from pathlib import Path

import numpy as np
import tokenizers
from posenc_jax.data.tokenizers import SPACE
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

WORDS = [
    "The grass is green and the sky is blue; here we go, there and back again.",
    "def attention(query, key, value): return weights @ value  # 1234 tokens",
    "Ça va? déjà vu, naïve café, Übermut, señor, 日本語, Ω and α",
]


def trained(kind):
    """A small tokenizer of one of the shapes that checkpoints have, as its JSON."""
    special, extra = ["<|end|>", "<|start|>"], []
    if kind in ("bytes", "nfc"):
        built = tokenizers.Tokenizer(models.BPE())
        built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        if kind == "bytes":
            digits = pre_tokenizers.Digits(individual_digits=True)
            built.pre_tokenizer = pre_tokenizers.Sequence(
                [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
        built.normalizer = normalizers.NFC() if kind == "nfc" else None
        built.decoder, alphabet = decoders.ByteLevel(), pre_tokenizers.ByteLevel.alphabet()
    else:
        built = tokenizers.Tokenizer(
            models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>")
        )
        if kind == "prepend":
            built.normalizer = normalizers.Sequence(
                [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
            )
        else:
            built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        special, alphabet = ["<unk>", *special], []
        extra = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=1200, special_tokens=special + extra, initial_alphabet=alphabet
    )
    built.train_from_iterator(
        [*WORDS, re.sub(r"\d", "", Path(__file__).with_name("oracles.py").read_text())], trainer
    )
    built.add_tokens([tokenizers.AddedToken("<mask>", lstrip=True, rstrip=True, normalized=False)])
    description = json.loads(built.to_str())
    kept = [t for t in description["added_tokens"] if t["content"] not in extra]
    return description | {"added_tokens": kept}


def vocabulary(**changes):
    """The metadata of a GGUF file with the vocabulary of `trained("bytes")`, and that tokenizer's JSON."""
    description = trained("bytes")
    ids = description["model"]["vocab"] | {
        t["content"]: t["id"] for t in description["added_tokens"]
    }
    tokens = sorted(ids, key=ids.get)
    kinds = dict.fromkeys(tokens, 1) | {
        t["content"]: 3 if t["special"] else 4 for t in description["added_tokens"]
    }
    merges = [" ".join(merge) for merge in description["model"]["merges"]]
    metadata = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "merges": merges,
        "bos_token_id": ids["<|start|>"],
        "token_type": np.array([kinds[t] for t in tokens], np.int32),
        "eos_token_id": ids["<|end|>"],
    } | changes
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}, description
