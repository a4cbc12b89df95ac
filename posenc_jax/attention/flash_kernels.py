"""The programs of our kernel for NVIDIA GPUs (`posenc_jax.attention.flash`): one per tile of a result.

Dims of a tile in lower case: t queries, s keys, H columns. Logits are to base 2. Written in Pallas for Triton.
"""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from posenc_jax.attention.dense import NEVER

LOG2E = math.log2(math.e)


class Tiling(NamedTuple):
    """Queries and keys of a tile, and how a program of it is laid on a GPU; chosen as is usual, not tuned."""

    q_block: int
    k_block: int
    warps: int
    stages: int


FORWARD, OF_QUERIES, OF_KEYS = Tiling(128, 64, 4, 3), Tiling(128, 64, 8, 3), Tiling(64, 128, 8, 2)


def _seen(low_t, row_t, col_s):
    return (low_t[:, None] <= col_s[None, :]) & (col_s[None, :] <= row_t[:, None])


def _bias2(bias_ref, row, col):
    """Returns the bias between rows and columns, to base 2: of a slope, or looked up by distance in a table."""
    if bias_ref.shape == (1,):
        return bias_ref[0] * (col - row).astype(jnp.float32)
    return triton.load(bias_ref.at[jnp.maximum(row - col, 0)])


