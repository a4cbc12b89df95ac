"""Stretches against independent references and published numbers, and reading a scheme further."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.encodings import (
    HeadContext,
    Prope,
    Rope,
    Xpos,
    extend_length,
    inverse_frequencies,
    parse,
    unparse,
)
from posenc_jax.encodings.rope_scaling import (
    ROPE_SCALINGS,
    BaseChange,
    DynamicNtk,
    Llama3,
    LongRope,
    NtkAware,
    PositionInterpolation,
    Yarn,
)
from posenc_jax.encodings.temperature import YarnTemperature

from support import oracles

FREQ = inverse_frequencies(128, 10_000.0)
PLACE = HeadContext(heads=4, num_heads=4, head_dim=16, model_dim=32, train_length=64)


def base_of(freq_h):
    """The base that a geometric spectrum of 64 pairs has."""
    return (freq_h[0] / freq_h[1]) ** 64


def test_position_interpolation_divides_every_frequency():
    np.testing.assert_allclose(PositionInterpolation(4.0).frequencies(FREQ, 1e4, 4096), FREQ / 4)


def test_ntk_aware_slows_the_slowest_pair_by_the_factor_and_the_fastest_not_at_all():
    stretched_h = NtkAware(4.0).frequencies(FREQ, 10_000.0, 4096)
    assert base_of(stretched_h) == pytest.approx(oracles.ntk_base(10_000.0, 4.0, 128))
    assert stretched_h[0] == 1
    assert stretched_h[-1] == pytest.approx(FREQ[-1] / 4)


@pytest.mark.parametrize(("f", "base"), [(1.0, 20221.3), (2.0, 30527.7)])
def test_dynamic_ntk_reaches_the_published_bases_at_twice_the_length(f, base):
    assert base_of(DynamicNtk(f, 8192).frequencies(FREQ, 1e4, 4096)) == pytest.approx(
        base, abs=0.05
    )
    np.testing.assert_allclose(DynamicNtk(f, 4096).frequencies(FREQ, 1e4, 4096), FREQ)
    np.testing.assert_allclose(DynamicNtk(f, 100).frequencies(FREQ, 1e4, 4096), FREQ)


def test_yarn_ramp_runs_between_the_published_pairs():
    assert Yarn().ramp_ends(128, 10_000.0, 4096) == (20, 46)


@pytest.mark.parametrize("factor", [2.0, 16.0])
@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("fast", [32.0, 8.0, 4.0])
def test_yarn_equals_the_oracle(factor, truncate, fast):
    got = Yarn(factor, fast, truncate=truncate).frequencies(FREQ, 10_000.0, 4096)
    np.testing.assert_allclose(
        got,
        oracles.yarn_frequencies(128, 10_000.0, 4096, factor, fast, truncate=truncate),
        rtol=1e-12,
    )
    other = Yarn(factor, fast, truncate=not truncate).frequencies(FREQ, 10_000.0, 4096)
    assert not np.allclose(got, other, rtol=1e-4)


def test_yarn_multiplies_logits_by_the_square_of_its_temperature():
    assert Yarn(1.0).amplitude(4096) == 1
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 1, 16)), jnp.float32)
    rope = Rope(stretch=Yarn(8.0))
    turned = rope.rotate({}, x, jnp.array([[37]]), PLACE, "query")
    assert float((turned**2).sum() / (x**2).sum()) == pytest.approx(
        (0.1 * math.log(8) + 1) ** 2, rel=1e-5
    )


@pytest.mark.parametrize(
    ("settings", "published"),
    [
        ({"factor": 40.0}, 1.3688879454113936),
        ({"factor": 40.0, "mscale": 0.707, "mscale_all_dim": 0.707}, 1.0),  # DeepSeek-V2-Lite
        ({"factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),  # DeepSeek-V3
        ({"factor": 40.0, "mscale": 0.707}, 1.2608037774058553),
        ({"factor": 32.0, "mscale": 1.0, "mscale_all_dim": 0.5}, None),
        ({"factor": 0.5, "mscale": 2.0}, 1.0),
    ],
)
def test_yarns_amplitude_is_deepseeks_ratio(settings, published):
    got = Yarn(**settings).amplitude(4096)
    assert got == pytest.approx(oracles.yarn_amplitude(**settings), rel=1e-12)
    if published is not None:
        assert got == pytest.approx(published, rel=1e-12)


def test_deepseeks_softmax_scale_is_a_temperature():
    """DeepSeek-V2-Lite: softmax_scale times (0.1 * 0.707 * ln 40 + 1)^2, 1.26080^2."""
    tau = YarnTemperature(factor=40.0, mscale=0.707).temperature(
        {}, jnp.array([[5]]), jnp.array([[5]]), PLACE
    )
    assert float(tau[0, 0, 0, 0]) == pytest.approx(1.2608037774058553**2, rel=1e-6)


@pytest.mark.parametrize(
    "stretch", [Yarn(16.0, attention_factor=1.25), LongRope(16.0, attention_factor=1.25)]
)
def test_an_attention_factor_given_outright_is_the_amplitude(stretch):
    assert stretch.amplitude(4096) == 1.25
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 1, 16)), jnp.float32)
    turned = Rope(stretch=stretch).rotate({}, x, jnp.array([[37]]), PLACE, "query")
    assert float((turned**2).sum() / (x**2).sum()) == pytest.approx(1.25**2, rel=1e-5)
    assert Rope(stretch=stretch).amplitude(PLACE) == 1.25


def test_yarn_uses_the_original_length():
    own = Yarn(original=256).frequencies(FREQ, 10_000.0, 4096)
    np.testing.assert_allclose(own, oracles.yarn_frequencies(128, 10_000.0, 256, 4.0), rtol=1e-12)


def test_llama3_keeps_blends_and_divides_the_published_numbers_of_pairs():
    freq = inverse_frequencies(128, 500_000.0)
    got = Llama3(8.0, original=8192).frequencies(freq, 500_000.0, 131_072)
    np.testing.assert_allclose(
        got, oracles.llama3_frequencies(128, 500_000.0, 8.0, 1.0, 4.0, 8192), rtol=1e-12
    )
    kept, divided = np.isclose(got, freq, rtol=1e-12), np.isclose(got, freq / 8, rtol=1e-12)
    assert (kept.sum(), 64 - kept.sum() - divided.sum(), divided.sum()) == (29, 6, 29)


def test_longrope_takes_the_short_list_up_to_the_original_length_and_the_long_one_after():
    short, long = tuple(np.linspace(1, 2, 64)), tuple(np.linspace(3, 9, 64))
    for length, divisors in ((4096, short), (4097, long)):
        rope = LongRope(8.0, short, long, length=length)
        np.testing.assert_allclose(rope.frequencies(FREQ, 1e4, 4096), FREQ / divisors)
    assert LongRope(32.0).amplitude(4096) == pytest.approx(
        math.sqrt(1 + math.log(32) / math.log(4096))
    )
    assert LongRope(1.0).amplitude(4096) == 1
    with pytest.raises(ValueError, match="3 factors given for 64 rotary pairs"):
        LongRope(short=(1.0, 2.0, 3.0)).frequencies(FREQ, 1e4, 4096)


def test_a_base_change_is_rope_with_that_base():
    np.testing.assert_allclose(
        BaseChange(500_000.0).frequencies(FREQ, 1e4, 4096), inverse_frequencies(128, 500_000.0)
    )


@pytest.mark.parametrize("name", ROPE_SCALINGS)
def test_a_stretch_of_factor_one_changes_nothing(name):
    stretch = BaseChange(10000.0) if name == "abf" else ROPE_SCALINGS[name](factor=1.0)
    np.testing.assert_allclose(stretch.frequencies(FREQ, 10_000.0, 4096), FREQ, rtol=1e-12)
    assert stretch.amplitude(4096) == 1


def test_prope_drops_the_lowest_frequencies_of_the_full_spectrum():
    freq = Prope(kept=0.75).frequencies(PLACE)
    np.testing.assert_allclose(freq[:6], inverse_frequencies(16, 10_000.0)[:6])
    np.testing.assert_array_equal(freq[6:], 0)
    partial = Rope(fraction=0.75).frequencies(PLACE)
    assert not np.allclose(freq[:6], partial)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 1, 16)), jnp.float32)
    out = Prope(kept=0.75).rotate({}, x, jnp.array([[1001]]), PLACE, "query")
    np.testing.assert_array_equal(out[..., [6, 7, 14, 15]], x[..., [6, 7, 14, 15]])


@pytest.mark.parametrize(
    ("kept", "nearest", "down"),
    [(0.75, 6, 6), (0.7, 6, 5), (0.3, 2, 2), (0.95, 8, 7), (0.5625, 4, 4), (0.6875, 6, 5)],
)
def test_prope_rounds_the_number_of_pairs_as_asked(kept, nearest, down):
    for rounding, pairs in (("nearest", nearest), ("down", down)):
        freq = Prope(kept=kept, rounding=rounding).frequencies(PLACE)
        np.testing.assert_array_equal(freq[pairs:], 0)
        np.testing.assert_allclose(
            freq[:pairs], [oracles.rope_frequency(i, 16, 1e4) for i in range(pairs)]
        )


@pytest.mark.parametrize(("i", "j"), [(3, 0), (600, 599), (9000, 8000), (10_000, 3)])
def test_xpos_logits_equal_the_oracle(i, j):
    q, k = np.random.default_rng(0).normal(size=(2, 16))
    a, b = (
        Xpos().rotate(
            {}, jnp.asarray(x, jnp.float32).reshape(1, 1, 1, 16), jnp.array([[p]]), PLACE, side
        )
        for x, p, side in ((q, i, "query"), (k, j, "key"))
    )
    np.testing.assert_allclose(float((a * b).sum()), oracles.xpos_logit(q, k, i, j, 64), atol=2e-4)


def test_xpos_names_the_longest_position_that_float32_can_hold():
    assert (
        parse("xpos")
        .place(num_layers=1, num_heads=4, head_dim=16, model_dim=32, train_length=64)
        .longest()
        == int(40 * 512 / math.log(3.5)) + 32
    )
    far = Xpos().longest(PLACE) - 1
    x = jnp.ones((1, 1, 1, 16))
    for side in ("query", "key"):
        assert np.isfinite(Xpos().rotate({}, x, jnp.array([[far]]), PLACE, side)).all()


@pytest.mark.parametrize(
    ("line", "rule", "want"),
    [
        (
            "rope+alibi(slopes=match)|nope~logn",
            "yarn:8",
            "rope(stretch=yarn(factor=8.0))+alibi(slopes=match,factor=8.0)|nope~logn",
        ),
        ("rope+alibi", "rotation.pi:2", "rope(stretch=pi(factor=2.0))+alibi"),
        ("rope+alibi", "bias.pi:2", "rope+alibi(factor=2.0)"),
        ("rope+alibi", "ntk:2", "rope(stretch=ntk(factor=2.0))+alibi(ntk=2.0)"),
        ("rope+alibi", "slopes:2", "rope+alibi(factor=2.0)"),
        ("rope+log", "llama3:2", "rope(stretch=llama3(factor=2.0))+log(factor=2.0)"),
        ("rope+alibi", "abf:500000", "rope(stretch=abf)+alibi"),
        ("rope+alibi", "dynamic:1", "rope(stretch=dynamic(length=256))+alibi(factor=4.0)"),
        ("2*rope,nope~logn", "pi:2", "2*rope(stretch=pi(factor=2.0)),nope~logn"),
        ("rope+fire", "pi:2", "rope(stretch=pi(factor=2.0))+fire(factor=2.0)"),
        ("rope+slopes", "yarn:4", "rope(stretch=yarn)+slopes(factor=4.0)"),
        ("rope+slopes", "ntk:4", "rope(stretch=ntk)+slopes(ntk=4.0)"),
        ("kerple_log|log", "slopes:4", "kerple_log(factor=4.0)|log(factor=4.0)"),
        ("capped(cap=3.0)", "slopes:4", "capped(cap=3.0,factor=4.0)"),
        ("rope+t5", "rotation.pi:2", "rope(stretch=pi(factor=2.0))+t5"),
    ],
)
def test_a_rule_stretches_rotations_and_biases_together(line, rule, want):
    assert unparse(extend_length(parse(line), rule, length=256, train_length=64)) == want


@pytest.mark.parametrize(
    ("line", "rule", "message"),
    [
        ("rope", "yran:4", "did you mean 'yarn'"),
        ("rope", "yarn", "needs a positive number"),
        ("rope", "yarn:-2", "needs a positive number"),
        ("rope", "yarn:nan", "needs a positive number"),
        ("rope", "slopes:4", "changes nothing"),
        ("nope", "yarn:4", "changes nothing"),
        ("xpos", "yarn:4", "cannot be stretched"),
        ("rope(stretch=pi)", "yarn:4", "cannot take a second one"),
    ],
)
def test_a_rule_that_cannot_be_read_says_why(line, rule, message):
    with pytest.raises(ValueError, match=message):
        extend_length(parse(line), rule, length=256, train_length=64)
