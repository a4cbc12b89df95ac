"""Fixed biases of distance: the b of the equation."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.encodings.base import MATCH, MAX_SIZE, Bias, HeadContext, Params, check_positive
from posenc_jax.encodings.rotary import angles

SLOPES = ("standard", MATCH, "harmonic")


def alibi_slopes(num_heads: int, max_exponent: float = 8.0) -> np.ndarray:
    """Returns slope_N, float64, for any head count; the order is not monotone off powers of two.

    n = 2^k heads: 2^(-max_exponent h/n), h = 1..n. Otherwise, with c the power of two below n: the
    slopes of c heads, then every other slope of 2c heads until there are n. Source: Press et al.
    2022, sec. 3 and its published code (8); MPT's `alibi_bias_max` is another `max_exponent`.
    """
    if num_heads < 1:
        raise ValueError(f"ALiBi needs at least one head, not {num_heads}")
    below = 2 ** int(math.log2(num_heads))
    slopes = 2.0 ** (-max_exponent * np.arange(1, below + 1) / below)
    if below == num_heads:
        return slopes
    between = 2.0 ** (-max_exponent * np.arange(1, 2 * below + 1) / (2 * below))
    return np.concatenate([slopes, between[0::2][: num_heads - below]])


def matched_slopes(
    heads: int, num_heads: int, train_length: int, max_exponent: float = 8.0
) -> np.ndarray:
    """Returns slope_N, float64: geometric from 2^(-max_exponent/num_heads) down to 4/train_length.

    The smallest slope loses 4 nats over one training length, whatever the length; the largest is at
    least as large. `heads` of the layer's `num_heads` heads have the bias.
    """
    last = 4 / train_length
    first = max(2.0 ** (-max_exponent / num_heads), last)
    return np.geomspace(first, last, heads) if heads > 1 else np.array([first])


def harmonic_slopes(heads: int) -> np.ndarray:
    """Returns slope_N = 1/h, h = 1 .. heads, float64 (NAPE, Vasylenko et al. 2025)."""
    return 1 / np.arange(1, heads + 1)


def distances(q_pos_BT: jax.Array, k_pos_BS: jax.Array) -> jax.Array:
    """Returns |i - j| as float32 [B,T,S], exact: the cast comes after the subtraction.

    The sign is dropped after the cast, because int32 does not hold the absolute value of -2^31.
    """
    return jnp.abs((q_pos_BT[:, :, None] - k_pos_BS[:, None, :]).astype(jnp.float32))


def linear_bias(slope_N: np.ndarray, distance_BTS: jax.Array) -> jax.Array:
    """Returns bias_BNTS = -slope * distance in float32 (Press et al. 2022, eq. in sec. 3)."""
    return distance_BTS[:, None] * -np.asarray(slope_N, np.float32)[None, :, None, None]


def ntk_factors(slope_N: np.ndarray | jax.Array, factor: float) -> np.ndarray | jax.Array:
    """Returns factor^(rank/(n-1)) of every head: 1 for the steepest, the whole factor for the
    shallowest.

    The NTK form for ALiBi divides slopes by it, m_h = 2^(-8h/H) / a^((h-1)/(H-1)). Heads are ranked
    by their slopes, which need not be in order and may be learned. A single head gets the whole
    factor.
    """
    if len(slope_N) == 1:
        return np.full(1, factor)
    rank_N = (-slope_N).argsort(stable=True).argsort(stable=True)
    return factor ** (rank_N / (len(slope_N) - 1))


@dataclasses.dataclass(frozen=True)
class RankedBias(Bias):
    """Base class of biases with a slope per head, by which the NTK form ranks the heads.

    Attributes:
      ntk: factor of the NTK form, in addition to `factor`: head h reads d / ntk^share, see
        `ntk_factors`.
    """

    ntk: float = dataclasses.field(default=1.0, kw_only=True)

    def divisor_N(self, slope_N: np.ndarray | jax.Array) -> float | np.ndarray | jax.Array:
        """Returns the divisors of distances, per head or one number."""
        return self.factor * ntk_factors(slope_N, self.ntk) if self.ntk != 1 else self.factor

    def stretched(self, factor: float, ntk: bool) -> Bias:
        """Returns the bias for contexts `factor` times as long."""
        if ntk:
            return dataclasses.replace(self, ntk=self.ntk * factor)
        return dataclasses.replace(self, factor=self.factor * factor)


@dataclasses.dataclass(frozen=True)
class Sloped(RankedBias):
    """Base class of biases with one fixed slope per head.

    Attributes:
      slopes: "standard" (the published ones for the number of heads that carry the bias), "match"
        (see `matched_slopes`: set by the training length) or "harmonic" (see `harmonic_slopes`).
      max_exponent: of the slopes as powers of two, published as 8; see `alibi_slopes`,
        `matched_slopes`.
      steep: all slopes are multiplied by it; `slopes=match,steep=4` ends at 16/L.
      factor: slopes are divided by it, m' = m L / L' for a length L' = factor * L (position
        interpolation for ALiBi).
      ntk: the NTK form of the same; see `ntk_factors`.
    """

    slopes: str = "standard"
    max_exponent: float = 8.0
    steep: float = 1.0

    def check(self, context: HeadContext) -> None:
        if self.slopes not in SLOPES:
            raise ValueError(f"slopes must be one of {SLOPES}, not {self.slopes!r}")
        owner = type(self).__name__.lower()
        if self.slopes == "harmonic" and self.max_exponent != 8:
            raise ValueError(f"{owner}: harmonic slopes have no max_exponent; leave it out")
        names = ("max_exponent", "steep", "factor", "ntk")
        check_positive(owner, **{name: getattr(self, name) for name in names})
        slope_N = self.slope_N(context)
        if slope_N.min() < np.finfo(np.float32).tiny or slope_N.max() > MAX_SIZE:
            raise ValueError(
                f"{owner}: max_exponent={self.max_exponent:g}, steep={self.steep:g}, "
                f"factor={self.factor:g} and ntk={self.ntk:g} leave a head a slope of "
                f"{slope_N.min():g} or {slope_N.max():g}, which float32 cannot use"
            )

    def unscaled_slope_N(self, context: HeadContext) -> np.ndarray:
        """Returns the slopes of this group's heads without factor and ntk, float64."""
        if self.slopes == "harmonic":
            return self.steep * harmonic_slopes(context.heads)
        if self.slopes == MATCH:
            sizes = (context.heads, context.num_heads, context.train_length)
            return self.steep * matched_slopes(*sizes, self.max_exponent)
        return self.steep * alibi_slopes(context.heads, self.max_exponent)

    def slope_N(self, context: HeadContext) -> np.ndarray:
        """Returns the slopes of this group's heads, float64."""
        slope_N = self.unscaled_slope_N(context)
        return slope_N / self.divisor_N(slope_N)


