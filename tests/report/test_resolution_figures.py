"""The picture of accuracy against resolution says what the rows say."""

import pytest
from posenc_jax.report.resolution_figures import accuracy_by_arm, resolution_figure


def row(arm, seed, size, accuracy, train_size=8):
    return {"arm": arm, "seed": seed, "size": size, "train_size": train_size, "accuracy": accuracy}


ROWS = [
    row("b", 0, 8, 0.9),
    row("a", 1, 16, 0.25),
    row("a", 0, 16, 0.75),
    row("a", 0, 8, 1.0),
    row("a", 1, 8, 0.5),
]


def test_seeds_are_averaged_and_their_range_is_kept():
    records = accuracy_by_arm(ROWS)
    assert [(r["arm"], r["size"], r["accuracy"], r["least"], r["most"], r["seeds"]) for r in records] == [
        ("a", 8, 0.75, 0.5, 1.0, 2), ("a", 16, 0.5, 0.25, 0.75, 2), ("b", 8, 0.9, 0.9, 0.9, 1),
    ]  # fmt: skip


def test_the_picture_has_the_table_that_it_is_drawn_from():
    figure = resolution_figure(accuracy_by_arm(ROWS))
    assert figure.csv().splitlines()[2] == "a,16,8,2,0.5,0.25,0.75"
    assert figure.png().startswith(b"\x89PNG")


def test_seeds_of_one_accuracy_are_drawn():
    """The mean of three equal numbers may be rounded below them."""
    rows = [row("a", seed, 8, 0.1) for seed in range(3)]
    assert resolution_figure(accuracy_by_arm(rows)).png().startswith(b"\x89PNG")


@pytest.mark.parametrize(("rows", "message"), [
    ([], "one training resolution"),
    ([*ROWS, row("a", 0, 8, 0.1)], "seed 0 twice"),
    ([*ROWS, row("c", 0, 8, 0.1, train_size=32)], "not of \\[8, 32\\]"),
])  # fmt: skip
def test_rows_that_cannot_be_compared_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        accuracy_by_arm(rows)
