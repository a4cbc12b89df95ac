"""RoPE settings of a config.json (`rope_parameters`, `rope_scaling`) as our rotations, and back."""

import dataclasses
from typing import Any

from posenc_jax.encodings import Prope, Rope
from posenc_jax.encodings.base import MATCH, Rotation
from posenc_jax.encodings.rope_scaling import (
    DynamicNtk,
    Llama3,
    LongRope,
    PositionInterpolation,
    RopeScaling,
    Yarn,
)
from posenc_jax.interop.json_settings import JsonSettings


@dataclasses.dataclass(frozen=True)
class RotaryShape:
    """What a model says about its rotation outside of its RoPE settings.

    Attributes:
      head_dim: H. length: `max_position_embeddings`, tokens. base, fraction: where the settings
        have none. pairing: as in `Rope`. original: `original_max_position_embeddings` of the model;
        0: none. longest: the longest sequence that will be read, which decides the frequencies of
        "dynamic" and the list of "longrope"; 0: no longer than the original length.
    """

    head_dim: int
    length: int
    base: float = 10_000.0
    fraction: float = 1.0
    pairing: str = "half"
    original: int = 0
    longest: int = 0


def rotation(s: JsonSettings | None, shape: RotaryShape) -> Rotation:
    """Returns the rotation of one RoPE object; None: the model's own base without scaling.

    Raises:
      ValueError: an unknown type or setting, or an odd number of rotary dims.
    """
    s = s or JsonSettings({}, "config.json, rope_parameters")
    known = dict.fromkeys(
        ("default", "linear", "dynamic", "yarn", "llama3", "longrope", "su", "proportional")
    )
    known |= {name: name for name in known} | {"su": "longrope"}
    kind = s.word("rope_type", known, s.word("type", known, "default"))
    base, fraction = (
        s.number("rope_theta", shape.base),
        s.number("partial_rotary_factor", shape.fraction),
    )
    if kind == "proportional":
        s.only(factor=1.0)
        s.finish()
        return Prope(kept=fraction, rounding="down", base=base, pairing=shape.pairing)
    dim = int(shape.head_dim * fraction)
    if dim % 2:
        raise ValueError(f"{s.where}: {dim} rotary dims of {shape.head_dim} are odd")
    stretch = None if kind == "default" else _SCALINGS[kind](s, shape)
    s.finish()
    dim = 0 if dim == shape.head_dim else dim
    return Rope(base=base, dim=dim, pairing=shape.pairing, stretch=stretch)


def _original(s: JsonSettings, shape: RotaryShape) -> int:
    inside = s.whole("original_max_position_embeddings", shape.length)
    return shape.original or inside


def _linear(s, shape) -> RopeScaling:
    return PositionInterpolation(s.number("factor"))


def _dynamic(s, shape) -> RopeScaling:
    s.only(original_max_position_embeddings=shape.length)
    return DynamicNtk(s.number("factor"), length=shape.longest, original=shape.length)


def _yarn(s, shape) -> RopeScaling:
    original = _original(s, shape)
    amplitude = {"attention_factor": s.number("attention_factor", 0.0)}
    given = {name: s.number(name, 0.0) for name in ("mscale", "mscale_all_dim")}
    if not amplitude["attention_factor"] and all(given.values()):
        amplitude = given  # one given alone is ignored, as in transformers
    return Yarn(
        factor=s.number("factor", shape.length / original),
        beta_fast=s.number("beta_fast", 0.0) or 32.0,
        beta_slow=s.number("beta_slow", 0.0) or 1.0,
        truncate=s.flag("truncate", True),
        original=original,
        **amplitude,
    )


def _llama3(s, shape) -> RopeScaling:
    return Llama3(
        factor=s.number("factor"),
        low=s.number("low_freq_factor"),
        high=s.number("high_freq_factor"),
        original=_original(s, shape),
    )


def _longrope(s, shape) -> RopeScaling:
    original = _original(s, shape)
    short, long = (
        tuple(map(float, s.items(f"{name}_factor", (int, float)))) for name in ("short", "long")
    )
    return LongRope(
        s.number("factor", shape.length / original),
        short,
        long,
        length=shape.longest,
        original=original,
        attention_factor=s.number("attention_factor", 0.0),
    )


_SCALINGS = {
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}


def rope_parameters(part: Rotation | None, head_dim: int) -> dict:
    """Returns the RoPE object of a rotation; ValueError for one that transformers does not have."""
    if isinstance(part, Prope) and part.rounding == "down":
        return {
            "rope_type": "proportional",
            "rope_theta": part.base,
            "partial_rotary_factor": part.kept,
        }
    if part is None:
        raise ValueError("needs a rotation on every layer")
    if not isinstance(part, Rope):
        raise ValueError(f"transformers has no {type(part).__name__.lower()}")
    plain: dict[str, Any] = {"rope_theta": part.base}
    if part.dim:
        plain["partial_rotary_factor"] = share_of(part.dim, head_dim)
    stretch = part.stretch
    if stretch is None:
        return {"rope_type": "default"} | plain
    original = {"original_max_position_embeddings": getattr(stretch, "original", 0)}
    match stretch:
        case PositionInterpolation():
            own = {"rope_type": "linear", "factor": stretch.factor}
        case DynamicNtk():
            own = {"rope_type": "dynamic", "factor": stretch.factor}
        case Yarn():
            own = {
                "rope_type": "yarn",
                "factor": stretch.factor,
                "beta_fast": stretch.beta_fast,
                "beta_slow": stretch.beta_slow,
                "truncate": stretch.truncate,
                **original,
            }
            if stretch.attention_factor:
                own["attention_factor"] = stretch.attention_factor
            elif stretch.mscale_all_dim:
                own |= {"mscale": stretch.mscale, "mscale_all_dim": stretch.mscale_all_dim}
        case Llama3():
            own = {
                "rope_type": "llama3",
                "factor": stretch.factor,
                "low_freq_factor": stretch.low,
                "high_freq_factor": stretch.high,
                **original,
            }
        case LongRope():
            own = {
                "rope_type": "longrope",
                "factor": stretch.factor,
                "short_factor": list(stretch.short),
                "long_factor": list(stretch.long),
                **original,
            }
            if stretch.attention_factor:
                own["attention_factor"] = stretch.attention_factor
        case _:
            raise ValueError(f"transformers has no RoPE scaling {type(stretch).__name__}")
    return own | plain


def share_of(dim: int, head_dim: int) -> float:
    """Returns a share of the head dim that is rounded down to `dim`."""
    share = dim / head_dim
    return share if int(head_dim * share) == dim else (dim + 0.5) / head_dim


def canonical_rotation(part: Rotation | None, head_dim: int, length: int) -> Rotation | None:
    """Returns an equal rotation with every number written out, so that two can be compared.

    The longest sequence that "dynamic" and LongRoPE were placed for is left out.
    """
    if isinstance(part, Rope | Prope) and part.base == MATCH:
        part = dataclasses.replace(part, base=2.4 * length)
    if not isinstance(part, Rope):
        return part
    dim = part.dim or int(head_dim * part.fraction) // 2 * 2
    stretch = part.stretch
    if isinstance(stretch, Yarn | DynamicNtk | Llama3 | LongRope):
        stretch = dataclasses.replace(stretch, original=stretch.original or length)
    if isinstance(stretch, DynamicNtk | LongRope):
        stretch = dataclasses.replace(stretch, length=0)
    dim = 0 if dim == head_dim else dim
    return dataclasses.replace(part, fraction=1.0, dim=dim, stretch=stretch)
