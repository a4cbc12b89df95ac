"""Tokenizers of imported models: every byte of a text is counted once, and the ids are the model's own."""

import json

import numpy as np
import pytest

pytest.importorskip("tokenizers")

import tokenizers
from posenc_jax.data.imported_tokenizer import ImportedTokenizer, SpecialTokens
from posenc_jax.data.tokenizers import ROUND_TRIP_TEXT, SPACE, SYMBOL_IDS, open_tokenizer
from posenc_jax.interop import tokenizer_json
from posenc_jax.tasks.filler import Filler
from posenc_jax.tasks.passkey_mqar import mqar, passkey

from support.gguf_vocabularies import WORDS, trained, vocabulary

TEXTS = [
    "",
    " ",
    "\n\n  x",
    "a",
    "The grass is green.",
    ROUND_TRIP_TEXT,
    "tab\tand\r\nline",
    "\x00\x7f",
    "e\u0301 \u00e9 \ufb01",
    "<|end|> is text here <|start|>",
    SPACE + " " + SPACE * 2 + "x",
    "🙂👍🏽 日本",
    "12345 0.5e-3",
    " 3 leading",
    "\u2028 \u00a0 \u3000",
    "<mask>  <mask>",
    "<0x0A>",
]
SPECIAL = SpecialTokens(bos="<|start|>", eos="<|end|>")


@pytest.fixture(scope="module", params=["bytes", "nfc", "prepend", "metaspace"])
def opened(request):
    description = trained(request.param)
    return description, ImportedTokenizer(description, SPECIAL, request.param)


def test_the_bytes_of_the_ids_of_a_text_are_its_bytes(opened):
    _, tokenizer = opened
    for text in [*TEXTS, *WORDS, "".join(TEXTS)]:
        ids = tokenizer.encode(text.encode())
        assert ids.dtype == np.int32
        assert tokenizer.byte_lengths_V[ids].sum() == len(text.encode()), text
        assert tokenizer.decode(ids) == text.encode()


def test_the_ids_are_those_of_the_tokenizer_itself(opened):
    """A reference that adds a space gets a text whose space it does not have to add."""
    description, tokenizer = opened
    reference = tokenizers.Tokenizer.from_str(json.dumps(description))
    for text in WORDS:
        want = reference.encode(text, add_special_tokens=False).ids
        ours = tokenizer.encode(text.encode()).tolist()
        spaced = tokenizer.encode(b" " + text.encode()).tolist()
        assert want in (ours, spaced), text


def test_special_ids_are_the_models_and_have_no_bytes(opened):
    description, tokenizer = opened
    reference = tokenizers.Tokenizer.from_str(json.dumps(description))
    start, end = (reference.token_to_id(token) for token in ("<|start|>", "<|end|>"))
    assert (tokenizer.bos, tokenizer.pad, tokenizer.ends) == (
        start,
        start,
        tuple(sorted((start, end))),
    )
    assert tokenizer.byte_lengths_V[[start, end]].tolist() == [0, 0]
    assert tokenizer.decode([tokenizer.sep]) == b"\n"
    assert not {start, end} & set(tokenizer.encode(b"<|end|><|start|>").tolist())


def test_a_saved_tokenizer_is_the_same(opened, tmp_path):
    _, tokenizer = opened
    again = open_tokenizer(str(tokenizer.save(tmp_path / "tokenizer")))
    assert again.fingerprint != ""
    assert (
        again.encode(ROUND_TRIP_TEXT.encode()).tolist()
        == tokenizer.encode(ROUND_TRIP_TEXT.encode()).tolist()
    )
    assert (again.bos, again.pad, again.ends, again.vocab_size, again.first_symbol) == (
        tokenizer.bos,
        tokenizer.pad,
        tokenizer.ends,
        tokenizer.vocab_size,
        tokenizer.first_symbol,
    )
    other = ImportedTokenizer(tokenizer.description, SpecialTokens(bos="<|end|>"), "other")
    assert other.fingerprint != tokenizer.fingerprint


def test_a_model_may_have_more_ids_than_its_tokenizer(opened):
    description, tokenizer = opened
    wide = ImportedTokenizer(description, SpecialTokens("<|start|>", vocab_size=4000), "wide")
    assert wide.vocab_size == 4000
    assert wide.byte_lengths_V[tokenizer.vocab_size :].sum() == 0
    with pytest.raises(ValueError, match="ids must be below 100"):
        ImportedTokenizer(description, SpecialTokens("<|start|>", vocab_size=100), "narrow")


def test_retrieval_tasks_use_ids_of_the_vocabulary_that_stand_for_nothing_else(opened):
    _, tokenizer = opened
    filler = Filler(None, tokenizer, corpus=False)
    symbols = set(range(tokenizer.first_symbol, tokenizer.first_symbol + SYMBOL_IDS))
    used = {*filler.cue, *filler.digits, *filler.space, *filler.stop, tokenizer.bos, tokenizer.sep}
    assert not symbols & {int(i) for i in used}
    assert all(tokenizer.byte_lengths_V[i] for i in symbols)
    text = passkey(tokenizer, filler, split="dev", seed=0, index=3, length=200)
    (answer,) = text.answers
    digits = tokenizer.decode(text.tokens[answer.start : answer.stop])
    assert len(digits) == 5
    assert tokenizer.decode(text.tokens).count(b" key=" + digits + b".") == 1
    assert tokenizer.decode(text.tokens).endswith(b"\nkey=" + digits)
    recall = mqar(tokenizer, filler, split="dev", seed=0, index=3, length=100, pairs=4)
    counts = np.bincount(recall.tokens, minlength=tokenizer.vocab_size)
    keyed = [i for i in symbols if counts[i]]
    assert len(keyed) == 8
    assert {counts[i] for i in keyed} == {2}


