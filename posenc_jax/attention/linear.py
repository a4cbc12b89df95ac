"""Linear attention with a rotated numerator (Su et al. 2021, eq. 19): the definition with T x S
weights, and a causal scan over chunks and devices.

Dims: E head dim of the values; R devices of the ring.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from posenc_jax.attention.arguments import TokenSide
from posenc_jax.attention.mask import visible
from posenc_jax.attention.sharding import Ring, find_ring

CHUNK = 64  # tokens per chunk; only one chunk's CHUNK x CHUNK weights are held at once


def linear_attention(
    q_BTNH: jax.Array,
    k_BSNH: jax.Array,
    rotated_q_BTNH: jax.Array,
    rotated_k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    mask_BTS: jax.Array,
) -> jax.Array:
    """Returns sum_j <R q, R k_j> v_j / sum_j <q, k_j> over visible j; zeros for a query that sees
    no key.

    The T x S weights are held in memory; this is the reference.

    Args:
      q_BTNH, k_BSNH: features, float32, above zero. rotated_q_BTNH, rotated_k_BSNH: the same,
        rotated.
      v_BSNH: values; the result has their dtype. mask_BTS: True where a query sees a key.
    """
    seen = mask_BTS[:, None]
    numerator_BNTS = jnp.einsum("BTNH,BSNH->BNTS", rotated_q_BTNH, rotated_k_BSNH)
    numerator_BTNH = jnp.einsum(
        "BNTS,BSNH->BTNH", jnp.where(seen, numerator_BNTS, 0.0), _float32(v_BSNH)
    )
    denominator_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BSNH)
    denominator_BTN = jnp.where(seen, denominator_BNTS, 0.0).sum(-1).swapaxes(1, 2)
    return _quotient(numerator_BTNH, denominator_BTN, v_BSNH.dtype)


def causal_linear_attention(
    q_BTNH: jax.Array,
    k_BTNH: jax.Array,
    rotated_q_BTNH: jax.Array,
    rotated_k_BTNH: jax.Array,
    v_BTNH: jax.Array,
    tokens: TokenSide,
) -> jax.Array:
    """Returns `linear_attention` for causal self-attention, in time linear in T.

    The caller must pass tokens in position order, each document contiguous. A scan over chunks
    carries the sums over earlier chunks as one H x H matrix and one vector per head. A query uses
    them if its document is the last document of the chunk before. Batch, heads and tokens may be
    split over explicit axes of the mesh; devices exchange their final sums and no keys.
    """
    operands = (q_BTNH, k_BTNH, rotated_q_BTNH, rotated_k_BTNH, _float32(v_BTNH))
    positions = (tokens.pos_BT, tokens.seg_BT)
    split, ring = jax.typeof(q_BTNH).sharding.spec, find_ring(q_BTNH)
    local = functools.partial(_on_device, ring=ring, dtype=v_BTNH.dtype)
    if all(axis is None for axis in split):
        return local(*operands, *positions)
    layout = (split,) * len(operands) + (jax.P(*split[:2]),) * 2
    arrays = map(jax.sharding.reshard, (*operands, *positions), layout)
    # check_vma=False: the sums start as zeros, whose type says that they are equal on all devices.
    return jax.shard_map(local, in_specs=layout, out_specs=split, check_vma=False)(*arrays)


class _Sums(NamedTuple):
    """Sums over the tokens of the last document of a range of tokens."""

    state_BNHE: jax.Array  # sum of the outer products of rotated keys and values
    sum_BNH: jax.Array  # sum of keys
    last_segment_B: jax.Array  # segment of that document


def _on_device(
    q_BTNH, k_BTNH, rotated_q_BTNH, rotated_k_BTNH, v_BTNE, pos_BT, seg_BT, *, ring, dtype
):
    """Returns `causal_linear_attention` of one device; ring=None: it holds whole sequences."""
    B, T, N, H = q_BTNH.shape
    chunks = -(-T // CHUNK)

    def cut(x):  # [chunks, B, CHUNK, ...]; padding continues the last document with zero features
        missing = ((0, 0), (0, chunks * CHUNK - T)) + ((0, 0),) * (x.ndim - 2)
        padded = jnp.pad(x, missing, mode="constant" if x.ndim > 2 else "edge")
        return padded.reshape(B, chunks, CHUNK, *x.shape[2:]).swapaxes(0, 1)

    def step(before, chunk):
        q, k, rotated_q, rotated_k, v, pos, seg = chunk
        side = TokenSide(pos, seg)
        seen = visible(side, side, causal=True)[:, None]
        weights = jnp.where(seen, jnp.einsum("BTNH,BSNH->BNTS", rotated_q, rotated_k), 0.0)
        numerator, denominator = _from_earlier(before, q, rotated_q, seg)
        numerator += jnp.einsum("BNTS,BSNE->BTNE", weights, v)
        denominator += (
            jnp.where(seen, jnp.einsum("BTNH,BSNH->BNTS", q, k), 0.0).sum(-1).swapaxes(1, 2)
        )

        stays = (seg == seg[:, -1:]).astype(jnp.float32)[..., None, None]
        state_BNHE = jnp.einsum("BSNH,BSNE->BNHE", rotated_k * stays, v)
        sums = _Sums(state_BNHE, (k * stays).sum(1), seg[:, -1])
        return _joined(before, sums), (numerator, denominator)

    tensors = (q_BTNH, k_BTNH, rotated_q_BTNH, rotated_k_BTNH, v_BTNE, pos_BT, seg_BT)
    zero_sums = _Sums(
        jnp.zeros((B, N, H, v_BTNE.shape[3]), jnp.float32),
        jnp.zeros((B, N, H), jnp.float32),
        jnp.zeros_like(seg_BT[:, 0]),
    )
    own, outputs = lax.scan(step, zero_sums, tuple(map(cut, tensors)))
    numerator, denominator = (
        x.swapaxes(0, 1).reshape(B, chunks * CHUNK, *x.shape[3:])[:, :T] for x in outputs
    )
    if ring is not None:
        before = _sums_before(ring, own, zero_sums)
        earlier = _from_earlier(before, q_BTNH, rotated_q_BTNH, seg_BT)
        numerator, denominator = numerator + earlier[0], denominator + earlier[1]
    return _quotient(numerator, denominator, dtype)


def _from_earlier(before: _Sums, q_BTNH, rotated_q_BTNH, seg_BT):
    """Returns numerator and denominator over the tokens before the queries' own chunk or device."""
    continues_BT1 = ((seg_BT == before.last_segment_B[:, None]) & (seg_BT != 0))[..., None]
    numerator_BTNE = jnp.einsum("BTNH,BNHE->BTNE", rotated_q_BTNH, before.state_BNHE)
    denominator_BTN = jnp.einsum("BTNH,BNH->BTN", q_BTNH, before.sum_BNH)
    numerator_BTNE = jnp.where(continues_BT1[..., None], numerator_BTNE, 0.0)
    return numerator_BTNE, jnp.where(continues_BT1, denominator_BTN, 0.0)


def _joined(before: _Sums, own: _Sums) -> _Sums:
    """Returns the sums at the end of a range, from those before it and its own."""
    continues = (own.last_segment_B == before.last_segment_B).astype(jnp.float32)[:, None, None]
    return _Sums(
        before.state_BNHE * continues[..., None] + own.state_BNHE,
        before.sum_BNH * continues + own.sum_BNH,
        own.last_segment_B,
    )


def _sums_before(ring: Ring, own: _Sums, zero_sums: _Sums) -> _Sums:
    """Returns the sums that the devices before this one end with (collective)."""
    sums = lax.all_gather(own, ring.axis)
    _, before = lax.scan(lambda so_far, one: (_joined(so_far, one), so_far), zero_sums, sums)
    return jax.tree.map(lambda x_Rx: x_Rx[lax.axis_index(ring.axis)], before)


def _float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


def _quotient(numerator_BTNH: jax.Array, denominator_BTN: jax.Array, dtype) -> jax.Array:
    no_key_BTN1 = (denominator_BTN == 0)[..., None]
    out_BTNH = numerator_BTNH / jnp.where(no_key_BTN1, 1.0, denominator_BTN[..., None])
    return jnp.where(no_key_BTN1, 0.0, out_BTNH).astype(dtype)
