"""Base class of the Flax Linen modules of the decoder: parameters may be NumPy arrays."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class ArrayModule(nn.Module):
    """A module whose parameters may be NumPy arrays in `apply`, as restored ones are."""

    def param(self, *args, **kwargs):
        """Returns `flax.linen.Module.param` as JAX arrays."""
        return jax.tree.map(jnp.asarray, super().param(*args, **kwargs))
