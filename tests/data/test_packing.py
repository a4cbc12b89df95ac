"""Windows and packed documents, against loops over whole documents."""

import dataclasses

import numpy as np
import pytest
from posenc_jax.data.packing import Document, pack, text_window

BOS, PAD = 256, 258


@dataclasses.dataclass
class FakeStream:
    tokens: np.ndarray
    bos: int = BOS
    pad: int = PAD


def stream_of(lengths: list[int]) -> FakeStream:
    draw = np.random.default_rng(1)
    parts = [np.append(BOS, draw.integers(0, 256, length - 1)) for length in lengths]
    return FakeStream(np.concatenate(parts).astype(np.uint16))


def expected_window(tokens: list[int], start: int, length: int) -> list[tuple]:
    """(token, target, position, segment, weight) of each place, one token at a time."""
    rows, position, segment = [], -1, 1
    for place in range(start, start + length):
        opens = tokens[place] == BOS
        if opens and place > start:
            segment += 1
        position = 0 if opens else position + 1
        last = tokens[place + 1] == BOS
        target = PAD if last else tokens[place + 1]
        rows.append((tokens[place], target, position, segment, 0.0 if last else 1.0))
    return rows


def rows_of(example) -> list[tuple]:
    keys = ["tokens_T", "targets_T", "positions_T", "segments_T", "weights_T"]
    return list(zip(*(example[key].tolist() for key in keys), strict=True))


@pytest.mark.parametrize("lengths", [[100], [5, 1, 1, 7, 40, 3, 43], [16, 16, 16, 17]])
def test_windows_equal_a_walk_over_the_tokens(lengths):
    stream = stream_of(lengths)
    for index in range((len(stream.tokens) - 1) // 8):
        example = text_window(stream, index, 8)
        assert rows_of(example) == expected_window(stream.tokens.tolist(), index * 8, 8)


def test_windows_cover_each_token_once():
    stream = stream_of([30, 12, 23])
    seen = np.concatenate([text_window(stream, index, 8)["tokens_T"] for index in range(8)])
    assert seen.tolist() == stream.tokens[:64].tolist()


def test_examples_have_the_types_that_models_expect():
    window = text_window(stream_of([20]), 0, 8)
    packed = pack([Document(np.arange(5), np.ones(5))], 8, PAD)
    for example in (window, packed):
        kinds = {key: value.dtype.name for key, value in example.items()}
        assert kinds == {
            "tokens_T": "int32",
            "targets_T": "int32",
            "positions_T": "int32",
            "segments_T": "int32",
            "weights_T": "float32",
        }


def test_packed_documents_equal_the_same_documents_alone():
    draw = np.random.default_rng(2)
    documents = [
        Document(draw.integers(0, 256, n), draw.integers(0, 2, n).astype(float)) for n in (9, 1, 14)
    ]
    packed = pack(documents, 32, PAD)
    start = 0
    for number, document in enumerate(documents, 1):
        size = len(document.tokens)
        alone = pack([document], size, PAD)
        inside = slice(start, start + size)
        for key in ("tokens_T", "targets_T", "positions_T", "weights_T"):
            assert packed[key][inside].tolist() == alone[key].tolist()
        assert (packed["segments_T"][inside] == number).all()
        start += size
    assert (packed["segments_T"][start:] == 0).all()
    assert (packed["tokens_T"][start:] == PAD).all()
    assert not packed["weights_T"][start:].any()


def test_a_packed_document_equals_its_text_window():
    stream = stream_of([16, 9])
    document = Document(stream.tokens[:16].astype(np.int32), np.ones(16))
    assert rows_of(text_window(stream, 0, 16)) == rows_of(pack([document], 16, PAD))


def test_weights_move_with_the_targets():
    document = Document(np.array([7, 8, 9]), np.array([0.0, 0.0, 1.0]))
    example = pack([document], 4, PAD)
    assert example["targets_T"].tolist() == [8, 9, PAD, PAD]
    assert example["weights_T"].tolist() == [0, 1, 0, 0]


def test_documents_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="9 tokens do not fit into a window of 8"):
        pack([Document(np.arange(9), np.ones(9))], 8, PAD)
