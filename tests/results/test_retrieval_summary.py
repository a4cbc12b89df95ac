"""Summaries of retrieval: the longest length that passes."""

from posenc_jax.results.retrieval_summary import longest_passing


def test_the_longest_passing_length_ends_at_the_first_failure():
    assert longest_passing({16: 0.9, 32: 0.8, 64: 0.5, 128: 0.9}, 0.85) == 32
    assert longest_passing({16: 0.9, 32: 0.9}, 0.85) == 32
    assert longest_passing({16: 0.9, 32: 0.1}, 0.85) == 16
    assert longest_passing({16: 0.5, 32: 0.43}, 0.85) == 32


def test_a_task_that_is_not_learnt_at_the_shortest_length_passes_nowhere():
    """Equal scores at every length, as of a guess, would otherwise reach the longest."""
    assert longest_passing({16: 0.49, 32: 0.49, 64: 0.49}, 0.85) is None
    assert longest_passing({16: 0.0, 32: 0.9}, 0.85) is None
