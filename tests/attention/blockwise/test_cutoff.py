"""The cut-off of blockwise attention against its proof: what it skips, and that nothing is lost."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.attention.blockwise.cutoff import EXACT_EPSILON, cutoff_windows

from support import oracles
from support.blockwise_and_dense import assert_same, both, placed, tensors
from support.marks import slow

N, H, L = 4, 16, 64


# The cut-off.

LONG = 512


def far_gradient(epsilon, line="alibi", **places):
    """|d out / d v| from the last 16 rows, by key and head: what they read."""
    layer, pos = placed(line), jnp.arange(LONG)[None]
    places = {"pos": pos, "seg": jnp.ones_like(pos)} | places
    attention = both(layer, *places.values(), epsilon=epsilon, blocks=(16, 16))[1]
    arrays, params = tensors(1, LONG), layer.init(jax.random.key(7))
    read = jax.grad(lambda v: attention(*arrays[:2], v, arrays[3], params)[:, -16:].sum())
    return np.abs(jax.jit(read)(arrays[2])[0]).max(-1)


def test_steep_heads_stop_early_and_each_at_its_own_distance():
    cut, whole = far_gradient(EXACT_EPSILON), far_gradient(0.0)
    first = [int((cut[:, n] != 0).argmax()) for n in range(N)]
    slopes = oracles.alibi_slopes(N)
    assert slopes[0] > slopes[3]
    assert first[0] > first[1] > first[2] >= first[3] == 0
    assert first[0] > LONG - 160  # slope 1/4
    assert (whole[first[0] - 16 : first[0], 0] > 0).all()  # there was something to read
    np.testing.assert_allclose(cut, whole, atol=1e-6)


@pytest.mark.parametrize(
    "line",
    [
        "rope+alibi",
        *(
            pytest.param(line, marks=pytest.mark.thorough)
            for line in ("slopes", "power", "kerple_power", "forget", "xpos+alibi")
        ),
    ],
)
@pytest.mark.parametrize("scale", [6.0, *slow(0.1, 1.0)])
def test_the_cut_changes_nothing_that_float32_can_see(line, scale):
    layer, pos = placed(line), jnp.arange(LONG)[None]
    q, k, v, ticks = tensors(1, LONG)
    arrays = (scale * q, k, v, ticks)
    assert_same(
        layer,
        arrays,
        pos,
        jnp.ones_like(pos),
        gradients=scale == 1.0,
        atol=1e-6 * max(1, scale),
        blocks=(32, 32),
    )


@pytest.mark.default_cases(1, thorough=1)
@pytest.mark.parametrize("away", [60, 130, *slow(400)])
@pytest.mark.parametrize("line", ["alibi", "forget(start=standard)"])
def test_a_far_key_that_shouts_is_heard(line, away):
    """One key, far outside the usual window, whose content outweighs its bias for the last queries."""
    layer, pos = placed(line), jnp.arange(LONG)[None]
    q, k, v, ticks = tensors(1, LONG)
    ticks = jnp.full_like(ticks, -0.25)
    louder = (0.25 * away + 8) * math.sqrt(H) / (q[0, -1] ** 2).sum(-1, keepdims=True)
    k = k.at[0, -1 - away].set(louder * q[0, -1])
    dense, blockwise = both(layer, pos, jnp.ones_like(pos), blocks=(32, 32))
    params = layer.init(jax.random.key(7))
    want, got = (f(q, k, v, ticks, params) for f in (dense, blockwise))
    assert np.abs(want[0, -1, 0] - v[0, -1 - away, 0]).max() < 0.1  # it decides the first head
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("epsilon", [0.5, 1e-1, 1e-2])
def test_a_coarser_epsilon_errs_but_never_by_more_than_it_says(epsilon):
    layer, pos = placed("alibi"), jnp.arange(LONG)[None]
    arrays = (*tensors(1, LONG), {})
    dense, blockwise = both(layer, pos, jnp.ones_like(pos), blocks=(8, 8), epsilon=epsilon)
    error = np.abs(blockwise(*arrays) - dense(*arrays)).max()
    assert 1e-6 < error < 2 * epsilon * np.abs(arrays[2]).max()


@pytest.mark.default_cases(0, thorough=1)
@pytest.mark.parametrize(
    "places",
    [
        jnp.zeros(LONG, int),  # all in one place: distance counts no keys
        jnp.arange(LONG)[::-1],
        jnp.arange(LONG) * 7,  # gaps: further apart than there are slots
        jnp.arange(LONG) // 2,
        (jnp.arange(LONG) * 37) % LONG,
    ],
    ids=["flat", "reversed", "gaps", "twins", "shuffled"],
)
@pytest.mark.parametrize("segments", [1 + jnp.arange(LONG) % 2, *slow(jnp.ones(LONG, int))])
def test_the_cut_is_right_for_any_order_of_positions_and_segments(places, segments):
    assert_same(placed("alibi"), tensors(1, LONG), places[None], segments[None], blocks=(32, 32))


@pytest.mark.thorough
def test_a_long_document_behind_a_short_one_is_cut_too():
    seg = jnp.where(jnp.arange(LONG) < 100, 1, 2)[None]
    pos = jnp.where(seg == 1, jnp.arange(LONG), jnp.arange(LONG) - 100)
    read = far_gradient(EXACT_EPSILON, pos=pos, seg=seg)
    assert (read[:300, 0] == 0).all()
    assert (read[:100] == 0).all()
    assert (read[100:140, 3] > 0).all()


def test_windows_follow_the_closed_form_and_the_definition():
    bound, longest = 4.0, 4096
    got = cutoff_windows(placed("alibi|capped"), {}, bound, longest)
    for window, m in zip(got[:2], oracles.alibi_slopes(2), strict=True):
        closed = (2 * bound - math.log(EXACT_EPSILON) - math.log(-math.expm1(-m))) / m
        assert window == min(longest, math.ceil(closed))
    assert (got[2:] == longest).all()  # a capped tail never ends
    assert got[0] < got[1]
    (steep, *_) = cutoff_windows(placed("power"), {}, bound, longest)
    m = oracles.alibi_slopes(N)[0]
    tail = [sum(math.exp(-m * d**0.5) for d in range(w, longest)) for w in (steep, steep - 1)]
    assert tail[0] * math.exp(2 * bound) <= EXACT_EPSILON < tail[1] * math.exp(2 * bound)
    assert (cutoff_windows(placed("forget|rope"), {"0.bias": {}}, bound, longest) == longest).all()
