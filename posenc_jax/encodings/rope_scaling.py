"""RoPE scalings: changes of the frequencies and the amplitude of a rotation for longer contexts.

A scaling is set in training (``rope(stretch=yarn(factor=4.0))``) or for the evaluation of a trained
checkpoint (``--stretch=yarn:4``). All computations are in float64 on the host. The original length
is the training length of the `HeadContext` unless ``original`` is set.
"""

import dataclasses
import math

import numpy as np

from posenc_jax.encodings.base import check_positive


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Base class of RoPE scalings: new frequencies, and a factor on cos and sin."""

    def frequencies(self, freq_h: np.ndarray, base: float, length: int) -> np.ndarray:
        """Returns the scaled freq_h, radians per token, float64.

        Args:
          freq_h: base^(-2i/dim), i < dim/2. base: of freq_h. length: the original training length.
        """
        raise NotImplementedError

    def amplitude(self, length: int) -> float:
        """Returns the factor on cos and sin; the logits of rotated vectors get its square."""
        return 1.0

    def check(self) -> None:
        """Raises ValueError for a setting below 0, or 0 where 0 is not the default."""
        owner = type(self).__name__.lower()
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, bool):
                continue
            if isinstance(field.default, tuple):
                for number in value:
                    check_positive(owner, **{field.name: number})
            elif field.default or value:  # a default of 0 means: by formula
                check_positive(owner, **{field.name: value})


def yarn_mscale(factor: float, mscale: float) -> float:
    """Returns 0.1 mscale ln(factor) + 1 for a factor above 1, else 1 (Peng et al. 2023, eq. 22)."""
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0


def ntk_base(base: float, factor: float, dim: int) -> float:
    """Returns base * factor^(dim/(dim-2)): the slowest pair slows by factor, the fastest not at
    all.

    Source: bloc97 2023 ("NTK-aware scaled RoPE"); Peng et al. 2023 (YaRN), sec. 3.1. With dim 2 the
    single frequency is 1 for every base.
    """
    return base * factor ** (dim / (dim - 2)) if dim > 2 else base


@dataclasses.dataclass(frozen=True)
class PositionInterpolation(RopeScaling):
    """Every frequency divided by the factor (Chen et al. 2023, eq. 4)."""

    factor: float = 4.0

    def frequencies(self, freq_h, base, length):
        """Returns freq_h / factor."""
        return freq_h / self.factor


@dataclasses.dataclass(frozen=True)
class NtkAware(RopeScaling):
    """A larger base: see `ntk_base`."""

    factor: float = 4.0

    def frequencies(self, freq_h, base, length):
        """Returns the frequencies of the larger base."""
        exponent_h = np.arange(len(freq_h)) / len(freq_h)
        return ntk_base(base, self.factor, 2 * len(freq_h)) ** -exponent_h


@dataclasses.dataclass(frozen=True)
class DynamicNtk(RopeScaling):
    """NTK-aware scaling with the factor for a given length; up to the original length nothing
    changes.

    The length is fixed before prefill, so that all keys have the same frequencies;
    `evaluate.py --stretch=dynamic:1` fixes it per length.

    Attributes:
      factor: f of base * (f * L'/L - (f - 1))^(d/(d-2)).
      length: L', the longest sequence; 0: the original length.
      original: the original length; 0 takes the training length.

    Source: emozilla 2023 (dynamic NTK); transformers, "dynamic".
    """

    factor: float = 1.0
    length: int = 0
    original: int = 0

    def frequencies(self, freq_h, base, length):
        """Returns the frequencies of the base that fits `self.length`."""
        length = self.original or length
        grown = max(self.length, length) / length
        # Equals the published form, f * grown - (f - 1), with less rounding.
        return NtkAware(1 + self.factor * (grown - 1)).frequencies(freq_h, base, length)


@dataclasses.dataclass(frozen=True)
class Yarn(RopeScaling):
    """NTK by parts with a temperature (Peng et al. 2023, eq. 17-22).

    Pairs with more than beta_fast turns within the original length are kept, pairs with less than
    beta_slow turns are interpolated, and the others are blended by a linear ramp over the pair
    index.

    The amplitude is attention_factor, or else m(mscale) / m(mscale_all_dim), with m(x) = 0.1 x ln s
    + 1, as in DeepSeek. Transformers computes the same if both or neither are given, and ignores
    one given alone. DeepSeek also multiplies all content logits by m(mscale_all_dim)^2; here this
    is a temperature, `~yarn_temperature(mscale=...)`.

    Attributes:
      factor: s. beta_fast, beta_slow: turns at the two ends of the ramp.
      truncate: rounds the ends of the ramp outward to whole pairs, like the published code.
      original: the original length; 0 takes the training length.
      attention_factor: the amplitude; 0: by formula.
      mscale, mscale_all_dim: of the formula; 1 and 0 are the paper's.
    """

    factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    original: int = 0
    attention_factor: float = 0.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0

    def check(self):
        super().check()
        if self.attention_factor and (self.mscale != 1 or self.mscale_all_dim):
            raise ValueError(
                "yarn: attention_factor replaces mscale and mscale_all_dim; give one or the others"
            )

    def ramp_ends(self, dim: int, base: float, length: int) -> tuple[float, float]:
        """Returns (low, high): the pair indices at the two ends of the ramp."""

        def index(turns: float) -> float:
            return dim * math.log(length / (2 * math.pi * turns)) / (2 * math.log(base))

        low, high = index(self.beta_fast), index(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        return max(low, 0), min(high, dim - 1)

    def frequencies(self, freq_h, base, length):
        """Returns freq_h / s * ramp + freq_h * (1 - ramp); ValueError for an empty ramp."""
        if not base > 1:
            raise ValueError(
                f"yarn: needs a base above 1, not {base:g}: its ramp needs decreasing frequencies"
            )
        turns = (self.original or length) / (2 * math.pi)
        if not self.beta_slow < min(self.beta_fast, turns):
            raise ValueError(
                f"yarn: beta_slow={self.beta_slow} must be below beta_fast={self.beta_fast} and "
                f"below the {turns:.3g} turns of the fastest pair within the original length"
            )
        low, high = self.ramp_ends(2 * len(freq_h), base, self.original or length)
        width = (high - low) or 0.001
        ramp_h = np.clip((np.arange(len(freq_h)) - low) / width, 0, 1)
        return freq_h / self.factor * ramp_h + freq_h * (1 - ramp_h)

    def amplitude(self, length):
        """Returns the attention factor; see the class."""
        if self.attention_factor:
            return self.attention_factor
        return yarn_mscale(self.factor, self.mscale) / yarn_mscale(self.factor, self.mscale_all_dim)


@dataclasses.dataclass(frozen=True)
class Llama3(RopeScaling):
    """Llama-3.1's smoothing by wavelength.

    The frequencies of wavelengths above original/low are divided by the factor, those below
    original/high are kept, and between them both are blended linearly in original/wavelength.

    Attributes:
      factor: of the slow pairs. low, high: published as 1 and 4.
      original: the original length; 0 takes the training length (Llama-3.1: 8192).
    """

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original: int = 0

    def frequencies(self, freq_h, base, length):
        """Returns the blended frequencies."""
        turns_h = (self.original or length) * freq_h / (2 * np.pi)  # within the original length
        smooth_h = np.clip((turns_h - self.low) / (self.high - self.low), 0, 1)
        return freq_h / self.factor * (1 - smooth_h) + freq_h * smooth_h

    def check(self):
        super().check()
        if self.low >= self.high:
            raise ValueError(f"llama3: low={self.low} must be below high={self.high}")


@dataclasses.dataclass(frozen=True)
class LongRope(RopeScaling):
    """A divisor per pair, found by an offline search: one list up to the original length, one
    beyond.

    Attributes:
      factor: s, for the amplitude sqrt(1 + ln s / ln L).
      attention_factor: the amplitude; 0: by that formula.
      short, long: one divisor per rotary pair; empty is all ones.
      length: the longest sequence; the long list is used if it exceeds the original length.
      original: the original length; 0 takes the training length.

    Source: Ding et al. 2024, sec. 3; transformers, "longrope".
    """

    factor: float = 4.0
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    length: int = 0
    original: int = 0
    attention_factor: float = 0.0

    def frequencies(self, freq_h, base, length):
        """Returns freq_h divided by the short or the long list; ValueError if its size is wrong."""
        divisors = self.long if self.length > (self.original or length) else self.short
        if divisors and len(divisors) != len(freq_h):
            raise ValueError(
                f"longrope: {len(divisors)} factors given for {len(freq_h)} rotary pairs"
            )
        return freq_h / np.asarray(divisors or np.ones(len(freq_h)), np.float64)

    def amplitude(self, length):
        """Returns attention_factor, or sqrt(1 + ln s / ln L) for s > 1, else 1."""
        if self.attention_factor:
            return self.attention_factor
        if self.factor <= 1:
            return 1.0
        length = self.original or length
        if length < 2:
            raise ValueError(
                f"longrope: the original length must be at least 2 tokens, not {length}"
            )
        return math.sqrt(1 + math.log(self.factor) / math.log(length))


@dataclasses.dataclass(frozen=True)
class BaseChange(RopeScaling):
    """Another base for the same pairs ("adjusted base frequency"; Xiong et al. 2023, sec. 4.1)."""

    base: float = 500_000.0

    def frequencies(self, freq_h, base, length):
        """Returns the frequencies of the new base."""
        return self.base ** -(np.arange(len(freq_h)) / len(freq_h))


ROPE_SCALINGS: dict[str, type[RopeScaling]] = {
    "pi": PositionInterpolation,
    "ntk": NtkAware,
    "dynamic": DynamicNtk,
    "yarn": Yarn,
    "llama3": Llama3,
    "longrope": LongRope,
    "abf": BaseChange,
}
