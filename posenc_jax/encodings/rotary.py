"""Rotary position encoding: the R of the equation (Su et al. 2021, RoFormer, sec. 3.2)."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.encodings.backend import current_backend
from posenc_jax.encodings.base import MAX_SIZE, MIN_SIZE, HeadContext, Rotation, check_positive
from posenc_jax.encodings.rope_scaling import RopeScaling

PAIRINGS = ("half", "interleaved")
ROUNDINGS = ("nearest", "down")


def inverse_frequencies(dim: int, base: float) -> np.ndarray:
    """Returns freq_h = base^(-2i/dim), radians per token, float64 (Su et al. 2021, eq. 15)."""
    return base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)


def angles(pos_BT: jax.Array, freq_h: np.ndarray) -> jax.Array:
    """Returns angle_BTh = pos * freq modulo a full turn, in [-pi, pi], float32.

    A float32 product pos * freq has an error of 3e-2 rad at a million positions. Here turns are
    counted in 32-bit fixed point, where integer overflow is the range reduction, and the part of
    the frequency below 2^-32 turns is added in float32. The error stays below 1e-6 rad up to 2^20
    positions. The fraction of a position is added in float32.

    Args:
      pos_BT: positions, integer or float, any shape and sign.
      freq_h: radians per token, float64 (host constants).
    """
    freq_h = np.asarray(freq_h, np.float64).reshape((1,) * pos_BT.ndim + (-1,))
    turns_h = freq_h / (2 * np.pi) % 1.0 * 2.0**32
    whole_h = np.floor(turns_h)
    rest_h = (turns_h - whole_h).astype(np.float32)
    whole_h = (whole_h % 2.0**32).astype(np.uint32)

    fractional = jnp.issubdtype(pos_BT.dtype, jnp.floating)
    step_BT1 = (jnp.floor(pos_BT) if fractional else pos_BT).astype(jnp.int32)[..., None]
    turn_BTh = (step_BT1.astype(jnp.uint32) * whole_h).astype(jnp.int32).astype(jnp.float32)
    turn_BTh = turn_BTh + step_BT1.astype(jnp.float32) * rest_h
    angle_BTh = turn_BTh * np.float32(2 * np.pi * 2.0**-32)
    if fractional:
        part_BT1 = (pos_BT - jnp.floor(pos_BT)).astype(jnp.float32)[..., None]
        angle_BTh = angle_BTh + part_BT1 * freq_h.astype(np.float32)
    return angle_BTh


def rotate(
    x_BTNH: jax.Array, angle_BTh: jax.Array, pairing: str, amplitude: float | jax.Array
) -> jax.Array:
    """Rotates the first 2h dims of every head by angle_BTh, pair by pair; later dims are unchanged.

    Args:
      x_BTNH: queries or keys, any float type; the product is taken in float32 and cast back once.
      angle_BTh: radians, one per pair, shared by the heads; or angle_BTNh, one per head and pair.
      pairing: "half" pairs dims (i, i + h); "interleaved" pairs dims (2i, 2i + 1). The two are
        equal only under the same permutation of the projection weights.
      amplitude: factor on cos and sin, a number or an array like angle_BTh; 1.0 is a pure rotation.

    Source: Su et al. 2021, eq. 34.
    """
    h = angle_BTh.shape[-1]
    cos_BT1h, sin_BT1h = jnp.cos(angle_BTh) * amplitude, jnp.sin(angle_BTh) * amplitude
    if angle_BTh.ndim < x_BTNH.ndim:
        cos_BT1h, sin_BT1h = cos_BT1h[..., None, :], sin_BT1h[..., None, :]
    x = x_BTNH.astype(jnp.float32)
    rotary, rest = x[..., : 2 * h], x[..., 2 * h :]
    rotate_pairs = _by_reversing if current_backend() == "cpu" else _by_joining
    return jnp.concatenate([rotate_pairs(rotary, cos_BT1h, sin_BT1h, pairing), rest], -1).astype(
        x_BTNH.dtype
    )


def _by_joining(x_BTNH, cos_BT1h, sin_BT1h, pairing):
    h = cos_BT1h.shape[-1]
    if pairing == "half":
        a, b = x_BTNH[..., :h], x_BTNH[..., h:]
        return jnp.concatenate([a * cos_BT1h - b * sin_BT1h, b * cos_BT1h + a * sin_BT1h], -1)
    a, b = x_BTNH[..., 0::2], x_BTNH[..., 1::2]
    pair = jnp.stack([a * cos_BT1h - b * sin_BT1h, b * cos_BT1h + a * sin_BT1h], axis=-1)
    return pair.reshape(x_BTNH.shape)


def _by_reversing(x_BTNH, cos_BT1h, sin_BT1h, pairing):
    """`_by_joining` with the partner of each dim taken by reversing an axis of size two; twice as
    fast on a CPU.

    XLA for CPU does not vectorise the concatenation of halves. On a TPU this form is a third
    slower, by the cost analysis of its compiler.
    """
    h = cos_BT1h.shape[-1]
    pairs, axis = ((2, h), -2) if pairing == "half" else ((h, 2), -1)
    cos_BT1H = jnp.stack([cos_BT1h, cos_BT1h], axis).reshape(*cos_BT1h.shape[:-1], 2 * h)
    sin_BT1H = jnp.stack([-sin_BT1h, sin_BT1h], axis).reshape(*sin_BT1h.shape[:-1], 2 * h)
    partner = jnp.flip(x_BTNH.reshape(*x_BTNH.shape[:-1], *pairs), axis).reshape(x_BTNH.shape)
    return x_BTNH * cos_BT1H + partner * sin_BT1H


class FixedFrequencies(Rotation):
    """Base class of rotations with a field `base` and fixed `frequencies(context)`."""

    base: float | str

    def frequencies(self, context: HeadContext) -> np.ndarray:
        """Returns freq_h, radians per token, float64."""
        raise NotImplementedError

    def base_value(self, context: HeadContext) -> float:
        """Returns `base` as a number; "match" is 2.4 * train_length, which leaves no pair nearly
        still in training.
        """
        return 2.4 * context.train_length if isinstance(self.base, str) else self.base

    def wavelengths(self, context: HeadContext) -> tuple[float, ...]:
        """Returns 2*pi/freq_h of the pairs that rotate: tokens per turn."""
        return tuple(float(2 * math.pi / f) for f in self.frequencies(context) if f)


class ScaledFrequencies(FixedFrequencies):
    """Base class of rotations with a field `stretch`, a RoPE scaling or None."""

    stretch: RopeScaling | None

    def check_stretch(self, context: HeadContext) -> None:
        """Raises ValueError for an invalid stretch or unusable frequencies."""
        owner = type(self).__name__.lower()
        if self.stretch is not None:
            self.stretch.check()
            amplitude = self.stretch.amplitude(context.train_length)
            if not MIN_SIZE <= amplitude**2 <= MAX_SIZE:
                raise ValueError(
                    f"{owner}: its stretch's attention factor, {amplitude:g}, is past what float32 "
                    "squares"
                )
        freq_h = self.frequencies(context)
        if not (np.isfinite(freq_h).all() and (freq_h > 0).all()):
            raise ValueError(
                f"{owner}: base and stretch give a pair a frequency of {freq_h.min():g}"
            )

    def scaled(self, dim: int, context: HeadContext) -> np.ndarray:
        """Returns the frequencies of `dim` dims under the stretch, radians per token, float64."""
        base = self.base_value(context)
        freq_h = inverse_frequencies(dim, base)
        if self.stretch is None:
            return freq_h
        return self.stretch.frequencies(freq_h, base, context.train_length)

    def stretch_amplitude(self, context: HeadContext) -> float:
        """Returns the factor of the stretch on cos and sin."""
        return self.stretch.amplitude(context.train_length) if self.stretch else 1.0

    def pair_gains(self, context: HeadContext, distance_S: np.ndarray) -> np.ndarray:
        """Returns the square of the stretch's factor, at every distance."""
        return super().pair_gains(context, distance_S) * self.stretch_amplitude(context) ** 2

    def stretched(self, stretch: RopeScaling) -> "ScaledFrequencies":
        """Returns the same rotation under `stretch`; ValueError if it already has one."""
        if self.stretch is not None:
            owner = type(self).__name__.lower()
            raise ValueError(f"{owner}: a scheme trained under a stretch cannot take a second one")
        return self.changed(stretch=stretch)


