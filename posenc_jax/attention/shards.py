"""Attention on a mesh: every device serves its own rows and heads, and none waits for another."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def per_shard(local: Callable, floats: tuple, places: tuple) -> jax.Array:
    """Returns local(floats, places, first_head), run on each device's part of the batch and the heads.

    The layout is that of the queries, in the mesh's explicit axes: dim 0 and dim 2 may be split. Rows and
    heads are independent, so nothing is communicated but the sum of the gradients of learned parameters.
    Keys and values are repeated first where their heads do not divide over the devices.

    Args:
      local: called with whole arrays, and 0, where nothing is split.
      floats: q_BTNH, k_BSKH, v_BSKH, params, q_clock_BTN, k_clock_BSN. places: arrays of dims B, _.
    """
    q_BTNH, k_BSKH, v_BSKH, params, *clocks = floats
    rows, length, heads, dim = jax.typeof(q_BTNH).sharding.spec
    if rows is None and heads is None:
        return local(floats, places, jnp.int32(0))
    if length is not None or dim is not None:
        raise ValueError("blockwise attention: queries may be split over batch and heads, not over length or head dim")  # fmt: skip
    mesh = jax.sharding.get_abstract_mesh()
    names = heads if isinstance(heads, tuple) else (heads,) if heads else ()
    shards = 1
    for name in names:
        shards *= mesh.shape[name]
    num_heads, K = q_BTNH.shape[2], k_BSKH.shape[2]
    if K % shards:
        whole = jax.P(rows, None, None, None)
        k_BSKH, v_BSKH = (
            jnp.repeat(jax.sharding.reshard(x, whole), num_heads // K, axis=2)
            for x in (k_BSKH, v_BSKH)
        )
    split = jax.P(rows, None, heads, None)
    clock = jax.P(rows, None, None)
    layout = (
        (split, split, split, jax.P(), clock, clock),
        tuple(jax.P(rows, None) for _ in places),
    )
    arrays = ((q_BTNH, k_BSKH, v_BSKH, params, *clocks), places)

    def on_device(floats, places):
        first = lax.axis_index(names) * (num_heads // shards) if names else 0
        return local(floats, places, jnp.int32(first))

    arrays = jax.tree.map(
        lambda spec, x: jax.tree.map(lambda y: jax.sharding.reshard(y, spec), x),
        layout, arrays, is_leaf=lambda x: isinstance(x, jax.P),
    )  # fmt: skip
    # The loops carry whole buffers that start as zeros, the same on all devices: types cannot tell.
    return jax.shard_map(on_device, in_specs=layout, out_specs=split, check_vma=False)(*arrays)
