"""Attention against a float64 loop, and the properties every registered scheme must have."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.attention import (
    AttentionSettings,
    KernelConditions,
    OptionalInputs,
    TokenSide,
    attend,
    choose_implementation,
    dense_attention,
)
from posenc_jax.encodings import cumulative_log_forget, parse

from support import oracles, schemes
from support.attention_inputs import qkv

N, H, L = 4, 16, 64


placed = functools.partial(schemes.placed, num_layers=2)


def tensors(B, T, K=N, dtype=jnp.float32):
    return qkv(B, T, N, K, H, dtype=dtype)


def run(line, q, k, v, pos, seg=None, layer=0, order=None):
    place = placed(line).layers[layer]
    seg = jnp.ones_like(pos) if seg is None else seg
    params, clock = place.init(jax.random.key(7)), None
    if place.gated:
        x = jax.random.normal(jax.random.key(8), (*pos.shape, 32))
        clock = jax.jit(cumulative_log_forget)(place.log_forget(params, x), seg)
    side = TokenSide(pos, seg, clock, order)
    return attend(
        q,
        k,
        v,
        place,
        params,
        side,
        optional=OptionalInputs(x_BTD=schemes.projected_from(place, pos.shape)),
    )


def test_dense_attention_equals_the_float64_loop_under_a_coupled_split():
    q, k, v = (np.asarray(x[0], np.float64) for x in tensors(1, 12))
    pos = np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 70, 71, 90])
    seg = np.array([1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2])
    slopes = oracles.alibi_slopes(2)
    turned = [
        np.stack(
            [
                [oracles.rope_vector(x[t, n], pos[t]) if n < 2 else x[t, n] for n in range(N)]
                for t in range(12)
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
    got = run(
        "rope+alibi|nope~logn", *tensors(1, 12), jnp.asarray(pos)[None], jnp.asarray(seg)[None]
    )
    np.testing.assert_allclose(got[0], want, atol=2e-6)


def test_a_row_that_sees_nothing_gives_zero_and_a_finite_gradient():
    q, k, v = tensors(1, 3)
    mask = jnp.zeros((1, 3, 3), bool).at[0, 1, 0].set(True)
    out, gradient = jax.value_and_grad(lambda q: dense_attention(q, k, v, None, mask).sum())(q)
    assert np.isfinite(out)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(dense_attention(q, k, v, None, mask)[0, 0], 0)


def test_the_bias_is_added_after_the_scale_and_is_itself_unscaled():
    q, k, v = tensors(1, 2)
    bias = jnp.zeros((1, N, 2, 2)).at[..., 1, 0].set(-1.0)
    mask = jnp.ones((1, 2, 2), bool)
    logits = np.einsum("nh,snh->ns", q[0, 1], k[0]) / 4 + np.asarray(bias[0, :, 1])
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    want = np.einsum("ns,snh->nh", weights, v[0])
    np.testing.assert_allclose(dense_attention(q, k, v, bias, mask)[0, 1], want, atol=1e-6)


def test_temperature_never_touches_the_bias():
    """With zero queries the content logit is 0: the result may not depend on the temperature."""
    q, k, v = tensors(1, 6)
    pos = jnp.arange(500, 506)[None]
    plain, heated = (run(line, 0 * q, k, v, pos) for line in ("alibi", "alibi~logn"))
    np.testing.assert_array_equal(plain, heated)
    assert not np.allclose(run("alibi", q, k, v, pos), run("alibi~logn", q, k, v, pos))


def test_a_sum_reduces_to_its_parents():
    q, k, v = tensors(2, 9)
    pos = jnp.broadcast_to(jnp.arange(9), (2, 9))
    here = {"pos": 0 * pos, "order": pos}  # all at one place: no rotation, no distance
    flat = run("rope+alibi", q, k, v, **here)
    np.testing.assert_allclose(flat, run("nope", q, k, v, **here), atol=1e-6)
    gap = run("rope+alibi", q, k, v, pos) - run("rope", q, k, v, pos)
    assert np.abs(gap).max() > 1e-2


@pytest.mark.parametrize("line", schemes.some(pytest.mark.thorough, schemes.RELATIVE))
def test_attention_does_not_change_when_all_positions_shift(line):
    q, k, v = tensors(1, 10)
    pos = jnp.array([[0, 1, 2, 3, 9, 10, 40, 41, 63, 64]])
    for layer in range(len(parse(line).layers)):
        here = run(line, q, k, v, pos, layer=layer)
        for shift in (1, 7, L, 8 * L):
            there = run(line, q, k, v, pos + shift, layer=layer)
            np.testing.assert_allclose(there, here, atol=1e-5, err_msg=f"shift {shift}")


@pytest.mark.parametrize("line", schemes.some(pytest.mark.thorough, few=schemes.FEWER))
def test_grouped_queries_equal_repeated_heads(line):
    q, k, v = tensors(2, 8, K=2)
    pos = jnp.broadcast_to(jnp.arange(8), (2, 8))
    wide = [jnp.repeat(x, 2, axis=2) for x in (k, v)]
    np.testing.assert_allclose(run(line, q, k, v, pos), run(line, q, *wide, pos), atol=1e-6)
    single = [jnp.repeat(x[:, :, :1], N, axis=2) for x in (k, v)]
    np.testing.assert_allclose(
        run(line, q, k[:, :, :1], v[:, :, :1], pos), run(line, q, *single, pos), atol=1e-6
    )


@pytest.mark.parametrize("line", schemes.some(pytest.mark.slow, few=schemes.FEWER))
def test_jit_changes_nothing_but_rounding(line):
    q, k, v = tensors(1, 8)
    pos = jnp.arange(8)[None]
    np.testing.assert_allclose(
        run(line, q, k, v, pos), jax.jit(lambda *a: run(line, *a))(q, k, v, pos), atol=2e-6
    )


@pytest.mark.parametrize("line", schemes.some(pytest.mark.slow, few=schemes.FEWER))
def test_bfloat16_stays_near_float32_far_out(line):
    """Positions, angles, biases and softmax are float32 inside: only q, k, v are rounded."""
    q, k, v = tensors(1, 16, dtype=jnp.bfloat16)
    last = 131_072
    if line == "xpos":  # the one part that names a shorter reach itself
        last = placed(line).longest()
    pos = jnp.asarray([last - 1 - 3 * i for i in range(16)][::-1])[None]
    low = run(line, q, k, v, pos)
    high = run(line, *(x.astype(jnp.float32) for x in (q, k, v)), pos)
    assert low.dtype == jnp.bfloat16
    assert np.abs(np.asarray(low, np.float32) - high).max() < 0.06


def test_wrong_heads_and_kernels_are_refused():
    q, k, v = tensors(1, 4, K=3)
    pos = jnp.arange(4)[None]
    with pytest.raises(ValueError, match="4 query heads do not divide over 3"):
        run("rope", q, k, v, pos)
    place = placed("rope").layers[0]
    ones = jnp.ones_like(pos)
    with pytest.raises(ValueError, match="attention must be one of"):
        attend(
            *tensors(1, 4),
            place,
            {},
            TokenSide(pos, ones),
            settings=AttentionSettings(implementation="flashy"),
        )


@pytest.mark.thorough
def test_attend_takes_the_path_it_says_and_all_paths_agree():
    q, k, v = tensors(2, 40, K=2)
    pos = jnp.broadcast_to(jnp.arange(40), (2, 40))
    ones = jnp.ones_like(pos)
    layer = placed("rope+alibi|nope~logn").layers[0]

    def over(how, window=None):
        return attend(
            q,
            k,
            v,
            layer,
            {},
            TokenSide(pos, ones),
            settings=AttentionSettings(window=window, implementation=how),
        )

    np.testing.assert_allclose(over("dense"), over("blockwise"), atol=2e-6)
    np.testing.assert_array_equal(over("auto"), over("dense"))
    assert (
        choose_implementation(
            layer, 40, 40, "auto", KernelConditions(head_dim=8, dtype="float32")
        ).name
        == "dense"
    )
    assert (
        choose_implementation(
            layer, 1, 10**6, "auto", KernelConditions(head_dim=8, dtype="float32")
        ).name
        == "blockwise"
    )
    np.testing.assert_allclose(over("dense", window=9), over("blockwise", window=9), atol=2e-6)
    assert np.abs(over("dense", window=9) - over("dense")).max() > 1e-3
