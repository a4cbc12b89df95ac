"""Interventions, properties and the receptive field, on tiny models with known answers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import runs
from support import schemes

from posenc_jax.encodings import Temperature, parse
from posenc_jax.evaluation import evaluate
from posenc_jax.evaluation import interventions as change
from posenc_jax.evaluation.capture import over_batches
from posenc_jax.evaluation.interventions import ParameterizedModel
from posenc_jax.evaluation.properties import largest_gate_rise, largest_rise, shift_errors
from posenc_jax.evaluation.receptive_field import gradient_by_distance, reach_of_share
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder

T, V = 24, 50
SMALL = ModelConfig(
    scheme="rope+alibi", vocab_size=V, train_length=T, num_layers=2, model_dim=32, num_heads=4,
    num_kv_heads=2, head_dim=8, mlp_dim=32, activation="gelu", qk_norm=True, tied_head=True,
    embedding_scale=1.0, norm_epsilon=1e-6, dtype="float32", attention="dense",
)  # fmt: skip
TOKENS = np.asarray(jax.random.randint(jax.random.key(5), (3, T), 0, V))


@functools.cache
def model(scheme="rope+alibi", **changes):
    config = dataclasses.replace(SMALL, scheme=scheme, **changes)
    places = jnp.arange(4)[None]
    params = Decoder(config).init(jax.random.key(0), places, places, places * 0 + 1)["params"]
    return ParameterizedModel(config, jax.tree.map(lambda x: x + 0.03, params))


def logits(m):
    pos = jnp.broadcast_to(jnp.arange(T), TOKENS.shape)
    return np.asarray(Decoder(m.config).apply({"params": m.params}, TOKENS, pos, pos * 0 + 1)[0])


@pytest.mark.thorough
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


def test_a_window_changes_nothing_before_its_length_and_something_after():
    whole, cut = logits(model()), logits(change.windowed(6)(model()))
    np.testing.assert_array_equal(cut[:, :6], whole[:, :6])
    assert (np.abs(cut[:, 6:] - whole[:, 6:]).max(-1) > 0).all()


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


QUICK = (
    "nope", "rope", "alibi", "xpos", "sinusoidal", "learned", "forget", "linear",
    "rope+alibi", "3*(rope+alibi)|1*nope~logn", "prope+log(c=2.0,t=10.0)~scale_invariant",
)  # fmt: skip
EVERY = [pytest.param(x, marks=() if x in QUICK else pytest.mark.slow) for x in schemes.ALL]


# P1: a scheme whose parts are all relative reads only distances; the others show what they have.
@pytest.mark.parametrize("line", EVERY)
def test_relative_schemes_do_not_notice_a_shift(line):
    m = model(line, num_layers=1 if "," not in line else 2)
    limit = m.config.placed.longest()
    rows_RT = TOKENS if limit is None or limit > T else TOKENS[:, : limit - 7]
    shifts = tuple(s for s in (1, 7, T, 8 * T) if limit is None or rows_RT.shape[1] + s <= limit)
    assert shifts
    errors = shift_errors(m.config, m.params, rows_RT, shifts, 1000)
    parts = schemes.parts(line)
    if all(part.relative or isinstance(part, Temperature) for part in parts):
        assert max(error_LN.max() for error_LN in errors.values()) <= 1e-4
    elif "sinusoidal" in line or "learned" in line:
        assert min(error_LN.max() for error_LN in errors.values()) > 1e-2
    # Log-n counts keys in sight; taken for a position, it is one.
    moved = shift_errors(m.config, m.params, rows_RT, shifts, 1000, counted=False)
    if any(isinstance(part, Temperature) and not part.relative for part in parts):
        assert max(error_LN.max() for error_LN in moved.values()) > 1e-2
    else:
        assert all((moved[shift] == errors[shift]).all() for shift in shifts)


def test_a_shift_past_a_learned_table_is_refused():
    with pytest.raises(ValueError, match=r"24 tokens moved by 192 exceed the \d+ positions"):
        shift_errors(model("learned").config, model("learned").params, TOKENS, (8 * T,), 1000)


def layer_of(line):
    layer = schemes.layer_of(line, head_dim=8)
    return layer, layer.init(jax.random.key(0))


@pytest.mark.parametrize("line", ["nope", "rope+alibi", "log", "capped", "power", "kerple_log"])
def test_a_monotone_bias_never_rises_to_16_l(line):
    assert (largest_rise(*layer_of(line), (65, 257, 1025)) == 0).all()


def test_a_bias_that_rises_says_by_how_much():
    rise_N = largest_rise(*layer_of("sandwich"), (1025,))
    bias_Z = np.array([
        -sum(1 - np.cos(d * 10_000 ** (-2 * i / 128)) for i in range(1, 65)) / (8 / 4)
        for d in range(1025)
    ])  # fmt: skip
    assert rise_N[0] == pytest.approx(np.diff(bias_Z).max(), rel=1e-3)
    assert (rise_N > 0).all()


def test_open_gates_never_raise_a_bias_and_none_is_measured_without_gates():
    m = model("rope+forget|nope", num_layers=1)
    (rise_N,) = largest_gate_rise(m.config, m.params, TOKENS, 1000).values()
    assert (rise_N == 0).all()
    assert largest_gate_rise(model().config, model().params, TOKENS, 1000) == {}


@pytest.mark.parametrize("tied", [False, True])
def test_the_gradient_is_what_moving_an_embedding_does_to_the_loss(tied):
    m = model(num_layers=1, tied_head=tied)
    tokens_T, target = TOKENS[0], 7
    norm_Z = np.asarray(jax.jit(lambda p, t: gradient_by_distance(m.config, p, t, target))(m.params, tokens_T))  # fmt: skip
    assert norm_Z.shape == (T,)

    # The same loss with a table of one word a place, by central differences.
    table = np.asarray(m.params["embedding_VD"])
    head = table if tied else np.asarray(m.params["head_VD"])
    config = dataclasses.replace(m.config, tied_head=False)

    @jax.jit
    def loss(own_TD):
        words = jnp.zeros((V, 32)).at[:T].set(own_TD)
        params = {**m.params, "embedding_VD": words, "head_VD": jnp.asarray(head)}
        places = jnp.arange(T)[None]
        out = Decoder(config).apply({"params": params}, places, places, places * 0 + 1)[0][0, -1]
        return jax.nn.logsumexp(out) - out[target]

    own_TD, step = table[tokens_T], 2e-3
    for distance in (0, 1, 5):
        place = T - 1 - distance
        slopes = []
        for d in range(32):
            bump = np.zeros((T, 32), np.float32)
            bump[place, d] = step
            slopes.append((loss(own_TD + bump) - loss(own_TD - bump)) / (2 * step))
        assert norm_Z[distance] == pytest.approx(np.linalg.norm(slopes), rel=2e-2, abs=2e-4)


def test_a_window_bounds_the_receptive_field_of_one_layer():
    cut = change.windowed(5)(model(num_layers=1))
    norm_Z = np.asarray(gradient_by_distance(cut.config, cut.params, TOKENS[0], 3))
    assert (norm_Z[:5] > 0).all()
    assert (norm_Z[5:] == 0).all()


def test_the_reach_is_the_first_distance_that_completes_the_share():
    norm_Z = np.array([5.0, 1.0, 3.0, 1.0])
    assert [reach_of_share(norm_Z, s) for s in (0.5, 0.6, 0.61, 0.9, 1.0)] == [0, 1, 2, 2, 3]
    with pytest.raises(ValueError, match="no gradient"):
        reach_of_share(np.zeros(4), 0.5)


def test_batches_are_filled_up_and_the_filling_is_cut_off():
    shapes = []

    def program(x_BT):
        shapes.append(x_BT.shape)
        return x_BT.sum(1)

    rows = np.arange(15).reshape(5, 3)
    found = np.concatenate(over_batches(program, 6, rows))
    np.testing.assert_array_equal(found, rows.sum(1))
    assert shapes == [(2, 3)] * 3


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
    mass = {h: sum(r["value"] for r in rows if r["metric"] == "M1_distance" and r["k"] == 2 and r["bucket"].startswith(f"{h} ")) for h in heads}  # fmt: skip
    assert all(total == pytest.approx(1, abs=1e-5) for total in mass.values())
    names = {r["metric"] for r in rows}
    assert {"P1_shift_error", "P3_offset_accuracy", "P4_bpb_ctx_change", "P5_largest_rise", "M1_rho_far",
            "M3_gradient", "M5_frequency_use", "M6_content", "M9_mass", "M10_margin", "M11_blind",
            "M12_bpb_ctx_change"} <= names  # fmt: skip
    lengths = {r["metric"]: r["length"] for r in rows if r["metric"].startswith("P4_")}
    within = {"P4_bpb_ctx_change": 16, "P4_passkey_accuracy_change": 32}  # L = 32: targets end at L
    assert {name: lengths[name] for name in within} == within
    every = change.every_intervention(SMALL, 0)
    for metric, lengths in (("M12_bpb_ctx_change", (16, 64)), ("M12_passkey_accuracy_change", (32, 64))):  # fmt: skip
        for length in lengths:  # at L and at the longest, text within L
            found = [r["bucket"] for r in rows if (r["metric"], r["length"]) == (metric, length)]
            assert sorted(found) == sorted(every), (metric, length)
    monkeypatch.setattr(
        "posenc_jax.evaluation.head_statistics.head_sums", None
    )  # nothing is measured twice
    evaluate.evaluate(tmp_path, suites=("P", "M"), **settings)
    assert runs.rows(path) == rows
