"""Token streams: a split's documents and nothing of another split, on disk as a whole or not at all."""

import pathlib

import numpy as np
import pytest
from posenc_jax.data.corpora import open_corpus
from posenc_jax.data.token_stream import open_stream
from posenc_jax.data.tokenizers import open_tokenizer


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def stdlib(data_dir):
    return open_corpus("python_stdlib", data_dir)


def test_train_windows_hold_no_document_of_another_split(stdlib, data_dir):
    stream = open_stream(stdlib, "train", open_tokenizer("bytes"), data_dir)
    tokens = stream.tokens[:]
    text = tokens[tokens < 256].astype(np.uint8).tobytes()
    assert text == b"".join(text for _, text in stdlib.documents("train"))
    for split in ("dev", "test"):
        for name, document in stdlib.documents(split):
            # The middle: licences and closing lines are shared between modules.
            middle = document[len(document) // 2 :][:400]
            assert len(document) < 800 or middle not in text, name


def test_a_stream_is_the_documents_each_after_bos(stdlib, data_dir):
    tokenizer = open_tokenizer("bytes")
    stream = open_stream(stdlib, "dev", tokenizer, data_dir)
    documents = list(stdlib.documents("dev"))
    assert stream.names == [name for name, _ in documents]
    assert len(stream) == len(stream.tokens) == sum(len(text) + 1 for _, text in documents)
    assert stream.tokens.dtype == np.uint16
    for index, (_, text) in enumerate(documents):
        assert stream.document(index).tolist() == [tokenizer.bos, *text]
    again = open_stream(stdlib, "dev", tokenizer, data_dir)
    assert again.fingerprint == stream.fingerprint
    assert not list(pathlib.Path(data_dir, "streams").glob(".unfinished*"))


def test_a_failed_stream_leaves_nothing_behind(stdlib, tmp_path):
    class Failing:
        vocab_size, bos, pad, fingerprint = 300, 256, 258, "failing"

        def encode(self, text):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        open_stream(stdlib, "test", Failing(), str(tmp_path))
    assert not list((tmp_path / "streams").iterdir())
