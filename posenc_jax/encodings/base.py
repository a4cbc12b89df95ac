"""Base classes of the parts of a scheme: absolute, rotation, bias, temperature, form.

A part is a frozen dataclass whose fields are its hyperparameters. It holds no arrays: learned
values are a pytree that ``init(key, context)`` returns and that every call takes. To add an
encoding, subclass one of these classes, implement its one function, and register it in
:mod:`posenc_jax.encodings.registry`.
"""

import dataclasses
import math
import numbers
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

Params = Any
MATCH = "match"
# Limits of the numbers of a part: times the largest distance they stay within float32.
MIN_SIZE, MAX_SIZE = 1e-30, 1e30
MAX_INTEGER = 2**24  # float32 represents all integers up to here


@dataclasses.dataclass(frozen=True)
class HeadContext:
    """The heads and the model that a part belongs to: static numbers that its function may use.

    Attributes:
      heads: query heads that carry this part (a head group may be smaller than the layer).
      num_heads: query heads in the whole layer.
      head_dim: H.
      model_dim: D.
      train_length: L, the context length the model is trained at, in tokens.
      first: index in the layer of the first of these heads.
    """

    heads: int
    num_heads: int
    head_dim: int
    model_dim: int
    train_length: int
    first: int = 0


@dataclasses.dataclass(frozen=True)
class Part:
    """Base class of all parts: optional learned parameters, and a check of the settings."""

    learns: ClassVar[bool] = False  # True where `init` returns parameters
    relative: ClassVar[bool] = True  # False if it depends on more than the distance of two tokens

    def init(self, key: jax.Array, context: HeadContext) -> Params:
        """Returns the learned parameters of this part; an empty dict for parts without."""
        return {}

    def scheduled(self, params: Params, progress: jax.Array, context: HeadContext) -> Params:
        """Returns `params` after a share `progress` in [0, 1] of training.

        For values that follow a schedule or stay within bounds. Training sets them after every
        update, and checkpoints store them.
        """
        return params

    def check(self, context: HeadContext) -> None:
        """Raises ValueError if the settings are invalid or do not fit `context`."""

    def longest(self, context: HeadContext) -> int | None:
        """Number of positions for which the part is defined; None: no limit."""
        return None

    def columns(self, context: HeadContext) -> int | None:
        """Columns of the grid of a planar part; None for other parts."""
        return None

    def switched_off(self) -> "Part | None":
        """Returns the replacement when the part is switched off; None: nothing."""
        return None

    def on_grid(self, width: int, context: HeadContext) -> Self:
        """Returns a planar part with a grid of `width` columns; other parts unchanged."""
        return self if self.columns(context) is None else self.changed(width=width)

    def changed(self, **settings: Any) -> Self:
        """Returns the part with other values of some of its fields."""
        return dataclasses.replace(self, **settings)


class Absolute(Part):
    """The a(i) of the equation: a vector added to the token embedding."""

    relative: ClassVar[bool] = False

    def embed(self, params: Params, pos_BT: jax.Array, context: HeadContext) -> jax.Array:
        """Returns a_BTD, float32, for positions pos_BT."""
        raise NotImplementedError


class Rotation(Part):
    """The R of the equation: a position-dependent map of queries and keys.

    A rotated vector may have more columns than x has dims. Logits are divided by sqrt(head_dim) in
    any case.
    """

    per_head: ClassVar[bool] = False  # True if each head of a group has its own angles
    keys_alike: ClassVar[bool] = False  # True if keys rotate equally in all heads nevertheless
    columns_per_dim: ClassVar[int] = 1  # columns of a rotated vector per dim

    def rotate(
        self, params: Params, x_BTNH: jax.Array, pos_BT: jax.Array, context: HeadContext, side: str
    ) -> jax.Array:
        """Returns x_BTNH rotated to its positions, `columns_per_dim` times as wide; `side` is
        "query" or "key".

        x_BTNH has all heads of the layer, or its key/value heads if these rotate equally; the layer
        uses the results of this part's group.
        """
        raise NotImplementedError

    def amplitude(self, context: HeadContext) -> float:
        """Returns the largest factor by which `rotate` lengthens a vector at any position; 1.0 for
        a pure rotation.

        The default is infinity: unknown, and a cache then keeps all tokens.
        """
        return math.inf

    def stretched(self, stretch) -> "Rotation":
        """Returns the rotation under a `RopeScaling`; ValueError for a rotation that has none."""
        raise ValueError(f"{type(self).__name__.lower()} cannot be stretched when it is read")

    def wavelengths(self, context: HeadContext) -> tuple[float, ...]:
        """Returns the wavelength of every rotary pair in tokens; empty if not fixed."""
        return ()

    def pair_gains(self, context: HeadContext, distance_S: np.ndarray) -> np.ndarray:
        """Returns gain_Sh, float64: the factor of the rotation on the product of two pairs at each
        distance, beside the cosine.

        One column per wavelength; 1 for a pure rotation, which keeps the length of vectors.
        """
        return np.ones((len(distance_S), len(self.wavelengths(context))))


