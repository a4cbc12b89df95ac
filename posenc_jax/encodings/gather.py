"""Gather of table rows by id, with a deterministic gradient on GPUs.

The gradient of a row is the sum over the tokens that read it. XLA for GPU computes it by atomic
additions in an arbitrary order. In programs for a GPU this module computes it in an order that
depends on the ids only. Dims: X tokens of one device, V rows, D dims of a row.
"""

import functools

import jax
import jax.numpy as jnp

from posenc_jax.encodings.backend import current_backend


def gather_rows(table_VD: jax.Array, ids_BT: jax.Array, mode: str) -> jax.Array:
    """Returns table_VD[ids_BT].

    On a mesh the table may be split over D, not over V; the rows are split like the ids.

    Args:
      ids_BT: nonnegative.
      mode: of `.at[].get`: "fill", where ids of V and more give NaN and no gradient, or
        "promise_in_bounds".
    """
    table_VD = jnp.asarray(table_VD)  # parameters may be NumPy arrays
    if current_backend() == "gpu":
        return _summed_in_order(table_VD, jnp.asarray(ids_BT), mode, table_VD.shape[0])
    return _taken(table_VD, ids_BT, mode)


def _taken(table_VD, ids_BT, mode):
    layout = jax.typeof(ids_BT).sharding
    dim = jax.typeof(table_VD).sharding.spec[1]
    rows = None if layout.mesh.empty else jax.P(*layout.spec, dim)
    return table_VD.at[ids_BT].get(mode=mode, out_sharding=rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _summed_in_order(table_VD, ids_BT, mode: str, size: int):
    return _taken(table_VD, ids_BT, mode)


def _forward(table_VD, ids_BT, mode, size):
    return _taken(table_VD, ids_BT, mode), ids_BT


def _backward(mode, size, ids_BT, d_BTD):
    *places, dim = jax.typeof(d_BTD).sharding.spec
    over = tuple(
        axis for axes in places if axes for axis in ((axes,) if isinstance(axes, str) else axes)
    )

    def summed(d_BTD, ids_BT):
        d_VD = sum_rows_by_id(d_BTD.reshape(-1, d_BTD.shape[-1]), ids_BT.reshape(-1), size)
        return jax.lax.psum(d_VD, over) if over else d_VD

    if over or dim:
        split = (jax.P(*places, dim), jax.P(*places))
        summed = jax.shard_map(summed, in_specs=split, out_specs=jax.P(None, dim))
    return summed(d_BTD, ids_BT).astype(d_BTD.dtype), None


_summed_in_order.defvjp(_forward, _backward)


def sum_rows_by_id(d_XD: jax.Array, ids_X: jax.Array, size: int) -> jax.Array:
    """Returns d_VD: the sum of the rows of each id below `size`, in float32.

    Rows are sorted by id (stable) and added in a binary tree. The order is the same in every
    program and run, and the rounding error grows with the logarithm of the number of rows.
    """
    order_X = jnp.argsort(ids_X, stable=True)
    sorted_X = ids_X[order_X]
    first_X1 = jnp.append(True, sorted_X[1:] != sorted_X[:-1])[:, None]

    def add(left, right):
        left_first, left_sum = left
        right_first, right_sum = right
        return left_first | right_first, jnp.where(right_first, right_sum, left_sum + right_sum)

    rows_XD = d_XD[order_X].astype(jnp.float32)
    _, upto_XD = jax.lax.associative_scan(add, (first_X1, rows_XD))
    ids_V = jnp.arange(size, dtype=ids_X.dtype)
    # The last row of each id is found by binary search; a scatter would not be deterministic.
    last_V = jnp.searchsorted(sorted_X, ids_V, side="right", method="scan_unrolled") - 1
    last_V = jnp.maximum(last_V, 0)
    present_V1 = (sorted_X[last_V] == ids_V)[:, None]
    return jnp.where(present_V1, upto_XD[last_V], 0.0)
