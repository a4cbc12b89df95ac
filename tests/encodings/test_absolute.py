"""Position embeddings that are added to tokens: sinusoids and the learned table."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.encodings import HeadContext, Learned, Sinusoidal

from support import oracles

PLACE = HeadContext(heads=4, num_heads=4, head_dim=16, model_dim=32, train_length=64)


@pytest.mark.parametrize("dim", [8, 32])
def test_sinusoids_equal_the_paper(dim):
    pos = [0, 1, 2, 63, 4000, 123_456]
    got = Sinusoidal().embed({}, jnp.array([pos]), dataclasses.replace(PLACE, model_dim=dim))
    np.testing.assert_allclose(got[0], [oracles.sinusoid(p, dim) for p in pos], atol=1e-6)


def test_learned_table_refuses_a_position_past_its_end():
    params = Learned().init(jax.random.key(0), PLACE)
    assert params["table_LD"].shape == (64, 32)
    rows = Learned().embed(params, jnp.array([[0, 63]]), PLACE)
    np.testing.assert_array_equal(rows[0], params["table_LD"][jnp.array([0, 63])])
    for stranger in (64, -1):
        with pytest.raises(ValueError, match=f"position {stranger} lies outside"):
            Learned().embed(params, jnp.array([[3, stranger]]), PLACE)


def test_learned_table_fills_nan_under_jit_never_a_clamped_row():
    params = Learned().init(jax.random.key(0), PLACE)
    rows = jax.jit(lambda p: Learned().embed(params, p, PLACE))(jnp.array([[63, 64, -1]]))
    assert np.isnan(rows[0, 1:]).all()
    assert np.isfinite(rows[0, 0]).all()
