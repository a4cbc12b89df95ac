"""Temperatures: the tau of the equation, which multiplies the content logit and never the bias."""

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
    """Returns tau_BT = ln(n) / ln(length), n = pos + 1 visible keys, float32.

    It keeps attention equally sharp as the number of keys grows: the entropy of a softmax over n
    keys grows as ln n unless the logits grow too. Source: Chiang and Cholak 2022, sec. 5.3.
    """
    return jnp.log1p(pos_BT.astype(jnp.float32)) / math.log(length)


@dataclasses.dataclass(frozen=True)
class LogN(Temperature):
    """Log-n temperature relative to the training length.

    Attributes:
      clip: True: tau is 1 up to the training length and grows beyond it. False: tau is below 1
        within the training length, so that training sees it grow.
    """

    clip: bool = True

    def check(self, context: HeadContext) -> None:
        _check_length("logn", context)

    def temperature(self, params, q_pos_BT, k_pos_BS, context):
        tau_B1T1 = log_n(q_pos_BT, context.train_length)[:, None, :, None]
        return jnp.maximum(tau_B1T1, 1.0) if self.clip else tau_B1T1


@dataclasses.dataclass(frozen=True)
class SSMax(Temperature):
    """Scalable-softmax: tau = s ln n, n = pos + 1 visible keys, s learned per head (Nakanishi 2025,
    eq. 2).

    The initial s is one over the mean of ln n within the training length, so that the mean
    temperature is 1 (0.168 at L = 1,024). s is not bounded. The first token has one key: tau = 0.
    """

    learns: ClassVar[bool] = True

    def check(self, context: HeadContext) -> None:
        _check_length("ssmax", context)

    def init(self, key: jax.Array, context: HeadContext) -> Params:
        """Returns {"s_N"}."""
        start = context.train_length / math.lgamma(context.train_length + 1)  # ln 1 + ... + ln L
        return {"s_N": jnp.full(context.heads, start, jnp.float32)}

    def temperature(self, params, q_pos_BT, k_pos_BS, context):
        log_BT = jnp.log1p(q_pos_BT.astype(jnp.float32))
        return params["s_N"][None, :, None, None] * log_BT[:, None, :, None]


@dataclasses.dataclass(frozen=True)
class AdaptiveSSMax(TokenTemperature):
    """SSMax whose scale and exponent depend on the query's token: tau = floor + beta (ln(n +
    1))^gamma.

    beta = softplus(w x + c), gamma = most tanh(u x + e), w, u, c, e learned per head, n = pos + 1
    visible keys. Source: Vasylenko et al. 2025 (arXiv 2506.16640). As in the authors' code
    (deep-spin/asentmax, `SparseGemma2Attention`, "adapt-softplus-tanh"), gamma lies in (-2, 2), the
    constant is 1, and the logarithm is that of n + 1, which avoids a power of zero.

    Attributes:
      floor: the constant term. most: bound of the exponent.
    """

    learns: ClassVar[bool] = True
    floor: float = 1.0
    most: float = 2.0

    def check(self, context: HeadContext) -> None:
        check_positive("adaptive_ssmax", most=self.most)
        if self.floor < 0:
            raise ValueError(f"adaptive_ssmax: floor must be zero or above, not {self.floor:g}")
        if self.most > 20:
            raise ValueError(
                f"adaptive_ssmax: most must be at most 20, not {self.most:g}: powers of ln n leave "
                "float32"
            )

    def init(self, key: jax.Array, context: HeadContext) -> Params:
        """Returns weights uniform in +-1/sqrt(D), as the authors' layers, and zero biases."""
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
    """YaRN's temperature alone, (0.1 mscale ln s + 1)^2 on every content logit (Peng et al. 2023,
    eq. 22).

    `rope(stretch=yarn(...))` includes it for the dims that rotate. This part applies it to the
    whole content logit, for heads without a rotation or with a partial one.

    Attributes:
      factor: s; 1 and below do not change the logits.
      mscale: 1 is the paper's; DeepSeek's softmax scale has its `mscale_all_dim` here.
    """

    relative: ClassVar[bool] = True
    factor: float = 4.0
    mscale: float = 1.0

    def check(self, context: HeadContext) -> None:
        check_positive("yarn_temperature", factor=self.factor, mscale=self.mscale)
        if yarn_mscale(self.factor, self.mscale) ** 2 > MAX_SIZE:
            raise ValueError(
                f"yarn_temperature: mscale={self.mscale:g} is past what float32 multiplies"
            )

    def temperature(self, params, q_pos_BT, k_pos_BS, context):
        """Returns tau_B1T1, the same everywhere, float32."""
        tau = yarn_mscale(self.factor, self.mscale) ** 2
        return jnp.full_like(q_pos_BT, tau, jnp.float32)[:, None, :, None]


@dataclasses.dataclass(frozen=True)
class ScaleInvariant(Temperature):
    """A temperature that grows with distance: tau(d) = sqrt(2 ln(1 + d/t) + 1).

    Use it with the bias -2 ln(1 + d/t): ``log(c=2.0,t=10.0)~scale_invariant(t=10.0)``. For Gaussian
    content logits of unit variance, every range of distances [d, a d] then has the same expected
    weight, and far weights are sparser.
    Source: Anson et al. 2025, sec. 3 (with p-RoPE).

    Attributes:
      t: tokens; give the bias the same.
    """

    relative: ClassVar[bool] = True
    t: float = 10.0

    def check(self, context: HeadContext) -> None:
        check_positive("scale_invariant", t=self.t)

    def temperature(self, params, q_pos_BT, k_pos_BS, context):
        return jnp.sqrt(2 * jnp.log1p(distances(q_pos_BT, k_pos_BS) / self.t) + 1)[:, None]

    def stretched(self, factor: float) -> Temperature:
        """Returns the temperature with t times the factor, like the logarithmic bias."""
        return dataclasses.replace(self, t=self.t * factor)


def _check_length(owner: str, context: HeadContext) -> None:
    if context.train_length < 2:
        raise ValueError(f"{owner}: training length must be at least 2, not {context.train_length}")
