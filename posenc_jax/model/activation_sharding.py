"""How matrices and activations lie over the mesh where they are used: `current_sharding`, `reshard`, `token_einsum`."""

import re

import jax
import jax.numpy as jnp

ROWS = ("data", "fsdp")  # mesh axes that the rows of a batch are split over
# Dims of matrices, by letter, that are split over the axis "model" where they are used.
ON_MODEL = "NKF"
Axes = str | tuple[str, ...] | None


def key_heads_axis(num_kv_heads: int, model_devices: int) -> str | None:
    """Returns the mesh axis that key/value heads lie on: "model", or None where it does not divide them.

    Multi-query attention has fewer key heads than devices: each then projects to all of them, and `attend`
    takes those that a device's own queries read.
    """
    return None if num_kv_heads % model_devices else "model"


def current_sharding(*axes: Axes) -> jax.sharding.PartitionSpec | None:
    """Returns the layout of an array over those axes of the current mesh that split; None outside of one."""
    mesh = jax.sharding.get_abstract_mesh()

    def splitting(axis: Axes) -> Axes:
        names = axis if isinstance(axis, tuple) else (axis,)
        found = tuple(name for name in names if name in mesh.shape and mesh.shape[name] > 1)
        return found if len(found) > 1 else found[0] if found else None

    return None if mesh.empty else jax.P(*map(splitting, axes))


def reshard(x: jax.Array, *axes: Axes) -> jax.Array:
    """Returns x laid out over the current mesh, if there is one: what a weight's use lacks is gathered."""
    layout = current_sharding(*axes)
    return x if layout is None else jax.sharding.reshard(x, layout)


def token_einsum(equation: str, x_BTx: jax.Array, weight: jax.Array, **settings) -> jax.Array:
    """Returns an einsum of x_BT... and a weight, over tokens as one dim: "BTD,DF->BTF".

    The gradient of the weight is then a sum over one dim. Over two, XLA for CPU first writes the
    activations out transposed, which took a sixth of a training step. Where the tokens of a row lie on
    several devices, no one dim holds B and T.

    The weight is gathered from the devices of "fsdp" here, after the cast to its dtype, and its gradient
    goes back to them; what `ON_MODEL` names stays split, K where it divides (`key_heads_axis`).

    Args:
      equation: operands and result begin with BT, and B and T stand nowhere else.
      settings: of `jnp.einsum`.
    """
    x_dims, w_dims, out_dims = re.fullmatch(r"BT(\w+),(\w+)->BT(\w+)", equation).groups()
    axis_of = dict.fromkeys(ON_MODEL, "model")
    if "K" in w_dims:
        devices = jax.sharding.get_abstract_mesh().shape.get("model", 1)
        axis_of["K"] = key_heads_axis(weight.shape[w_dims.index("K")], devices)
    x_axes, w_axes, out_axes = (list(map(axis_of.get, dims)) for dims in (x_dims, w_dims, out_dims))
    weight, out = reshard(weight, *w_axes), current_sharding(ROWS, "sequence", *out_axes)
    if out is not None and out[1] is not None:
        return jnp.einsum(equation, x_BTx, weight, out_sharding=out, **settings)
    B, T = x_BTx.shape[:2]
    x_Xx = jnp.reshape(
        x_BTx, (B * T, *x_BTx.shape[2:]), out_sharding=current_sharding(ROWS, *x_axes)
    )
    out_Xx = jnp.einsum(
        f"X{x_dims},{w_dims}->X{out_dims}", x_Xx, weight,
        out_sharding=current_sharding(ROWS, *out_axes), **settings,
    )  # fmt: skip
    return jnp.reshape(out_Xx, (B, T, *out_Xx.shape[1:]), out_sharding=out)
