"""Blockwise attention beside dense attention on the same arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from posenc_jax.attention import BlockwiseSettings, TokenSide, dense_attention, visible
from posenc_jax.attention.blockwise.api import blockwise_attention
from posenc_jax.encodings.forget_gate import cumulative_log_forget

from support.attention_inputs import qkv
from support.schemes import layer_of

N, H, L = 4, 16, 64


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
        q, k = (layer.rotate(params, q, pos, "query"), layer.rotate(params, k, k_pos, "key"))
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
            q,
            k,
            v,
            layer,
            arrays[-1],
            TokenSide(pos, seg, clocks[0]),
            TokenSide(k_pos, k_seg, clocks[1]),
            BlockwiseSettings(causal, window, **settings),
        )

    return dense, blockwise


def assert_same(layer, arrays, *places, gradients=True, atol=2e-6, **settings):
    arrays = (*arrays, layer.init(jax.random.key(7)))
    dense, blockwise = both(layer, *places, **settings)
    want, dense_vjp = jax.vjp(jax.jit(dense), *arrays)
    got, blockwise_vjp = jax.vjp(jax.jit(blockwise), *arrays)
    np.testing.assert_allclose(got, want, atol=atol)
    if gradients:
        pull = jax.random.normal(jax.random.key(9), want.shape)
        for w, g in zip(*map(jax.tree.leaves, (dense_vjp(pull), blockwise_vjp(pull))), strict=True):
            np.testing.assert_allclose(g, w, atol=1e-5 * max(1.0, np.abs(w).max()))
