"""Normal queries, keys and values."""

import jax
import jax.numpy as jnp


def qkv(B, T, N, K, H, *more, S=None, seed=0, dtype=jnp.float32):
    """q_BTNH, k_BSKH, v_BSKH, and one array of each shape in `more`."""
    shapes = ((B, T, N, H), *[(B, S or T, K, H)] * 2, *more)
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return tuple(
        jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)
    )
