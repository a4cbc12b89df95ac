"""Random positions in training: the draws and the batches that hold them."""

import itertools

import numpy as np
import pytest
from posenc_jax.data.random_positions import RandomPositions
from posenc_jax.training.inputs import open_inputs, training_batches

from support import runs
from support.packed_rows import packed

L, SPAN, N, H = 16, 128, 4, 8


def test_every_document_has_a_rising_draw_of_its_own_and_nothing_else_changes():
    example = packed(9, 5)
    seen = set()
    for row in range(50):
        drawn = RandomPositions(SPAN, seed=3)(row, example)
        assert drawn.keys() == example.keys()
        for name in example.keys() - {"positions_T"}:
            assert drawn[name] is example[name]
        positions_T = drawn["positions_T"]
        assert positions_T.dtype == example["positions_T"].dtype
        for document in (positions_T[:9], positions_T[9:14]):
            assert (np.diff(document) > 0).all()
            assert document[0] >= 0
            assert document[-1] < SPAN
            seen.add(tuple(document))
        assert (positions_T[14:] == 0).all()
    assert len(seen) == 100


def test_all_sets_of_positions_are_equally_likely():
    found = [
        tuple(RandomPositions(4, 0)(row, packed(2, size=2))["positions_T"]) for row in range(6000)
    ]
    counts = {pair: found.count(pair) for pair in itertools.combinations(range(4), 2)}
    assert sum(counts.values()) == 6000
    # 1000 each, standard deviation 29.
    assert max(abs(count - 1000) for count in counts.values()) < 4 * 29
    # The mean of the i-th of n sorted draws from [0, S) is (i + 1)(S + 1)/(n + 1) - 1.
    many = np.stack(
        [RandomPositions(SPAN, 1)(row, packed(L))["positions_T"] for row in range(2000)]
    )
    want = np.arange(1, L + 1) * (SPAN + 1) / (L + 1) - 1
    assert np.abs(many.mean(0) - want).max() < 4 * many.std(0).max() / 2000**0.5


def test_a_draw_is_a_function_of_seed_and_row():
    one = RandomPositions(SPAN, 0)(7, packed(L))["positions_T"].tolist()
    assert one == RandomPositions(SPAN, 0)(7, packed(L))["positions_T"].tolist()
    assert one != RandomPositions(SPAN, 0)(8, packed(L))["positions_T"].tolist()
    assert one != RandomPositions(SPAN, 1)(7, packed(L))["positions_T"].tolist()
    assert RandomPositions(L, 0)(7, packed(L))["positions_T"].tolist() == list(range(L))
    with pytest.raises(ValueError, match="a document of 16 tokens has no 16 different positions"):
        RandomPositions(L - 1, 0)(7, packed(L))


def test_positions_that_int32_does_not_hold_are_refused():
    far = RandomPositions(2**31 - 1, 0)(7, packed(L))["positions_T"]
    assert (np.diff(far) > 0).all()
    assert far.min() >= 0
    assert far.max() > 2**30
    for span in (2**31, 2**40, 0):
        with pytest.raises(
            ValueError, match=f"1 to 2,147,483,647 positions .int32., not from {span:,}$"
        ):
            RandomPositions(span, 0)


def batches_of(data_dir, k, steps=(0, 6), process=(0, 1), **data):
    config = runs.config(
        data_dir, "rope", data={"random_positions": k, "retrieval_share": 0.5} | data
    )
    feed = training_batches(
        config,
        open_inputs(config),
        first_step=steps[0],
        process_index=process[0],
        process_count=process[1],
    )
    return [batch for _, batch in zip(range(*steps), feed, strict=False)]


def test_a_row_of_a_run_has_the_same_draw_after_a_restart_and_on_any_number_of_hosts(data_dir):
    whole, plain = batches_of(data_dir, 8), batches_of(data_dir, 0)
    for a, b in zip(whole, plain, strict=True):
        assert not np.array_equal(a["positions_BT"], b["positions_BT"])
        assert a["positions_BT"].max() < 8 * 32
        for name in a.keys() - {"positions_BT"}:
            np.testing.assert_array_equal(a[name], b[name])
    assert max(a["positions_BT"].max() for a in whole) > 4 * 32
    later = batches_of(data_dir, 8, steps=(4, 6), threads=5)
    halves = [batches_of(data_dir, 8, process=(p, 2)) for p in range(2)]
    for step, batch in enumerate(whole):
        both = np.concatenate([half[step]["positions_BT"] for half in halves])
        np.testing.assert_array_equal(batch["positions_BT"], both)
        if step >= 4:
            np.testing.assert_array_equal(batch["positions_BT"], later[step - 4]["positions_BT"])


@pytest.mark.parametrize(
    ("scheme", "changes", "message"),
    [
        (
            "rope",
            {"data": {"random_positions": -1}},
            r"config.data.random_positions must lie in \[0, ",
        ),
        (
            "learned(size=64)",
            {"data": {"random_positions": 8}},
            r"random_positions=8 draws from 256 positions, and 'learned\(size=64\)' has 64",
        ),
        (
            "axial",
            {"data": {"random_positions": 2}},
            "random_positions=2: 'axial' takes positions as cells of a grid",
        ),
        (
            "rope+alibi",
            {"data": {"random_positions": 8}, "model": {"attention": "flash"}},
            "positions are random",
        ),
        (
            "rope",
            {"data": {"random_positions": 2**20}, "train": {"length": 2048}},
            "random_positions=1048576 at config.train.length=2048 draws from 2,147,483,648 "
            "positions, and int32 holds 2,147,483,647",
        ),
    ],
)
def test_what_cannot_read_random_positions_is_refused_at_the_door(scheme, changes, message):
    with pytest.raises(ValueError, match=message):
        runs.config("unused", scheme, **changes)
