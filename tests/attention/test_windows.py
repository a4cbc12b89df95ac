"""Attention under the windows of a scheme: every path against a float64 loop, and the work it does."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.attention import (
    AttentionSettings,
    KernelConditions,
    TokenSide,
    attend,
    choose_implementation,
)
from posenc_jax.attention.blockwise.api import BlockwiseSettings, head_groups
from posenc_jax.attention.blockwise.forward import blockwise_forward, tail_mass_table
from posenc_jax.attention.blockwise.tiles import visible_blocks
from posenc_jax.attention.kernels.flash import first_relevant_slots, first_visible_slots
from posenc_jax.attention.kernels.flash_programs import tile_configs
from posenc_jax.attention.mask import head_windows

from support import oracles
from support.attention_inputs import qkv
from support.marks import thorough
from support.schemes import layer_of

N, K, H, L, T = 4, 2, 16, 64, 41


MIXED = "rope+window(size=1)|alibi+window(size=7)|window(size=500)|nope"  # 500: more than there are


SEEN = (1, 7, 500, 10**9)


SEG = np.array([[1] * 20 + [2] * 18 + [0] * 3, [0] * 6 + [1] * 35])  # packed; padded on the left


POS = np.array([[*range(20), *range(18), 0, 0, 0], [0] * 6 + [*range(35)]])


SHAPE = {"num_layers": 2, "num_heads": N, "head_dim": H, "model_dim": 32, "train_length": L}


placed = functools.partial(layer_of, **SHAPE)


@functools.cache
def tensors(B=2, tokens=T):
    return qkv(B, tokens, N, K, H, (B, tokens, N, H))


@pytest.fixture
def small_tiles(monkeypatch):
    """Blockwise attention in blocks that no window is a multiple of."""
    module = sys.modules["posenc_jax.attention.attend"]  # the package has a function of that name
    tiled = functools.partial(BlockwiseSettings, blocks=(16, 8))
    monkeypatch.setattr(module, "BlockwiseSettings", tiled)


def attended(layer, pos, seg, implementation, window=None, causal=True):
    """Attention as a jitted function of q, k, v."""
    params = layer.init(jax.random.key(7))
    tokens = jax.tree.map(jnp.asarray, TokenSide(pos, seg))
    settings = AttentionSettings(causal, window, implementation == "flash", implementation)
    return jax.jit(lambda q, k, v: attend(q, k, v, layer, params, tokens, settings=settings))


def by_loop(q, k, v):
    """What heads of MIXED find, in float64: head 0 rotates, head 1 has the slope of a head alone."""
    out = np.zeros(q.shape)
    (slope,) = oracles.alibi_slopes(1)
    for b, n in np.ndindex(2, N):
        turned = [
            np.stack([oracles.rope_vector(x[t], POS[b, t]) if n == 0 else x[t] for t in range(T)])[
                :, None
            ]
            for x in (q[b, :, n], k[b, :, n * K // N])
        ]

        def visible(i, j, b=b, n=n):
            near = 0 <= POS[b, i] - POS[b, j] < SEEN[n]
            return near and SEG[b, i] == SEG[b, j] != 0

        def bias(_, i, j, b=b, n=n):
            return -slope * (POS[b, i] - POS[b, j]) if n == 1 else 0.0

        out[b, :, n] = oracles.attention(*turned, v[b, :, n * K // N, None], bias, visible)[:, 0]
    return out


@pytest.mark.default_cases(1, thorough=1)
@pytest.mark.parametrize("implementation", ["dense", "blockwise", "flash"])
def test_heads_with_windows_of_their_own_are_the_float64_loop_forward_and_in_gradients(
    implementation, small_tiles
):
    q, k, v, aim = tensors()
    run = attended(placed(MIXED), POS, SEG, implementation)
    out, pull = jax.vjp(run, q, k, v)
    *exact, toward = (np.asarray(x, np.float64) for x in (q, k, v, aim))
    np.testing.assert_allclose(out, by_loop(*exact), rtol=0, atol=3e-6)
    rng = np.random.default_rng(0)
    for index, grad in enumerate(pull(aim)):
        along = rng.standard_normal(grad.shape)
        moved = [
            [x + s * 1e-5 * along if i == index else x for i, x in enumerate(exact)]
            for s in (1, -1)
        ]
        ends = [(by_loop(*arrays) * toward).sum() for arrays in moved]
        np.testing.assert_allclose(
            (np.asarray(grad, np.float64) * along).sum(), (ends[0] - ends[1]) / 2e-5, rtol=3e-4
        )


@pytest.mark.thorough
@pytest.mark.parametrize(
    "line", ["rope+forget+window(size=5)|fire+window(size=30)", *thorough("t5+window(size=9)")]
)
def test_biases_that_are_learned_or_decided_by_tokens_take_a_window(line, small_tiles):
    layer = placed(line)
    q, k, v, aim = tensors()
    params = layer.init(jax.random.key(7))
    ticks = -jax.nn.softplus(aim[..., 0])
    clock = jnp.cumsum(ticks, 1) if layer.gated else None
    pos, seg = jnp.arange(T)[None].repeat(2, 0), jnp.ones((2, T), int)

    def outcome(implementation):
        def run(q, k, v, clock, params):
            return attend(
                q,
                k,
                v,
                layer,
                params,
                TokenSide(pos, seg, clock),
                settings=AttentionSettings(implementation=implementation),
            )

        out, pull = jax.vjp(jax.jit(run), q, k, v, clock, params)
        return out, pull(aim)

    for w, g in zip(*map(jax.tree.leaves, (outcome("dense"), outcome("blockwise"))), strict=True):
        np.testing.assert_allclose(g, w, atol=1e-5 * max(1.0, np.abs(w).max()))


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_reaches_as_far_to_both_sides_where_attention_does(causal, small_tiles):
    q, k, v, _ = tensors()
    pos, seg = np.arange(T)[None].repeat(2, 0), np.ones((2, T), int)
    layer = placed("window(size=6)|window(size=3)")
    dense, tiled = (
        attended(layer, pos, seg, how, causal=causal)(q, k, v) for how in ("dense", "blockwise")
    )
    np.testing.assert_allclose(tiled, dense, atol=2e-6)
    moved = jax.grad(
        lambda v: attended(layer, pos, seg, "dense", causal=causal)(q, k, v)[0, 20].sum()
    )(v)
    for head, size in ((0, 6), (1, 3)):
        seen = np.flatnonzero(np.asarray(moved)[0, :, head].any(-1))
        np.testing.assert_array_equal(seen, np.arange(21 - size, 21 if causal else 20 + size))


@pytest.mark.default_cases(1, thorough=3)
@pytest.mark.parametrize("implementation", ["dense", "blockwise", "flash"])
@pytest.mark.parametrize("size", [9, *thorough(1, 8, 64)])
def test_a_huge_key_just_outside_is_not_heard_and_just_inside_is(implementation, size, small_tiles):
    length, last = (300, 256) if implementation == "flash" else (80, 64)  # the first row of a tile
    q, k, v, _ = tensors(1, length)
    pos, seg = np.arange(length)[None], np.ones((1, length), int)
    run = attended(placed(f"window(size={size})|nope"), pos, seg, implementation)
    loud = 60 * q[0, last, 0] * np.sqrt(H) / (q[0, last, 0] ** 2).sum()  # 60 nats for head 0
    outside, inside = last - size, last - size + 1
    shouting, silent = (k.at[0, outside, 0].set(x) for x in (loud, -loud))
    heard, unheard = run(q, shouting, v), run(q, silent, v)
    np.testing.assert_array_equal(heard[0, last, 0], unheard[0, last, 0])
    if outside and size > 1:  # a row that sees more than itself
        assert np.abs(heard[0, outside, 0] - unheard[0, outside, 0]).max() > 0
    got = run(q, k.at[0, inside, 0].set(loud), v)
    np.testing.assert_allclose(got[0, last, 0], v[0, inside, 0], atol=1e-5)


@pytest.mark.parametrize(("own", "models", "seen"), [(9, 20, 9), (20, 9, 9), (9, None, 9)])
def test_the_smaller_of_a_heads_window_and_the_models_counts(own, models, seen):
    q, k, v, _ = tensors()
    pos, seg = np.arange(T)[None].repeat(2, 0), np.ones((2, T), int)
    layer = placed(f"window(size={own})|nope")
    assert head_windows(layer, models) == (seen, seen, models, models)
    got = attended(layer, pos, seg, "dense", models)(q, k, v)
    for heads, window in ((slice(2), seen), (slice(2, 4), models)):
        want = attended(placed("nope"), pos, seg, "dense", window)(q, k, v)
        np.testing.assert_allclose(got[:, :, heads], want[:, :, heads], atol=1e-6)


# What a window costs.


def blocks_read(line, length, window=None):
    """Key blocks of 32 that blocks of 32 queries read, by head."""
    layer, pos = placed(line), jnp.arange(length)[None]
    q, k, v = (x.repeat(length // T + 1, 1)[:1, :length] for x in tensors()[:3])
    seg = jnp.ones_like(pos)
    read = []
    for plan, floats, places, _ in head_groups(
        (q, k, v, ({}, None), None, None),
        (pos, seg, None, pos, seg, None),
        jnp.int32(0),
        layer,
        BlockwiseSettings(window=window, epsilon=0.0, blocks=(32, 32)),
    ):
        _, stop_BNI = jax.jit(
            functools.partial(blockwise_forward, plan, tail_table=tail_mass_table(plan, {}))
        )(floats, places)
        read += (visible_blocks(plan, places)[1] - stop_BNI).sum((0, 2)).tolist()
    return read


@pytest.mark.slow
def test_work_grows_with_length_times_window_and_not_with_lengths_square():
    short, long = (blocks_read("window(size=40)|nope", length) for length in (512, 1024))
    assert short[0] <= 3 * (512 // 32)  # the diagonal, and what 39 tokens before it lie in
    assert short[3] == 16 * 17 // 2
    assert long[0] < 2.1 * short[0]
    assert long[3] > 3.8 * short[3]
    assert blocks_read("window(size=40)|nope", 512, window=20)[3] <= 2 * 16


def test_our_kernel_starts_where_the_window_of_each_head_does():
    length, t = 1024, tile_configs(H).forward.q_block
    q, k = (jax.random.normal(jax.random.key(i), (1, length, n, H)) for i, n in ((0, N), (1, K)))
    low = first_visible_slots(jnp.ones((1, length), int), jnp.array([1, 70, 500, 2**31 - 1]))
    first = np.asarray(first_relevant_slots(q, k, jnp.zeros(N), low, 2.0**-24, 0.25, t))
    begins = np.arange(length // t) * t
    for head, size in enumerate((1, 70, 500, 2**31 - 1)):
        np.testing.assert_array_equal(first[0, head], np.maximum(begins - size + 1, 0))


@pytest.mark.parametrize("kernel", ["cudnn", "splash"])
def test_vendor_kernels_serve_one_window_for_all_heads_and_say_so(kernel):
    how = {"head_dim": H, "dtype": "bfloat16"}
    assert (
        choose_implementation(placed("rope+window"), T, T, kernel, KernelConditions(**how)).name
        == kernel
    )
    with pytest.raises(ValueError, match=r"windows of their own.*take 'auto' or 'blockwise'"):
        choose_implementation(placed("rope+window|nope"), T, T, kernel, KernelConditions(**how))
    assert (
        choose_implementation(
            placed("rope+window|nope"), 9999, 9999, "auto", KernelConditions(**how), device="gpu"
        ).name
        == "flash"
    )
