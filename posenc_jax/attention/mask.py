"""The attention mask: a boolean array of the keys that each query sees."""

import jax
import jax.numpy as jnp

from posenc_jax.attention.arguments import TokenSide
from posenc_jax.encodings.scheme import PlacedLayer

NO_WINDOW = 2**31 - 1  # the largest int32, larger than any distance


def visible(
    queries: TokenSide, keys: TokenSide, *, causal: bool, window: int | jax.Array | None = None
) -> jax.Array:
    """Returns mask_BTS: True where the query sees the key.

    A query sees the keys of its own segment (0 is padding, which no query sees). If causal, it sees
    keys that are not later in `order_BT`, or in position where that is None. Under a window (a
    number, or an array that broadcasts against mask_BTS) it sees keys nearer than `window`. The
    mask depends on positions, segments and `order_BT` only, so packed documents, left padding and a
    cache with empty slots need no other rule.
    """
    q_seg_BT1, k_seg_B1S = queries.seg_BT[:, :, None], keys.seg_BT[:, None, :]
    q_pos_BT1, k_pos_B1S = queries.pos_BT[:, :, None], keys.pos_BT[:, None, :]
    mask_BTS = (q_seg_BT1 == k_seg_B1S) & (k_seg_B1S != 0)
    if causal:
        mask_BTS &= queries.causal_BT[:, :, None] >= keys.causal_BT[:, None, :]
    if window is not None:
        mask_BTS &= jnp.abs(q_pos_BT1 - k_pos_B1S) < window
    return mask_BTS


def head_windows(layer: PlacedLayer, window: int | None) -> tuple[int | None, ...]:
    """Returns window_N: the smaller of the head's and the model's window; None where neither sets
    a window.
    """
    both = ((own, window) for own in layer.window_N)
    return tuple(min((w for w in pair if w is not None), default=None) for pair in both)


def visible_by_head(
    queries: TokenSide, keys: TokenSide, *, causal: bool, window_N: tuple[int | None, ...]
) -> jax.Array:
    """Returns mask_BNTS: True where the query sees the key.

    The dim N has size 1 if all heads have the same window.
    """
    if len(set(window_N)) == 1:
        return visible(queries, keys, causal=causal, window=window_N[0])[:, None]
    mask_B1TS = visible(queries, keys, causal=causal)[:, None]
    away_B1TS = jnp.abs(queries.pos_BT[:, None, :, None] - keys.pos_BT[:, None, None, :])
    return mask_B1TS & (away_B1TS < window_array(window_N)[None, :, None, None])


def window_array(window_N: tuple[int | None, ...]) -> jax.Array:
    """Returns window_N, int32; NO_WINDOW for heads without a window."""
    return jnp.array([NO_WINDOW if w is None else w for w in window_N], jnp.int32)
