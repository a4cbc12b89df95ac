"""Shardings of weights and activations in the forward pass."""

import re

import jax
import jax.numpy as jnp

ROWS = ("data", "fsdp")  # mesh axes over which the rows of a batch are split
# Dims of matrices that are split over the axis "model" in the forward pass.
ON_MODEL = "NKF"
Axes = str | tuple[str, ...] | None


def key_heads_axis(num_kv_heads: int, model_devices: int) -> str | None:
    """Returns the mesh axis of key/value heads: "model", or None if its size does not divide their
    number.

    In multi-query attention, with fewer key heads than devices, each device projects to all key
    heads, and `attend` selects the key heads of the device's own queries.
    """
    return None if num_kv_heads % model_devices else "model"


def current_sharding(*axes: Axes) -> jax.sharding.PartitionSpec | None:
    """Returns the sharding over axes of several devices of the current mesh, or None."""
    mesh = jax.sharding.get_abstract_mesh()

    def splitting(axis: Axes) -> Axes:
        names = axis if isinstance(axis, tuple) else (axis,)
        used = tuple(name for name in names if name is not None and mesh.shape.get(name, 1) > 1)
        return used if len(used) > 1 else used[0] if used else None

    return None if mesh.empty else jax.P(*map(splitting, axes))


def reshard(x: jax.Array, *axes: Axes) -> jax.Array:
    """Returns x resharded to these axes of the current mesh; x itself without a mesh."""
    layout = current_sharding(*axes)
    return x if layout is None else jax.sharding.reshard(x, layout)


def token_einsum(equation: str, x_BTx: jax.Array, weight: jax.Array, **settings) -> jax.Array:
    """Returns an einsum of x_BT... and a weight, with B and T merged into one dim: "BTD,DF->BTF".

    The gradient of the weight is then a sum over one dim. For a sum over two dims, XLA for CPU
    first transposes the activations in memory, which took a sixth of a training step. B and T are
    not merged if T is split over devices.

    The weight is gathered over "fsdp" here, after the cast to its dtype, and its gradient is
    scattered back. The dims in `ON_MODEL` stay split, K only if it divides (`key_heads_axis`).

    Args:
      equation: operands and result begin with BT, and B and T occur nowhere else.
      settings: of `jnp.einsum`.
    """
    dims = re.fullmatch(r"BT(\w+),(\w+)->BT(\w+)", equation)
    if dims is None:
        raise ValueError(f"{equation!r} is no product of BT... and a weight")
    x_dims, w_dims, out_dims = dims.groups()
    axis_of: dict[str, str | None] = dict.fromkeys(ON_MODEL, "model")
    if "K" in w_dims:
        devices = jax.sharding.get_abstract_mesh().shape.get("model", 1)
        axis_of["K"] = key_heads_axis(weight.shape[w_dims.index("K")], devices)
    x_axes, w_axes, out_axes = (list(map(axis_of.get, names)) for names in dims.groups())
    weight, out = reshard(weight, *w_axes), current_sharding(ROWS, "sequence", *out_axes)
    if out is not None and out[1] is not None:
        return jnp.einsum(equation, x_BTx, weight, out_sharding=out, **settings)
    B, T = x_BTx.shape[:2]
    x_Xx = jnp.reshape(
        x_BTx, (B * T, *x_BTx.shape[2:]), out_sharding=current_sharding(ROWS, *x_axes)
    )
    out_Xx = jnp.einsum(
        f"X{x_dims},{w_dims}->X{out_dims}",
        x_Xx,
        weight,
        out_sharding=current_sharding(ROWS, *out_axes),
        **settings,
    )
    return jnp.reshape(out_Xx, (B, T, *out_Xx.shape[1:]), out_sharding=out)
