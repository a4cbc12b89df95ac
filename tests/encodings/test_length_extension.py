"""One rule for every bias: under a stretch s a distance s d is read as d, whatever is learned."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.encodings import REGISTRY, Bias, HeadContext, Temperature, extend_length, parse

from support import oracles

PLACE = HeadContext(heads=4, num_heads=4, head_dim=16, model_dim=32, train_length=64)
BIASES = [name for name, part in REGISTRY.items() if issubclass(part, Bias)]
SLOPED = ["alibi", "alibi2d", "annealed", "capped", "power", "slopes"]  # heads have an order
SETTINGS = {
    "power": [{}, {"power": 1.5}],
    "slopes": [{}, {"floor": 4.0}],
    "capped": [{"cap": 40.0}],
}
PARTS = [REGISTRY[name](**given) for name in BIASES for given in SETTINGS.get(name, [{}])]
# Distances to which every stretch below has a whole multiple.
DISTANCES = np.array([0, 2, 4, 8, 16, 20, 30, 32, 66, 100, 128, 300, 1000])
ROWS, COLUMNS = np.array([[0, 0], [2, 0], [0, 2], [6, 4], [2, 14], [16, 10]]).T


def trained(part, place=PLACE):
    """Parameters as training might leave them: far from where they began, and of every head its own."""
    params = part.init(jax.random.key(0), place)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), max(len(leaves), 1))
    moved = [x + 0.5 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=False)]
    return jax.tree.unflatten(tree, moved)


def read(part, params, scale, place=PLACE):
    """bias_NS of a query on keys at `scale` times the distances: along a line, or on a grid by rows and
    columns.
    """
    columns = part.columns(place)
    if columns is None:
        query, keys = 1200 * scale, scale * (1200 - DISTANCES)
    else:
        query, keys = scale * 16 * columns, scale * ((16 - ROWS) * columns + COLUMNS)
    whole = np.asarray(keys).astype(int)
    np.testing.assert_array_equal(whole, keys)
    assert whole.min() >= 0
    bias = part.bias(params, jnp.array([[int(query)]]), jnp.asarray(whole)[None], place)
    return np.asarray(bias[0, :, 0], np.float64)


def on_grid(part):
    """A planar part with columns enough for four times the offsets."""
    return dataclasses.replace(part, width=64) if hasattr(part, "width") else part


def titled(part):
    return type(part).__name__


@pytest.mark.default_cases(12)
@pytest.mark.parametrize("factor", [2.0, 4.0, 1.5])
@pytest.mark.parametrize("part", PARTS, ids=repr)
def test_a_bias_stretched_by_s_at_distance_s_d_is_the_bias_at_d(part, factor):
    part = on_grid(part)
    params = trained(part)
    want, further = read(part, params, 1), part.stretched(factor, ntk=False)
    further.check(PLACE)
    exact = "T5" in titled(part)
    np.testing.assert_allclose(
        read(further, params, factor), want, rtol=0 if exact else 1e-5, atol=0 if exact else 2e-6
    )
    # The distances are not so near that any stretch would have passed.
    assert not np.allclose(read(part, params, factor), want, rtol=1e-2, atol=1e-2)
    halves = part.stretched(factor / 2, ntk=False).stretched(2.0, ntk=False)
    np.testing.assert_allclose(read(halves, params, factor), want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("part", PARTS, ids=repr)
def test_a_stretch_changes_what_is_read_and_not_what_is_learned(part):
    for ntk in (False, True):
        further = part.stretched(4.0, ntk=ntk)
        ours, theirs = (p.init(jax.random.key(0), PLACE) for p in (part, further))
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_array_equal(a, b)
        slope_N = further.linear_slope_N(params := trained(part), PLACE)
        if slope_N is not None:
            distance = jnp.arange(50)[None]
            bias = further.bias(params, jnp.array([[49]]), 49 - distance, PLACE)[0, :, 0]
            np.testing.assert_allclose(bias, -slope_N[:, None] * distance, rtol=1e-6)


@pytest.mark.default_cases(8)
@pytest.mark.parametrize("heads", [4, 6])
@pytest.mark.parametrize("part", PARTS, ids=repr)
def test_the_ntk_form_keeps_the_steepest_head_and_reads_the_shallowest_by_the_whole_rule(
    part, heads
):
    part, place = on_grid(part), dataclasses.replace(PLACE, heads=heads, num_heads=heads)
    params = trained(part, place)
    want = read(part, params, 1, place)
    ntk, whole = (part.stretched(4.0, ntk=how) for how in (True, False))
    if not isinstance(part, tuple(REGISTRY[n] for n in SLOPED)):
        assert ntk == whole  # heads without an order
        return
    lost_N = -want[:, 1]
    np.testing.assert_allclose(
        read(ntk, params, 1, place)[lost_N.argmax()], want[lost_N.argmax()], rtol=1e-5
    )
    np.testing.assert_allclose(
        read(ntk, params, 4, place)[lost_N.argmin()], want[lost_N.argmin()], rtol=1e-5
    )
    for rank, n in enumerate(np.argsort(-lost_N, kind="stable")):
        own = part.stretched(4.0 ** (rank / (heads - 1)), ntk=False)
        np.testing.assert_allclose(
            read(ntk, params, 1, place)[n], read(own, params, 1, place)[n], rtol=1e-5
        )


def test_power_divides_its_slope_by_the_factor_to_the_power():
    part, slopes = REGISTRY["power"](power=0.5, factor=4.0), oracles.alibi_slopes(4)
    got = part.bias({}, jnp.array([[100]]), jnp.array([[0]]), PLACE)[0, :, 0, 0]
    np.testing.assert_allclose(got, [-m / 4**0.5 * math.sqrt(100) for m in slopes], rtol=1e-6)


def test_fire_reads_its_query_at_a_shorter_position_too():
    part = REGISTRY["fire"]()
    params = trained(part)
    far, near = jnp.array([[4000]]), jnp.array([[1000]])
    want = part.bias(params, near, near - 9, PLACE)
    got = part.stretched(4.0, ntk=False).bias(params, far, far - 36, PLACE)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name", [n for n, part in REGISTRY.items() if issubclass(part, Temperature)]
)
def test_a_temperature_of_distance_follows_the_same_rule(name):
    part, query = REGISTRY[name](), jnp.array([[1200]])
    params = part.init(jax.random.key(0), PLACE)
    tau = part.temperature(params, query, query - DISTANCES[None], PLACE)
    further = part.stretched(4.0)
    if tau.shape[-1] == 1:  # of the query alone, or of nothing
        assert further == part
        return
    got = further.temperature(params, 4 * query, 4 * (query - DISTANCES[None]), PLACE)
    np.testing.assert_allclose(got, tau, rtol=1e-6)


@pytest.mark.parametrize("name", BIASES)
def test_no_rule_with_a_factor_stretches_a_rotation_and_leaves_a_bias_behind(name):
    scheme = parse(f"rope+{name}")
    for rule in ("pi:4", "ntk:4", "yarn:4", "llama3:4", "dynamic:1"):
        ((heads,),) = extend_length(scheme, rule, length=256, train_length=64).layers
        assert heads.rotation != scheme.layers[0][0].rotation
        assert heads.bias == scheme.layers[0][0].bias.stretched(4.0, ntk=rule == "ntk:4")
        assert heads.bias != scheme.layers[0][0].bias
    ((heads,),) = extend_length(scheme, "rotation.yarn:4", length=256, train_length=64).layers
    assert heads.bias == scheme.layers[0][0].bias
