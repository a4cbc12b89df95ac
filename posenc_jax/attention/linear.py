"""Linear attention under a rotation: numerator turned, denominator not (Su et al. 2021, eq. 19)."""

import jax
import jax.numpy as jnp

from posenc_jax.attention.mask import visible

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


def linear_attention_in_order(
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
    when its document is the one that was open at the end of the chunk before.
    """
    B, T = pos_BT.shape
    chunks = -(-T // CHUNK)

    def cut(x):  # [chunks, B, CHUNK, ...], padded with segment 0
        padded = jnp.pad(x, ((0, 0), (0, chunks * CHUNK - T)) + ((0, 0),) * (x.ndim - 2))
        layout = jax.typeof(x).sharding  # chunks lie where their tokens lie
        spec = None if layout.mesh.empty else jax.P(layout.spec[0], None, None, *layout.spec[2:])
        shape = (B, chunks, CHUNK, *x.shape[2:])
        return padded.reshape(shape, out_sharding=spec).swapaxes(0, 1)

    def step(carry, chunk):
        state_BNHV, sum_BNH, open_B = carry
        q, k, turned_q, turned_k, v, pos, seg = chunk
        seen = visible(pos, pos, seg, seg, causal=True)[:, None]
        reads = ((seg == open_B[:, None]) & (seg != 0))[..., None]  # [B, C, 1]
        weights = jnp.where(seen, jnp.einsum("BTNH,BSNH->BNTS", turned_q, turned_k), 0.0)
        over = jnp.einsum("BNTS,BSNV->BTNV", weights, v)
        before = jnp.einsum("BTNH,BNHV->BTNV", turned_q, state_BNHV)
        over += jnp.where(reads[..., None], before, 0.0)
        under = jnp.where(seen, jnp.einsum("BTNH,BSNH->BNTS", q, k), 0.0).sum(-1).swapaxes(1, 2)
        under += jnp.where(reads, jnp.einsum("BTNH,BNH->BTN", q, sum_BNH), 0.0)

        last_B = seg[:, -1]
        goes_on = (last_B == open_B).astype(jnp.float32)[:, None, None]
        stays = (seg == last_B[:, None]).astype(jnp.float32)[..., None, None]
        state_BNHV = state_BNHV * goes_on[..., None] + jnp.einsum("BSNH,BSNV->BNHV", turned_k * stays, v)  # fmt: skip
        sum_BNH = sum_BNH * goes_on + (k * stays).sum(1)
        return (state_BNHV, sum_BNH, last_B), (over, under)

    tensors = (q_BTNH, k_BTNH, turned_q_BTNH, turned_k_BTNH, _wide(v_BTNH), pos_BT, seg_BT)
    first = cut(q_BTNH)[0]
    empty_BNHV = jnp.zeros_like(jnp.einsum("BTNH,BTNV->BNHV", first, cut(_wide(v_BTNH))[0]))
    start = (empty_BNHV, jnp.zeros_like(first.sum(1)), jnp.zeros_like(seg_BT[:, 0]))
    _, (over, under) = jax.lax.scan(step, start, tuple(map(cut, tensors)))

    def joined(x):  # [B, T, ...] of the first T
        layout = jax.typeof(x).sharding
        spec = None if layout.mesh.empty else jax.P(layout.spec[1], None, *layout.spec[3:])
        shape = (B, chunks * CHUNK, *x.shape[3:])
        return x.swapaxes(0, 1).reshape(shape, out_sharding=spec)[:, :T]

    return _divided(joined(over), joined(under), v_BTNH.dtype)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


def _divided(over_BTNH: jax.Array, under_BTN: jax.Array, dtype) -> jax.Array:
    blind_BTN1 = (under_BTN == 0)[..., None]
    out_BTNH = over_BTNH / jnp.where(blind_BTN1, 1.0, under_BTN[..., None])
    return jnp.where(blind_BTN1, 0.0, out_BTNH).astype(dtype)