def changed(**changes):
    return trained("bytes") | changes


def bad_model(**changes):
    description = trained("bytes")
    return description | {"model": description["model"] | changes}


WRONG = {
    "no model": (lambda: changed(model=None), "holds a None model"),
    "WordPiece": (lambda: bad_model(type="WordPiece"), "WordPiece model"),
    "lower case": (
        lambda: changed(normalizer={"type": "Lowercase"}),
        "normalizer Lowercase changes",
    ),
    "NFKC": (
        lambda: changed(normalizer={"type": "Sequence", "normalizers": [{"type": "NFKC"}]}),
        "NFKC changes",
    ),
    "replaced letters": (
        lambda: changed(normalizer={"type": "Replace", "pattern": {"String": "a"}, "content": "b"}),
        "Replace changes",
    ),
    "spaces removed": (
        lambda: changed(pre_tokenizer={"type": "Whitespace"}),
        "does not return the encoded text",
    ),
    "no bytes": (lambda: changed(pre_tokenizer=None), "does not return the encoded text"),
    "an undefined part": (
        lambda: changed(pre_tokenizer={"type": "Os", "command": "rm"}),
        "is no tokenizer.json",
    ),
    "a vocabulary that is none": (lambda: bad_model(vocab=[1, 2]), "is no tokenizer.json"),
    "a negative id": (lambda: bad_model(vocab={"a": -1}, merges=[]), "is no tokenizer.json"),
    "an id of 4 billion": (lambda: bad_model(vocab={"a": 2**32 - 1}, merges=[]), "x has id"),
    "merges of nothing": (lambda: bad_model(merges=["no such"]), "is no tokenizer.json"),
    "merges of numbers": (lambda: bad_model(merges=[7]), "x"),
    "an added token that is none": (lambda: changed(added_tokens=[7]), "must be a mapping"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_tokenizer_that_cannot_count_bytes_is_refused_in_one_line(name):
    description, message = WRONG[name]
    with pytest.raises(ValueError, match=message) as caught:
        ImportedTokenizer(description(), SPECIAL, "x")
    assert "\n" not in str(caught.value)


def test_a_folder_gives_its_tokenizer_with_its_special_tokens(tmp_path):
    assert tokenizer_json.load(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text(json.dumps(trained("bytes")))
    with pytest.raises(ValueError, match="no id for its BOS or EOS"):
        tokenizer_json.load(tmp_path)
    settings = {"bos_token": None, "eos_token": {"content": "<|end|>", "lstrip": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = tokenizer_json.load(tmp_path, vocab_size=2000)
    assert (tokenizer.ends, tokenizer.vocab_size) == ((tokenizer.bos,), 2000)
    (tmp_path / "link").mkdir()
    (tmp_path / "link/tokenizer.json").symlink_to(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="is a link"):
        tokenizer_json.load(tmp_path / "link")
    for bad in ({"bos_token": 7}, {"eos_token": "<|end|>", "vocab_size": -1}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(bad))
        with pytest.raises(ValueError, match=r"tokenizer_config\.json"):
            tokenizer_json.load(tmp_path)


def test_the_vocabulary_of_a_gguf_file_gives_the_ids_of_the_tokenizer_that_it_was_made_from():
    metadata, description = vocabulary()
    tokenizer = tokenizer_json.of_gguf(metadata, 0, "x")
    reference = ImportedTokenizer(description, SPECIAL, "reference")
    for text in [*TEXTS, *WORDS]:
        assert tokenizer.encode(text.encode()).tolist() == reference.encode(text.encode()).tolist()
    assert (tokenizer.bos, tokenizer.ends) == (reference.bos, reference.ends)


@pytest.mark.parametrize("split", tokenizer_json.SPLITS)
def test_every_way_to_split_a_text_keeps_its_bytes(split):
    tokenizer = tokenizer_json.of_gguf(vocabulary(pre=split)[0], 0, "x")
    for text in [*TEXTS, *WORDS]:
        assert tokenizer.decode(tokenizer.encode(text.encode())) == text.encode()


WRONG_VOCABULARIES = {
    "another kind": ({"model": "llama"}, "'llama'; gpt2"),
    "an unknown split": ({"pre": "smolm"}, "did you mean 'smollm'"),
    "no tokens": ({"tokens": []}, "must be a list of text"),
    "tokens of numbers": ({"tokens": np.arange(5)}, "must be a list of text"),
    "merges that are none": ({"merges": "a b"}, "must be a list of text"),
    "kinds that do not fit": ({"token_type": np.ones(3, np.int32)}, "a number for each token"),
    "a token twice": ({"tokens": ["a", "a"], "token_type": np.ones(2, np.int32)}, "holds a token twice"),
    "a BOS past the end": ({"bos_token_id": 10**6}, "bos_token_id is 1000000"),
    "a BOS in words": ({"bos_token_id": "<|start|>"}, "bos_token_id is"),
    "merges of nothing": ({"merges": ["no such"]}, "is no tokenizer.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_VOCABULARIES)
def test_a_wrong_vocabulary_is_refused_in_one_line(name):
    changes, message = WRONG_VOCABULARIES[name]
    with pytest.raises(ValueError, match=message) as caught:
        tokenizer_json.of_gguf(vocabulary(**changes)[0], 0, "x")
    assert "\n" not in str(caught.value)
