"""A small SentencePiece model, trained on a few generated lines."""

import io

import numpy as np
import sentencepiece


def train_sentencepiece(folder, **options) -> str:
    text = "the quick brown fox jumps over the lazy dog and key value pairs 0123456789 = . ?"
    words = text.split()
    draw = np.random.default_rng(0)
    lines = [" ".join(draw.choice(words, 9)) for _ in range(300)]
    model = io.BytesIO()
    settings = {
        "vocab_size": 300,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, **(settings | options)
    )
    path = folder / "tiny.model"
    path.write_bytes(model.getvalue())
    return str(path)
