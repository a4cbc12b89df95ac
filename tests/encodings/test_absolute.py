"""Position embeddings that are added to tokens: sinusoids and the learned table."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.encodings import HeadContext, Learned, Sinusoidal, parse

from support import oracles

PLACE = HeadContext(heads=4, num_heads=4, head_dim=16, model_dim=32, train_length=64)


@pytest.mark.parametrize("dim", [8, 32])
def test_sinusoids_equal_the_paper(dim):
    pos = [0, 1, 2, 63, 4000, 123_456]
    got = Sinusoidal().embed({}, jnp.array([pos]), dataclasses.replace(PLACE, model_dim=dim))
    np.testing.assert_allclose(got[0], [oracles.sinusoid(p, dim) for p in pos], atol=1e-6)


def test_sines_may_come_before_all_cosines_as_in_marian():
    pos, dim = [0, 1, 63, 4000], 32
    got = Sinusoidal(pairing="half").embed({}, jnp.array([pos]), PLACE)[0]
    paper = np.array([oracles.sinusoid(p, dim) for p in pos])
    np.testing.assert_allclose(got, np.c_[paper[:, 0::2], paper[:, 1::2]], atol=1e-6)


@pytest.mark.parametrize("dim", [8, 32])
def test_base_offset_and_pairing_say_the_sinusoids_of_fairseq(dim):
    pos, half = [0, 1, 63, 4000], dim // 2
    part = Sinusoidal(base=10_000.0 ** (half / (half - 1)), pairing="half", offset=2)
    got = part.embed({}, jnp.array([pos]), dataclasses.replace(PLACE, model_dim=dim))[0]
    want = [oracles.sinusoids_of_fairseq(p, dim) for p in pos]
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_a_learned_table_may_begin_with_rows_that_no_position_reads():
    """OPT: position p is row p + 2."""
    part = Learned(offset=2)
    params = part.init(jax.random.key(0), PLACE)
    assert params["table_LD"].shape == (66, 32)
    assert part.longest(PLACE) == 64
    rows = part.embed(params, jnp.array([[0, 63]]), PLACE)
    np.testing.assert_array_equal(rows[0], params["table_LD"][jnp.array([2, 65])])
    for stranger in (64, -1):
        with pytest.raises(ValueError, match=f"position {stranger} lies outside"):
            part.embed(params, jnp.array([[3, stranger]]), PLACE)
    inside_jit = jax.jit(lambda p: part.embed(params, p, PLACE))(jnp.array([[63, 64, -1, -2]]))
    assert np.isfinite(inside_jit[0, 0]).all()
    assert np.isnan(inside_jit[0, 1:]).all()


@pytest.mark.parametrize("line", ["learned(offset=-1)", "sinusoidal(offset=-1)"])
def test_a_negative_offset_and_an_unknown_pairing_are_refused(line):
    shape = {"num_layers": 1, "num_heads": 4, "head_dim": 16, "model_dim": 32, "train_length": 64}
    with pytest.raises(ValueError, match="offset must lie in"):
        parse(line).place(**shape)
    with pytest.raises(ValueError, match="pairing"):
        parse("sinusoidal(pairing=sines)").place(**shape)


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
