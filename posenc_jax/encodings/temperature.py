"""Temperatures: the tau of the equation. They multiply the content logit, never the bias."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from posenc_jax.encodings.bias import distances
from posenc_jax.encodings.part import MOST, Params, Place, Temperature, check_positive
from posenc_jax.encodings.stretch import yarn_mscale


def log_n(pos_BT: jax.Array, length: int) -> jax.Array:
    """Returns tau_BT = ln(n) / ln(length), n = pos + 1 keys in sight, float32.

    Keeps the sharpness of attention as the number of keys grows: the entropy of a softmax over n
    keys grows as ln n unless logits grow alike. Source: Chiang and Cholak 2022, sec. 5.3.
    """
    return jnp.log1p(pos_BT.astype(jnp.float32)) / math.log(length)


@dataclasses.dataclass(frozen=True)
class LogN(Temperature):
    """Log-n temperature relative to the training length.

    Attributes:
      clip: True keeps tau = 1 up to the training length and lets it grow past it only; False also
        lowers it for the first tokens, so that growth is seen in training.
    """

    clip: bool = True

    def check(self, place: Place) -> None:
        """Raises ValueError when ln(train_length) is zero."""
        if place.train_length < 2:
            raise ValueError(f"logn: training length must be at least 2, not {place.train_length}")

    def temperature(
        self, params: Params, q_pos_BT: jax.Array, k_pos_BS: jax.Array, place: Place
    ) -> jax.Array:
        """Returns tau_BT1, float32."""
        tau_BT1 = log_n(q_pos_BT, place.train_length)[..., None]
        return jnp.maximum(tau_BT1, 1.0) if self.clip else tau_BT1


@dataclasses.dataclass(frozen=True)
class YarnTemperature(Temperature):
    """YaRN's temperature alone, (0.1 mscale ln s + 1)^2 on every content logit (Peng et al. 2023, eq. 22).

    `rope(stretch=yarn(...))` has it already, on the dims that rotate. This part gives it to all content
    of a head: heads without a rotation, or dims that a partial rotation leaves out.

    Attributes:
      factor: s; 1 and below leave the logits as they are.
      mscale: 1 is the paper's; DeepSeek's softmax scale has its `mscale_all_dim` here.
    """

    relative: ClassVar[bool] = True
    factor: float = 4.0
    mscale: float = 1.0

    def check(self, place: Place) -> None:
        """Raises ValueError for a factor that is not positive."""
        check_positive("yarn_temperature", factor=self.factor, mscale=self.mscale)
        if yarn_mscale(self.factor, self.mscale) ** 2 > MOST:
            raise ValueError(
                f"yarn_temperature: mscale={self.mscale:g} is past what float32 multiplies"
            )

    def temperature(
        self, params: Params, q_pos_BT: jax.Array, k_pos_BS: jax.Array, place: Place
    ) -> jax.Array:
        """Returns tau_BT1, the same everywhere, float32."""
        tau = yarn_mscale(self.factor, self.mscale) ** 2
        return jnp.full_like(q_pos_BT, tau, jnp.float32)[..., None]


@dataclasses.dataclass(frozen=True)
class ScaleInvariant(Temperature):
    """A temperature that grows with distance: tau(d) = sqrt(2 ln(1 + d/t) + 1).

    With the bias -2 ln(1 + d/t), that is ``log(c=2.0,t=10.0)~scale_invariant(t=10.0)``, and Gaussian
    content logits of unit variance, every range of distances [d, a d] holds the same expected weight,
    and weight is sparser the farther it lies. Source: Anson et al. 2025, sec. 3 (with p-RoPE).

    Attributes:
      t: tokens; give the bias the same.
    """

    relative: ClassVar[bool] = True
    t: float = 10.0

    def check(self, place: Place) -> None:
        """Raises ValueError for a length scale that is not positive."""
        check_positive("scale_invariant", t=self.t)

    def temperature(
        self, params: Params, q_pos_BT: jax.Array, k_pos_BS: jax.Array, place: Place
    ) -> jax.Array:
        """Returns tau_BTS, float32."""
        return jnp.sqrt(2 * jnp.log1p(distances(q_pos_BT, k_pos_BS) / self.t) + 1)

    def stretched(self, factor: float) -> Temperature:
        """Returns the temperature with t grown by the factor, like that of the logarithmic bias."""
        return dataclasses.replace(self, t=self.t * factor)
