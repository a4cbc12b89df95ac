"""Token shift: mixes keys and values with those of the previous token (Xu et al. 2024)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from posenc_jax.attention.sharding import Ring, find_ring
from posenc_jax.attention.tokens import zero_where_unread


class LastToken(NamedTuple):
    """The last token in a cache, before the shift; segment 0: no token."""

    k_B1KH: jax.Array
    v_B1KH: jax.Array
    seg_B1: jax.Array


class ShiftWeights(NamedTuple):
    """The factors of the current and the previous token in each key/value head."""

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

    The previous token is the one in the slot before, if it belongs to the same document. For the
    first token of a document and for padding, k_(t-1) and v_(t-1) are zero. Batch, tokens and heads
    may be split over explicit axes of the mesh: a device receives the last token of its neighbour.

    Args:
      k_BTKH, v_BTKH: keys and values as projected. seg_BT: documents; 0 is padding.
      last: the token before the first slot, from a cache, whose tokens are not split; None: no such
        token.
    """
    k_BTKH, v_BTKH = (zero_where_unread(x, seg_BT != 0) for x in (k_BTKH, v_BTKH))
    tokens, ring = (k_BTKH, v_BTKH, seg_BT), find_ring(k_BTKH)
    if ring is not None:
        before = _shift_right_on_ring(ring, tokens)
    else:
        blank = tuple(jnp.zeros_like(x[:, :1]) for x in tokens)
        before = _shift_right(tokens, last or blank)
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


def _shift_right(tokens: tuple, last: tuple) -> tuple:
    """Returns arrays [B, T, ...] shifted by one slot to the right, with `last` in slot 0."""
    return tuple(
        jnp.concatenate([end_B1x.astype(x_BTx.dtype), x_BTx[:, :-1]], axis=1)
        for x_BTx, end_B1x in zip(tokens, last, strict=True)
    )


def _shift_right_on_ring(ring: Ring, tokens: tuple) -> tuple:
    """`_shift_right` of arrays that are split over a ring; zeros before the first slot."""
    layout = tuple(jax.typeof(x).sharding.spec for x in tokens)

    def on_device(*tokens):
        to = [(r, r + 1) for r in range(ring.size - 1)]  # the first device receives zeros
        last = (lax.ppermute(x_BTx[:, -1:], ring.axis, to) for x_BTx in tokens)
        return _shift_right(tokens, tuple(last))

    return jax.shard_map(on_device, in_specs=layout, out_specs=layout, check_vma=False)(*tokens)
