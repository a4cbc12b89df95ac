"""The contract of an encoding: five kinds of part (a window is a sixth), and the context of the heads that carry it.

A part is a frozen dataclass whose fields are its hyperparameters. It holds no arrays: learned
values are a pytree made by ``init(key, context)`` and handed back to every call. To add an encoding,
subclass one of the kinds, implement its one function, and register it in
:mod:`posenc_jax.encodings.registry`.
"""

import dataclasses
import math
import numbers
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

Params = Any
MATCH = "match"
# Sizes of numbers that a part takes: times the largest distance, they are still in float32's range.
MIN_SIZE, MAX_SIZE = 1e-30, 1e30
MAX_INTEGER = 2**24  # float32 tells whole numbers apart up to here


@dataclasses.dataclass(frozen=True)
class HeadContext:
    """Where a part stands: static facts that its function may depend on.

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


class Part:
    """What all parts share: optional learned parameters and a check at the door."""

    learns: ClassVar[bool] = False  # True where `init` returns parameters
    relative: ClassVar[bool] = True  # False where more than the distance of two tokens counts

    def init(self, key: jax.Array, context: HeadContext) -> Params:
        """Returns the learned parameters of this part; most have none (an empty dict)."""
        return {}

    def scheduled(self, params: Params, progress: jax.Array, context: HeadContext) -> Params:
        """Returns `params` as they stand when a share `progress` in [0, 1] of training is done.

        For values that follow a schedule and not a gradient, or that are kept within bounds: training
        sets them after every update, and a checkpoint keeps them, so that reading one needs no clock.
        """
        return params

    def check(self, context: HeadContext) -> None:
        """Raises ValueError, in the reader's words, when the part cannot stand in `context`."""

    def longest(self, context: HeadContext) -> int | None:
        """Number of positions the part is defined for, or None when there is no limit."""
        return None

    def columns(self, context: HeadContext) -> int | None:
        """Columns of the grid on which the part reads a position as (row, column); None on a line."""
        return None

    def switched_off(self) -> "Part | None":
        """Returns what a model has in the part's place when it is switched off: by default nothing."""
        return None

    def on_grid(self, width: int, context: HeadContext) -> "Part":
        """Returns the part on a grid of `width` columns, its field of that name; on a line, the same."""
        return self if self.columns(context) is None else dataclasses.replace(self, width=width)


class Absolute(Part):
    """The a(i) of the equation: a vector added to the token embedding."""

    relative: ClassVar[bool] = False

    def embed(self, params: Params, pos_BT: jax.Array, context: HeadContext) -> jax.Array:
        """Returns a_BTD, float32, for positions pos_BT."""
        raise NotImplementedError


class Rotation(Part):
    """The R of the equation: a position-dependent map of queries and keys.

    A turned vector may have more columns than x has dims. Logits are divided by the root of the head dim,
    which is that of the values, whatever the columns.
    """

    per_head: ClassVar[bool] = False  # True where the heads of a group turn by angles of their own
    keys_alike: ClassVar[bool] = False  # True where, even so, keys turn alike for all heads
    columns_per_dim: ClassVar[int] = 1  # columns of a turned vector for every dim

    def rotate(
        self, params: Params, x_BTNH: jax.Array, pos_BT: jax.Array, context: HeadContext, side: str
    ) -> jax.Array:
        """Returns x_BTNH turned to its positions, its last dim `columns_per_dim` times as wide; `side` is "query" or "key".

        x_BTNH has all heads of the layer (keys: or its key/value heads, where they turn alike); the layer
        keeps the turned ones of this part's group.
        """
        raise NotImplementedError

    def amplitude(self, context: HeadContext) -> float:
        """Returns the largest factor by which `rotate` lengthens a vector, at any position.

        1.0 for a pure rotation. By default infinite: nothing is known, and a cache then keeps all that is in sight.
        """
        return math.inf

    def stretched(self, stretch) -> "Rotation":
        """Returns the rotation under a `Stretch`; ValueError for a rotation that has no such form."""
        raise ValueError(f"{type(self).__name__.lower()} cannot be stretched when it is read")

    def wavelengths(self, context: HeadContext) -> tuple[float, ...]:
        """Returns the wavelength of every rotary pair in tokens, for reports (empty: none fixed)."""
        return ()


