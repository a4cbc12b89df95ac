"""2-D positions: axial and mixed RoPE and 2-D ALiBi against their float64 loops."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.attention import AttentionSettings, TokenSide, attend
from posenc_jax.encodings import HeadContext, parse
from posenc_jax.encodings.planar import Alibi2d, Axial, Mixed, mixed_angles

from support import oracles

PLACE = HeadContext(heads=4, num_heads=4, head_dim=16, model_dim=32, train_length=64)
POSITIONS = np.array([0, 1, 7, 8, 9, 63, 64, 4095])


def vectors(seed=0, heads=4):
    shape = (1, len(POSITIONS), heads, 16)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize(("width", "base"), [(0, 100.0), (5, 1000.0)])
def test_axial_rope_equals_the_oracle(width, base, pairing):
    x = vectors()
    got = Axial(width, base, pairing).rotate(
        {}, jnp.asarray(x), jnp.asarray(POSITIONS)[None], PLACE, "query"
    )
    for t, n in np.ndindex(len(POSITIONS), 4):
        angles = oracles.axial_angles(int(POSITIONS[t]), width or 8, 16, base)
        want = oracles.rope_by_angles(x[0, t, n], angles, pairing)
        np.testing.assert_allclose(got[0, t, n], want, atol=1e-6 * np.linalg.norm(x[0, t, n]))


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_mixed_rope_equals_the_oracle_for_every_head(pairing):
    part, x = Mixed(pairing=pairing), vectors(1)
    params = part.init(jax.random.key(3), PLACE)
    assert params["freq_2Nh"].shape == (2, 4, 8)
    got = part.rotate(params, jnp.asarray(x), jnp.asarray(POSITIONS)[None], PLACE, "key")
    got = np.asarray(got)
    freq = np.asarray(params["freq_2Nh"], np.float64)
    for t, n in np.ndindex(len(POSITIONS), 4):
        row, column = divmod(int(POSITIONS[t]), 8)
        want = oracles.rope_by_angles(x[0, t, n], column * freq[0, n] + row * freq[1, n], pairing)
        np.testing.assert_allclose(got[0, t, n], want, atol=1e-4 if POSITIONS[t] > 100 else 3e-6)


def test_mixed_frequencies_start_as_two_spectra_at_right_angles_with_a_turn_per_head():
    across, down = Mixed().init(jax.random.key(0), PLACE)["freq_2Nh"]
    size = 10.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(np.hypot(across, down), np.tile(size, (4, 2)), rtol=1e-5)
    turn = np.arctan2(down, across)
    first, second = turn[:, :4], turn[:, 4:]
    np.testing.assert_allclose(np.cos(second - first), 0, atol=1e-5)
    assert np.ptp(np.cos(first[:, 0])) > 0.1  # heads look in different directions


def test_mixed_rope_with_frequencies_along_the_axes_is_axial_rope():
    x, freq = vectors(2), np.array(100.0 ** (-np.arange(4) / 4), np.float32)
    zero = np.zeros(4, np.float32)
    along = np.stack([np.r_[freq, zero], np.r_[zero, freq]])
    params = {"freq_2Nh": jnp.asarray(np.tile(along[:, None], (1, 4, 1)))}
    pos = jnp.arange(8)[None] * 9
    mixed = Mixed().rotate(params, jnp.asarray(x), pos, PLACE, "query")
    axial = Axial().rotate({}, jnp.asarray(x), pos, PLACE, "query")
    np.testing.assert_allclose(mixed, axial, atol=5e-6)


@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])
def test_planar_alibi_equals_its_float64_loop(metric):
    part = Alibi2d(metric=metric, width=10)
    pos = jnp.asarray(POSITIONS)[None]
    got = part.bias({}, pos, pos, PLACE)
    for n, i, j in np.ndindex(4, 8, 8):
        down, across = (
            abs(a - b)
            for a, b in zip(
                divmod(int(POSITIONS[i]), 10), divmod(int(POSITIONS[j]), 10), strict=True
            )
        )
        apart = math.hypot(down, across) if metric == "euclidean" else down + across
        assert got[0, n, i, j] == pytest.approx(-oracles.alibi_slopes(4)[n] * apart, rel=1e-6)


@pytest.mark.parametrize(
    "line", ["axial", "mixed", "alibi2d", "axial+alibi2d(metric=manhattan)", "mixed|axial"]
)
def test_attention_over_a_grid_depends_on_row_and_column_offsets_alone(line):
    """Shifted by whole rows and columns nothing changes; shifted across a row's end, it does."""
    layer = (
        parse(line)
        .place(num_layers=1, num_heads=4, head_dim=16, model_dim=64, train_length=256)
        .layers[0]
    )
    q, k, v = (
        jnp.asarray(np.random.default_rng(s).normal(size=(1, 6, 4, 16)), jnp.float32)
        for s in range(3)
    )
    rows, columns = np.array([0, 1, 1, 3, 4, 5]), np.array([0, 2, 5, 1, 1, 7])
    ones = jnp.ones((1, 6), jnp.int32)
    params = layer.init(jax.random.key(0))

    def run(down, across):
        pos = jnp.asarray((rows + down) * 16 + columns + across)[None]
        return attend(
            q, k, v, layer, params, TokenSide(pos, ones), settings=AttentionSettings(causal=False)
        )

    np.testing.assert_allclose(run(0, 0), run(7, 5), atol=2e-5)
    assert np.abs(run(0, 0) - run(0, 10)).max() > 1e-3  # the last column wraps around


