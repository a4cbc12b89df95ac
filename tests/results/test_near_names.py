"""Suggestions for unknown names: near ones, or none and the known names."""

import pytest
from posenc_jax.results.near_names import near_names


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ropee", "; did you mean 'rope' or 'prope'?"),
        ("albi", "; did you mean 'alibi'?"),
        ("window", "; known: alibi, prope, rope"),  # nothing like it, though it shares letters
        ("", "; known: alibi, prope, rope"),
        ("x" * 1000, "; known: alibi, prope, rope"),
    ],
)
def test_a_suggestion_is_a_near_name_or_there_is_none(name, hint):
    assert near_names(name, ["rope", "alibi", "prope"]) == hint
