"""Biases without parameters against float64 loops, and the limits that tie one to another."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax import encodings
from posenc_jax.encodings import REGISTRY, Alibi, Bias, Forget, GatedBias, HeadContext
from posenc_jax.encodings.bias import Capped, Log, Power, Sandwich, ntk_factors
from posenc_jax.encodings.learned_bias import (
    T5,
    Annealed,
    Fire,
    KerpleLog,
    KerplePower,
    LearnedSlopes,
)

from support import oracles
from support.bias_values import looped, values

PLACE = HeadContext(heads=4, num_heads=4, head_dim=16, model_dim=32, train_length=64)


QUERY = 5000


DISTANCES = np.array([0, 1, 2, 3, 15, 16, 17, 31, 64, 100, 127, 128, 129, 1000, 5000])


BIASES = [name for name, part in REGISTRY.items() if issubclass(part, Bias)]


SLOPES = oracles.alibi_slopes(4)


@pytest.mark.parametrize(
    ("part", "oracle"),
    [
        (Alibi(), lambda n, d: -SLOPES[n] * d),
        (Alibi(factor=4.0), lambda n, d: -SLOPES[n] * 64 / 256 * d),
        (Alibi(max_exponent=6.0), lambda n, d: -(2.0 ** (-6 * (n + 1) / 4)) * d),
        (Alibi(slopes="harmonic"), lambda n, d: -d / (n + 1)),
        (Alibi(slopes="harmonic", factor=2.0), lambda n, d: -d / (n + 1) / 2),
        (Alibi(slopes="match", steep=4.0), lambda n, d: -4 * 0.25 ** (1 + n / 3) * d),
        (
            Power(slopes="match", steep=10.0, factor=4.0),
            lambda n, d: -10 * 0.25 ** (1 + n / 3) * math.sqrt(d / 4),
        ),
        (Alibi(ntk=4.0), lambda n, d: -(2.0 ** (-8 * (n + 1) / 4)) / 4 ** (n / 3) * d),
        (Capped(cap=3.0), lambda n, d: -min(SLOPES[n] * d, 3.0)),
        (Power(power=0.5), lambda n, d: -SLOPES[n] * math.sqrt(d)),
        (Log(c=2.0, t=8.0), lambda n, d: -2.0 * math.log(1 + d / 8.0)),
        (Sandwich(), lambda n, d: oracles.sandwich(d, n, 4)),
    ],
    ids=lambda value: "" if callable(value) else repr(value),
)
def test_a_fixed_bias_equals_its_float64_loop(part, oracle):
    np.testing.assert_allclose(
        values(part), looped(oracle), rtol=1e-6, atol=2e-5 if isinstance(part, Sandwich) else 0
    )


@pytest.mark.parametrize(("steep", "last"), [(1, 4), (4, 16), (10, 40), (20, 80)])
def test_steep_slopes_are_matched_ones_times_a_number(steep, last):
    for heads in (1, 3, 4):
        place = dataclasses.replace(PLACE, heads=heads, train_length=256)
        slopes = Alibi(slopes="match", steep=steep).slope_N(place)
        np.testing.assert_allclose(slopes, steep * Alibi(slopes="match").slope_N(place))
        if heads > 1:
            assert slopes[-1] == pytest.approx(last / 256)


def test_ntk_slopes_follow_steepness_where_head_order_does_not():
    slopes = np.array(oracles.alibi_slopes(6))
    assert (np.diff(slopes) > 0).any()
    ratio = ntk_factors(slopes, 8.0)
    assert ratio[slopes.argmax()] == 1
    assert ratio[slopes.argmin()] == pytest.approx(8)
    assert (np.diff(ratio[np.argsort(-slopes)]) > 0).all()


@pytest.mark.parametrize(
    "name", ["alibi", "capped", "power", "log", "slopes", "kerple_log", "kerple_power"]
)
def test_a_monotone_bias_never_rises_with_distance_up_to_sixteen_training_lengths(name):
    part = REGISTRY[name]()
    distance = np.arange(0, 16 * 64)
    params = part.init(jax.random.key(0), PLACE)
    bias = part.bias(params, jnp.array([[1023]]), jnp.asarray(1023 - distance)[None], PLACE)[
        0, :, 0
    ]
    assert (np.diff(bias, axis=-1) <= 0).all()
    assert (bias[:, -1] < bias[:, 0] - 1e-3).all()
    np.testing.assert_allclose(bias[:, 0], 0, atol=1e-6)


WORDS = {"match": "standard", "standard": "match", "half": "match", "euclidean": "manhattan"}


NUMBERS = {"width": 5, "begin": 0.4, "end": 0.95, "last": 0.5}


def shown(part, params, query):
    """What a bias does late in training, to positions and, where it reads them, to tokens."""
    params = part.scheduled(params, jnp.float32(0.8), PLACE)
    out = [values(part, params, query=query)]
    if isinstance(part, GatedBias):
        out.append(part.log_forget(params, jax.random.normal(jax.random.key(1), (1, 3, 32)), PLACE))
    return out


@pytest.mark.default_cases(4)
@pytest.mark.parametrize("name", BIASES)
def test_every_setting_of_a_bias_changes_it(name):
    part = REGISTRY[name]()
    for field in dataclasses.fields(part):
        other = (
            WORDS.get(field.default)
            or NUMBERS.get(field.name)
            or field.default * 2 + (field.default == 0)
        )
        changed = dataclasses.replace(part, **{field.name: other})
        changed.check(PLACE)
        params = part.init(jax.random.key(0), PLACE)
        # Initial slopes are the same under any floor; learned ones cannot sink as deep.
        theirs = params if field.name == "floor" else changed.init(jax.random.key(0), PLACE)
        seen = [  # FIRE's threshold shows at early queries
            pair
            for query in (QUERY, 20)
            for pair in zip(shown(part, params, query), shown(changed, theirs, query), strict=True)
        ]
        assert any(not np.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in seen), field.name


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Capped(cap=0.0), "cap"),
        (Power(power=3.0), "power"),
        (Log(c=-1.0), "c must be"),
        (Alibi(factor=math.nan), "factor"),
        (LearnedSlopes(start="flat"), "start"),
        (LearnedSlopes(floor=-1.0), "floor"),
        (T5(buckets=7), "buckets"),
        (T5(longest_distance=10), "longest_distance"),
        (T5(buckets=8192, longest_distance=9000), "4 to 4096 buckets"),
        (Alibi(max_exponent=0.0), "max_exponent"),
        (Alibi(slopes="harmonic", max_exponent=4.0), "harmonic slopes have no max_exponent"),
        (Alibi(slopes="geometric"), "slopes must be one of"),
        (Alibi(steep=0.0), "steep"),
        (Alibi(max_exponent=600.0), "which float32 cannot use"),
        (Power(factor=1e30, power=2.0), "which float32 cannot use"),
        (KerpleLog(factor=0.0), "factor"),
        (KerplePower(factor=-1.0), "factor"),
        (LearnedSlopes(ntk=0.0), "ntk"),
        (Sandwich(dim=7), "even"),
        (Fire(c=0.0), "c must be"),
        (Annealed(first=-1.0), "shares must be zero or above"),
        (Annealed(begin=0.5, end=0.5), "needs 0 <= begin < end <= 1"),
        (Forget(start="flat"), "start must be half, match or standard"),
        (Forget(stddev=0.0), "stddev"),
    ],
)
def test_a_bias_that_makes_no_sense_says_why(part, message):
    with pytest.raises(ValueError, match=message):
        part.check(PLACE)


def test_worked_example_alibi_adds_a_quarter_per_token_of_distance():
    bias = encodings.linear_bias(np.array([0.25]), jnp.array([[[2.0, 1.0, 0.0]]]))
    np.testing.assert_array_equal(jnp.array([9.0, 8.0, 7.0]) + bias[0, 0, 0], [8.5, 7.75, 7.0])


@pytest.mark.parametrize("n", [*range(1, 41), 64, 71, 96, 112, 128])
def test_alibi_slopes_equal_the_published_recursion_for_every_head_count(n):
    np.testing.assert_allclose(encodings.alibi_slopes(n), oracles.alibi_slopes(n), rtol=1e-12)


@pytest.mark.parametrize("most", [4.0, 8.0, 10.0])
def test_slopes_of_any_maximum_exponent_are_mpts_for_every_head_count(most):
    for n in range(1, 41):
        np.testing.assert_allclose(
            encodings.alibi_slopes(n, most), oracles.mpt_slopes(n, most), rtol=1e-12
        )
        matched = encodings.matched_slopes(n, n, 512, most)
        assert matched[0] == pytest.approx(max(2.0 ** (-most / n), 4 / 512))
    twelve = dataclasses.replace(PLACE, heads=12, num_heads=12)
    np.testing.assert_allclose(
        Alibi(max_exponent=most).slope_N(twelve), oracles.mpt_slopes(12, most)
    )


def test_alibi_slopes_of_twelve_heads_end_as_published():
    slopes = encodings.alibi_slopes(12)
    np.testing.assert_allclose(slopes[-4:], [0.70711, 0.35355, 0.17678, 0.08839], atol=5e-6)
    assert (np.diff(slopes) > 0).any()  # not monotone
    assert not np.allclose(slopes, 2.0 ** (-8 * np.arange(1, 13) / 12))


def test_alibi_is_blind_beyond_the_published_distances():
    """exp(-m d) falls below the smallest float32, 2^-149, after these distances."""
    slopes = Alibi().slope_N(dataclasses.replace(PLACE, heads=8, num_heads=8))
    blind = np.floor(149 * math.log(2) / slopes)
    np.testing.assert_array_equal(blind, [206, 413, 826, 1652, 3304, 6609, 13219, 26439])


def test_matched_slopes_reach_four_nats_over_the_training_length():
    np.testing.assert_allclose(encodings.matched_slopes(2, 4, 64), [0.25, 0.0625])
    np.testing.assert_allclose(
        encodings.matched_slopes(4, 4, 64) * 64, [16, 10.0794, 6.3496, 4], rtol=1e-5
    )
    np.testing.assert_allclose(
        encodings.matched_slopes(3, 2, 16), [0.25] * 3
    )  # never shallower than 4/L


def test_alibi_subtracts_integers_before_the_cast():
    far = 2**24 + 1  # float32 cannot hold it, its distance to a neighbour it can
    pos = jnp.array([[far]])
    bias = Alibi().bias({}, pos, jnp.array([[far - 1, far - 3]]), PLACE)
    np.testing.assert_array_equal(bias[0, 0, 0], [-0.25, -0.75])


def test_alibi_is_symmetric_in_distance():
    bias = Alibi().bias({}, jnp.arange(6)[None], jnp.arange(6)[None], PLACE)
    np.testing.assert_array_equal(bias, bias.swapaxes(-1, -2))
    assert (bias[0, :, 0, 1:] < 0).all()
