"""Temperatures that heads learn, or computed from tokens, against float64 loops and published starts."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.attention import AttentionSettings, OptionalInputs, TokenSide, attend
from posenc_jax.encodings import HeadContext, Rope, angles, parse, rotate, unparse
from posenc_jax.encodings.rope_scaling import Yarn
from posenc_jax.encodings.temperature import (
    AdaptiveSSMax,
    LogN,
    ScaleInvariant,
    SSMax,
    YarnTemperature,
)
from posenc_jax.evaluation.properties import shift_errors
from posenc_jax.model.cache import required_slots

from support import oracles
from support.attention_inputs import qkv
from support.decoders import model
from support.schemes import layer_of, placed

PLACE = HeadContext(heads=4, num_heads=4, head_dim=16, model_dim=32, train_length=64)


POS = np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 70, 71, 90])


SEG = np.array([1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2])


def trained(layer):
    """Learned values away from where they began."""
    params = layer.init(jax.random.key(3))
    return jax.tree.map(lambda x: x + 0.3 * jnp.sin(jnp.arange(x.size).reshape(x.shape)), params)


def floats():
    return qkv(1, 12, 4, 4, 16, (1, 12, 32))


def attended(layer, params, q, k, v, x, **how):
    pos, seg = jnp.asarray(POS)[None], jnp.asarray(SEG)[None]
    return attend(
        q,
        k,
        v,
        layer,
        params,
        TokenSide(pos, seg),
        settings=AttentionSettings(**how),
        optional=OptionalInputs(x),
    )


def by_loop(tau, slopes, q, k, v, window=10**6):
    return oracles.attention(
        *(np.asarray(z[0], np.float64) for z in (q, k, v)),
        bias=lambda n, i, j: -slopes[n] * abs(int(POS[i]) - int(POS[j])),
        visible=lambda i, j: SEG[i] == SEG[j] and 0 <= POS[i] - POS[j] < window,
        tau=tau,
    )


NAPE = [1.0, 0.5, 0.0, 0.0]


CASES = {
    "alibi(slopes=harmonic)|nope~ssmax": (NAPE, 2),
    "alibi(slopes=harmonic)|nope~adaptive_ssmax": (NAPE, 2),
    "nope~ssmax": ([0.0] * 4, 0),
    "nope~adaptive_ssmax": ([0.0] * 4, 0),
}


def tau_of(line, params, x, first=None, window=10**6):
    """tau(head, query) in float64; a document's keys are counted from its own first one, in a head's
    window.
    """
    first = CASES[line][1] if first is None else first
    own = {k: np.asarray(v, np.float64) for k, v in next(iter(params.values())).items()}

    def tau(n, i):
        n -= first
        if n < 0:
            return 1.0
        keys = min(POS[i] + 1, window)
        if "s_N" in own:
            return oracles.ssmax(own["s_N"][n], keys)
        pairs = [(own[f"{name}_DN"][:, n], own[f"{name}_bias_N"][n]) for name in ("beta", "gamma")]
        return oracles.adaptive_scale(np.asarray(x[0, i], np.float64), *pairs, keys)

    return tau


@pytest.mark.default_cases(1, thorough=2)
@pytest.mark.parametrize("how", ["dense", "blockwise"])
@pytest.mark.parametrize("line", CASES)
def test_a_learned_temperature_equals_its_float64_loop_and_its_slope(line, how):
    layer = layer_of(line)
    params, (q, k, v, x) = trained(layer), floats()
    got = attended(layer, params, q, k, v, x, implementation=how)
    np.testing.assert_allclose(
        got[0], by_loop(tau_of(line, params, x), CASES[line][0], q, k, v), atol=3e-6
    )

    def along(step, direction, loop=False):
        """The sum of sines of the result, `step` away along a direction in parameters and tokens."""
        moved, there = jax.tree.map(
            lambda a, d: np.asarray(a, np.float64) + step * d, (params, x), direction
        )
        return np.sin(by_loop(tau_of(line, moved, there), CASES[line][0], q, k, v)).sum()

    grads = jax.grad(
        lambda p, x: jnp.sin(attended(layer, p, q, k, v, x, implementation=how)).sum(), (0, 1)
    )(params, x)
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda a: rng.normal(size=a.shape), (params, x))
    slope = (along(1e-5, direction) - along(-1e-5, direction)) / 2e-5
    ours = sum(
        float((np.asarray(g, np.float64) * d).sum())
        for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True)
    )
    assert ours == pytest.approx(slope, rel=1e-4, abs=1e-5)
    assert abs(slope) > 1e-2


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("how", ["dense", "blockwise"])
@pytest.mark.parametrize("part", ["ssmax", "adaptive_ssmax", "logn(clip=false)"])
def test_a_temperature_counts_the_keys_in_its_heads_window_and_not_in_the_models(part, how):
    layer = layer_of(f"window(size=3)~{part}")
    params, (q, k, v, x) = trained(layer), floats()
    fixed = {"0.temperature": {"s_N": np.full(4, 1 / math.log(64))}}
    flat = layer_of(f"nope~{part}")
    for under, own, of_all in ((layer, 3, None), (flat, 10**6, 3), (layer, 3, 5)):
        got = attended(under, params, q, k, v, x, implementation=how, window=of_all)
        seen = min(own, of_all or own)
        tau = tau_of(part, params or fixed, x, first=0, window=own)
        np.testing.assert_allclose(got[0], by_loop(tau, [0.0] * 4, q, k, v, seen), atol=3e-6)


def test_ssmax_starts_at_a_mean_temperature_of_one():
    for length, published in ((1024, 0.168), (64, None)):
        place = dataclasses.replace(PLACE, train_length=length)
        params, pos = SSMax().init(jax.random.key(0), place), jnp.arange(length)[None]
        tau = SSMax().temperature(params, pos, pos, place)
        np.testing.assert_allclose(tau.mean((0, 2, 3)), 1.0, rtol=1e-5)
        assert published is None or round(float(params["s_N"][0]), 3) == published
    free = LogN(clip=False).temperature({}, pos, pos, PLACE)
    fixed = SSMax().temperature({"s_N": jnp.full(4, 1 / math.log(64))}, pos, pos, PLACE)
    np.testing.assert_allclose(fixed, jnp.broadcast_to(free, fixed.shape), rtol=1e-6)


def test_the_first_token_takes_no_power_of_zero():
    params = AdaptiveSSMax().init(jax.random.key(0), PLACE)
    params["gamma_bias_N"] -= 50.0  # exponent -2
    tau = AdaptiveSSMax().temperature(params, jnp.array([[0, 131_071]]), jnp.array([[0]]), PLACE)
    np.testing.assert_allclose(tau[0, 0, 0, 0], 1 + math.log(2) * math.log(2) ** -2, rtol=1e-5)
    assert np.isfinite(tau).all()


def test_attention_does_not_guess_a_temperature_that_tokens_decide():
    layer, (q, k, v, _) = layer_of("nope~adaptive_ssmax"), floats()
    with pytest.raises(ValueError, match="pass x_BTD, from which the queries were projected"):
        attended(layer, trained(layer), q, k, v, None)
    assert "\n" not in unparse(parse("nope~adaptive_ssmax(floor=0.0,most=1.0)"))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (AdaptiveSSMax(floor=-1.0), "floor must be zero or above"),
        (AdaptiveSSMax(most=0.0), "most must be a positive number"),
        (AdaptiveSSMax(most=1e9), "powers of ln n leave float32"),
        (SSMax(), "training length must be at least 2"),
    ],
)
def test_a_temperature_that_makes_no_sense_says_why(part, message):
    with pytest.raises(ValueError, match=message):
        part.check(dataclasses.replace(PLACE, train_length=1))


def test_a_temperature_without_a_bound_evicts_nothing():
    config, params = model("alibi(factor=0.01)~adaptive_ssmax")
    assert required_slots(config, params, 224, 8) == ((224,),) * 2
    assert required_slots(*model("alibi(factor=0.01)~ssmax"), 224, 8)[0][0] < 224


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    "line",
    ["rope~ssmax", "rope~adaptive_ssmax", "window(size=9)~ssmax", "window(size=9)~adaptive_ssmax"],
)
def test_a_shift_is_exact_where_keys_in_sight_are_counted_and_not_where_they_are_not(line):
    config, params = model(line)
    rows = np.random.default_rng(0).integers(0, 37, (2, 24))
    exact = shift_errors(config, params, rows, (64,), 96)[64]
    loose = shift_errors(config, params, rows, (64,), 96, counted=False)[64]
    assert exact.max() < 1e-4
    assert loose.min() > 1e-2


def test_scale_invariant_temperature_and_bias_equal_the_paper_and_its_two_properties():
    layer = placed("log(c=2.0,t=10.0)~scale_invariant").layers[0]
    distance = np.array([0, 1, 5, 100, 10_000, 131_071])
    query, keys = jnp.array([[131_071]]), jnp.asarray(131_071 - distance)[None]
    tau, bias = layer.temperature({}, query, keys), layer.bias({}, query, keys)
    for s, d in enumerate(distance):
        factor, shift = oracles.scale_invariant(int(d), 10.0)
        np.testing.assert_allclose(tau[0, :, 0, s], factor, rtol=1e-6)
        np.testing.assert_allclose(bias[0, :, 0, s], shift, rtol=1e-6, atol=1e-6)
    # Gaussian content of unit variance: e^(m + a^2 / 2) summed over octaves is level far out.
    a, m = (np.array([oracles.scale_invariant(d, 10.0)[i] for d in range(1 << 15)]) for i in (0, 1))
    weight = np.exp(m + a**2 / 2)
    octaves = [weight[1 << e : 1 << (e + 1)].sum() for e in range(10, 15)]
    np.testing.assert_allclose(octaves, 10 * math.sqrt(math.e) * math.log(2), rtol=0.01)
    np.testing.assert_allclose(m + a**2, 1)  # what makes entropy grow slower than log t


def test_yarn_temperature_is_what_the_stretch_does_to_fully_rotated_content():
    q, k, v = (jax.random.normal(jax.random.key(s), (1, 7, 4, 16)) for s in range(3))
    pos, ones = jnp.arange(7)[None], jnp.ones((1, 7), jnp.int32)
    tokens = TokenSide(pos, ones)
    stretched = attend(q, k, v, placed("rope(stretch=yarn(factor=16.0))").layers[0], {}, tokens)
    angle = angles(pos, Rope(stretch=Yarn(factor=16.0)).frequencies(PLACE))
    turned = [rotate(x, angle, "half", 1.0) for x in (q, k)]
    plain, hot = (
        attend(*turned, v, placed(line).layers[0], {}, tokens)
        for line in ("nope", "nope~yarn_temperature(factor=16.0)")
    )
    np.testing.assert_allclose(stretched, hot, atol=2e-6)
    assert np.abs(stretched - plain).max() > 1e-2
    assert float(YarnTemperature(1.0).temperature({}, pos, pos, PLACE).max()) == 1.0


def test_the_scale_invariant_temperature_is_read_further_with_its_bias():
    assert ScaleInvariant(t=10.0).stretched(4.0) == ScaleInvariant(t=40.0)


def test_log_n_temperature_is_one_at_the_training_length():
    pos = jnp.array([[0, 7, 63, 64, 511]])
    clipped = LogN().temperature({}, pos, pos, PLACE)[:, 0, :, 0]
    np.testing.assert_allclose(clipped[0], [1, 1, 1, math.log(65) / math.log(64), 1.5], rtol=1e-6)
    free = LogN(clip=False).temperature({}, pos, pos, PLACE)[:, 0, :, 0]
    np.testing.assert_allclose(free[0, :2], [0, 0.5], atol=1e-6)
