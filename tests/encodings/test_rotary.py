"""Rotations against oracles and published numbers; the worked examples first."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax import encodings
from posenc_jax.encodings import HeadContext, Rope
from posenc_jax.encodings.backend import assume_backend

from support import oracles

PLACE = HeadContext(heads=4, num_heads=4, head_dim=16, model_dim=32, train_length=64)


def rotated(x, degrees):
    """One two-dimensional vector, turned by an angle given outright."""
    angle = jnp.full((1, 1, 1), math.radians(degrees), jnp.float32)
    return encodings.rotate(
        jnp.asarray(x, jnp.float32).reshape(1, 1, 1, 2), angle, "half", 1.0
    ).reshape(2)


def test_worked_example_score_of_30_and_90_degrees_is_a_half():
    q, k = rotated([1, 0], 30), rotated([1, 0], 90)
    np.testing.assert_allclose(q @ k, 0.5, atol=1e-6)


def test_worked_example_vector_at_45_and_90_degrees():
    np.testing.assert_allclose(rotated([1, 0], 45), [math.sqrt(0.5)] * 2, atol=1e-6)
    np.testing.assert_allclose(rotated([1, 0], 90), [0, 1], atol=1e-6)


def test_worked_example_4096_positions_squeezed_into_100k_keep_their_angles():
    squeeze = 100_000 / 4096
    freq_h = encodings.inverse_frequencies(128, 10_000.0)
    far = encodings.angles(jnp.array([[100_000]]), freq_h / squeeze)
    near = encodings.angles(jnp.array([[4096]]), freq_h)
    np.testing.assert_allclose(
        np.exp(1j * np.asarray(far)), np.exp(1j * np.asarray(near)), atol=2e-6
    )


@pytest.mark.default_cases(6)
@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.25])
@pytest.mark.parametrize(("base", "device"), [(10_000.0, "cpu"), (500.0, "cpu"), (500.0, "tpu")])
def test_rope_equals_the_oracle_on_arbitrary_positions(pairing, fraction, base, device):
    rope = Rope(base=base, fraction=fraction, pairing=pairing)
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 16)).astype(np.float32)
    pos = np.array([[0, 1, 7, 100, 99_991], [5, 3, 2, 2, 1_048_575]])
    with assume_backend(device):
        got = np.asarray(rope.rotate({}, jnp.asarray(x), jnp.asarray(pos), PLACE, "query"))
    for b, t, n in np.ndindex(2, 5, 3):
        want = oracles.rope_vector(x[b, t, n], pos[b, t], base, pairing, int(16 * fraction))
        np.testing.assert_allclose(got[b, t, n], want, atol=5e-6)


def test_rope_takes_fractional_positions():
    x = np.random.default_rng(1).normal(size=16).astype(np.float32)
    got = Rope().rotate(
        {}, jnp.asarray(x).reshape(1, 1, 1, 16), jnp.array([[12.75]]), PLACE, "query"
    )
    np.testing.assert_allclose(got.reshape(16), oracles.rope_vector(x, 12.75), atol=2e-6)


def test_angles_stay_within_a_millionth_radian_up_to_two_to_the_twenty():
    freq_h = encodings.inverse_frequencies(128, 10_000.0)
    pos = np.r_[np.arange(0, 2**20, 4001), 2**20 - 1, 2**20, -5]
    got = np.asarray(jax.jit(lambda p: encodings.angles(p, freq_h))(jnp.asarray(pos)), np.float64)
    turns = pos[:, None] * (freq_h / (2 * np.pi)).astype(np.longdouble)
    error = np.abs(np.asarray(got / (2 * np.pi) - turns, np.longdouble) % 1.0)
    error = np.minimum(error, 1 - error) * 2 * np.pi
    assert error.max() < 1e-6
    plain = np.abs(
        (pos[:, None].astype(np.float32) * freq_h.astype(np.float32)) - pos[:, None] * freq_h
    )
    assert plain.max() > 1e-2  # what the plain float32 product would have done


def test_rope_score_depends_only_on_distance():
    rng = np.random.default_rng(2)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 16)), jnp.float32) for _ in range(2))

    def score(i, j):
        a = Rope().rotate({}, q, jnp.array([[i]]), PLACE, "query")
        b = Rope().rotate({}, k, jnp.array([[j]]), PLACE, "key")
        return float((a * b).sum())

    assert abs(score(17, 5) - score(100_017, 100_005)) < 1e-5
    assert abs(score(17, 5) - score(17, 6)) > 1e-2


def test_the_two_pairings_are_equal_only_under_a_permutation():
    x = jnp.asarray(np.random.default_rng(3).normal(size=(1, 4, 2, 16)), jnp.float32)
    pos = jnp.array([[0, 3, 50, 1000]])
    order = np.arange(16).reshape(2, 8).T.reshape(-1)  # half layout -> interleaved layout
    half = Rope(pairing="half").rotate({}, x, pos, PLACE, "query")
    inter = Rope(pairing="interleaved").rotate({}, x[..., order], pos, PLACE, "query")
    np.testing.assert_allclose(half[..., order], inter, atol=1e-6)
    assert not np.allclose(half, Rope(pairing="interleaved").rotate({}, x, pos, PLACE, "query"))


def test_partial_rotary_leaves_later_dims_alone_and_has_its_own_spectrum():
    rope = Rope(fraction=0.25)
    x = jnp.ones((1, 1, 1, 16))
    out = rope.rotate({}, x, jnp.array([[9]]), PLACE, "query").reshape(16)
    np.testing.assert_array_equal(out[4:], 1)
    np.testing.assert_allclose(rope.frequencies(PLACE), [1, 10_000**-0.5])


@pytest.mark.default_cases(3)
@pytest.mark.parametrize(("head_dim", "dim"), [(88, 60), (16, 6), (16, 16), (16, 2)])
@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_any_even_number_of_dims_may_rotate(head_dim, dim, pairing):
    place = dataclasses.replace(PLACE, head_dim=head_dim)
    rope = Rope(dim=dim, pairing=pairing)
    rope.check(place)
    x = np.random.default_rng(4).normal(size=head_dim).astype(np.float32)
    got = rope.rotate({}, jnp.asarray(x).reshape(1, 1, 1, -1), jnp.array([[37]]), place, "query")
    want = oracles.rope_vector(x, 37, pairing=pairing, rotary_dim=dim)
    np.testing.assert_allclose(got.reshape(-1), want, atol=5e-6)
    np.testing.assert_array_equal(got.reshape(-1)[dim:], x[dim:])
    if head_dim == 88:  # the share that should say it does not
        assert Rope(fraction=dim / head_dim).rotary_dim(place) == 58


def test_rope_decays_with_distance_for_equal_vectors_but_not_in_expectation():
    """RoFormer's long-term decay holds for constant q = k, not for independent Gaussian ones."""
    freq_h = encodings.inverse_frequencies(128, 10_000.0)
    kernel = np.cos(np.arange(512)[:, None] * freq_h).mean(-1)
    windows = np.abs(kernel).reshape(8, 64).mean(-1)
    assert windows[0] > 1.5 * windows[3]
    assert windows[0] > 1.5 * windows[-1]
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 4000, 64)) + 1j * rng.normal(size=(2, 4000, 64))
    for d in (1, 400):
        mean = (q * k.conj() * np.exp(1j * d * freq_h)).real.sum(-1).mean()
        assert abs(mean) < 5 * math.sqrt(128 / 4000)
