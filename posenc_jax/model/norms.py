"""Normalisation layers: RMSNorm and LayerNorm, and their learned parameters."""

import jax
import jax.numpy as jnp
from jax.nn import initializers

from posenc_jax.model.config import ModelConfig


def rms_norm(x: jax.Array, gain: jax.Array, epsilon: float) -> jax.Array:
    """Returns x / rms(x) * gain over the last dim, in float32, cast back to x's dtype."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + epsilon)
    return (wide * jnp.expand_dims(gain, range(x.ndim - 1))).astype(x.dtype)


def layer_norm(x: jax.Array, gain: jax.Array, bias: jax.Array | None, epsilon: float) -> jax.Array:
    """Returns (x - mean) / std * gain + bias over the last dim (Ba et al. 2016)."""
    wide = x.astype(jnp.float32)
    wide = wide - wide.mean(-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + epsilon)
    wide = wide * jnp.expand_dims(gain, range(x.ndim - 1))
    if bias is not None:
        wide = wide + jnp.expand_dims(bias, range(x.ndim - 1))
    return wide.astype(x.dtype)


def gain_init(config: ModelConfig):
    """Returns the initializer of gains: the factor of a new norm is 1."""
    return initializers.zeros if config.norm == "rms_plus_one" else initializers.ones


def gain_factor(config: ModelConfig, gain: jax.Array) -> jax.Array:
    """Returns the factor of an RMSNorm: the gain, or 1 + gain."""
    return 1 + gain if config.norm == "rms_plus_one" else gain


def learned_norm(module, config: ModelConfig, name: str, x_BTD: jax.Array) -> jax.Array:
    """Returns x_BTD after the config's norm, with the parameters `name`_gain_D and
    `name`_norm_bias_D.

    Args:
      module: the Linen module that owns the parameters, inside its compact method.
    """
    shape = x_BTD.shape[-1:]
    gain_D = module.param(f"{name}_gain_D", gain_init(config), shape)
    if config.norm.startswith("rms"):
        return rms_norm(x_BTD, gain_factor(config, gain_D), config.norm_epsilon)
    bias_D = None
    if config.norm == "layer":
        bias_D = module.param(f"{name}_norm_bias_D", initializers.zeros, shape)
    return layer_norm(x_BTD, gain_D, bias_D, config.norm_epsilon)
