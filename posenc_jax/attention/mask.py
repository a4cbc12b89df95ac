"""Who sees whom: a boolean mask, selected and never added."""

import jax
import jax.numpy as jnp


def visible(
    q_pos_BT: jax.Array,
    k_pos_BS: jax.Array,
    q_seg_BT: jax.Array,
    k_seg_BS: jax.Array,
    *,
    causal: bool,
    window: int | None = None,
) -> jax.Array:
    """Returns mask_BTS: True where the query may read the key.

    A key is in sight when it lies in the query's segment (0 is padding and is in sight of nobody)
    and, if causal, at the query's position or before; under a window, nearer than `window`. Positions and segments alone decide, so the
    same rule serves packed documents, left padding and a cache with empty slots.
    """
    mask_BTS = (q_seg_BT[:, :, None] == k_seg_BS[:, None, :]) & (k_seg_BS != 0)[:, None, :]
    if causal:
        mask_BTS &= q_pos_BT[:, :, None] >= k_pos_BS[:, None, :]
    if window is not None:
        mask_BTS &= jnp.abs(q_pos_BT[:, :, None] - k_pos_BS[:, None, :]) < window
    return mask_BTS
