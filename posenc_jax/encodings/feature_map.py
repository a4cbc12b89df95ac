"""Linear attention as a form that a scheme can select: `linear`, `rope+linear`."""

import dataclasses

import jax
import jax.numpy as jnp

from posenc_jax.encodings.base import Form


@dataclasses.dataclass(frozen=True)
class Linear(Form):
    """Attention by feature maps, phi(x) = elu(x) + 1 (Katharopoulos et al. 2020, eq. 7).

    A rotation turns the features, and in the numerator only (Su et al. 2021, eq. 19): turned features
    are no longer above zero, and a sum of them may vanish. Takes no bias and no temperature, and
    stands on all heads of its layer.
    """

    def features(self, x_BTNH: jax.Array) -> jax.Array:
        """Returns phi(x)_BTNH, float32."""
        return jax.nn.elu(x_BTNH.astype(jnp.float32)) + 1
