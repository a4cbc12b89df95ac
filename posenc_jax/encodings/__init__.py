"""Positional encodings as pure functions; a `Scheme` combines them. Needs jax and numpy only."""

from posenc_jax.encodings.absolute import Learned, Sinusoidal, sinusoid
from posenc_jax.encodings.base import (
    Absolute,
    Bias,
    Form,
    GatedBias,
    HeadContext,
    Rotation,
    Temperature,
)
from posenc_jax.encodings.bias import Alibi, alibi_slopes, distances, linear_bias, matched_slopes
from posenc_jax.encodings.forget_gate import Forget, cumulative_log_forget
from posenc_jax.encodings.grammar import parse, unparse
from posenc_jax.encodings.length_extension import extend_length
from posenc_jax.encodings.registry import REGISTRY, register
from posenc_jax.encodings.rotary import Prope, Rope, Xpos, angles, inverse_frequencies, rotate
from posenc_jax.encodings.scheme import HeadGroup, PlacedLayer, PlacedScheme, Scheme
from posenc_jax.encodings.temperature import LogN, log_n
from posenc_jax.encodings.window import Window

__all__ = [
    "REGISTRY",
    "Absolute",
    "Alibi",
    "Bias",
    "Forget",
    "Form",
    "GatedBias",
    "HeadContext",
    "HeadGroup",
    "Learned",
    "LogN",
    "PlacedLayer",
    "PlacedScheme",
    "Prope",
    "Rope",
    "Rotation",
    "Scheme",
    "Sinusoidal",
    "Temperature",
    "Window",
    "Xpos",
    "alibi_slopes",
    "angles",
    "cumulative_log_forget",
    "distances",
    "extend_length",
    "inverse_frequencies",
    "linear_bias",
    "log_n",
    "matched_slopes",
    "parse",
    "register",
    "rotate",
    "sinusoid",
    "unparse",
]
