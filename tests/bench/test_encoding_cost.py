"""The bench of encodings: one line for each, and one for none."""

import pytest
from posenc_jax.bench import encoding_cost
from posenc_jax.encodings import REGISTRY, Window, parse
from posenc_jax.encodings.bias_sum import BiasSum
from posenc_jax.encodings.pope import Pope
from posenc_jax.encodings.scheme_presets import PRESETS
from posenc_jax.encodings.temperature import SSMax


def test_the_cost_table_names_every_registered_encoding_alone():
    alone = [parse(line) for line in encoding_cost.all_schemes()[: len(REGISTRY)]]
    named = []
    for scheme in alone:
        inside = [part for heads in scheme.layers[0] for part in heads.parts()]
        named += [type(part) for part in (*inside, *([scheme.absolute] if scheme.absolute else []))]
    assert named == list(REGISTRY.values())
    assert len(set(encoding_cost.all_schemes())) == len(encoding_cost.all_schemes())


@pytest.mark.slow
def test_the_cost_table_has_one_line_for_each_scheme_and_one_for_nope(monkeypatch):
    shape = {"num_layers": 1, "model_dim": 8, "num_heads": 2, "head_dim": 4}
    monkeypatch.setattr(encoding_cost, "SHAPE", shape)
    outcome = encoding_cost.measure(
        encoding_cost.EncodingSettings(
            schemes=("slopes", "slopes", "nope"), train_length=8, batch=1, rounds=2
        )
    )
    lines = outcome.table.splitlines()
    assert sorted(line.split()[0] for line in lines[1:]) == ["nope", "slopes"]
    for direction in ("forward", "forward+backward"):
        rows = {r["scheme"]: r for r in outcome.rows if r["direction"] == direction}
        assert len(rows) == 2
        assert rows["nope"]["ratio"] == rows["nope"]["temp_ratio"] == 1
        assert rows["slopes"]["parameters_added"] == 2
        assert rows["nope"]["parameters_added"] == 0
        assert all(r["min_ms"] > 0 and r["temp_mb"] > 0 for r in rows.values())


@pytest.mark.slow
def test_the_cost_table_has_the_switches_of_the_model_as_rows_beside_nope(monkeypatch):
    shape = {"num_layers": 1, "model_dim": 8, "num_heads": 2, "head_dim": 4}
    monkeypatch.setattr(encoding_cost, "SHAPE", shape)
    switched = [line for line in encoding_cost.all_schemes() if " with " in line]
    assert switched == ["nope with output_gate", "nope with sink_logit", "nope with token_shift"]
    both = "alibi with sink_logit+token_shift"
    outcome = encoding_cost.measure(
        encoding_cost.EncodingSettings(schemes=(*switched, both), train_length=8, batch=1, rounds=1)
    )
    added = {row["scheme"]: row["parameters_added"] for row in outcome.rows}
    assert added == {
        "nope": 0,
        **dict(zip(switched, (8 * 2 * 4, 2, 4 * 2), strict=True)),
        both: 2 + 4 * 2,
    }
    assert {row["scheme"] for row in outcome.rows} == {
        line.split("  ")[0] for line in outcome.table.splitlines()[1:]
    }
    with pytest.raises(
        ValueError,
        match="'nope with token_shfit': no switch 'token_shfit'; did you mean 'token_shift'",
    ):
        encoding_cost.measure(
            encoding_cost.EncodingSettings(
                schemes=("nope with token_shfit",), train_length=8, batch=1, rounds=1
            )
        )


def test_the_cost_table_has_every_kind_of_combination_that_a_scheme_can_be():
    lines = encoding_cost.COMBINATIONS
    groups = [group for line in lines for layer in parse(line).layers for group in layer]
    there = {type(p) for group in groups for p in group.parts()} | {type(g.bias) for g in groups}
    assert {BiasSum, Pope, SSMax, Window} <= there
    assert PRESETS["nape"] in lines
