"""P3, offset lookup: the answer stands exactly t back, and nothing else gives it away."""

import numpy as np
import pytest
from posenc_jax.data.tokenizers import open_tokenizer
from posenc_jax.tasks.filler import SYMBOLS, Filler
from posenc_jax.tasks.offset_lookup import (
    OffsetWindows,
    asked_offsets,
    offset_lookup,
    shortest_length,
    spread_offsets,
)
from posenc_jax.training.inputs import open_inputs, training_batches

from support import runs

TOKENIZER = open_tokenizer("bytes")
FILLER = Filler(None, TOKENIZER, corpus=False)
OFFSETS = (8, 15, 40, 51)


def instance(index=0, length=64, split="test", offsets=OFFSETS):
    return offset_lookup(FILLER, split=split, seed=7, index=index, length=length, offsets=offsets)


def test_every_answer_is_the_symbol_exactly_t_before_its_cue():
    for index in range(20):
        made = instance(index)
        assert len(made.tokens) == 64
        assert made.tokens[0] == FILLER.bos
        assert sorted(a.distance for a in made.answers) == list(OFFSETS)
        for answer in made.answers:
            cue = answer.start - 1
            assert made.tokens[cue] == FILLER.keys + OFFSETS.index(answer.distance)
            assert made.tokens[answer.start] == made.tokens[cue - answer.distance]
            assert 0 < cue - answer.distance < 64 - 2 * len(OFFSETS) - 1  # a symbol of the stream
            assert answer.depth == (cue - answer.distance) / 64


def test_a_longer_instance_is_the_shorter_one_with_more_symbols_in_front():
    short, long = instance(3, 64), instance(3, 300)
    np.testing.assert_array_equal(long.tokens[-63:], short.tokens[1:])
    assert [a.distance for a in long.answers] == [a.distance for a in short.answers]
    assert long.answers[0].start - short.answers[0].start == 300 - 64


def test_symbols_are_uniform():
    answers = np.array([m.tokens[a.start] for m in map(instance, range(800)) for a in m.answers])
    counts = np.bincount(answers - FILLER.values, minlength=SYMBOLS)
    assert len(counts) == SYMBOLS
    expected = len(answers) / SYMBOLS
    assert ((counts - expected) ** 2 / expected).sum() < 63 + 4 * np.sqrt(2 * 63)  # 4 sd of chi2


def test_instances_differ_between_splits_and_indices_and_orders_vary():
    assert (instance(0).tokens != instance(1).tokens).any()
    assert (instance(0).tokens != instance(0, split="dev").tokens).any()
    orders = {tuple(a.distance for a in instance(i).answers) for i in range(30)}
    assert len(orders) > 10


def test_training_windows_weigh_the_answers_alone():
    windows = OffsetWindows(
        FILLER,
        offsets=OFFSETS,
        length=64,
        seed=0,
        split="train",
        answer_weight=3.0,
        pad=TOKENIZER.pad,
    )
    example = windows[5]
    asked = np.flatnonzero(example["weights_T"])
    assert len(asked) == len(OFFSETS)
    assert (example["weights_T"][asked] == 3.0).all()
    for t in asked:  # the cue at t, its target the symbol an offset back
        offset = OFFSETS[example["tokens_T"][t] - FILLER.keys]
        assert example["targets_T"][t] == example["tokens_T"][t - offset]
    np.testing.assert_array_equal(windows[5]["tokens_T"], example["tokens_T"])
    assert (windows[6]["tokens_T"] != example["tokens_T"]).any()


def test_offsets_spread_from_the_nearest_possible_to_the_farthest_within_l():
    offsets = spread_offsets(64, 4)
    assert offsets[0] == 8
    assert shortest_length(offsets) == 64
    assert offsets[-1] == 55
    with pytest.raises(ValueError, match="no room for 8 different offsets"):
        spread_offsets(24, 8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"offsets": (7, 15, 40, 51)}, "would end among 4 questions; the nearest that cannot is 8"),
        ({"offsets": (15, 8)}, "rising"),
        ({"length": 59}, "needs a length of at least 60"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(changes, words):
    with pytest.raises(ValueError, match=words):
        instance(**changes)


def test_a_run_takes_its_share_of_offset_windows_and_no_text_where_none_is_left(data_dir):
    config = runs.config(data_dir, data={"retrieval_share": 0.7, "offset_share": 0.3})
    inputs = open_inputs(config)
    feed = training_batches(config, inputs, first_step=0, process_index=0, process_count=1)
    rows = np.concatenate([next(feed)["tokens_BT"] for _ in range(config.train.steps)])
    filler = Filler(None, inputs.tokenizer, corpus=False)
    count = len(asked_offsets(config.train.length))
    sep = rows[:, -2 * count - 1] == filler.sep
    offset = sep & (rows[:, 1 : -2 * count - 1] >= filler.values).all(1)
    assert 0.15 < offset.mean() < 0.45
    with pytest.raises(ValueError, match=r"offset_share=0\.4 are more than all windows"):
        open_inputs(runs.config(data_dir, data={"retrieval_share": 0.7, "offset_share": 0.4}))
