"""Every bias against its own float64 loop, and the limits that tie one to another."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from support import oracles
import pytest

from posenc_jax.encodings import REGISTRY, Alibi, Bias, Forget, GatedBias, HeadContext
from posenc_jax.encodings.bias import Capped, Log, Power, Sandwich, ntk_factors
from posenc_jax.encodings.learned_bias import (
    T5,
    Annealed,
    Fire,
    KerpleLog,
    KerplePower,
    LearnedSlopes,
    t5_buckets,
    t5_starts,
)

PLACE = HeadContext(heads=4, num_heads=4, head_dim=16, model_dim=32, train_length=64)
QUERY = 5000
DISTANCES = np.array([0, 1, 2, 3, 15, 16, 17, 31, 64, 100, 127, 128, 129, 1000, 5000])
BIASES = [name for name, part in REGISTRY.items() if issubclass(part, Bias)]


def values(part, params=None, place=PLACE, query=QUERY):
    """bias[head, distance] of one query."""
    params = part.init(jax.random.key(0), place) if params is None else params
    keys = jnp.asarray(query - DISTANCES)[None]
    return np.asarray(part.bias(params, jnp.array([[query]]), keys, place)[0, :, 0])


def looped(function, heads=4):
    return np.array([[function(n, int(d)) for d in DISTANCES] for n in range(heads)])


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
    np.testing.assert_allclose(values(part), looped(oracle), rtol=1e-6, atol=2e-5 if isinstance(part, Sandwich) else 0)  # fmt: skip


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


def test_learned_slopes_start_where_asked_and_never_fall_below_their_floor():
    start = values(LearnedSlopes())
    np.testing.assert_allclose(-start[:, 1], np.geomspace(0.25, 4 / 64, 4), rtol=1e-5)
    sunk = {"raw_N": jnp.full(4, -50.0)}
    np.testing.assert_allclose(-values(LearnedSlopes(floor=4.0), sunk)[:, 1], 4 / 64, rtol=1e-6)
    np.testing.assert_allclose(values(LearnedSlopes(), sunk), 0, atol=1e-9)


def softplus(x):
    return math.log1p(math.exp(float(x)))


def test_kerple_equals_its_float64_loop_and_starts_positive():
    params = KerpleLog().init(jax.random.key(1), PLACE)
    r1, r2 = ([softplus(x) for x in row] for row in params["raw_rN"])
    assert min(r1 + r2) > 0.04
    np.testing.assert_allclose(values(KerpleLog(), params), looped(lambda n, d: -r1[n] * math.log(1 + r2[n] * d)), rtol=2e-6)  # fmt: skip
    params = KerplePower().init(jax.random.key(1), PLACE)
    r1 = [softplus(x) for x in params["raw_rN"][0]]
    r2 = [2 / (1 + math.exp(-float(x))) for x in params["raw_rN"][1]]
    assert 0 < min(r2) < max(r2) < 2
    np.testing.assert_allclose(values(KerplePower(), params), looped(lambda n, d: -r1[n] * d ** r2[n] if d else 0.0), rtol=2e-5)  # fmt: skip


@pytest.mark.parametrize(
    ("buckets", "longest"),
    [(32, 128), (32, 256), (8, 20), (16, 1000), (32, 2048), (64, 2048), (64, 4096), (128, 131_072), (128, 10_000), (32, 17)],
)  # fmt: skip
def test_t5_buckets_equal_whole_number_arithmetic_at_every_distance_to_two_to_the_seventeen(buckets, longest):  # fmt: skip
    distance = np.arange(2**17 + 1)
    want = oracles.t5_buckets(distance, buckets, longest)
    np.testing.assert_array_equal(t5_buckets(jnp.asarray(distance), buckets, longest), want)
    assert want[-1] == buckets - 1
    np.testing.assert_array_equal(np.searchsorted(t5_starts(buckets, longest), distance, side="right") - 1, want)  # fmt: skip
    if longest <= 2048:  # the same rule, one distance at a time, by real logarithms
        some = np.r_[0:60, 61 : 2 * longest : 7]
        np.testing.assert_array_equal(want[some], [oracles.t5_bucket(int(d), buckets, longest) for d in some])  # fmt: skip


def test_t5_reads_its_table():
    params = T5().init(jax.random.key(2), PLACE)
    want = looped(lambda n, d: params["table_NU"][n, oracles.t5_bucket(d)])
    np.testing.assert_array_equal(values(T5(), params), want)


def test_fire_normalises_by_the_query_position_and_equals_its_float64_loop():
    params = Fire().init(jax.random.key(3), PLACE)
    p = {k: np.asarray(v, np.float64) for k, v in params.items()}
    c, threshold = softplus(p["raw_c"]), softplus(p["raw_threshold"]) * 64
    assert (c, threshold) == (pytest.approx(0.1, rel=1e-5), pytest.approx(64, rel=1e-5))

    def oracle(n, i, d):
        share = math.log(c * d + 1) / math.log(c * max(i, threshold) + 1)
        hidden = np.maximum(share * p["in_W"] + p["in_bias_W"], 0)
        return hidden @ p["out_WN"][:, n] + p["out_bias_N"][n]

    np.testing.assert_allclose(values(Fire(), params), looped(lambda n, d: oracle(n, QUERY, d)), rtol=1e-5, atol=1e-6)  # fmt: skip
    near = Fire().bias(params, jnp.array([[10]]), jnp.array([[7]]), PLACE)[0, 0, 0, 0]
    assert float(near) == pytest.approx(oracle(0, 10, 3), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["alibi", "capped", "power", "log", "slopes", "kerple_log", "kerple_power"])  # fmt: skip
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


@pytest.mark.parametrize("name", BIASES)
def test_every_setting_of_a_bias_changes_it(name):
    part = REGISTRY[name]()
    for field in dataclasses.fields(part):
        other = WORDS.get(field.default) or NUMBERS.get(field.name) or field.default * 2 + (field.default == 0)  # fmt: skip
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