def _blocks(tiling: Tiling, i, start_ref, highest_ref):
    """Returns bounds of key blocks: those before the second hold a key out of sight, and so do those from the third on."""
    t, s = tiling.q_block, tiling.k_block
    first, diagonal = start_ref[0] // s, i * t // s
    whole = jnp.clip((highest_ref[0] + s - 1) // s, first, jnp.maximum(diagonal, first))
    return first, whole, jnp.maximum(diagonal, whole), ((i + 1) * t + s - 1) // s


def _in_turn(bounds, body, carry):
    """Runs body(masked, j, carry) over the key blocks between bounds."""
    first, whole, diagonal, end = bounds
    carry = lax.fori_loop(first, whole, functools.partial(body, True), carry)
    carry = lax.fori_loop(whole, diagonal, functools.partial(body, False), carry)
    return lax.fori_loop(diagonal, end, functools.partial(body, True), carry)


def forward_kernel(
    scale2, tiling, q_ref, k_ref, v_ref, low_ref, start_ref, highest_ref, bias_ref, out_ref, lse_ref
):  # fmt: skip
    """Writes out_tH and lse_t, to base 2, of one block of queries; zeros where a row sees nothing."""
    t, s = tiling.q_block, tiling.k_block
    i = pl.num_programs(0) - 1 - pl.program_id(0)
    row_t, low_t = i * t + jnp.arange(t), low_ref[...]
    q_tH = q_ref[...]

    def body(masked, j, carry):
        acc_tH, top_t, sum_t = carry
        k_sH, v_sH = (ref[pl.ds(j * s, s), :] for ref in (k_ref, v_ref))
        col_s = j * s + jnp.arange(s)
        logits_ts = triton.dot(q_tH, k_sH.T) * scale2
        logits_ts += _bias2(bias_ref, row_t[:, None], col_s[None, :])
        if masked:
            logits_ts = jnp.where(_seen(low_t, row_t, col_s), logits_ts, NEVER)
        new_t = jnp.maximum(top_t, logits_ts.max(-1))
        weight_ts = jnp.exp2(logits_ts - new_t[:, None])
        fade_t = jnp.exp2(top_t - new_t)
        acc_tH = acc_tH * fade_t[:, None] + triton.dot(weight_ts.astype(v_sH.dtype), v_sH)
        return acc_tH, new_t, sum_t * fade_t + weight_ts.sum(-1)

    blank = (
        jnp.zeros(q_tH.shape, jnp.float32), jnp.full((t,), NEVER, jnp.float32), jnp.zeros((t,), jnp.float32)
    )  # fmt: skip
    acc_tH, top_t, sum_t = _in_turn(_blocks(tiling, i, start_ref, highest_ref), body, blank)
    # What a row collects before it sees a key fades to nothing once it does; padding sees none.
    sees_t = low_t <= row_t
    sum_t = jnp.where(sees_t, sum_t, 1.0)
    out_ref[...] = jnp.where(sees_t[:, None], acc_tH / sum_t[:, None], 0.0).astype(out_ref.dtype)
    lse_ref[...] = jnp.where(sees_t, top_t + jnp.log2(sum_t), 0.0)


def query_kernel(
    scale, tiling, q_ref, k_ref, v_ref, d_out_ref, lse_ref, pull_ref, low_ref, start_ref, highest_ref, bias_ref,
    d_q_ref, d_slope_ref,
):  # fmt: skip
    """Writes d_q_tH of one block of queries, and each row's share of the slope's gradient."""
    t, s = tiling.q_block, tiling.k_block
    i = pl.num_programs(0) - 1 - pl.program_id(0)
    row_t, low_t = i * t + jnp.arange(t), low_ref[...]
    q_tH, d_out_tH, lse_t, pull_t = q_ref[...], d_out_ref[...], lse_ref[...], pull_ref[...]

    def body(masked, j, carry):
        d_q_tH, d_slope_t = carry
        k_sH, v_sH = (ref[pl.ds(j * s, s), :] for ref in (k_ref, v_ref))
        col_s = j * s + jnp.arange(s)
        away_ts = (col_s[None, :] - row_t[:, None]).astype(jnp.float32)
        weight_ts = jnp.exp2(
            triton.dot(q_tH, k_sH.T) * (scale * LOG2E)
            + _bias2(bias_ref, row_t[:, None], col_s[None, :])
            - lse_t[:, None]
        )
        d_logits_ts = weight_ts * (triton.dot(d_out_tH, v_sH.T) - pull_t[:, None])
        if masked:  # last, as a NaN times zero is a NaN
            d_logits_ts = jnp.where(_seen(low_t, row_t, col_s), d_logits_ts, 0.0)
        d_q_tH += triton.dot(d_logits_ts.astype(k_sH.dtype), k_sH)
        return d_q_tH, d_slope_t + (d_logits_ts * away_ts).sum(-1)

    blank = jnp.zeros(q_tH.shape, jnp.float32), jnp.zeros((t,), jnp.float32)
    d_q_tH, d_slope_t = _in_turn(_blocks(tiling, i, start_ref, highest_ref), body, blank)
    d_q_ref[...] = (d_q_tH * scale).astype(d_q_ref.dtype)
    d_slope_ref[...] = d_slope_t


def key_kernel(
    scale, tiling, q_ref, k_ref, v_ref, d_out_ref, lse_ref, pull_ref, low_ref, end_ref, bias_ref,
    d_k_ref, d_v_ref,
):  # fmt: skip
    """Writes d_k_sH and d_v_sH of one block of keys, for one query head."""
    t, s = tiling.q_block, tiling.k_block
    j = pl.program_id(0)
    col_s = j * s + jnp.arange(s)
    k_sH, v_sH = k_ref[...], v_ref[...]

    def body(i, carry):  # tiles lie the other way here: keys by queries
        d_k_sH, d_v_sH = carry
        rows = pl.ds(i * t, t)
        q_tH, d_out_tH = q_ref[rows, :], d_out_ref[rows, :]
        row_t = i * t + jnp.arange(t)
        logits_st = triton.dot(k_sH, q_tH.T) * (scale * LOG2E)
        logits_st += _bias2(bias_ref, row_t[None, :], col_s[:, None])
        weight_st = jnp.exp2(logits_st - lse_ref[rows][None, :])
        seen_st = _seen(low_ref[rows], row_t, col_s).T
        weight_st = jnp.where(seen_st, weight_st, 0.0)
        d_v_sH += triton.dot(weight_st.astype(d_out_tH.dtype), d_out_tH)
        d_logits_st = weight_st * (triton.dot(v_sH, d_out_tH.T) - pull_ref[rows][None, :])
        d_logits_st = jnp.where(seen_st, d_logits_st, 0.0)
        d_k_sH += triton.dot(d_logits_st.astype(q_tH.dtype), q_tH)
        return d_k_sH, d_v_sH

    blank_sH = jnp.zeros(k_sH.shape, jnp.float32)
    d_k_sH, d_v_sH = lax.fori_loop(j * s // t, end_ref[0], body, (blank_sH, blank_sH))
    d_k_ref[...] = (d_k_sH * scale).astype(d_k_ref.dtype)
    d_v_ref[...] = d_v_sH.astype(d_v_ref.dtype)
