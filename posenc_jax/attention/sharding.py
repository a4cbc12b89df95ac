"""Attention on a mesh: each device computes its own rows, heads and ring queries."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from posenc_jax.encodings import forget_gate


class Ring(NamedTuple):
    """The devices that hold the tokens of a row, in order.

    Attributes:
      axis: the mesh axis. size: number of devices along it. everywhere: all axes of the mesh.
    """

    axis: str
    size: int
    everywhere: tuple[str, ...]


def find_ring(x_BTx: jax.Array) -> Ring | None:
    """Returns the ring that splits dim 1 of an array, or None; ValueError for several axes."""
    axis = (*jax.typeof(x_BTx).sharding.spec, None, None)[1]
    if axis is None:
        return None
    if not isinstance(axis, str):
        raise ValueError(f"the tokens of a row may be split over one axis of the mesh, not {axis}")
    mesh = jax.sharding.get_abstract_mesh()
    return Ring(axis, mesh.shape[axis], mesh.axis_names)


def drop_unit_axes(tree):
    """Returns the arrays with shardings that name only mesh axes of several devices; no data move.

    An axis of one device splits nothing, but it is part of an array's type, and an axis may not
    name the length of both queries and keys.
    """

    def renamed(x):
        layout = jax.typeof(x).sharding
        several = [
            tuple(a for a in _names(axes) if layout.mesh.shape[a] > 1) for axes in layout.spec
        ]
        spec = [axes[0] if len(axes) == 1 else axes or None for axes in several]
        return x if spec == list(layout.spec) else jax.sharding.reshard(x, jax.P(*spec))

    return jax.tree.map(renamed, tree)


def shard_keys_like_queries(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns keys and values whose heads are split over devices like the heads of the queries.

    If K does not divide over the devices (multi-query attention), key heads are first repeated the
    smallest sufficient number of times, so that each device holds the key heads of its own queries.
    N is a multiple of K.
    """
    heads = jax.typeof(q_BTNH).sharding.spec[2]
    times = math.lcm(k_BSKH.shape[2], _devices(heads)) // k_BSKH.shape[2]

    def laid(x_BSKH):
        rows, length, own, _ = jax.typeof(x_BSKH).sharding.spec
        if times > 1:
            x_BSKH = jax.sharding.reshard(x_BSKH, jax.P(rows, length, None, None))
            x_BSKH, own = jnp.repeat(x_BSKH, times, axis=2), None
        return (
            x_BSKH
            if own == heads
            else jax.sharding.reshard(x_BSKH, jax.P(rows, length, heads, None))
        )

    return laid(k_BSKH), laid(v_BSKH)


def _names(axes) -> tuple[str, ...]:
    return axes if isinstance(axes, tuple) else (axes,) if axes else ()


def _devices(axes) -> int:
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[name] for name in _names(axes))


def per_shard(
    local: Callable,
    operands: tuple,
    positions: tuple,
    *,
    ring: Ring | None = None,
    out: str = "BTNH",
) -> jax.Array:
    """Returns local(operands, positions, first_head), run on each device's part of batch, heads and
    ring.

    The sharding of the queries decides: dims 0 and 2 may be split over explicit axes of the mesh,
    dim 1 only with a `ring`. Rows and heads are independent, so the only communication here is the
    sum of the gradients of learned parameters. Key and value heads are repeated first where needed
    (`shard_keys_like_queries`).

    Args:
      local: if nothing is split, it is called with the whole arrays and first_head=0.
      operands: q_BTNH, k_BSKH, v_BSKH, learned parameters, and the cumulative log-forget of both
        sides or None.
      positions: arrays of dims B and T or S.
      ring: from `find_ring(q_BTNH)`, for a `local` that passes keys around.
      out: dims of the result, some of "BTNH".
    """
    q_BTNH, k_BSKH, v_BSKH, params, *log_forget = operands
    rows, length, heads, dim = jax.typeof(q_BTNH).sharding.spec
    if rows is None and heads is None and length is None and dim is None:
        return local(operands, positions, jnp.int32(0))
    if dim is not None or (length is not None) != (ring is not None):
        raise ValueError(
            "attention: queries may be split over batch and heads, over length for a ring alone, "
            "and never over head dim"
        )
    names, shards, num_heads = _names(heads), _devices(heads), q_BTNH.shape[2]
    k_BSKH, v_BSKH = shard_keys_like_queries(q_BTNH, k_BSKH, v_BSKH)
    split = jax.P(rows, length, heads, None)
    by_token = jax.P(rows, length, None)
    layout = (
        (split, split, split, jax.P(), by_token, by_token),
        tuple(jax.P(rows, length) for _ in positions),
    )
    result = jax.P(*(split["BTNH".index(dim)] for dim in out))
    arrays = ((q_BTNH, k_BSKH, v_BSKH, params, *log_forget), positions)

    def on_device(operands, positions):
        first = lax.axis_index(names) * (num_heads // shards) if names else 0
        return local(operands, positions, jnp.int32(first))

    arrays = jax.tree.map(
        lambda spec, x: jax.tree.map(lambda y: jax.sharding.reshard(y, spec), x),
        layout,
        arrays,
        is_leaf=lambda x: isinstance(x, jax.P),
    )
    # check_vma=False: loop carries start as zeros, whose type says that they are equal on all
    # devices.
    return jax.shard_map(on_device, in_specs=layout, out_specs=result, check_vma=False)(*arrays)


def cumulative_log_forget(log_forget_BTN: jax.Array, seg_BT: jax.Array) -> jax.Array:
    """Returns `encodings.cumulative_log_forget` of rows that may be split over batch, heads and a
    ring.

    Each device sums over its own tokens. For the document that continues from the device before, it
    adds that sum, one number per head, which all devices exchange.
    """
    ring = find_ring(log_forget_BTN)
    if ring is None:
        return forget_gate.cumulative_log_forget(log_forget_BTN, seg_BT)
    split = jax.typeof(log_forget_BTN).sharding.spec

    def on_device(log_forget_BTN, seg_BT):
        cum_log_forget_BTN = forget_gate.cumulative_log_forget(log_forget_BTN, seg_BT)
        opens_BT = jnp.cumsum(seg_BT != jnp.roll(seg_BT, 1, axis=1), axis=1)
        goes_on_BT = opens_BT == opens_BT[:, :1]  # tokens of the first document on the device
        ends = (cum_log_forget_BTN[:, -1], seg_BT[:, 0], seg_BT[:, -1], goes_on_BT[:, -1])
        last_RBN, first_seg_RB, last_seg_RB, through_RB = lax.all_gather(ends, ring.axis)
        follows_RB = first_seg_RB == jnp.roll(last_seg_RB, 1, axis=0)
        follows_RB &= (jnp.arange(ring.size) > 0)[:, None]

        def before(open_BN, one):
            last_BN, follows_B, through_B = one
            open_BN = jnp.where(follows_B[:, None], open_BN, 0.0)
            return last_BN + jnp.where(through_B[:, None], open_BN, 0.0), open_BN

        blank_BN = jnp.zeros_like(last_RBN[0])
        _, open_RBN = lax.scan(before, blank_BN, (last_RBN, follows_RB, through_RB))
        open_B1N = open_RBN[lax.axis_index(ring.axis)][:, None]
        return cum_log_forget_BTN + jnp.where(goes_on_BT[..., None], open_B1N, 0.0)

    layout = (split, jax.P(*split[:2]))
    return jax.shard_map(on_device, in_specs=layout, out_specs=split, check_vma=False)(
        log_forget_BTN, seg_BT
    )