@dataclasses.dataclass(frozen=True)
class Alibi(Sloped):
    """ALiBi: a fixed linear penalty on distance, one slope a head; symmetric where j > i.

    Added after the 1/sqrt(H) scale and itself unscaled (Press et al. 2022, sec. 3).

    Attributes:
      staircase: the bias of Falcon-RW, whose checkpoints were trained with it: slope, position and
        product rounded to bfloat16, and divided by sqrt(H) (transformers, FalconAttention). Beyond
        256 positions it is a staircase of the key's position. slopes, max_exponent, steep, factor,
        ntk: see `Sloped`.
    """

    staircase: bool = False

    @property
    def relative(self) -> bool:  # type: ignore[override]  # by setting
        """False for a staircase, whose steps lie at fixed positions."""
        return not self.staircase

    def bias(self, params, q_pos_BT, k_pos_BS, context):
        """Returns bias_BNTS = -m d, or the staircase, 0 at the query's own position."""
        if self.staircase:
            slope_N = jnp.asarray(self.slope_N(context), jnp.float32).astype(jnp.bfloat16)
            slope_11N = slope_N[None, None]
            q_BTN, k_BSN = (
                (pos_BT.astype(jnp.bfloat16)[..., None] * slope_11N).astype(jnp.float32)
                for pos_BT in (q_pos_BT, k_pos_BS)
            )
            step_BTSN = k_BSN[:, None] - q_BTN[:, :, None]
            return jnp.moveaxis(step_BTSN, -1, 1) / math.sqrt(context.head_dim)
        return linear_bias(self.slope_N(context), distances(q_pos_BT, k_pos_BS))

    def linear_slope_N(self, params: Params, context: HeadContext) -> jax.Array | None:
        """Returns m, float32; None for a staircase."""
        if self.staircase:
            return None
        return jnp.asarray(self.slope_N(context), jnp.float32)


