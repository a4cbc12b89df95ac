"""Token shift: each token's keys and values mixed with those of the token before it (Xu et al. 2024, arXiv 2411.19574)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from posenc_jax.attention.sharding import Ring, find_ring


class LastToken(NamedTuple):
    """The last token that a cache has read: keys and values before the shift, and its segment (0: no token)."""

    k_B1KH: jax.Array
    v_B1KH: jax.Array
    seg_B1: jax.Array


class ShiftWeights(NamedTuple):
    """What a token's keys and values, and those of the token before it, are multiplied by in each head."""

    key_now_K: jax.Array
    key_before_K: jax.Array
    value_now_K: jax.Array
    value_before_K: jax.Array


def token_shift(
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    seg_BT: jax.Array,
    shift: ShiftWeights,
    last: LastToken | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns now k_t + before k_(t-1) and the same of v, in their dtypes (Xu et al. 2024, eq. 5).

    The token before is the one in the slot before, if it is of the same document; the first token of a document,
    and padding, have none, which counts as zeros. Batch, tokens and heads may be split over explicit axes of the
    mesh: a device gets the last token of its neighbour.

    Args:
      k_BTKH, v_BTKH: keys and values as projected. seg_BT: documents; 0 is padding.
      last: the token before the first slot, of a cache, whose tokens are not split; None: there is none.
    """
    tokens, ring = (k_BTKH, v_BTKH, seg_BT), find_ring(k_BTKH)
    if ring is not None:
        before = _a_slot_later_around(ring, tokens)
    else:
        last = last or tuple(jnp.zeros_like(x[:, :1]) for x in tokens)
        before = _a_slot_later(tokens, last)
    k_before_BTKH, v_before_BTKH, seg_before_BT = before
    follows_BT11 = ((seg_BT == seg_before_BT) & (seg_BT != 0))[..., None, None]

    def mixed(x_BTKH, before_BTKH, now_K, before_K):
        now_11K1, before_11K1 = (w_K[None, None, :, None] for w_K in (now_K, before_K))
        before_BTKH = jnp.where(follows_BT11, before_BTKH, 0).astype(jnp.float32)
        mix_BTKH = now_11K1 * x_BTKH.astype(jnp.float32) + before_11K1 * before_BTKH
        return mix_BTKH.astype(x_BTKH.dtype)

    return (
        mixed(k_BTKH, k_before_BTKH, shift.key_now_K, shift.key_before_K),
        mixed(v_BTKH, v_before_BTKH, shift.value_now_K, shift.value_before_K),
    )


def _a_slot_later(tokens: tuple, last: tuple) -> tuple:
    """Returns arrays [B, T, ...] whose slot t holds what slot t - 1 held, and slot 0 what is in `last`."""
    return tuple(
        jnp.concatenate([end_B1x.astype(x_BTx.dtype), x_BTx[:, :-1]], axis=1)
        for x_BTx, end_B1x in zip(tokens, last, strict=True)
    )


def _a_slot_later_around(ring: Ring, tokens: tuple) -> tuple:
    """`_a_slot_later` of arrays whose slots are split over a ring; nothing stands before the first one."""
    layout = tuple(jax.typeof(x).sharding.spec for x in tokens)

    def on_device(*tokens):
        to = [(r, r + 1) for r in range(ring.size - 1)]  # the first device receives zeros
        last = (lax.ppermute(x_BTx[:, -1:], ring.axis, to) for x_BTx in tokens)
        return _a_slot_later(tokens, tuple(last))

    return jax.shard_map(on_device, in_specs=layout, out_specs=layout, check_vma=False)(*tokens)
