"""The forget gate: a bias that depends on the tokens (Lin et al. 2025, FoX)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.encodings.base import MATCH, GatedBias, HeadContext, Params, check_positive
from posenc_jax.encodings.bias import alibi_slopes, distances, matched_slopes


def cumulative_log_forget(log_forget_BTN: jax.Array, seg_BT: jax.Array) -> jax.Array:
    """Returns cum_log_forget_BTN, float32: the sum of log_forget from the start of the document
    through each token.

    The sum is reset at every change of segment, not subtracted, so earlier documents do not cost
    precision. The tokens of a document must be in order and in consecutive slots.
    """
    before_BT = jnp.concatenate([seg_BT[:, :1] - 1, seg_BT[:, :-1]], axis=1)
    new_BT1 = (seg_BT != before_BT)[..., None]

    def join(left, right):
        (a, a_new), (b, b_new) = left, right
        return jnp.where(b_new, b, a + b), a_new | b_new

    return jax.lax.associative_scan(join, (log_forget_BTN.astype(jnp.float32), new_BT1), axis=1)[0]


@dataclasses.dataclass(frozen=True)
class Forget(GatedBias):
    """Forgetting attention: b(i, j) = sum over j < l <= i of ln f_l, f = sigmoid(w x + c) per head.

    A constant gate f is ALiBi with slope -ln f. Source: Lin et al. 2025, eq. 5-7.

    Attributes:
      start: the initial gates: "half", f = 1/2 on average (published: c = 0), or "match" or
        "standard", the f of ALiBi's slopes (`matched_slopes`, `alibi_slopes`).
      stddev: of the initial w, whose inputs have unit size (published: 0.02).
      factor: ln f is divided by it, like slopes in length extension. There is no NTK form.
    """

    learns: ClassVar[bool] = True
    start: str = "half"
    stddev: float = 0.02

    def check(self, context: HeadContext) -> None:
        if self.start not in ("half", "standard", MATCH):
            raise ValueError(f"forget: start must be half, match or standard, not {self.start!r}")
        check_positive("forget", stddev=self.stddev, factor=self.factor)

    def init(self, key: jax.Array, context: HeadContext) -> Params:
        """Returns {"gate_DN", "gate_bias_N"}."""
        if self.start == "half":
            slope_N = np.full(context.heads, np.log(2))
        elif self.start == MATCH:
            slope_N = matched_slopes(context.heads, context.num_heads, context.train_length)
        else:
            slope_N = alibi_slopes(context.heads)
        shape = (context.model_dim, context.heads)
        return {
            "gate_DN": self.stddev * jax.random.normal(key, shape, jnp.float32),
            # sigmoid(c) = e^-m
            "gate_bias_N": jnp.asarray(-np.log(np.expm1(slope_N)), jnp.float32),
        }

    def log_forget(self, params: Params, x_BTD: jax.Array, context: HeadContext) -> jax.Array:
        """Returns log_forget_BTN = ln f, float32."""
        gate_BTN = jnp.einsum("BTD,DN->BTN", x_BTD.astype(jnp.float32), params["gate_DN"])
        return jax.nn.log_sigmoid(gate_BTN + params["gate_bias_N"][None, None]) / self.factor

    def bias(self, params, q_pos_BT, k_pos_BS, context):
        """Returns bias_BNTS of tokens with x = 0, whose gates are sigmoid(c)."""
        rest_N = jax.nn.log_sigmoid(params["gate_bias_N"]) / self.factor
        return rest_N[None, :, None, None] * distances(q_pos_BT, k_pos_BS)[:, None]
