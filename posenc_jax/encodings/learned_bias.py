"""Learned and scheduled biases: slopes, annealed ALiBi, KERPLE, T5's buckets, FIRE."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.encodings.base import MATCH, MAX_INTEGER, Bias, HeadContext, Params, check_positive
from posenc_jax.encodings.bias import (
    RankedBias,
    Sloped,
    alibi_slopes,
    distances,
    linear_bias,
    matched_slopes,
)


def inverse_softplus(y: np.ndarray | float) -> np.ndarray:
    """Returns x with softplus(x) = y, for y above zero, float64."""
    return y + np.log(-np.expm1(-np.asarray(y, np.float64)))


@dataclasses.dataclass(frozen=True)
class LearnedSlopes(RankedBias):
    """ALiBi with slopes softplus(raw) + floor learned per head.

    Attributes:
      start: initial slopes, "match" or "standard" (as for ALiBi; raised to just above the floor).
      floor: the smallest slope is floor / train_length; at 4.0 every head loses at least 4 nats
        over the training length, at 0 the slope can vanish.
      factor, ntk: as for ALiBi; they divide the learned slopes, floor included.
    """

    learns: ClassVar[bool] = True
    start: str = MATCH
    floor: float = 0.0

    def check(self, context: HeadContext) -> None:
        if self.start not in ("standard", MATCH):
            raise ValueError(f"slopes: start must be 'standard' or 'match', not {self.start!r}")
        if not 0 <= self.floor < math.inf:
            raise ValueError(f"slopes: floor must be zero or above, not {self.floor}")
        check_positive("slopes", factor=self.factor, ntk=self.ntk)

    def init(self, key: jax.Array, context: HeadContext) -> Params:
        """Returns {"raw_N"}, which gives the slopes of `start`."""
        if self.start == MATCH:
            start_N = matched_slopes(context.heads, context.num_heads, context.train_length)
        else:
            start_N = alibi_slopes(context.heads)
        above_N = np.maximum(start_N - self.floor / context.train_length, 1e-4)
        return {"raw_N": jnp.asarray(inverse_softplus(above_N), jnp.float32)}

    def bias(self, params, q_pos_BT, k_pos_BS, context):
        """Returns bias_BNTS = -(softplus(raw) + floor) d."""
        slope_N = self.linear_slope_N(params, context)
        return -slope_N[None, :, None, None] * distances(q_pos_BT, k_pos_BS)[:, None]

    def linear_slope_N(self, params: Params, context: HeadContext) -> jax.Array:
        """Returns softplus(raw) + floor, divided by factor and ntk, float32."""
        slope_N = jax.nn.softplus(params["raw_N"]) + self.floor / context.train_length
        return slope_N / self.divisor_N(slope_N)


@dataclasses.dataclass(frozen=True)
class Annealed(Sloped):
    """ALiBi whose slopes are multiplied by a share that changes during training.

    The share goes linearly from `first` to `last` between the shares `begin` and `end` of training.
    A schedule sets it, not a gradient, and checkpoints store it.

    Attributes:
      first, last: shares of the slopes before and after. begin, end: of training, in [0, 1].
      slopes, max_exponent, steep, factor, ntk: as for ALiBi.
    """

    learns: ClassVar[bool] = True
    first: float = 1.0
    last: float = 0.0
    begin: float = 0.7
    end: float = 1.0

    def check(self, context: HeadContext) -> None:
        super().check(context)
        if not (0 <= self.first < math.inf and 0 <= self.last < math.inf):
            raise ValueError(
                f"annealed: shares must be zero or above, not {self.first}, {self.last}"
            )
        if not 0 <= self.begin < self.end <= 1:
            raise ValueError(f"annealed: needs 0 <= begin < end <= 1, not {self.begin}, {self.end}")

    def init(self, key: jax.Array, context: HeadContext) -> Params:
        """Returns {"share"}: the one that training starts with."""
        return {"share": jnp.asarray(self.first, jnp.float32)}

    def scheduled(self, params: Params, progress: jax.Array, context: HeadContext) -> Params:
        """Returns {"share"} after a share `progress` of training."""
        way = jnp.clip((progress - self.begin) / (self.end - self.begin), 0.0, 1.0)
        return {"share": (self.first + (self.last - self.first) * way).astype(jnp.float32)}

    def bias(self, params, q_pos_BT, k_pos_BS, context):
        """Returns bias_BNTS = -share m d."""
        share = jax.lax.stop_gradient(params["share"])
        return share * linear_bias(self.slope_N(context), distances(q_pos_BT, k_pos_BS))

    def linear_slope_N(self, params: Params, context: HeadContext) -> jax.Array:
        """Returns share m, float32; no gradient goes to the share."""
        share = jax.lax.stop_gradient(params["share"])
        return share * jnp.asarray(self.slope_N(context), jnp.float32)


@dataclasses.dataclass(frozen=True)
class KerpleLog(Bias):
    """KERPLE, logarithmic: -r1 log(1 + r2 d), r1, r2 > 0 learned per head (Chi et al. 2022)."""

    learns: ClassVar[bool] = True

    def check(self, context: HeadContext) -> None:
        check_positive("kerple_log", factor=self.factor)

    def init(self, key: jax.Array, context: HeadContext) -> Params:
        """Returns {"raw_rN"}: r1 uniform in (0, 2), r2 in (0, 1), as raw values under softplus."""
        return {"raw_rN": _uniform_positive(key, context.heads, (2.0, 1.0))}

    def bias(self, params, q_pos_BT, k_pos_BS, context):
        r1, r2 = jax.nn.softplus(params["raw_rN"])[:, None, :, None, None]
        return -r1 * jnp.log1p(r2 * distances(q_pos_BT, k_pos_BS)[:, None] / self.factor)


@dataclasses.dataclass(frozen=True)
class KerplePower(Bias):
    """KERPLE, power: -r1 d^r2, r1 above zero, r2 in (0, 2), learned per head (Chi et al. 2022)."""

    learns: ClassVar[bool] = True

    def check(self, context: HeadContext) -> None:
        check_positive("kerple_power", factor=self.factor)
        if self.factor < 1 / MAX_INTEGER:
            raise ValueError(f"kerple_power: factor must be at least 2^-24, not {self.factor:g}")

    def init(self, key: jax.Array, context: HeadContext) -> Params:
        """Returns {"raw_rN"}: softplus gives r1 uniform in (0, 1), 2 sigmoid gives r2 in (0, 2)."""
        raw_rN = _uniform_positive(key, context.heads, (1.0, 1.0))
        half_N = jax.random.uniform(
            jax.random.fold_in(key, 2), (context.heads,), minval=0.05, maxval=0.95
        )
        return {"raw_rN": raw_rN.at[1].set(jnp.log(half_N) - jnp.log1p(-half_N))}

    def bias(self, params, q_pos_BT, k_pos_BS, context):
        """Returns bias_BNTS; at distance 0 both bias and gradient are zero."""
        raw_rN = params["raw_rN"]
        r1 = jax.nn.softplus(raw_rN[0])[None, :, None, None]
        r2 = 2 * jax.nn.sigmoid(raw_rN[1])[None, :, None, None]
        d_B1TS = distances(q_pos_BT, k_pos_BS)[:, None] / self.factor
        nonzero = d_B1TS > 0
        powered = jnp.exp(r2 * jnp.log(jnp.where(nonzero, d_B1TS, 1.0)))
        return -r1 * jnp.where(nonzero, powered, 0.0)


def _uniform_positive(key: jax.Array, heads: int, tops: tuple[float, float]) -> jax.Array:
    """Returns raw_rN whose softplus is uniform in (0.05, 1) times each of `tops`."""
    share_rN = jax.random.uniform(key, (2, heads), minval=0.05, maxval=1.0)
    value_rN = share_rN * jnp.array(tops)[:, None]
    return value_rN + jnp.log(-jnp.expm1(-value_rN))


def t5_starts(buckets: int, longest: int) -> np.ndarray:
    """Returns start_U, int64: the first causal distance of every bucket; the last bucket is
    unbounded.

    The first e = buckets/2 buckets hold one distance each; the n others widen logarithmically up to
    `longest`. Bucket e + k starts at the smallest integer x with (x/e)^n >= (longest/e)^k. Close to
    an integer this is decided in integer arithmetic, where a logarithm would be inexact.

    Source: Raffel et al. 2020, sec. 2.1, and its published code (unidirectional form).
    """
    exact, wide = buckets // 2, buckets - buckets // 2
    start_U = list(range(exact + 1))
    for k in range(1, wide):
        x = exact * (longest / exact) ** (k / wide)
        start, common = math.ceil(x), math.gcd(k, wide)
        if abs(x - round(x)) < 1e-9 * x:
            n, m = wide // common, k // common
            start = round(x)
            start += start**n * exact**m < longest**m * exact**n
        start_U.append(start)
    return np.array(start_U)


def t5_buckets(distance: jax.Array, buckets: int, longest: int) -> jax.Array:
    """Returns the bucket of each causal distance, int32; see `t5_starts`."""
    start_U = t5_starts(buckets, longest)[(None,) * distance.ndim]
    return (distance[..., None] >= start_U).sum(-1, dtype=jnp.int32) - 1


@dataclasses.dataclass(frozen=True)
class T5(Bias):
    """T5's learned scalar per head and distance bucket.

    Attributes:
      buckets: number of buckets; half of the buckets hold one distance each. longest_distance:
        larger distances are in the last bucket. stddev: of the normal initial values. factor:
        buckets are `factor` times as wide.
    """

    joint: ClassVar[bool] = True
    learns: ClassVar[bool] = True
    buckets: int = 32
    longest_distance: int = 128
    stddev: float = 0.02

    def check(self, context: HeadContext) -> None:
        check_positive("t5", stddev=self.stddev, factor=self.factor)
        even = 4 <= self.buckets <= 4096 and self.buckets % 2 == 0
        if not even or self.longest_distance <= self.buckets // 2:
            raise ValueError(
                "t5: needs 4 to 4096 buckets, an even number, and longest_distance above half of "
                f"it, not {self.buckets} and {self.longest_distance}"
            )

    def init(self, key: jax.Array, context: HeadContext) -> Params:
        """Returns {"table_NU"}, U buckets."""
        return {"table_NU": self.stddev * jax.random.normal(key, (context.heads, self.buckets))}

    def bias(self, params, q_pos_BT, k_pos_BS, context):
        """Returns bias_BNTS by a one-hot product, which any sharding allows."""
        start_U = self.factor * t5_starts(self.buckets, self.longest_distance)
        bound_U = np.append(start_U, np.inf).astype(np.float32)[None, None, None]
        d_BTS1 = distances(q_pos_BT, k_pos_BS)[..., None]
        onto = (d_BTS1 >= bound_U[..., :-1]) & (d_BTS1 < bound_U[..., 1:])
        return jnp.einsum(
            "BTSU,NU->BNTS", onto.astype(jnp.float32), params["table_NU"], precision="highest"
        )


@dataclasses.dataclass(frozen=True)
class Fire(Bias):
    """FIRE: a small MLP of progressively interpolated distance (Li et al. 2024, eq. 8).

    b = mlp(psi(d) / psi(max(i, threshold))), psi(x) = log(c x + 1), c and the threshold learned.
    The normaliser uses the position i of the query inside its document, not the length of the
    batch.

    Attributes:
      width: hidden units. c: initial c. threshold: its initial value in units of the training
        length.
      factor: d and i are divided by it.
    """

    joint: ClassVar[bool] = True
    learns: ClassVar[bool] = True
    relative: ClassVar[bool] = False
    width: int = 32
    c: float = 0.1
    threshold: float = 1.0

    def check(self, context: HeadContext) -> None:
        check_positive(
            "fire", width=self.width, c=self.c, threshold=self.threshold, factor=self.factor
        )
        if self.width > 4096:
            raise ValueError(f"fire: width must be at most 4096 hidden units, not {self.width}")

    def init(self, key: jax.Array, context: HeadContext) -> Params:
        """Returns the MLP's weights, raw c and raw threshold (both positive through softplus)."""
        first, second = jax.random.split(key)
        return {
            "in_W": jax.random.uniform(first, (self.width,), minval=-1.0, maxval=1.0),
            "in_bias_W": jnp.zeros(self.width),
            "out_WN": jax.random.normal(second, (self.width, context.heads)) * self.width**-0.5,
            "out_bias_N": jnp.zeros(context.heads),
            "raw_c": jnp.asarray(inverse_softplus(self.c), jnp.float32),
            "raw_threshold": jnp.asarray(inverse_softplus(self.threshold), jnp.float32),
        }

    def bias(self, params, q_pos_BT, k_pos_BS, context):
        c = jax.nn.softplus(params["raw_c"])
        threshold = jax.nn.softplus(params["raw_threshold"]) * context.train_length
        query_BT1 = q_pos_BT.astype(jnp.float32)[:, :, None] / self.factor
        reach_BT1 = jnp.maximum(query_BT1, threshold)
        d_BTS = distances(q_pos_BT, k_pos_BS) / self.factor
        share_BTS = jnp.log1p(c * d_BTS) / jnp.log1p(c * reach_BT1)
        in_W, in_bias_W = params["in_W"][None, None, None], params["in_bias_W"][None, None, None]
        hidden = jax.nn.relu(share_BTS[..., None] * in_W + in_bias_W)
        out = jnp.einsum("BTSW,WN->BNTS", hidden, params["out_WN"], precision="highest")
        return out + params["out_bias_N"][None, :, None, None]
