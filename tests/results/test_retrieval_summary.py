"""Summaries of retrieval: the longest length that passes."""

import dataclasses

import pytest
from posenc_jax.results.retrieval_summary import longest_passing, summary_scores
from posenc_jax.results.schema import Row


def test_the_longest_passing_length_ends_at_the_first_failure():
    assert longest_passing({16: 0.9, 32: 0.8, 64: 0.5, 128: 0.9}, 0.85) == 32
    assert longest_passing({16: 0.9, 32: 0.9}, 0.85) == 32
    assert longest_passing({16: 0.9, 32: 0.1}, 0.85) == 16
    assert longest_passing({16: 0.5, 32: 0.43}, 0.85) == 32


def test_a_task_that_is_not_learnt_at_the_shortest_length_passes_nowhere():
    """Equal scores at every length, as of a guess, would otherwise reach the longest."""
    assert longest_passing({16: 0.49, 32: 0.49, 64: 0.49}, 0.85) is None
    assert longest_passing({16: 0.0, 32: 0.9}, 0.85) is None


def test_a_corrected_accuracy_without_its_chance_is_refused():
    row = Row("runs/a", "a", 0, "cpu", "R", "passkey_corrected", 64, 16, "all", 0.5, 8, "test")
    with pytest.raises(ValueError, match="runs/a: passkey_corrected at 64 has no chance"):
        summary_scores(lambda metric, length, bucket: row, 64, far=False)
    with pytest.raises(ValueError, match="was not measured"):
        _ = dataclasses.replace(row, value=None).number
