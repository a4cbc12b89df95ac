"""Temperatures: the tau of the equation. They multiply the content logit, never the bias."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from posenc_jax.encodings.base import (
    MAX_SIZE,
    HeadContext,
    Params,
    Temperature,
    TokenTemperature,
    check_positive,
)
from posenc_jax.encodings.bias import distances
from posenc_jax.encodings.rope_scaling import yarn_mscale


def log_n(pos_BT: jax.Array, length: int) -> jax.Array:
    """Returns tau_BT = ln(n) / ln(length), n = pos + 1 keys in sight (in a window, all of it at most), float32.

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

    def check(self, context: HeadContext) -> None:
        """Raises ValueError when ln(train_length) is zero."""
        _check_length("logn", context)

    def temperature(
        self, params: Params, q_pos_BT: jax.Array, k_pos_BS: jax.Array, context: HeadContext
    ) -> jax.Array:
        """Returns tau_B1T1, float32."""
        tau_B1T1 = log_n(q_pos_BT, context.train_length)[:, None, :, None]
        return jnp.maximum(tau_B1T1, 1.0) if self.clip else tau_B1T1


@dataclasses.dataclass(frozen=True)
class SSMax(Temperature):
    """Scalable-softmax: tau = s ln n, n = pos + 1 keys in sight, s learned per head (Nakanishi 2025, eq. 2).

    s starts at one over the mean of ln n within the training length, at which the mean temperature is 1
    (0.168 at L = 1,024), a window of the head not counted. It is not bounded: a head may learn to be cold. The
    first token has one key and tau = 0.
    """

    learns: ClassVar[bool] = True

    def check(self, context: HeadContext) -> None:
        """Raises ValueError when ln n is zero at every position of a training sequence."""
        _check_length("ssmax", context)

    def init(self, key: jax.Array, context: HeadContext) -> Params:
        """Returns {"s_N"}."""
        start = context.train_length / math.lgamma(context.train_length + 1)  # ln 1 + ... + ln L
        return {"s_N": jnp.full(context.heads, start, jnp.float32)}

    def temperature(
        self, params: Params, q_pos_BT: jax.Array, k_pos_BS: jax.Array, context: HeadContext
    ) -> jax.Array:
        """Returns tau_BNT1, float32."""
        log_BT = jnp.log1p(q_pos_BT.astype(jnp.float32))
        return params["s_N"][None, :, None, None] * log_BT[:, None, :, None]


@dataclasses.dataclass(frozen=True)
class AdaptiveSSMax(TokenTemperature):
    """SSMax whose scale and exponent the query's token decides: tau = floor + beta (ln(n + 1))^gamma.

    beta = softplus(w x + c), gamma = most tanh(u x + e), w, u, c, e learned per head, n = pos + 1 keys in
    sight. Source: Vasylenko et al. 2025 (arXiv 2506.16640). As in the authors' code (deep-spin/asentmax,
    `SparseGemma2Attention`, "adapt-softplus-tanh"), read for the exponent: gamma lies in (-2, 2) and may be
    negative, the constant is 1, and the logarithm is that of n + 1, so that no power of zero is taken.

    Attributes:
      floor: the constant term. most: bound of the exponent.
    """

    learns: ClassVar[bool] = True
    floor: float = 1.0
    most: float = 2.0

    def check(self, context: HeadContext) -> None:
        """Raises ValueError for a negative floor or a bound that is not positive."""
        check_positive("adaptive_ssmax", most=self.most)
        if self.floor < 0:
            raise ValueError(f"adaptive_ssmax: floor must be zero or above, not {self.floor:g}")
        if self.most > 20:
            raise ValueError(f"adaptive_ssmax: most must be at most 20, not {self.most:g}: powers of ln n leave float32")  # fmt: skip

    def init(self, key: jax.Array, context: HeadContext) -> Params:
        """Returns weights uniform within 1/sqrt(D) of zero, as the authors' linear layers, and biases of zero."""
        bound, shape = context.model_dim**-0.5, (context.model_dim, context.heads)
        beta_key, gamma_key = jax.random.split(key)
        return {
            "beta_DN": jax.random.uniform(beta_key, shape, minval=-bound, maxval=bound),
            "beta_bias_N": jnp.zeros(context.heads),
            "gamma_DN": jax.random.uniform(gamma_key, shape, minval=-bound, maxval=bound),
            "gamma_bias_N": jnp.zeros(context.heads),
        }

    def of_tokens(
        self, params: Params, x_BTD: jax.Array, pos_BT: jax.Array, context: HeadContext
    ) -> jax.Array:
        """Returns tau_BTN, float32."""
        raw_BTN = (
            jnp.einsum("BTD,DN->BTN", x_BTD.astype(jnp.float32), params[f"{name}_DN"])
            + params[f"{name}_bias_N"][None, None]
            for name in ("beta", "gamma")
        )
        beta_BTN, gamma_BTN = jax.nn.softplus(next(raw_BTN)), self.most * jnp.tanh(next(raw_BTN))
        log_BT1 = jnp.log(pos_BT.astype(jnp.float32) + 2)[..., None]
        return self.floor + beta_BTN * jnp.exp(gamma_BTN * jnp.log(log_BT1))


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

    def check(self, context: HeadContext) -> None:
        """Raises ValueError for a factor that is not positive."""
        check_positive("yarn_temperature", factor=self.factor, mscale=self.mscale)
        if yarn_mscale(self.factor, self.mscale) ** 2 > MAX_SIZE:
            raise ValueError(
                f"yarn_temperature: mscale={self.mscale:g} is past what float32 multiplies"
            )

    def temperature(
        self, params: Params, q_pos_BT: jax.Array, k_pos_BS: jax.Array, context: HeadContext
    ) -> jax.Array:
        """Returns tau_B1T1, the same everywhere, float32."""
        tau = yarn_mscale(self.factor, self.mscale) ** 2
        return jnp.full_like(q_pos_BT, tau, jnp.float32)[:, None, :, None]


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

    def check(self, context: HeadContext) -> None:
        """Raises ValueError for a length scale that is not positive."""
        check_positive("scale_invariant", t=self.t)

    def temperature(
        self, params: Params, q_pos_BT: jax.Array, k_pos_BS: jax.Array, context: HeadContext
    ) -> jax.Array:
        """Returns tau_B1TS, float32."""
        return jnp.sqrt(2 * jnp.log1p(distances(q_pos_BT, k_pos_BS) / self.t) + 1)[:, None]

    def stretched(self, factor: float) -> Temperature:
        """Returns the temperature with t grown by the factor, like that of the logarithmic bias."""
        return dataclasses.replace(self, t=self.t * factor)


def _check_length(owner: str, context: HeadContext) -> None:
    if context.train_length < 2:
        raise ValueError(f"{owner}: training length must be at least 2, not {context.train_length}")
