"""The bench of scoring, per token at every length.

Slow: a whole bench is timed.
"""

import pytest
from posenc_jax.bench import evaluation_cost


@pytest.mark.slow
def test_scoring_is_timed_per_token_at_every_length(monkeypatch):
    shape = {"num_layers": 1, "model_dim": 8, "num_heads": 2, "head_dim": 4}
    monkeypatch.setattr(evaluation_cost, "SHAPE", shape)
    outcome = evaluation_cost.measure(
        evaluation_cost.EvaluationSettings(
            schemes=("alibi",), train_length=8, lengths=(16, 32), rounds=2
        )
    )
    assert [(row["length"], row["direction"]) for row in outcome.rows] == [
        (8, evaluation_cost.TRAINING), (8, "scoring"), (16, "scoring"), (32, "scoring"),
    ]  # fmt: skip
    assert {row["tokens"] for row in outcome.rows} == {32}
    assert outcome.rows[1]["ratio"] == 1
    with pytest.raises(ValueError, match="multiples of train_length=8"):
        evaluation_cost.measure(
            evaluation_cost.EvaluationSettings(
                schemes=("alibi",), train_length=8, lengths=(12,), rounds=1
            )
        )