@dataclasses.dataclass(frozen=True)
class Rope(ScaledFrequencies):
    """RoPE on all or on the first part of each head's dims.

    Attributes:
      base: the slowest pair rotates once in about 2*pi*base tokens; "match" is 2.4 * train_length,
        where every pair rotates by at least about 1/15 of a circle within the training length.
      fraction: share of head dims that rotate, with a spectrum of their own (GPT-NeoX: 0.25).
      dim: the number of head dims that rotate, where no share gives it (60 of 88); 0: `fraction`
        decides.
      pairing: "half" (GPT-NeoX, Llama in transformers) or "interleaved" (RoFormer, GPT-J).
      stretch: a scaling of the frequencies for longer contexts; see
        `posenc_jax.encodings.rope_scaling`.
    """

    base: float | str = 10_000.0
    fraction: float = 1.0
    dim: int = 0
    pairing: str = "half"
    stretch: RopeScaling | None = None

    def check(self, context: HeadContext) -> None:
        check_positive("rope", base=self.base, fraction=self.fraction)
        if self.fraction > 1:
            raise ValueError(f"rope: fraction must lie in (0, 1], not {self.fraction}")
        check_pairs("rope", context, self.pairing)
        if self.dim and self.fraction != 1:
            raise ValueError(
                f"rope: dim={self.dim} and fraction={self.fraction} both set the number of dims; "
                "give one"
            )
        if self.dim % 2 or not 0 <= self.dim <= context.head_dim:
            raise ValueError(
                f"rope: dim must be an even number up to head dim {context.head_dim}, not "
                f"{self.dim}"
            )
        if self.rotary_dim(context) < 2:
            raise ValueError(
                f"rope: fraction {self.fraction} of head dim {context.head_dim} leaves no pair to "
                "rotate"
            )
        self.check_stretch(context)

    def rotary_dim(self, context: HeadContext) -> int:
        """Returns the number of head dims that rotate, an even number."""
        return self.dim or int(context.head_dim * self.fraction) // 2 * 2

    def frequencies(self, context: HeadContext) -> np.ndarray:
        return self.scaled(self.rotary_dim(context), context)

    def rotate(self, params, x_BTNH, pos_BT, context, side):
        """Returns x_BTNH rotated to pos_BT; queries and keys rotate equally."""
        angle_BTh = angles(pos_BT, self.frequencies(context))
        return rotate(x_BTNH, angle_BTh, self.pairing, self.stretch_amplitude(context))

    def amplitude(self, context: HeadContext) -> float:
        """Returns the stretch's factor on the dims that rotate, and at least 1."""
        return max(self.stretch_amplitude(context), 1.0)