def test_a_part_of_the_heads_turns_by_its_own_directions_and_the_others_do_not():
    layer = (
        parse("nope|mixed")
        .place(num_layers=1, num_heads=4, head_dim=16, model_dim=64, train_length=64)
        .layers[0]
    )
    params = layer.init(jax.random.key(0))
    x, pos = jnp.asarray(vectors(4)), jnp.asarray(POSITIONS)[None]
    out = layer.rotate(params, x, pos, "query")
    np.testing.assert_array_equal(out[:, :, :2], x[:, :, :2])
    alone = dataclasses.replace(PLACE, heads=2, num_heads=2)
    want = Mixed().rotate(params["1.rotation"], x[:, :, 2:], pos, alone, "query")
    np.testing.assert_array_equal(out[:, :, 2:], want)
    assert not layer.shares_keys(2)
    assert layer.shares_keys(4)


def test_mixed_angles_take_fractional_places():
    freq = jnp.ones((2, 1, 3)) * jnp.array([0.5, 2.0])[:, None, None]
    got = mixed_angles(jnp.array([[1.5]]), jnp.array([[0.25]]), freq)
    np.testing.assert_allclose(got, 0.25 * 0.5 + 1.5 * 2.0)


@pytest.mark.parametrize(("length", "side"), [(64, 8), (65, 9), (81, 9), (32, 6), (8, 3)])
def test_without_a_width_the_grid_is_the_smallest_square_that_holds_the_training_length(
    length, side
):
    place = dataclasses.replace(PLACE, train_length=length)
    assert {part.columns(place) for part in (Axial(), Mixed(), Alibi2d())} == {side}
    assert Axial(width=5).columns(PLACE) == 5


@pytest.mark.parametrize(
    ("part", "place", "message"),
    [
        (Axial(), {"head_dim": 6}, "divisible by 4"),
        (Mixed(), {"head_dim": 6}, "divisible by 4"),
        (Mixed(width=-3), {}, "width, the columns of the grid"),
        (Axial(base=0.0), {}, "base"),
        (Alibi2d(metric="hops"), {}, "metric must be one of"),
    ],
)
def test_a_planar_part_that_cannot_stand_says_why(part, place, message):
    with pytest.raises(ValueError, match=message):
        part.check(dataclasses.replace(PLACE, **place))
