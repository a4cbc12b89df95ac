"""Interventions on heads and parts of tiny models with known answers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.encodings import parse
from posenc_jax.evaluation import evaluate
from posenc_jax.evaluation import interventions as change
from posenc_jax.evaluation.interventions import ParameterizedModel
from posenc_jax.model.decoder import Decoder

from support import runs
from support.parameterized_models import SMALL, model

T, V = 24, 50


TOKENS = np.asarray(jax.random.randint(jax.random.key(5), (3, T), 0, V))


def logits(m):
    pos = jnp.broadcast_to(jnp.arange(T), TOKENS.shape)
    return np.asarray(Decoder(m.config).apply({"params": m.params}, TOKENS, pos, pos * 0 + 1)[0])


@pytest.mark.default_cases(0, thorough=1)
@pytest.mark.parametrize(
    ("off", "both", "left"),
    [
        (change.slopes_off, "rope+alibi", "rope"),
        (change.rotation_off, "rope+alibi", "alibi"),
        (change.slopes_off, "prope+fire|nope~logn", "prope|nope~logn"),
        (change.rotation_off, "mixed+slopes,nope", "slopes,nope"),
        (change.rotation_off, "sinusoidal+rope", "sinusoidal"),
    ],
)
def test_a_scheme_without_a_part_is_the_scheme_that_never_had_it(off, both, left):
    whole = model(both)
    changed = off(whole)
    assert changed.config.scheme == parse(left)
    same = ParameterizedModel(dataclasses.replace(whole.config, scheme=left), changed.params)
    np.testing.assert_array_equal(logits(changed), logits(same))
    assert np.abs(logits(changed) - logits(whole)).max() > 1e-4
    assert whole.config.scheme == both


def test_an_intervention_with_nothing_to_change_says_so():
    with pytest.raises(ValueError, match="'rope' has no bias to switch off"):
        change.slopes_off(model("rope"))
    with pytest.raises(ValueError, match="'alibi' has no rotation to switch off"):
        change.rotation_off(model("alibi"))
    with pytest.raises(ValueError, match=r"no head 2\.0: the model has 2 layers"):
        change.head_off(2, 0)(model())


@pytest.mark.thorough
def test_a_window_changes_nothing_before_its_length_and_something_after():
    whole, cut = logits(model()), logits(change.windowed(6)(model()))
    np.testing.assert_array_equal(cut[:, :6], whole[:, :6])
    assert (np.abs(cut[:, 6:] - whole[:, 6:]).max(-1) > 0).all()


@pytest.mark.thorough
def test_under_a_window_a_token_out_of_it_is_out_of_sight():
    cut = change.windowed(3)(model(num_layers=1))
    far = TOKENS.copy()
    far[:, 0] = (far[:, 0] + 1) % V
    pos = jnp.broadcast_to(jnp.arange(T), TOKENS.shape)
    moved = Decoder(cut.config).apply({"params": cut.params}, far, pos, pos * 0 + 1)[0]
    np.testing.assert_array_equal(moved[:, 3:], logits(cut)[:, 3:])
    assert np.abs(moved[:, 2] - logits(cut)[:, 2]).max() > 0


def test_a_head_that_is_off_is_the_head_whose_value_is_zero():
    whole = model(num_kv_heads=4)  # a value matrix for each head: another way to silence one
    off = change.head_off(1, 2)(whole)
    block = whole.params["layer_1"]
    attention = {**block["attention"]}
    attention["value_DKH"] = attention["value_DKH"].at[:, 2].set(0.0)
    silent = {**whole.params, "layer_1": {**block, "attention": attention}}
    np.testing.assert_allclose(
        logits(off), logits(ParameterizedModel(whole.config, silent)), atol=1e-6
    )
    assert np.abs(logits(off) - logits(whole)).max() > 1e-4
    assert np.abs(logits(off) - logits(change.head_off(0, 2)(whole))).max() > 1e-4


def test_every_head_and_part_is_named_once():
    names = list(change.every_intervention(SMALL, T))
    assert names[:3] == ["slopes off", "rotation off", "window L"]
    assert names[3:] == [f"head:{i}.{n} off" for i in range(2) for n in range(4)]


@pytest.mark.slow
def test_suites_p_and_m_fill_rows_once_for_every_head_and_resume(data_dir, tmp_path, monkeypatch):
    run = runs.config(data_dir, "rope+alibi", evaluation={"multiples": (1, 2)})
    runs.finished(run, tmp_path)
    settings = {"multiples": None, "split": "test", "stretch": None}
    path = evaluate.evaluate(tmp_path, suites=("P", "M"), **settings)
    rows = runs.rows(path)
    keys = [(r["metric"], r["k"], r["bucket"]) for r in rows]
    assert len(set(keys)) == len(keys)
    heads = {f"head:{i}.{n}" for i in range(2) for n in range(4)}
    for metric in ("M2_entropy", "M4_sink", "M7_kendall", "P2_relative_structure"):
        for k in (1, 2):
            assert {b for m, at, b in keys if (m, at) == (metric, k)} == heads
    mass = {
        h: sum(
            r["value"]
            for r in rows
            if r["metric"] == "M1_distance" and r["k"] == 2 and r["bucket"].startswith(f"{h} ")
        )
        for h in heads
    }
    assert all(total == pytest.approx(1, abs=1e-5) for total in mass.values())
    names = {r["metric"] for r in rows}
    assert {
        "P1_shift_error",
        "P3_offset_accuracy",
        "P4_bpb_ctx_change",
        "P5_largest_rise",
        "M1_rho_far",
        "M3_gradient",
        "M5_frequency_use",
        "M6_content",
        "M9_mass",
        "M10_margin",
        "M11_blind",
        "M12_bpb_ctx_change",
    } <= names
    lengths = {r["metric"]: r["length"] for r in rows if r["metric"].startswith("P4_")}
    within = {"P4_bpb_ctx_change": 16, "P4_passkey_accuracy_change": 32}  # L = 32: targets end at L
    assert {name: lengths[name] for name in within} == within
    every = change.every_intervention(SMALL, 0)
    for metric, lengths in (
        ("M12_bpb_ctx_change", (16, 64)),
        ("M12_passkey_accuracy_change", (32, 64)),
    ):
        for length in lengths:  # at L and at the longest, text within L
            found = [r["bucket"] for r in rows if (r["metric"], r["length"]) == (metric, length)]
            assert sorted(found) == sorted(every), (metric, length)
    monkeypatch.setattr(
        "posenc_jax.evaluation.head_statistics.head_sums", None
    )  # nothing is measured twice
    evaluate.evaluate(tmp_path, suites=("P", "M"), **settings)
    assert runs.rows(path) == rows