@dataclasses.dataclass(frozen=True)
class Prope(FixedFrequencies):
    """p-RoPE: RoPE's full spectrum without its lowest frequencies (Barbero et al. 2024, sec. 6).

    The dims of the removed pairs carry content without position, at any distance. In partial RoPE,
    by contrast, the fewer pairs have their own spectrum.

    Attributes:
      kept: share of pairs that rotate, the fastest ones.
      rounding: of their number where it is not whole: "nearest" (the even one of two as near), or
        "down" (transformers, "proportional"). base, pairing: as in `Rope`.
    """

    kept: float = 0.75
    rounding: str = "nearest"
    base: float | str = 10_000.0
    pairing: str = "half"

    def check(self, context: HeadContext) -> None:
        check_positive("prope", base=self.base, kept=self.kept)
        check_pairs("prope", context, self.pairing)
        if self.rounding not in ROUNDINGS:
            raise ValueError(f"prope: rounding must be one of {ROUNDINGS}, not {self.rounding!r}")
        if self.kept > 1 or not self.pairs(context):
            raise ValueError(
                f"prope: kept must lie in (0, 1] and keep a pair of the {context.head_dim // 2}, "
                f"not {self.kept}"
            )

    def pairs(self, context: HeadContext) -> int:
        """Returns the number of pairs that rotate."""
        pairs = self.kept * (context.head_dim // 2)
        return round(pairs) if self.rounding == "nearest" else int(pairs)

    def frequencies(self, context: HeadContext) -> np.ndarray:
        """Returns freq_h in radians per token, float64; zero for the removed pairs."""
        freq_h = inverse_frequencies(context.head_dim, self.base_value(context))
        return np.where(np.arange(len(freq_h)) < self.pairs(context), freq_h, 0.0)

    def rotate(self, params, x_BTNH, pos_BT, context, side):
        """Returns x_BTNH with its fast pairs rotated to pos_BT."""
        return rotate(x_BTNH, angles(pos_BT, self.frequencies(context)), self.pairing, 1.0)

    def amplitude(self, context: HeadContext) -> float:
        return 1.0


@dataclasses.dataclass(frozen=True)
class Xpos(FixedFrequencies):
    """xPos: RoPE whose pairs also decay with distance (Sun et al. 2022, sec. 3.2).

    Queries are multiplied by zeta^((i - c)/s), keys by zeta^-((j - c)/s), so logits carry
    zeta^((i - j)/s) with one zeta below 1 per pair. The centre c is always half the training
    length, so that cached keys stay right. The two factors leave float32 far from c, so there is a
    largest position.

    Attributes:
      scale: s, tokens. gamma: zeta_i = (i/h + gamma) / (1 + gamma). base, pairing: as in `Rope`.
    """

    scale: float = 512.0
    gamma: float = 0.4
    base: float | str = 10_000.0
    pairing: str = "half"

    def check(self, context: HeadContext) -> None:
        check_positive("xpos", base=self.base, scale=self.scale, gamma=self.gamma)
        check_pairs("xpos", context, self.pairing)
        if not self.log_zeta(context)[0] < 0:
            raise ValueError(f"xpos: gamma={self.gamma:g} is too large: no pair decays")
        half = context.train_length / 2
        if 40 * self.scale / -self.log_zeta(context)[0] < half:
            least = half * -self.log_zeta(context)[0] / 40
            raise ValueError(
                f"xpos: scale={self.scale:g} leaves float32 within the training length "
                f"{context.train_length}; take at least {least:.3g}"
            )

    def log_zeta(self, context: HeadContext) -> np.ndarray:
        """Returns ln zeta_h per pair, float64, below zero."""
        h = context.head_dim // 2
        return np.log((np.arange(h) / h + self.gamma) / (1 + self.gamma))

    def longest(self, context: HeadContext) -> int:
        """Returns how many positions keep both factors within e^40 of 1."""
        return int(40 * self.scale / -self.log_zeta(context)[0]) + context.train_length // 2

    def frequencies(self, context: HeadContext) -> np.ndarray:
        return inverse_frequencies(context.head_dim, self.base_value(context))

    def pair_gains(self, context: HeadContext, distance_S: np.ndarray) -> np.ndarray:
        """Returns zeta_h^(d/s)."""
        return np.exp(np.asarray(distance_S)[:, None] * self.log_zeta(context) / self.scale)

    def rotate(self, params, x_BTNH, pos_BT, context, side):
        """Returns x_BTNH rotated and scaled by its position."""
        log_zeta_h = self.log_zeta(context).reshape((1,) * pos_BT.ndim + (-1,)) / self.scale
        sign = 1 if side == "query" else -1
        away_BT1 = (pos_BT - context.train_length // 2).astype(jnp.float32)[..., None]
        amplitude_BTh = jnp.exp(away_BT1 * (sign * log_zeta_h).astype(np.float32))
        angle_BTh = angles(pos_BT, self.frequencies(context))
        return rotate(x_BTNH, angle_BTh, self.pairing, amplitude_BTh)


def check_pairing(owner: str, pairing: str) -> None:
    """Raises ValueError for an unknown pairing."""
    if pairing not in PAIRINGS:
        raise ValueError(f"{owner}: pairing must be one of {PAIRINGS}, not {pairing!r}")


def check_pairs(owner: str, context: HeadContext, pairing: str) -> None:
    """Raises ValueError for an unknown pairing or a head dim without pairs."""
    check_pairing(owner, pairing)
    if context.head_dim % 2:
        raise ValueError(f"RoPE rotates pairs; head dim {context.head_dim} is odd")
