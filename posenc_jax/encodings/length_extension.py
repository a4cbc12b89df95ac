"""Length extension: one rule that adapts rotations and biases to longer sequences.

A rule is ``name:factor``. It gives every rotation the RoPE scaling of that name and every bias the
same factor. The scaling changes R (and its amplitude: YaRN's temperature, which multiplies content
only). A bias b becomes b(d / s) at distance d and is never multiplied by a temperature. Log-n
temperature keeps the training length as its reference; the scale-invariant temperature, a function
of distance, becomes tau(d / s).

b(d / s) holds for every bias of distance, fixed or learned: a slope m becomes m / s, the m of a
power becomes m / s^p, a bucket of T5 is s times as wide, and FIRE also divides the position i of
its query. Forget gates depend on tokens and not on distance; their logarithms are divided by s. In
the NTK form, heads with slopes use d / s^share, ranked by their slopes, fixed or learned; other
heads use d / s.

============== ===================================== ==========================================
rule           rotations                             biases
============== ===================================== ==========================================
pi:4, yarn:4,  that scaling with factor 4            distance / 4
llama3:4
ntk:4          NTK-aware with factor 4               NTK form: largest slope kept, smallest / 4
dynamic:1      dynamic NTK, f = 1, for the length    distance * L / length, past L
abf:500000     base 500000                           unchanged
slopes:4       unchanged                             distance / 4
============== ===================================== ==========================================

``rotation.yarn:4`` and ``bias.yarn:4`` apply one half of a rule. ``rotation.off`` leaves the
rotations out (Gelberg et al. 2025, DroPE, before its training).

A scheme that was fine-tuned at a longer length keeps its first training length as L. A rule
then continues from the longer length: slopes divided by 4 are divided by 8 under ``slopes:2``;
``dynamic`` begins past the longer length; ``yarn`` and ``llama3`` count turns within it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from posenc_jax.encodings.base import MAX_SIZE, MIN_SIZE
from posenc_jax.encodings.grammar import unparse
from posenc_jax.encodings.rope_scaling import (
    BaseChange,
    DynamicNtk,
    Llama3,
    NtkAware,
    PositionInterpolation,
    RopeScaling,
    Yarn,
)
from posenc_jax.encodings.scheme import HeadGroup, Scheme
from posenc_jax.results.near_names import near_names

_FACTORED: dict[str, Callable[..., RopeScaling]] = {
    "pi": PositionInterpolation,
    "ntk": NtkAware,
    "yarn": Yarn,
    "llama3": Llama3,
}
DROPPED = "rotation.off"
EXTENSION_RULES = (*_FACTORED, "dynamic", "abf", "slopes")


def extend_length(
    scheme: Scheme, rule: str, *, length: int, train_length: int, placed_length: int = 0
) -> Scheme:
    """Returns the scheme changed by `rule`, for sequences of up to `length` tokens.

    Args:
      scheme: as trained. rule: see the module's docstring. length, train_length: tokens.
      placed_length: the training length with which the scheme is placed, if it is not train_length;
        0: it is.

    Raises:
      ValueError: an unknown rule, a bad number, or a rule that changes nothing in this scheme.
    """
    if rule == DROPPED:
        return rotation_dropped(scheme)
    half, _, plain = (
        rule.rpartition(".") if rule.split(".")[0] in ("rotation", "bias") else ("", "", rule)
    )
    name, _, number = plain.partition(":")
    if name not in EXTENSION_RULES:
        raise ValueError(f"unknown stretch {name!r}{near_names(name, list(EXTENSION_RULES))}")
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not MIN_SIZE <= value <= MAX_SIZE:
        raise ValueError(f"stretch {rule!r} needs a positive number that float32 holds: {name}:4")

    original = 0 if placed_length in (0, train_length) else train_length
    rotation, factor, ntk = _halves(name, value, length, train_length, original)
    if half == "bias":
        rotation = None
    if half == "rotation":
        factor = 1.0
    layers = tuple(
        tuple(_stretched_heads(heads, rotation, factor, ntk) for heads in layer)
        for layer in scheme.layers
    )
    grown = name != "dynamic" or length > train_length
    if layers == scheme.layers and grown:
        raise ValueError(f"stretch {rule!r} changes nothing in this scheme")
    return dataclasses.replace(scheme, layers=layers)


def rotation_dropped(scheme: Scheme) -> Scheme:
    """Returns the scheme without its rotations; ValueError if it has none."""
    layers = tuple(
        tuple(dataclasses.replace(heads, rotation=None) for heads in layer)
        for layer in scheme.layers
    )
    if layers == scheme.layers:
        raise ValueError(f"{unparse(scheme)!r} has no rotation that could be dropped")
    return dataclasses.replace(scheme, layers=layers)


def _halves(name: str, value: float, length: int, train_length: int, original: int):
    """Returns the RoPE scaling, the factor of the biases, and whether they use the NTK form."""
    if name in ("yarn", "llama3"):
        return _FACTORED[name](factor=value, original=original), value, False
    if name in _FACTORED:
        return _FACTORED[name](factor=value), value, name == "ntk"
    if name == "dynamic":
        factor = max(length / train_length, 1.0)
        return DynamicNtk(factor=value, length=length, original=original), factor, False
    if name == "abf":
        return BaseChange(value), 1.0, False
    return None, value, False


def _stretched_heads(
    heads: HeadGroup, rotation: RopeScaling | None, factor: float, ntk: bool
) -> HeadGroup:
    changed: dict[str, Any] = {}
    if rotation is not None and heads.rotation is not None:
        changed["rotation"] = heads.rotation.stretched(rotation)
    if factor != 1 and heads.bias is not None:
        changed["bias"] = heads.bias.stretched(factor, ntk)
    if factor != 1 and heads.temperature is not None:
        changed["temperature"] = heads.temperature.stretched(factor)
    return dataclasses.replace(heads, **changed)
