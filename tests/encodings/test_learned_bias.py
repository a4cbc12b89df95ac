"""Biases with parameters (T5, FIRE, KERPLE, learned and annealed slopes) against float64 loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.checkpoints.manager import CheckpointManager
from posenc_jax.encodings import Alibi, HeadContext
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
from posenc_jax.model.decoder import Decoder, at_progress
from posenc_jax.training.sharding import make_mesh
from posenc_jax.training.step import state_builder

from support import oracles, runs
from support.bias_values import looped, values
from support.decoders import model

PLACE = HeadContext(heads=4, num_heads=4, head_dim=16, model_dim=32, train_length=64)


def test_annealed_slopes_follow_their_schedule():
    part = Annealed(slopes="match", first=1.0, last=0.25, begin=0.5, end=0.75)
    params, pos = part.init(jax.random.key(0), PLACE), jnp.arange(5)[None]
    full = Alibi(slopes="match").bias({}, pos, pos, PLACE)
    for progress, share in ((0.0, 1.0), (0.5, 1.0), (0.6, 0.7), (0.75, 0.25), (1.0, 0.25)):
        there = part.scheduled(params, jnp.float32(progress), PLACE)
        np.testing.assert_allclose(part.bias(there, pos, pos, PLACE), share * full, rtol=1e-5)


def test_at_progress_reaches_every_layer_and_touches_nothing_else():
    config, params = model("rope+annealed(begin=0.0)|fire")
    half = at_progress(config, params, jnp.float32(0.5))
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), params, half)
    found = [
        jax.tree_util.keystr(path)
        for path, new in jax.tree_util.tree_leaves_with_path(changed)
        if new
    ]
    assert found == [f"['layer_{i}']['attention']['scheme']['0.bias']['share']" for i in (0, 1)]


@pytest.mark.thorough
def test_training_fades_annealed_slopes_by_its_schedule_and_a_checkpoint_keeps_the_share(
    tmp_path, data_dir
):
    line = "rope+annealed(begin=0.0,end=1.0,last=0.25)"
    config = runs.config(
        data_dir, scheme=line, train={"steps": 4, "save_every": 1, "keep": 9, "data_devices": 1}
    )
    runs.finished(config, tmp_path / "x")
    model, mesh = Decoder(config.model_config(260)), make_mesh(1, 1)
    with jax.set_mesh(mesh), CheckpointManager(tmp_path / "x", 9) as checkpoints:
        _, shapes = state_builder(config, model, mesh)
        for step in (1, 2, 4):
            scheme = checkpoints.restore(step, shapes)["params"]["layer_1"]["attention"]["scheme"]
            np.testing.assert_allclose(scheme["0.bias"]["share"], 1 - 0.75 * step / 4, rtol=1e-6)


QUERY = 5000


DISTANCES = np.array([0, 1, 2, 3, 15, 16, 17, 31, 64, 100, 127, 128, 129, 1000, 5000])


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
    np.testing.assert_allclose(
        values(KerpleLog(), params),
        looped(lambda n, d: -r1[n] * math.log(1 + r2[n] * d)),
        rtol=2e-6,
    )
    params = KerplePower().init(jax.random.key(1), PLACE)
    r1 = [softplus(x) for x in params["raw_rN"][0]]
    r2 = [2 / (1 + math.exp(-float(x))) for x in params["raw_rN"][1]]
    assert 0 < min(r2) < max(r2) < 2
    np.testing.assert_allclose(
        values(KerplePower(), params),
        looped(lambda n, d: -r1[n] * d ** r2[n] if d else 0.0),
        rtol=2e-5,
    )


@pytest.mark.parametrize(
    ("buckets", "longest"),
    [
        (32, 128),
        (32, 256),
        (8, 20),
        (16, 1000),
        (32, 2048),
        (64, 2048),
        (64, 4096),
        (128, 131_072),
        (128, 10_000),
        (32, 17),
    ],
)
def test_t5_buckets_equal_whole_number_arithmetic_at_every_distance_to_two_to_the_seventeen(
    buckets, longest
):
    distance = np.arange(2**17 + 1)
    want = oracles.t5_buckets(distance, buckets, longest)
    np.testing.assert_array_equal(t5_buckets(jnp.asarray(distance), buckets, longest), want)
    assert want[-1] == buckets - 1
    np.testing.assert_array_equal(
        np.searchsorted(t5_starts(buckets, longest), distance, side="right") - 1, want
    )
    if longest <= 2048:  # the same rule, one distance at a time, by real logarithms
        some = np.r_[0:60, 61 : 2 * longest : 7]
        np.testing.assert_array_equal(
            want[some], [oracles.t5_bucket(int(d), buckets, longest) for d in some]
        )


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

    np.testing.assert_allclose(
        values(Fire(), params), looped(lambda n, d: oracle(n, QUERY, d)), rtol=1e-5, atol=1e-6
    )
    near = Fire().bias(params, jnp.array([[10]]), jnp.array([[7]]), PLACE)[0, 0, 0, 0]
    assert float(near) == pytest.approx(oracle(0, 10, 3), rel=1e-4, abs=1e-6)