@dataclasses.dataclass(frozen=True)
class Bias(Part):
    """The b of the equation: added to the scaled logits, in float32.

    Attributes:
      factor: a distance d is read as d / factor. That is what a stretch sets when a trained scheme is read
        further, for every bias of distance and whatever it has learned; `bias` must obey it.
    """

    joint: ClassVar[bool] = False  # True where heads share costly work: all are best done at once
    factor: float = dataclasses.field(default=1.0, kw_only=True)

    def bias(
        self, params: Params, q_pos_BT: jax.Array, k_pos_BS: jax.Array, context: HeadContext
    ) -> jax.Array:
        """Returns bias_BNTS, float32, N = context.heads, for any positions."""
        raise NotImplementedError

    def linear_slope_N(self, params: Params, context: HeadContext) -> jax.Array | None:
        """Returns m, float32, of a bias that is exactly -m d at every distance d; None for any other.

        Such a bias can be folded into queries and keys (`posenc_jax.attention.kernels.bias_folding`).
        """
        return None

    def stretched(self, factor: float, ntk: bool) -> "Bias":
        """Returns the bias as it is read `factor` times further; `ntk` matters where heads have an order."""
        return dataclasses.replace(self, factor=self.factor * factor)


@dataclasses.dataclass(frozen=True)
class GatedBias(Bias):
    """A bias that the tokens themselves decide: b(i, j) = clock(i) - clock(j).

    Every token makes its head's clock tick by an amount of its own; a clock is the running sum of the
    ticks inside a document (`posenc_jax.encodings.forget_gate.cumulative_log_forget`).
    """

    def log_forget(self, params: Params, x_BTD: jax.Array, context: HeadContext) -> jax.Array:
        """Returns log_forget_BTN, float32, at most 0: nats that all earlier tokens lose at this one.

        x_BTD is what the layer's projections read. The inherited `bias` must return what the clocks
        give for tokens of x = 0, for reports that have positions and no tokens.
        """
        raise NotImplementedError


class Temperature(Part):
    """The tau of the equation: multiplies the content logit, never the bias.

    One that is not `relative` follows the number n of keys in sight. It is given n - 1 as the query's position, which
    a window of its heads bounds (`posenc_jax.encodings.layer.place_in_sight`).
    """

    relative: ClassVar[bool] = False

    def temperature(
        self, params: Params, q_pos_BT: jax.Array, k_pos_BS: jax.Array, context: HeadContext
    ) -> jax.Array:
        """Returns tau_BNTS, float32, N = context.heads or 1 for all alike; tau_BNT1 where no key matters."""
        raise NotImplementedError

    def stretched(self, factor: float) -> "Temperature":
        """Returns the temperature for reading `factor` times further: by default the same."""
        return self


class TokenTemperature(Temperature):
    """A temperature that the query's token decides, beside its position."""

    def of_tokens(
        self, params: Params, x_BTD: jax.Array, pos_BT: jax.Array, context: HeadContext
    ) -> jax.Array:
        """Returns tau_BTN, float32, N = context.heads; x_BTD is what the layer's projections read."""
        raise NotImplementedError

    def temperature(
        self, params: Params, q_pos_BT: jax.Array, k_pos_BS: jax.Array, context: HeadContext
    ) -> jax.Array:
        """Returns tau_BNT1 of tokens of x = 0, for reports that have positions and no tokens."""
        x_BTD = jnp.zeros((*q_pos_BT.shape, context.model_dim))
        tau_BTN = self.of_tokens(params, x_BTD, q_pos_BT, context)
        return tau_BTN.swapaxes(1, 2)[..., None]


class Form(Part):
    """Another form of attention than softmax: whole layers of feature maps (see attention/linear.py)."""

    def features(self, x_BTNH: jax.Array) -> jax.Array:
        """Returns phi(x)_BTNH, float32, above zero: weights are products of features."""
        raise NotImplementedError


def check_positive(owner: str, **values: float) -> None:
    """Raises ValueError naming the first of `values` that is not a finite number above zero."""
    for name, value in values.items():
        if value == MATCH:
            continue
        if not (isinstance(value, numbers.Real) and 0 < value < math.inf):
            raise ValueError(f"{owner}: {name} must be a positive number, not {value!r}")


def check_numbers(owner: str, part: Any) -> None:
    """Raises ValueError naming the first field of a dataclass that is not of its kind, or past float32.

    The kind is that of the default: a truth value, a whole number, a number, a tuple of numbers or a word.
    """
    for field in dataclasses.fields(part):
        value, default = getattr(part, field.name), field.default
        if isinstance(value, str) and "str" in str(field.type):
            continue
        default = 1 if str(field.type) == "int | str" else default  # a word has been let through
        for number in value if isinstance(default, tuple) else (value,):
            wrong = _wrong(number, default)
            if wrong:
                shown = f"{type(number).__name__} {number!s:.40}"
                raise ValueError(f"{owner}: {field.name} must be {wrong}, not {shown}")


def _wrong(value: Any, default: Any) -> str | None:
    """Returns what `value` should have been, beside such a default; None where it is that."""
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
