"""Each part against its oracle or a published number; the worked examples first."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from support import oracles
import pytest

from posenc_jax import encodings
from posenc_jax.encodings import Alibi, HeadContext, Learned, LogN, Rope, Sinusoidal
from posenc_jax.encodings.backend import assume_backend

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


def test_worked_example_alibi_adds_a_quarter_per_token_of_distance():
    bias = encodings.linear_bias(np.array([0.25]), jnp.array([[[2.0, 1.0, 0.0]]]))
    np.testing.assert_array_equal(jnp.array([9.0, 8.0, 7.0]) + bias[0, 0, 0], [8.5, 7.75, 7.0])


def test_worked_example_4096_positions_squeezed_into_100k_keep_their_angles():
    squeeze = 100_000 / 4096
    freq_h = encodings.inverse_frequencies(128, 10_000.0)
    far = encodings.angles(jnp.array([[100_000]]), freq_h / squeeze)
    near = encodings.angles(jnp.array([[4096]]), freq_h)
    np.testing.assert_allclose(
        np.exp(1j * np.asarray(far)), np.exp(1j * np.asarray(near)), atol=2e-6
    )


@pytest.mark.parametrize("n", [*range(1, 41), 64, 71, 96, 112, 128])
def test_alibi_slopes_equal_the_published_recursion_for_every_head_count(n):
    np.testing.assert_allclose(encodings.alibi_slopes(n), oracles.alibi_slopes(n), rtol=1e-12)


@pytest.mark.parametrize("most", [4.0, 8.0, 10.0])
def test_slopes_of_any_maximum_exponent_are_mpts_for_every_head_count(most):
    for n in range(1, 41):
        np.testing.assert_allclose(encodings.alibi_slopes(n, most), oracles.mpt_slopes(n, most), rtol=1e-12)  # fmt: skip
        matched = encodings.matched_slopes(n, n, 512, most)
        assert matched[0] == pytest.approx(max(2.0 ** (-most / n), 4 / 512))
    twelve = dataclasses.replace(PLACE, heads=12, num_heads=12)
    np.testing.assert_allclose(Alibi(max_exponent=most).slope_N(twelve), oracles.mpt_slopes(12, most))  # fmt: skip


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


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.25])
@pytest.mark.parametrize(("base", "device"), [(10_000.0, "cpu"), (500.0, "cpu"), (500.0, "tpu")])
def test_rope_equals_the_oracle_on_arbitrary_positions(pairing, fraction, base, device):
    rope = Rope(base=base, fraction=fraction, pairing=pairing)
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 16)).astype(np.float32)
    pos = np.array([[0, 1, 7, 100, 99_991], [5, 3, 2, 2, 1_048_575]])
    with assume_backend(device):
        got = rope.rotate({}, jnp.asarray(x), jnp.asarray(pos), PLACE, "query")
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


def test_log_n_temperature_is_one_at_the_training_length():
    pos = jnp.array([[0, 7, 63, 64, 511]])
    clipped = LogN().temperature({}, pos, pos, PLACE)[:, 0, :, 0]
    np.testing.assert_allclose(clipped[0], [1, 1, 1, math.log(65) / math.log(64), 1.5], rtol=1e-6)
    free = LogN(clip=False).temperature({}, pos, pos, PLACE)[:, 0, :, 0]
    np.testing.assert_allclose(free[0, :2], [0, 0.5], atol=1e-6)


@pytest.mark.parametrize(
    ("part", "place", "message"),
    [
        (Rope(), {"head_dim": 7}, "head dim 7 is odd"),
        (Rope(fraction=1.5), {}, "fraction"),
        (Rope(fraction=0.05), {}, "leaves no pair"),
        (Rope(base=-1.0), {}, "base"),
        (Rope(base=float("nan")), {}, "base"),
        (Rope(base="matched"), {}, "base"),
        (Rope(pairing="both"), {}, "pairing"),
        (Alibi(slopes="steep"), {}, "slopes"),
        (Sinusoidal(), {"model_dim": 33}, "odd"),
        (Learned(size=10), {}, "shorter than the training length"),
    ],
)
def test_a_part_that_cannot_stand_where_it_is_put_says_why(part, place, message):
    with pytest.raises(ValueError, match=message):
        part.check(dataclasses.replace(PLACE, **place))
