"""Distance biases: the b of the equation. Integer distance -> float32 -> times a float32 slope."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.encodings.part import MATCH, Bias, Params, Place, check_positive
from posenc_jax.encodings.rotary import angles


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Returns slope_N, float64, for any head count; the order is not monotone off powers of two.

    n = 2^k heads: 2^(-8h/n), h = 1..n. Otherwise, with c the power of two below n: the slopes of c
    heads, then every other slope of 2c heads until n are there. Source: Press et al. 2022, sec. 3
    and its published code.
    """
    if num_heads < 1:
        raise ValueError(f"ALiBi needs at least one head, not {num_heads}")
    below = 2 ** int(math.log2(num_heads))
    slopes = 2.0 ** (-8 * np.arange(1, below + 1) / below)
    if below == num_heads:
        return slopes
    between = 2.0 ** (-8 * np.arange(1, 2 * below + 1) / (2 * below))
    return np.concatenate([slopes, between[0::2][: num_heads - below]])


def matched_slopes(heads: int, num_heads: int, train_length: int) -> np.ndarray:
    """Returns slope_N, float64: geometric from 2^(-8/num_heads) down to 4/train_length.

    The shallowest head then loses 4 nats over one training length, at any length; the steepest is
    never shallower than that. `heads` of the layer's `num_heads` heads carry the bias.
    """
    last = 4 / train_length
    first = max(2.0 ** (-8 / num_heads), last)
    return np.geomspace(first, last, heads) if heads > 1 else np.array([first])


def distances(q_pos_BT: jax.Array, k_pos_BS: jax.Array) -> jax.Array:
    """Returns |i - j| as float32 [B,T,S]; integers are subtracted before the cast, so it is exact."""
    return jnp.abs(q_pos_BT[:, :, None] - k_pos_BS[:, None, :]).astype(jnp.float32)


def linear_bias(slope_N: np.ndarray, distance_BTS: jax.Array) -> jax.Array:
    """Returns bias_BNTS = -slope * distance in float32 (Press et al. 2022, eq. in sec. 3)."""
    return -np.asarray(slope_N, np.float32)[None, :, None, None] * distance_BTS[:, None]


def ntk_slopes(slope_N: np.ndarray, factor: float) -> np.ndarray:
    """Returns slopes divided by factor^(rank/(n-1)): the steepest kept, the shallowest divided whole.

    The NTK-style form for ALiBi, m_h = 2^(-8h/H) / a^((h-1)/(H-1)). Ranks are by steepness, so head
    counts whose slopes are not in order are served too. One head alone is divided whole.
    """
    rank_N = np.argsort(np.argsort(-slope_N, kind="stable"), kind="stable")
    share_N = rank_N / (len(slope_N) - 1) if len(slope_N) > 1 else np.ones(1)
    return slope_N / factor**share_N


@dataclasses.dataclass(frozen=True)
class Sloped(Bias):
    """What the biases with one fixed slope a head share.

    Attributes:
      slopes: "standard" (the published ones for the number of heads that carry the bias) or "match"
        (see `matched_slopes`: set by the training length).
      factor: slopes are divided by it, m' = m L / L' for a reading length L' = factor * L
        (position interpolation for ALiBi: a distance d is read as d / factor).
      ntk: the NTK-style stretch instead; see `ntk_slopes`.
    """

    slopes: str = "standard"
    factor: float = 1.0
    ntk: float = 1.0

    def check(self, place: Place) -> None:
        """Raises ValueError for an unknown slope rule or a factor that is not positive."""
        if self.slopes not in ("standard", MATCH):
            raise ValueError(f"slopes must be 'standard' or 'match', not {self.slopes!r}")
        check_positive(type(self).__name__.lower(), factor=self.factor, ntk=self.ntk)

    def slope_N(self, place: Place) -> np.ndarray:
        """Returns the slopes of this group's heads, float64."""
        if self.slopes == MATCH:
            slope_N = matched_slopes(place.heads, place.num_heads, place.train_length)
        else:
            slope_N = alibi_slopes(place.heads)
        return ntk_slopes(slope_N, self.ntk) / self.factor

    def stretched(self, factor: float, ntk: bool) -> Bias:
        """Returns the bias as it reads `factor` times further."""
        if ntk:
            return dataclasses.replace(self, ntk=self.ntk * factor)
        return dataclasses.replace(self, factor=self.factor * factor)


@dataclasses.dataclass(frozen=True)
class Alibi(Sloped):
    """ALiBi: a fixed linear penalty on distance, one slope a head; symmetric where j > i.

    Added after the 1/sqrt(H) scale and itself unscaled (Press et al. 2022, sec. 3). Settings: see
    `Sloped`: slopes, factor, ntk.
    """

    def bias(
        self, params: Params, q_pos_BT: jax.Array, k_pos_BS: jax.Array, place: Place
    ) -> jax.Array:
        """Returns bias_BNTS = -m d."""
        return linear_bias(self.slope_N(place), distances(q_pos_BT, k_pos_BS))

    def linear_slope_N(self, params: Params, place: Place) -> jax.Array:
        """Returns m, float32."""
        return jnp.asarray(self.slope_N(place), jnp.float32)