@dataclasses.dataclass(frozen=True)
class Bias(Part):
    """The b of the equation: added to the scaled logits, in float32.

    Attributes:
      factor: the bias at distance d is that at d / factor. Length extension sets it, for fixed and
        learned biases; `bias` must apply it.
    """

    # True if heads share costly work, so that all are best computed together.
    joint: ClassVar[bool] = False
    factor: float = dataclasses.field(default=1.0, kw_only=True)

    def bias(
        self, params: Params, q_pos_BT: jax.Array, k_pos_BS: jax.Array, context: HeadContext
    ) -> jax.Array:
        """Returns bias_BNTS, float32, N = context.heads, for any positions."""
        raise NotImplementedError

    def linear_slope_N(self, params: Params, context: HeadContext) -> jax.Array | None:
        """Returns m, float32, of a bias that is exactly -m d at every distance d; None for any
        other.

        Such a bias can be folded into queries and keys
        (`posenc_jax.attention.kernels.bias_folding`).
        """
        return None

    def stretched(self, factor: float, ntk: bool) -> "Bias":
        """Returns the bias for contexts `factor` times as long; ntk: in the NTK form."""
        return dataclasses.replace(self, factor=self.factor * factor)


@dataclasses.dataclass(frozen=True)
class GatedBias(Bias):
    """A bias that depends on the tokens: b(i, j) = c(i) - c(j), c the cumulative log-forget.

    c is the running sum of `log_forget` inside a document
    (`posenc_jax.encodings.forget_gate.cumulative_log_forget`).
    """

    def log_forget(self, params: Params, x_BTD: jax.Array, context: HeadContext) -> jax.Array:
        """Returns log_forget_BTN, float32, at most 0: the nats that all earlier tokens lose at this
        token.

        x_BTD is the input of the layer's projections. The method `bias` must return the bias of
        tokens with x = 0, for reports, which have no tokens.
        """
        raise NotImplementedError


class Temperature(Part):
    """The tau of the equation: multiplies the content logit, never the bias.

    A temperature that is not `relative` depends on the number n of visible keys: its `q_pos_BT` is
    n - 1, which a window of its heads bounds (`posenc_jax.encodings.layer.last_visible_key`).
    """

    relative: ClassVar[bool] = False

    def temperature(
        self, params: Params, q_pos_BT: jax.Array, k_pos_BS: jax.Array, context: HeadContext
    ) -> jax.Array:
        """Returns tau_BNTS, float32, N = context.heads or 1; S is 1 if no key matters."""
        raise NotImplementedError

    def stretched(self, factor: float) -> "Temperature":
        """Returns the temperature for contexts `factor` times as long; by default the same."""
        return self


class TokenTemperature(Temperature):
    """A temperature that depends on the query's token and its position."""

    def of_tokens(
        self, params: Params, x_BTD: jax.Array, pos_BT: jax.Array, context: HeadContext
    ) -> jax.Array:
        """Returns tau_BTN, float32; x_BTD is the input of the layer's projections."""
        raise NotImplementedError

    def temperature(
        self, params: Params, q_pos_BT: jax.Array, k_pos_BS: jax.Array, context: HeadContext
    ) -> jax.Array:
        """Returns tau_BNT1 of tokens with x = 0, for reports, which have no tokens."""
        x_BTD = jnp.zeros((*q_pos_BT.shape, context.model_dim))
        tau_BTN = self.of_tokens(params, x_BTD, q_pos_BT, context)
        return tau_BTN.swapaxes(1, 2)[..., None]


class Form(Part):
    """A form of attention other than softmax: feature maps (attention/linear.py)."""

    def features(self, x_BTNH: jax.Array) -> jax.Array:
        """Returns phi(x)_BTNH, float32, above zero: weights are products of features."""
        raise NotImplementedError


def check_positive(owner: str, **values: float | str) -> None:
    """Raises ValueError naming the first of `values` that is not a finite number above zero."""
    for name, value in values.items():
        if value == MATCH:
            continue
        if not (isinstance(value, numbers.Real) and 0 < value < math.inf):
            raise ValueError(f"{owner}: {name} must be a positive number, not {value!r}")


def check_numbers(owner: str, part: Any) -> None:
    """Raises ValueError for the first field of a dataclass that has the wrong type or is past
    float32.

    The default gives the type: boolean, integer, number, tuple of numbers or word.
    """
    for field in dataclasses.fields(part):
        value, default = getattr(part, field.name), field.default
        if isinstance(value, str) and "str" in str(field.type):
            continue
        default = 1 if str(field.type) == "int | str" else default  # words were accepted above
        for number in value if isinstance(default, tuple) else (value,):
            wrong = _wrong(number, default)
            if wrong:
                shown = f"{type(number).__name__} {number!s:.40}"
                raise ValueError(f"{owner}: {field.name} must be {wrong}, not {shown}")


def _wrong(value: Any, default: Any) -> str | None:
    """Returns the expected type in words, given the default; None if `value` has it."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, str):
        return "a word"
    if isinstance(default, int):
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        fits = whole and -MAX_INTEGER <= value <= MAX_INTEGER
        return None if fits else f"a whole number of at most {MAX_INTEGER:,}"
    if isinstance(default, float | tuple):
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        fits = real and (value == 0 or MIN_SIZE <= abs(value) <= MAX_SIZE)
        return (
            None
            if fits
            else f"0 or a number of size {MIN_SIZE:g} to {MAX_SIZE:g}, which float32 holds"
        )
    return None
