"""Blockwise attention against the float64 loop and dense attention: results, gradients, memory, meshes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from support import oracles
from support.blockwise_and_dense import assert_same, both, placed, tensors
from support.marks import slow

N, H, L = 4, 16, 64


PACKED = jnp.array(
    [[1] * 20 + [2] * 18 + [0] * 3, [0] * 6 + [1] * 35]
)  # two documents; left padding


PLACES = jnp.array([[*range(20), *range(18), 0, 0, 0], [0] * 6 + [*range(35)]])


def test_blockwise_equals_the_float64_loop_under_a_coupled_split():
    q, k, v = (np.asarray(x[0], np.float64) for x in tensors(1, 21)[:3])
    pos = np.array([*range(9), *range(6), 70, 71, 90, 91, 92, 93])
    seg = np.array([1] * 9 + [2] * 12)
    slopes = oracles.alibi_slopes(2)
    turned = [
        np.stack(
            [
                [oracles.rope_vector(x[t, n], pos[t]) if n < 2 else x[t, n] for n in range(N)]
                for t in range(21)
            ]
        )
        for x in (q, k)
    ]
    want = oracles.attention(
        *turned,
        v,
        bias=lambda n, i, j: -slopes[n] * abs(int(pos[i]) - int(pos[j])) if n < 2 else 0.0,
        visible=lambda i, j: seg[i] == seg[j] and pos[j] <= pos[i],
        tau=lambda n, i: max(1.0, math.log(pos[i] + 1) / math.log(L)) if n >= 2 else 1.0,
    )
    layer = placed("rope+alibi|nope~logn")
    places = (jnp.asarray(pos)[None], jnp.asarray(seg)[None])
    attention = jax.jit(both(layer, *places, blocks=(8, 8))[1])
    got = attention(*tensors(1, 21), layer.init(jax.random.key(7)))
    np.testing.assert_allclose(got[0], want, atol=2e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("line", ["rope+alibi", *slow("t5", "slopes|rope", "mixed|axial+alibi2d")])
def test_grouped_keys_and_uneven_blocks(line):
    for K in (1, 2):
        assert_same(placed(line), tensors(2, 41, K=K), PLACES, PACKED, blocks=(24, 40))


@pytest.mark.thorough
def test_heads_that_split_a_group_of_keys():
    layer = placed("3*alibi|1*log")  # three heads and one, on keys shared by two
    assert_same(layer, tensors(2, 41, K=2), PLACES, PACKED, blocks=(16, 16))


@pytest.mark.default_cases(1, thorough=1)
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
    out, vjp = jax.vjp(jax.jit(attention), *tensors(1, 8), {})
    np.testing.assert_array_equal(out[0, [0, 1, 2, 5, 6, 7]], 0)
    assert np.abs(out[0, 3:5]).min() > 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(vjp(jnp.ones_like(out))))


@pytest.mark.thorough
def test_bfloat16_inputs_keep_a_float32_softmax():
    layer, pos = placed("alibi"), jnp.arange(41)[None]
    low = [x.astype(jnp.bfloat16) for x in tensors(1, 41)[:3]]
    dense, blockwise = both(layer, pos, jnp.ones_like(pos), blocks=(16, 8))
    got = blockwise(*low, None, {})
    want = dense(*(x.astype(jnp.float32) for x in low), None, {})
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.01)


@pytest.mark.slow
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


@pytest.mark.default_cases(0, thorough=1)
@pytest.mark.parametrize(
    ("line", "K"), [("rope+alibi", 2), ("slopes|rope~logn", 1), ("rope+forget|fire", 2)]
)
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
            jax.device_put(q, split),
            jax.device_put(k, keys),
            jax.device_put(v, keys),
            jax.device_put(ticks, jax.P("data", None, None)),
            jax.device_put(params, jax.P()),
            *(jax.device_put(x, jax.P("data", None)) for x in (pos, seg)),
        )
        got = jax.jit(result)(*laid)
    assert got[0].sharding.spec == split
    jax.tree.map(lambda w, g: np.testing.assert_allclose(g, w, atol=2e-5), want, got)
