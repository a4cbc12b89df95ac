"""Blockwise attention against the float64 loop and the dense definition; the cut-off against its proof."""

from support.attention_inputs import qkv
from support.marks import slow
import functools
from support.schemes import layer_of
import math

import jax
import jax.numpy as jnp
import numpy as np
from support import oracles
import pytest

from posenc_jax.attention import BlockwiseSettings, TokenSide, dense_attention, visible
from posenc_jax.attention.blockwise.api import blockwise_attention
from posenc_jax.attention.blockwise.cutoff import EXACT_EPSILON, cutoff_windows
from posenc_jax.encodings import parse
from posenc_jax.encodings.forget_gate import cumulative_log_forget

N, H, L = 4, 16, 64




PACKED = jnp.array(
    [[1] * 20 + [2] * 18 + [0] * 3, [0] * 6 + [1] * 35]
)  # two documents; left padding
PLACES = jnp.array([[*range(20), *range(18), 0, 0, 0], [0] * 6 + [*range(35)]])


placed = functools.partial(layer_of, num_layers=2)


def tensors(B, T, S=None, K=N):
    q, k, v, gates = qkv(B, T, N, K, H, (B, S or T, N), S=S)
    return q, k, v, -jax.nn.softplus(gates)


def both(layer, pos, seg, k_pos=None, k_seg=None, causal=True, window=None, **settings):
    """Dense and blockwise attention as functions of (q, k, v, ticks, params), rotation and all."""
    k_pos, k_seg = (pos if k_pos is None else k_pos), (seg if k_seg is None else k_seg)

    def prepared(q, k, v, ticks, params):
        clocks = (None, None)
        if layer.gated:
            k_cum_log_forget = jax.jit(cumulative_log_forget)(ticks, k_seg)
            clocks = (k_cum_log_forget[:, -q.shape[1] :], k_cum_log_forget)
        tau = layer.temperature(params, pos, k_pos)
        if tau is not None and tau.shape[-1] == 1:
            q, tau = q * tau.swapaxes(1, 2), None
        if not layer.shares_keys(k.shape[2]):
            k, v = (jnp.repeat(x, N // k.shape[2], axis=2) for x in (k, v))
        q, k = (
            layer.rotate(params, q, pos, "query"),
            layer.rotate(params, k, k_pos, "key"),
        )
        return q, k, v, clocks, tau

    def dense(*arrays):
        q, k, v, clocks, tau = prepared(*arrays)
        k, v = (jnp.repeat(x, N // x.shape[2], axis=2) for x in (k, v))
        mask = visible(TokenSide(pos, seg), TokenSide(k_pos, k_seg), causal=causal)
        if window is not None:
            mask &= jnp.abs(pos[:, :, None] - k_pos[:, None]) < window
        return dense_attention(q, k, v, layer.bias(arrays[-1], pos, k_pos, *clocks), mask, tau)

    def blockwise(*arrays):
        q, k, v, clocks, _ = prepared(*arrays)
        return blockwise_attention(
            q, k, v, layer, arrays[-1],
            TokenSide(pos, seg, clocks[0]), TokenSide(k_pos, k_seg, clocks[1]),
            BlockwiseSettings(causal, window, **settings),
        )  # fmt: skip

    return dense, blockwise


def assert_same(layer, arrays, *places, gradients=True, atol=2e-6, **settings):
    arrays = (*arrays, layer.init(jax.random.key(7)))
    dense, blockwise = both(layer, *places, **settings)
    want, dense_vjp = jax.vjp(dense, *arrays)
    got, blockwise_vjp = jax.vjp(jax.jit(blockwise), *arrays)
    np.testing.assert_allclose(got, want, atol=atol)
    if gradients:
        pull = jax.random.normal(jax.random.key(9), want.shape)
        for w, g in zip(*map(jax.tree.leaves, (dense_vjp(pull), blockwise_vjp(pull))), strict=True):
            np.testing.assert_allclose(g, w, atol=1e-5 * max(1.0, np.abs(w).max()))


def test_blockwise_equals_the_float64_loop_under_a_coupled_split():
    q, k, v = (np.asarray(x[0], np.float64) for x in tensors(1, 21)[:3])
    pos = np.array([*range(9), *range(6), 70, 71, 90, 91, 92, 93])
    seg = np.array([1] * 9 + [2] * 12)
    slopes = oracles.alibi_slopes(2)
    turned = [
        np.stack([[oracles.rope_vector(x[t, n], pos[t]) if n < 2 else x[t, n] for n in range(N)] for t in range(21)])
        for x in (q, k)
    ]  # fmt: skip
    want = oracles.attention(
        *turned, v,
        bias=lambda n, i, j: -slopes[n] * abs(int(pos[i]) - int(pos[j])) if n < 2 else 0.0,
        visible=lambda i, j: seg[i] == seg[j] and pos[j] <= pos[i],
        tau=lambda n, i: max(1.0, math.log(pos[i] + 1) / math.log(L)) if n >= 2 else 1.0,
    )  # fmt: skip
    layer = placed("rope+alibi|nope~logn")
    places = (jnp.asarray(pos)[None], jnp.asarray(seg)[None])
    got = both(layer, *places, blocks=(8, 8))[1](*tensors(1, 21), layer.init(jax.random.key(7)))
    np.testing.assert_allclose(got[0], want, atol=2e-6)


@pytest.mark.parametrize("line", ["rope+alibi", *slow("t5", "slopes|rope", "mixed|axial+alibi2d")])
def test_grouped_keys_and_uneven_blocks(line):
    for K in (1, 2):
        assert_same(placed(line), tensors(2, 41, K=K), PLACES, PACKED, blocks=(24, 40))


def test_heads_that_split_a_group_of_keys():
    layer = placed("3*alibi|1*log")  # three heads and one, on keys shared by two
    assert_same(layer, tensors(2, 41, K=2), PLACES, PACKED, blocks=(16, 16))


@pytest.mark.parametrize("line", ["rope+alibi", "fire", "forget", "nope~scale_invariant"])
@pytest.mark.parametrize("T", [3, *slow(1)])
def test_a_few_queries_against_a_cache_with_empty_slots(line, T):
    k_seg = jnp.array([[1] * 30 + [0] * 10, [0] * 7 + [1] * 23 + [0] * 10])
    k_pos = jnp.array([[*range(30)] + [0] * 10, [0] * 7 + [*range(23)] + [0] * 10])
    pos, seg = k_pos[:, 30 - T : 30], k_seg[:, 30 - T : 30]
    assert_same(placed(line), tensors(2, T, S=40), pos, seg, k_pos, k_seg, blocks=(8, 8))


@pytest.mark.parametrize("line", ["rope+alibi", *slow("sandwich", "nope")])
def test_a_sliding_window_and_both_directions(line):
    assert_same(placed(line), tensors(2, 41), PLACES, PACKED, window=7, blocks=(8, 8))
    assert_same(placed(line), tensors(2, 41), PLACES, PACKED, causal=False, blocks=(16, 8))
    assert_same(placed(line), tensors(2, 41), PLACES, PACKED, causal=False, window=7, blocks=(8, 8))


def test_rows_that_see_nothing_are_zero_and_have_finite_gradients():
    layer, seg = placed("rope+alibi"), jnp.array([[0, 0, 0, 1, 1, 2, 2, 0]])
    k_seg = seg.at[0, 5:7].set(3)  # a document whose keys are gone
    pos = jnp.array([[0, 0, 0, 0, 1, 0, 1, 0]])
    attention = both(layer, pos, seg, k_seg=k_seg, blocks=(4, 4))[1]
    out, vjp = jax.vjp(attention, *tensors(1, 8), {})
    np.testing.assert_array_equal(out[0, [0, 1, 2, 5, 6, 7]], 0)
    assert np.abs(out[0, 3:5]).min() > 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(vjp(jnp.ones_like(out))))


def test_bfloat16_inputs_keep_a_float32_softmax():
    layer, pos = placed("alibi"), jnp.arange(41)[None]
    low = [x.astype(jnp.bfloat16) for x in tensors(1, 41)[:3]]
    dense, blockwise = both(layer, pos, jnp.ones_like(pos), blocks=(16, 8))
    got = blockwise(*low, None, {})
    want = dense(*(x.astype(jnp.float32) for x in low), None, {})
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.01)


@pytest.mark.parametrize("line", ["rope+alibi", *slow("log", "t5")])
def test_memory_grows_with_length_and_not_with_its_square(line):
    def scratch(T):
        layer, pos = placed(line), jnp.arange(T)[None]
        attention = both(layer, pos, jnp.ones_like(pos), blocks=(64, 64))[1]
        arrays = (*tensors(1, T), layer.init(jax.random.key(7)))
        step = jax.jit(jax.grad(lambda a: attention(*a).sum()))
        return step.lower(arrays).compile().memory_analysis().temp_size_in_bytes

    short, long = scratch(512), scratch(2048)
    assert 2 * long < 4 * N * 2048**2  # what one dense array of logits would take, at the least
    assert long < 4.4 * short


@pytest.mark.thorough
@pytest.mark.parametrize("T", [1024, 4096, *slow(16_384)])
@pytest.mark.parametrize(
    ("line", "without"),
    [("alibi", "nope"), *slow(("rope+alibi", "rope"), ("capped", "nope"), ("log", "nope"))],
)
def test_a_bias_and_its_cut_off_take_no_more_memory_than_attention_without_a_bias(line, without, T):
    def scratch(line, backward):
        layer, pos = placed(line), jnp.arange(T)[None]
        attention = both(layer, pos, jnp.ones_like(pos))[1]
        arrays = (*tensors(1, T), layer.init(jax.random.key(7)))
        run = jax.grad(lambda a: attention(*a).sum()) if backward else lambda a: attention(*a)
        memory = jax.jit(run).lower(arrays).compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    tile = 4 * 512 * 512 if line == "log" else 0  # a tile of logarithms, whatever the length
    for backward in (False, True):
        assert scratch(line, backward) <= 1.1 * scratch(without, backward) + tile


# The cut-off.

LONG = 512


def far_gradient(epsilon, line="alibi", **places):
    """|d out / d v| from the last 16 rows, by key and head: what they read."""
    layer, pos = placed(line), jnp.arange(LONG)[None]
    places = {"pos": pos, "seg": jnp.ones_like(pos)} | places
    attention = both(layer, *places.values(), epsilon=epsilon, blocks=(16, 16))[1]
    arrays, params = tensors(1, LONG), layer.init(jax.random.key(7))
    read = jax.grad(lambda v: attention(*arrays[:2], v, arrays[3], params)[:, -16:].sum())
    return np.abs(read(arrays[2])[0]).max(-1)


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
        layer, arrays, pos, jnp.ones_like(pos), gradients=scale == 1.0, atol=1e-6 * max(1, scale), blocks=(32, 32)
    )  # fmt: skip


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


@pytest.mark.parametrize("epsilon", [0.5, 1e-1, 1e-2])
def test_a_coarser_epsilon_errs_but_never_by_more_than_it_says(epsilon):
    layer, pos = placed("alibi"), jnp.arange(LONG)[None]
    arrays = (*tensors(1, LONG), {})
    dense, blockwise = both(layer, pos, jnp.ones_like(pos), blocks=(8, 8), epsilon=epsilon)
    error = np.abs(blockwise(*arrays) - dense(*arrays)).max()
    assert 1e-6 < error < 2 * epsilon * np.abs(arrays[2]).max()


@pytest.mark.thorough
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


@pytest.mark.parametrize(("line", "K"), [("rope+alibi", 2), ("slopes|rope~logn", 1), ("rope+forget|fire", 2)])  # fmt: skip
@pytest.mark.thorough
def test_rows_and_heads_split_over_devices_change_nothing(line, K):
    layer = placed(line)
    arrays = (*tensors(4, 41, K=K), layer.init(jax.random.key(7)))
    pos, seg = (jnp.concatenate([x, x]) for x in (PLACES, PACKED))

    def result(q, k, v, ticks, params, pos, seg):
        attention = both(layer, pos, seg, blocks=(16, 8))[1]
        out, vjp = jax.vjp(attention, q, k, v, ticks, params)
        return out, vjp(jnp.ones_like(out))

    want = jax.jit(result)(*arrays, pos, seg)
    mesh = jax.make_mesh(
        (2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Explicit,) * 2
    )
    with jax.set_mesh(mesh):
        q, k, v, ticks, params = arrays
        split = jax.P("data", None, "model", None)
        keys = split if K == 2 else jax.P("data", None, None, None)
        laid = (
            jax.device_put(q, split), jax.device_put(k, keys), jax.device_put(v, keys),
            jax.device_put(ticks, jax.P("data", None, None)), jax.device_put(params, jax.P()),
            *(jax.device_put(x, jax.P("data", None)) for x in (pos, seg)),
        )  # fmt: skip
        got = jax.jit(result)(*laid)
    assert got[0].sharding.spec == split
    jax.tree.map(lambda w, g: np.testing.assert_allclose(g, w, atol=2e-5), want, got)
