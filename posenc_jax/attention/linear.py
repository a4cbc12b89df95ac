"""Linear attention under a rotation: numerator turned, denominator not (Su et al. 2021, eq. 19)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from posenc_jax.attention.mask import visible
from posenc_jax.attention.sharding import Ring, find_ring

CHUNK = 64  # tokens whose weights are in memory at a time


def linear_attention(
    q_BTNH: jax.Array,
    k_BSNH: jax.Array,
    turned_q_BTNH: jax.Array,
    turned_k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    mask_BTS: jax.Array,
) -> jax.Array:
    """Returns sum_j <R q, R k_j> v_j / sum_j <q, k_j> over visible j: the definition, T x S weights.

    Args:
      q_BTNH, k_BSNH: features, float32, above zero. turned_q_BTNH, turned_k_BSNH: the same, rotated.
      v_BSNH: values; the result has their dtype. mask_BTS: True where a query may read a key.

    A row that sees nothing is zero.
    """
    seen = mask_BTS[:, None]
    over_BNTS = jnp.einsum("BTNH,BSNH->BNTS", turned_q_BTNH, turned_k_BSNH)
    over_BTNH = jnp.einsum("BNTS,BSNH->BTNH", jnp.where(seen, over_BNTS, 0.0), _wide(v_BSNH))
    under_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BSNH)
    under_BTN = jnp.where(seen, under_BNTS, 0.0).sum(-1).swapaxes(1, 2)
    return _divided(over_BTNH, under_BTN, v_BSNH.dtype)


def causal_linear_attention(
    q_BTNH: jax.Array,
    k_BTNH: jax.Array,
    turned_q_BTNH: jax.Array,
    turned_k_BTNH: jax.Array,
    v_BTNH: jax.Array,
    pos_BT: jax.Array,
    seg_BT: jax.Array,
) -> jax.Array:
    """Returns the same for causal self-attention, in time linear in T.

    Tokens stand in the order of their positions, and those of a document together. Chunk by chunk, the
    sums over earlier chunks are carried as one H x H matrix and one vector per head; a query reads them
    when its document is the one that was open at the end of the chunk before. Batch, heads and tokens may be split
    over explicit axes of the mesh: devices tell each other the sums that they end with, and no keys.
    """
    operands = (q_BTNH, k_BTNH, turned_q_BTNH, turned_k_BTNH, _wide(v_BTNH))
    split, ring = jax.typeof(q_BTNH).sharding.spec, find_ring(q_BTNH)
    local = functools.partial(_on_device, ring=ring, dtype=v_BTNH.dtype)
    if all(axis is None for axis in split):
        return local(*operands, pos_BT, seg_BT)
    layout = (split,) * len(operands) + (jax.P(*split[:2]),) * 2
    arrays = map(jax.sharding.reshard, (*operands, pos_BT, seg_BT), layout)
    # The sums start as zeros, the same on all devices: types cannot tell.
    return jax.shard_map(local, in_specs=layout, out_specs=split, check_vma=False)(*arrays)


class _Sums(NamedTuple):
    """Over the tokens of the document that is open at the end of some tokens."""

    state_BNHV: jax.Array  # of turned keys and values
    sum_BNH: jax.Array  # of keys
    open_B: jax.Array  # its segment


def _on_device(
    q_BTNH, k_BTNH, turned_q_BTNH, turned_k_BTNH, v_BTNV, pos_BT, seg_BT, *, ring, dtype
):
    """`causal_linear_attention` of the rows, heads and tokens of one device; ring: None for whole rows."""
    B, T, N, H = q_BTNH.shape
    chunks = -(-T // CHUNK)

    def cut(x):  # [chunks, B, CHUNK, ...]: the last document goes on, with features that are zero
        missing = ((0, 0), (0, chunks * CHUNK - T)) + ((0, 0),) * (x.ndim - 2)
        padded = jnp.pad(x, missing, mode="constant" if x.ndim > 2 else "edge")
        return padded.reshape(B, chunks, CHUNK, *x.shape[2:]).swapaxes(0, 1)

    def step(before, chunk):
        q, k, turned_q, turned_k, v, pos, seg = chunk
        seen = visible(pos, pos, seg, seg, causal=True)[:, None]
        weights = jnp.where(seen, jnp.einsum("BTNH,BSNH->BNTS", turned_q, turned_k), 0.0)
        over, under = _read(before, q, turned_q, seg)
        over += jnp.einsum("BNTS,BSNV->BTNV", weights, v)
        under += jnp.where(seen, jnp.einsum("BTNH,BSNH->BNTS", q, k), 0.0).sum(-1).swapaxes(1, 2)

        stays = (seg == seg[:, -1:]).astype(jnp.float32)[..., None, None]
        state_BNHV = jnp.einsum("BSNH,BSNV->BNHV", turned_k * stays, v)
        return _after(before, _Sums(state_BNHV, (k * stays).sum(1), seg[:, -1])), (over, under)

    tensors = (q_BTNH, k_BTNH, turned_q_BTNH, turned_k_BTNH, v_BTNV, pos_BT, seg_BT)
    nothing = _Sums(
        jnp.zeros((B, N, H, v_BTNV.shape[3]), jnp.float32),
        jnp.zeros((B, N, H), jnp.float32),
        jnp.zeros_like(seg_BT[:, 0]),
    )
    own, found = lax.scan(step, nothing, tuple(map(cut, tensors)))
    over, under = (x.swapaxes(0, 1).reshape(B, chunks * CHUNK, *x.shape[3:])[:, :T] for x in found)
    if ring is not None:
        before = _before(ring, own, nothing)
        over, under = jax.tree.map(jnp.add, (over, under), _read(before, q_BTNH, turned_q_BTNH, seg_BT))  # fmt: skip
    return _divided(over, under, dtype)


def _read(before: _Sums, q_BTNH, turned_q_BTNH, seg_BT):
    """Returns what queries find before their own chunk or device: numerator and denominator."""
    reads_BT1 = ((seg_BT == before.open_B[:, None]) & (seg_BT != 0))[..., None]
    over_BTNV = jnp.einsum("BTNH,BNHV->BTNV", turned_q_BTNH, before.state_BNHV)
    under_BTN = jnp.einsum("BTNH,BNH->BTN", q_BTNH, before.sum_BNH)
    return jnp.where(reads_BT1[..., None], over_BTNV, 0.0), jnp.where(reads_BT1, under_BTN, 0.0)


def _after(before: _Sums, own: _Sums) -> _Sums:
    """Returns the sums at the end of some tokens from those at the end of the tokens before them."""
    goes_on = (own.open_B == before.open_B).astype(jnp.float32)[:, None, None]
    return _Sums(
        before.state_BNHV * goes_on[..., None] + own.state_BNHV,
        before.sum_BNH * goes_on + own.sum_BNH,
        own.open_B,
    )


def _before(ring: Ring, own: _Sums, nothing: _Sums) -> _Sums:
    """Returns the sums that the devices before this one end with (collective)."""
    sums = lax.all_gather(own, ring.axis)
    _, before = lax.scan(lambda so_far, one: (_after(so_far, one), so_far), nothing, sums)
    return jax.tree.map(lambda x_Rx: x_Rx[lax.axis_index(ring.axis)], before)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


def _divided(over_BTNH: jax.Array, under_BTN: jax.Array, dtype) -> jax.Array:
    blind_BTN1 = (under_BTN == 0)[..., None]
    out_BTNH = over_BTNH / jnp.where(blind_BTN1, 1.0, under_BTN[..., None])
    return jnp.where(blind_BTN1, 0.0, out_BTNH).astype(dtype)
