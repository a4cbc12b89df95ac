"""Tokenizers give their text back, and say how many bytes an id stands for."""

import numpy as np
import pytest
from posenc_jax.data.tokenizers import open_tokenizer

from support.sentencepiece_models import train_sentencepiece

TEXT = "Once  upon\ta time\r\n\n there was 12 % caf\u00e9 \u2581 \U0001f642 key=5.\n" * 3


@pytest.fixture(params=["bytes", "sentencepiece"])
def tokenizer(request, tmp_path):
    name = "bytes" if request.param == "bytes" else train_sentencepiece(tmp_path)
    return open_tokenizer(name)


def test_text_comes_back_byte_for_byte(tokenizer):
    ids = tokenizer.encode(TEXT.encode())
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == TEXT.encode()


def test_byte_lengths_add_up_to_the_text(tokenizer):
    ids = tokenizer.encode(TEXT.encode())
    assert tokenizer.byte_lengths_V.shape == (tokenizer.vocab_size,)
    assert tokenizer.byte_lengths_V[ids].sum() == len(TEXT.encode())


def test_a_uniform_model_costs_log2_vocabulary_per_token_and_less_per_byte(tokenizer):
    ids = tokenizer.encode(TEXT.encode())
    bits = len(ids) * np.log2(tokenizer.vocab_size)
    per_byte = bits / tokenizer.byte_lengths_V[ids].sum()
    assert per_byte == pytest.approx(
        np.log2(tokenizer.vocab_size) * len(ids) / len(TEXT.encode()), rel=1e-12
    )


def test_special_ids_are_the_last_four_and_stand_for_no_bytes(tokenizer):
    special = [tokenizer.bos, tokenizer.sep, tokenizer.pad, tokenizer.ans]
    assert special == list(range(tokenizer.vocab_size - 4, tokenizer.vocab_size))
    assert not tokenizer.byte_lengths_V[special].any()
    assert tokenizer.decode(special) == b""
    assert tokenizer.encode(TEXT.encode()).max() < tokenizer.bos


def test_bytes_are_their_own_ids():
    tokenizer = open_tokenizer("bytes")
    assert tokenizer.vocab_size == 260
    assert tokenizer.encode(bytes(range(256))).tolist() == list(range(256))
    assert (tokenizer.bos, tokenizer.sep, tokenizer.pad, tokenizer.ans) == (256, 257, 258, 259)


def test_sentencepiece_merges_and_adds_no_space_in_front(tmp_path):
    tokenizer = open_tokenizer(train_sentencepiece(tmp_path))
    assert len(tokenizer.encode(b"the the the")) < len(b"the the the")
    assert tokenizer.decode(tokenizer.encode(b"the")) == b"the"
    assert len(tokenizer.encode(b"7")) == 1


def test_half_a_character_decodes_to_its_bytes(tmp_path):
    tokenizer = open_tokenizer(train_sentencepiece(tmp_path))
    ids = tokenizer.encode("\U0001f642".encode())
    assert len(ids) == 4
    assert tokenizer.decode(ids[:2]) == "\U0001f642".encode()[:2]


def test_different_models_have_different_fingerprints(tmp_path):
    first = open_tokenizer(train_sentencepiece(tmp_path)).fingerprint
    second = open_tokenizer(train_sentencepiece(tmp_path, vocab_size=310)).fingerprint
    assert len({first, second, open_tokenizer("bytes").fingerprint}) == 3


@pytest.mark.parametrize(
    "options", [{"byte_fallback": False, "vocab_size": 60}, {"normalization_rule_name": "nmt_nfkc"}]
)
def test_a_model_that_loses_text_is_refused(tmp_path, options):
    path = train_sentencepiece(tmp_path, **options)
    with pytest.raises(
        ValueError, match="decoding the ids does not return the encoded text"
    ) as error:
        open_tokenizer(path)
    assert "\n" not in str(error.value)


def test_a_missing_or_broken_model_is_named_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"data\.tokenizer=nowhere\.model: no such file"):
        open_tokenizer("nowhere.model")
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"this is no model")
    with pytest.raises(ValueError, match=r"broken\.model is not a SentencePiece model"):
        open_tokenizer(str(broken))
