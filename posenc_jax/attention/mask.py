"""Who sees whom: a boolean mask, selected and never added."""

import jax
import jax.numpy as jnp

from posenc_jax.encodings.scheme import PlacedLayer

NO_WINDOW = 2**31 - 1  # the largest int32: no two positions are as far apart


def visible(
    q_pos_BT: jax.Array,
    k_pos_BS: jax.Array,
    q_seg_BT: jax.Array,
    k_seg_BS: jax.Array,
    *,
    causal: bool,
    window: int | jax.Array | None = None,
) -> jax.Array:
    """Returns mask_BTS: True where the query may read the key.

    A key is in sight when it lies in the query's segment (0 is padding and is in sight of nobody)
    and, if causal, at the query's position or before; under a window (a number, or an array against mask_BTS), nearer
    than `window`. Positions and segments alone decide, so the same rule serves packed documents, left padding and a
    cache with empty slots.
    """
    mask_BTS = (q_seg_BT[:, :, None] == k_seg_BS[:, None, :]) & (k_seg_BS != 0)[:, None, :]
    if causal:
        mask_BTS &= q_pos_BT[:, :, None] >= k_pos_BS[:, None, :]
    if window is not None:
        mask_BTS &= jnp.abs(q_pos_BT[:, :, None] - k_pos_BS[:, None, :]) < window
    return mask_BTS


def head_windows(layer: PlacedLayer, window: int | None) -> tuple[int | None, ...]:
    """Returns window_N: of every query head the smaller of its own window and the model's; None: all is in sight."""
    both = ((own, window) for own in layer.window_N)
    return tuple(min((w for w in pair if w is not None), default=None) for pair in both)


def visible_by_head(
    q_pos_BT: jax.Array,
    k_pos_BS: jax.Array,
    q_seg_BT: jax.Array,
    k_seg_BS: jax.Array,
    *,
    causal: bool,
    window_N: tuple[int | None, ...],
) -> jax.Array:
    """Returns mask_BNTS: True where the query may read the key; N is 1 where all heads see alike."""
    positions, several = (q_pos_BT, k_pos_BS, q_seg_BT, k_seg_BS), len(set(window_N)) > 1
    shared = None if several else window_N[0]
    mask_B1TS = visible(*positions, causal=causal, window=shared)[:, None]
    if not several:
        return mask_B1TS
    away_B1TS = jnp.abs(q_pos_BT[:, None, :, None] - k_pos_BS[:, None, None, :])
    return mask_B1TS & (away_B1TS < window_array(window_N)[None, :, None, None])


def window_array(window_N: tuple[int | None, ...]) -> jax.Array:
    """Returns window_N, int32; heads without a window have one that no distance reaches."""
    return jnp.array([NO_WINDOW if w is None else w for w in window_N], jnp.int32)