@dataclasses.dataclass(frozen=True)
class Capped(Sloped):
    """A linear penalty that stops growing: -min(m d, cap), in nats.

    Beyond d = cap/m every distance costs the same, so a needle is never further than `cap` nats away.

    Attributes:
      cap: the largest penalty, nats. slopes, factor, ntk: as for ALiBi.
    """

    cap: float = 4.0

    def check(self, place: Place) -> None:
        """Raises ValueError for a cap that is not positive."""
        super().check(place)
        check_positive("capped", cap=self.cap)

    def bias(
        self, params: Params, q_pos_BT: jax.Array, k_pos_BS: jax.Array, place: Place
    ) -> jax.Array:
        """Returns bias_BNTS = -min(m d, cap)."""
        return jnp.maximum(
            linear_bias(self.slope_N(place), distances(q_pos_BT, k_pos_BS)), -self.cap
        )


@dataclasses.dataclass(frozen=True)
class Power(Sloped):
    """A penalty that grows as a power of distance, -m d^p, p below 1 for a longer tail.

    Attributes:
      power: p. slopes, factor, ntk: as for ALiBi (factor divides m, whatever p is).
    """

    power: float = 0.5

    def check(self, place: Place) -> None:
        """Raises ValueError for a power outside (0, 2]."""
        super().check(place)
        check_positive("power", power=self.power)
        if self.power > 2:
            raise ValueError(f"power: power must lie in (0, 2], not {self.power}")

    def bias(
        self, params: Params, q_pos_BT: jax.Array, k_pos_BS: jax.Array, place: Place
    ) -> jax.Array:
        """Returns bias_BNTS = -m d^p."""
        return linear_bias(self.slope_N(place), distances(q_pos_BT, k_pos_BS) ** self.power)


@dataclasses.dataclass(frozen=True)
class Log(Bias):
    """A logarithmic tail, -c log(1 + d/t): weights fall as a power of distance, at every scale alike.

    Attributes:
      c: nats lost per e-fold of distance. t: tokens within which distance hardly counts.
    """

    c: float = 1.0
    t: float = 1.0

    def check(self, place: Place) -> None:
        """Raises ValueError for a setting that is not positive."""
        check_positive("log", c=self.c, t=self.t)

    def bias(
        self, params: Params, q_pos_BT: jax.Array, k_pos_BS: jax.Array, place: Place
    ) -> jax.Array:
        """Returns bias_BNTS, the same for every head."""
        tail_BTS = jnp.log1p(distances(q_pos_BT, k_pos_BS) / self.t)
        return linear_bias(np.full(place.heads, self.c), tail_BTS)

    def stretched(self, factor: float, ntk: bool) -> Bias:
        """Returns the bias as it reads `factor` times further: t grows by the factor."""
        return dataclasses.replace(self, t=self.t * factor)


@dataclasses.dataclass(frozen=True)
class Sandwich(Bias):
    """The distance kernel of sinusoidal embeddings, as a bias (Chi et al. 2022, sec. 4).

    b = (sum over h of cos(d freq_h) - dim/2) / (8 n / N), n = 1 .. N: zero at distance 0 and a slow,
    nearly logarithmic fall after it, gentler for later heads. Not monotone: beyond a few hundred tokens
    the cosines make it rise and fall again.

    Attributes:
      dim: of the sinusoids (the paper: 128). base: of their frequencies.
    """

    joint: ClassVar[bool] = True
    dim: int = 128
    base: float = 10_000.0

    def check(self, place: Place) -> None:
        """Raises ValueError for an odd or empty dim, or a base that is not positive."""
        check_positive("sandwich", dim=self.dim, base=self.base)
        if self.dim % 2:
            raise ValueError(f"sandwich: dim must be even, not {self.dim}")

    def bias(
        self, params: Params, q_pos_BT: jax.Array, k_pos_BS: jax.Array, place: Place
    ) -> jax.Array:
        """Returns bias_BNTS."""
        apart_BTS = jnp.abs(q_pos_BT[:, :, None] - k_pos_BS[:, None, :])
        # Frequencies start at i = 1 here, as in the paper.
        freq_h = self.base ** (-2 * np.arange(1, self.dim // 2 + 1) / self.dim)
        lost_BTS = (1 - jnp.cos(angles(apart_BTS, freq_h))).sum(-1)
        return linear_bias(place.heads / (8 * np.arange(1, place.heads + 1)), lost_BTS)
