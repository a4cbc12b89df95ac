"""The feature map of linear attention, a form that a scheme can select: `linear`, `rope+linear`."""

import dataclasses

import jax
import jax.numpy as jnp

from posenc_jax.encodings.base import Form


@dataclasses.dataclass(frozen=True)
class Linear(Form):
    """Attention by feature maps, phi(x) = elu(x) + 1 (Katharopoulos et al. 2020, eq. 7).

    A rotation acts on the features in the numerator only (Su et al. 2021, eq. 19), because rotated
    features may be negative and their sum may be zero. Linear attention takes no bias and no
    temperature, and all heads of a layer have it.
    """

    def features(self, x_BTNH: jax.Array) -> jax.Array:
        """Returns phi(x)_BTNH, float32."""
        return jax.nn.elu(x_BTNH.astype(jnp.float32)) + 1