@dataclasses.dataclass(frozen=True)
class Capped(Sloped):
    """A linear penalty that stops growing: -min(m d, cap), in nats.

    Beyond d = cap/m every distance costs the same, at most `cap` nats.

    Attributes:
      cap: the largest penalty, nats. slopes, max_exponent, steep, factor, ntk: as for ALiBi.
    """

    cap: float = 4.0

    def check(self, context: HeadContext) -> None:
        super().check(context)
        check_positive("capped", cap=self.cap)

    def bias(self, params, q_pos_BT, k_pos_BS, context):
        """Returns bias_BNTS = -min(m d, cap)."""
        return jnp.maximum(
            linear_bias(self.slope_N(context), distances(q_pos_BT, k_pos_BS)), -self.cap
        )


@dataclasses.dataclass(frozen=True)
class Power(Sloped):
    """A penalty that grows as a power of distance, -m d^p, p below 1 for a longer tail.

    Attributes:
      power: p. slopes, max_exponent, steep, factor, ntk: as for ALiBi; m is divided by factor^p.
    """

    power: float = 0.5

    def check(self, context: HeadContext) -> None:
        super().check(context)
        check_positive("power", power=self.power)
        if self.power > 2:
            raise ValueError(f"power: power must lie in (0, 2], not {self.power}")

    def bias(self, params, q_pos_BT, k_pos_BS, context):
        """Returns bias_BNTS = -m d^p."""
        return linear_bias(self.slope_N(context), distances(q_pos_BT, k_pos_BS) ** self.power)

    def slope_N(self, context: HeadContext) -> np.ndarray:
        """Returns m, float64, with the factor f: m (d / f)^p."""
        slope_N = self.unscaled_slope_N(context)
        return slope_N / self.divisor_N(slope_N) ** self.power


@dataclasses.dataclass(frozen=True)
class Log(Bias):
    """A logarithmic penalty, -c log(1 + d/t): weights fall as a power of distance.

    Attributes:
      c: nats lost per e-fold of distance. t: distances well below t cost little.
    """

    c: float = 1.0
    t: float = 1.0

    def check(self, context: HeadContext) -> None:
        check_positive("log", c=self.c, t=self.t, factor=self.factor)

    def bias(self, params, q_pos_BT, k_pos_BS, context):
        tail_BTS = jnp.log1p(distances(q_pos_BT, k_pos_BS) / (self.t * self.factor))
        return linear_bias(np.full(context.heads, self.c), tail_BTS)


@dataclasses.dataclass(frozen=True)
class Sandwich(Bias):
    """The distance kernel of sinusoidal embeddings, as a bias (Chi et al. 2022, sec. 4).

    b = (sum over h of cos(d freq_h) - dim/2) / (8 n / N), n = 1 .. N: zero at distance 0 and a
    slow, nearly logarithmic fall after it, gentler for later heads. Not monotone: beyond a few
    hundred tokens the cosines make it rise and fall again.

    Attributes:
      dim: of the sinusoids (the paper: 128). base: of their frequencies.
    """

    joint: ClassVar[bool] = True
    dim: int = 128
    base: float = 10_000.0

    def check(self, context: HeadContext) -> None:
        check_positive("sandwich", dim=self.dim, base=self.base, factor=self.factor)
        if self.dim % 2 or self.dim > 4096:
            raise ValueError(f"sandwich: dim must be even and at most 4096, not {self.dim}")

    def bias(self, params, q_pos_BT, k_pos_BS, context):
        apart_BTS = jnp.abs(q_pos_BT[:, :, None] - k_pos_BS[:, None, :])
        # Frequencies start at i = 1 here, as in the paper.
        freq_h = self.base ** (-2 * np.arange(1, self.dim // 2 + 1) / self.dim) / self.factor
        lost_BTS = (1 - jnp.cos(angles(apart_BTS, freq_h))).sum(-1)
        return linear_bias(context.heads / (8 * np.arange(1, context.heads + 1)), lost_BTS)
