"""How a scheme lies on heads and layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.encodings import Rope, parse
from posenc_jax.encodings.scheme_presets import PRESETS

from support import oracles

SHAPE = {"num_layers": 2, "num_heads": 4, "head_dim": 16, "model_dim": 32, "train_length": 64}


def test_heads_are_shared_out_in_order():
    layer = parse("3*(rope+alibi)|1*nope~logn").place(**SHAPE | {"num_heads": 8}).layers[0]
    assert [(g.first, g.stop) for g in layer.groups] == [(0, 6), (6, 8)]


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="4 heads do not divide into shares 2:1"):
        parse("2*rope|1*nope").place(**SHAPE)


def test_layers_cycle_through_the_pattern():
    placed = parse("2*rope,nope").place(**SHAPE | {"num_layers": 5})
    turns = [layer.groups[0].heads.rotation is not None for layer in placed.layers]
    assert turns == [True, True, False, True, True]


def test_a_scheme_of_more_layers_than_the_model_is_refused_with_both_numbers():
    message = (
        r"^the scheme has 4 layers and the model 2: give the model at least 4 \(num_layers\), "
        r"or the scheme fewer$"
    )
    with pytest.raises(ValueError, match=message):
        parse(PRESETS["rnope-swa-4"]).place(**SHAPE)
    layers = parse(PRESETS["rnope-swa-4"]).place(**SHAPE | {"num_layers": 4}).layers
    assert [layer.window_N[0] for layer in layers] == [8, 8, 8, None]


def test_alibi_on_part_of_the_heads_uses_the_slopes_of_that_many_heads():
    bias = parse("rope|alibi").place(**SHAPE).layers[0].bias({}, jnp.array([[9]]), jnp.array([[8]]))
    np.testing.assert_allclose(bias[0, :, 0, 0], [0, 0, *-np.array(oracles.alibi_slopes(2))])


def test_only_the_heads_that_rotate_are_touched():
    layer = parse("rope|nope").place(**SHAPE).layers[0]
    x = jax.random.normal(jax.random.key(0), (1, 3, 4, 16))
    out = layer.rotate({}, x, jnp.array([[5, 6, 7]]), "query")
    np.testing.assert_array_equal(out[:, :, 2:], x[:, :, 2:])
    want = Rope().rotate({}, x, jnp.array([[5, 6, 7]]), layer.groups[0].context, "query")
    np.testing.assert_array_equal(out[:, :, :2], want[:, :, :2])


def test_temperature_reaches_its_own_heads_only():
    layer = parse("rope|nope~logn").place(**SHAPE).layers[0]
    tau = layer.temperature({}, jnp.array([[511]]), jnp.array([[0, 9]]))
    np.testing.assert_allclose(tau[0, :, 0, 0], [1, 1, 1.5, 1.5], rtol=1e-6)


def test_a_scheme_without_a_kind_of_part_returns_none_for_it():
    layer = parse("nope").place(**SHAPE).layers[0]
    assert layer.bias({}, jnp.zeros((1, 1), int), jnp.zeros((1, 1), int)) is None
    assert layer.temperature({}, jnp.zeros((1, 1), int), jnp.zeros((1, 1), int)) is None


def test_key_heads_are_shared_when_their_queries_turn_alike():
    layer = parse("rope|nope").place(**SHAPE).layers[0]
    assert layer.shares_keys(4)
    assert layer.shares_keys(2)
    assert not layer.shares_keys(1)


def test_the_longest_position_is_the_smallest_limit():
    assert parse("rope+alibi").place(**SHAPE).longest() is None
    assert parse("learned").place(**SHAPE).longest() == 64
    assert parse("learned(size=100)+alibi").place(**SHAPE).longest() == 100
