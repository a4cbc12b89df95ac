"""End targets: the last token of a document predicts the end, against a walk over whole documents."""

import types

import numpy as np
import pytest
from posenc_jax.data.end_targets import EndTargets
from posenc_jax.data.packing import Document, pack, text_window
from posenc_jax.data.random_positions import RandomPositions
from posenc_jax.tasks.longtext import LabelTokenizer
from posenc_jax.training import inputs as module
from posenc_jax.training.inputs import open_inputs, training_batches

from support import runs

BOS, PAD, END = 256, 258, 999


def stream_of(lengths):
    draw = np.random.default_rng(1)
    parts = [np.append(BOS, draw.integers(0, 256, length - 1)) for length in lengths]
    return types.SimpleNamespace(tokens=np.concatenate(parts).astype(np.uint16), bos=BOS, pad=PAD)


def walked(tokens, place, length):
    """(target, weight) of each place of a window: the next token, or the end before the next document."""
    after = [tokens[at + 1] for at in range(place, place + length)]
    return [(END if token == BOS else token, 1.0) for token in after]


@pytest.mark.parametrize("lengths", [[100], [5, 1, 1, 7, 40, 3, 43], [16, 16, 16, 17], [8] * 9])
def test_a_window_of_text_has_an_end_wherever_a_document_ends(lengths):
    stream, ends = stream_of(lengths), EndTargets(END, PAD)
    tokens = stream.tokens.tolist()
    for index in range((len(tokens) - 1) // 8):
        plain = text_window(stream, index, 8)
        example = ends(plain)
        pairs = zip(example["targets_T"].tolist(), example["weights_T"].tolist(), strict=True)
        assert list(pairs) == walked(tokens, index * 8, 8)
        for name in ("tokens_T", "positions_T", "segments_T"):
            assert example[name] is plain[name]
        assert {name: x.dtype for name, x in example.items()} == {
            name: x.dtype for name, x in plain.items()
        }


@pytest.mark.parametrize("size", [24, 31])  # the second has padding
def test_packed_documents_end_one_by_one_and_padding_has_no_target(size):
    draw = np.random.default_rng(2)
    documents = [
        Document(draw.integers(0, 256, n), draw.integers(0, 2, n) * 4.0) for n in (9, 1, 14)
    ]
    example = EndTargets(END, PAD)(pack(documents, size, PAD))
    targets, weights = [], []
    for document in documents:
        targets += [*document.tokens[1:], END]
        weights += [*document.weights[1:], 1.0]
    rest = size - len(targets)
    assert example["targets_T"].tolist() == targets + [PAD] * rest
    assert example["weights_T"].tolist() == weights + [0.0] * rest


def test_a_pad_id_that_is_also_the_end_or_a_word_is_no_trouble():
    """Imported vocabularies may have one id for PAD, BOS and EOS, or a word as PAD."""
    example = EndTargets(7, 7)(pack([Document(np.array([7, 5]), np.ones(2))], 4, 7))
    assert example["targets_T"].tolist() == [5, 7, 7, 7]
    assert example["weights_T"].tolist() == [1, 1, 0, 0]
    word = EndTargets(END, 7)(pack([Document(np.array([1, 7, 5]), np.zeros(3))], 3, 7))
    assert word["targets_T"].tolist() == [7, 5, END]  # a word of weight 0 inside a document
    stream = types.SimpleNamespace(tokens=np.array([BOS, 1, 2, PAD, 3], np.int32), bos=BOS, pad=PAD)
    plain = text_window(stream, 0, 3)  # the next token is PAD, as a word: the document goes on
    assert EndTargets(END, PAD)(plain)["targets_T"].tolist() == [1, 2, PAD]


def test_random_positions_move_no_end():
    example = pack([Document(np.arange(3), np.ones(3))] * 2, 8, PAD)
    ends, scattered = EndTargets(END, PAD), RandomPositions(64, seed=0)
    one, two = ends(scattered(3, example)), scattered(3, ends(example))
    for name in example:
        np.testing.assert_array_equal(one[name], two[name])


def first_batch(data_dir, **data):
    config = runs.config(data_dir, data={"retrieval_share": 0.5, **data})
    return next(
        training_batches(
            config, open_inputs(config), first_step=0, process_index=0, process_count=1
        )
    )


def test_a_run_is_asked_for_the_ends_of_text_and_of_tasks_and_for_nothing_else_new(data_dir):
    plain, ended = (first_batch(data_dir, end_targets=on) for on in (False, True))
    new = plain["targets_BT"] != ended["targets_BT"]
    last = plain["segments_BT"] != np.pad(plain["segments_BT"][:, 1:], ((0, 0), (0, 1)))
    assert new.sum() >= 4
    assert (ended["targets_BT"][new] == BOS).all()
    assert (last & (plain["segments_BT"] != 0))[new].all()
    assert (ended["weights_BT"] - plain["weights_BT"] == new).all()


def test_a_vocabulary_without_an_end_token_is_refused(data_dir, monkeypatch):
    config = runs.config(data_dir, data={"end_targets": True})
    monkeypatch.setattr(module, "open_tokenizer", lambda name: types.SimpleNamespace(end=None))
    with pytest.raises(ValueError, match="end_targets: the tokenizer bytes names no end token"):
        open_inputs(config)


def test_classification_has_no_ends(data_dir):
    config = runs.config(
        data_dir, data={"task": "classification", "retrieval_share": 0.0, "end_targets": True}
    )
    with pytest.raises(ValueError, match=r"end_targets must be False for .*classification"):
        open_inputs(config)
    base = types.SimpleNamespace(
        bos=1,
        sep=2,
        pad=3,
        ans=4,
        first_symbol=5,
        ends=(1,),
        end=1,
        vocab_size=9,
        byte_lengths_V=np.ones(9, np.int32),
        fingerprint="x",
    )
    assert LabelTokenizer(base, ["a"]).end == 1
