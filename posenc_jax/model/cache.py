"""The key/value cache of decoding. Keys are stored as projected and rotated when read.

A change of frequencies between two reads (dynamic NTK, LongRoPE's two lists) can then never meet
stale keys, and positions may be anything at all.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from posenc_jax.model.config import ModelConfig


class LayerCache(NamedTuple):
    """One layer's keys and values, S slots; and ticks, where tokens decide a bias (`layer.gated`)."""

    k_BSKH: jax.Array
    v_BSKH: jax.Array
    tick_BSN: jax.Array | None


class Cache(NamedTuple):
    """Keys and values of all layers; `filled` slots are in use, the others have segment 0."""

    layers: tuple[LayerCache, ...]
    pos_BS: jax.Array
    seg_BS: jax.Array
    filled: jax.Array


def empty_cache(config: ModelConfig, batch: int, slots: int) -> Cache:
    """Returns a cache of `slots` tokens for `batch` rows."""
    shape = (batch, slots, config.num_kv_heads, config.head_dim)
    none = jnp.zeros(shape, config.dtype)
    still = jnp.zeros((batch, slots, config.num_heads), jnp.float32)
    layers = tuple(
        LayerCache(none, none, still if layer.gated else None) for layer in config.placed.layers
    )
    none_BS = jnp.zeros((batch, slots), jnp.int32)
    return Cache(layers, none_BS, none_BS, jnp.zeros((), jnp.int32))


def write(slots_BS: jax.Array, new_BT: jax.Array, filled: jax.Array) -> jax.Array:
    """Returns slots_BS... with new_BT... written from slot `filled` on; later dims are carried."""
    start = (0, filled) + (0,) * (slots_BS.ndim - 2)
    return jax.lax.dynamic_update_slice(slots_BS, new_BT.astype(slots_BS.dtype), start)
