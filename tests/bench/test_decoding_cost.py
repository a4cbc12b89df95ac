"""The bench of decoding beside transformers."""

import dataclasses
import importlib.util

import pytest
from posenc_jax.bench import decoding_cost
from posenc_jax.bench.decoding_cost import OURS, SHAPES, THEIRS, DecodingSettings

TINY = DecodingSettings(models=("tiny",), prompt_length=5, new_tokens=7, rounds=2)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")  # of the peers' own imports
def test_both_continue_the_prompt_with_the_same_tokens(monkeypatch):
    monkeypatch.setitem(SHAPES, "tiny", (2, 64, 4, 2, 48, 37))
    monkeypatch.setattr(decoding_cost, "HEAD_DIM", 16)
    outcome = decoding_cost.measure(TINY)
    rows = {(row["implementation"], row["direction"]): row for row in outcome.rows}
    assert rows[OURS, "first token"]["new_tokens"] == 1
    assert rows[OURS, "generation"]["ratio"] == 1
    assert rows[OURS, "generation"]["tokens_per_second"] > 0
    if importlib.util.find_spec("torch") is None:
        assert any("not installed" in line for line in outcome.settings["skipped"])
    else:
        assert outcome.settings["skipped"] == []
        assert rows[THEIRS, "first token"]["equal_tokens"] == 1
        assert rows[THEIRS, "generation"]["equal_tokens"] == 1
        assert rows[THEIRS, "generation"]["new_tokens"] == TINY.new_tokens


def test_an_unknown_model_and_sizes_are_refused():
    for changes, message in (
        ({"models": ("SmolLM2",)}, "did you mean 'SmolLM2-135M'"),
        ({"models": ()}, "needs a model"),
        ({"new_tokens": 0}, "a new one"),
    ):
        with pytest.raises(ValueError, match=message):
            decoding_cost.measure(dataclasses.replace(DecodingSettings(), **changes))
