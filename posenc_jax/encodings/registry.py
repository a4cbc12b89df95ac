"""The registry of encodings: the name of each part in the scheme grammar, and its dataclass.

A new encoding is one dataclass and one line here. The scheme grammar, training, evaluation,
figures and the tests over all registered parts use this table.
"""

import re
import sys
from importlib.machinery import PathFinder

from posenc_jax.encodings.absolute import Learned, Sinusoidal
from posenc_jax.encodings.base import Part
from posenc_jax.encodings.bias import Alibi, Capped, Log, Power, Sandwich
from posenc_jax.encodings.feature_map import Linear
from posenc_jax.encodings.forget_gate import Forget
from posenc_jax.encodings.learned_bias import (
    T5,
    Annealed,
    Fire,
    KerpleLog,
    KerplePower,
    LearnedSlopes,
)
from posenc_jax.encodings.planar import Alibi2d, Axial, Mixed
from posenc_jax.encodings.pope import Pope
from posenc_jax.encodings.rope_scaling import ROPE_SCALINGS, RopeScaling
from posenc_jax.encodings.rotary import Prope, Rope, Xpos
from posenc_jax.encodings.scheme_presets import PRESETS
from posenc_jax.encodings.temperature import (
    AdaptiveSSMax,
    LogN,
    ScaleInvariant,
    SSMax,
    YarnTemperature,
)
from posenc_jax.encodings.window import Window

REGISTRY: dict[str, type[Part]] = {
    "sinusoidal": Sinusoidal,
    "learned": Learned,
    "rope": Rope,
    "prope": Prope,
    "xpos": Xpos,
    "pope": Pope,
    "axial": Axial,
    "mixed": Mixed,
    "alibi": Alibi,
    "alibi2d": Alibi2d,
    "capped": Capped,
    "log": Log,
    "power": Power,
    "sandwich": Sandwich,
    "slopes": LearnedSlopes,
    "annealed": Annealed,
    "forget": Forget,
    "kerple_log": KerpleLog,
    "kerple_power": KerplePower,
    "t5": T5,
    "fire": Fire,
    "logn": LogN,
    "ssmax": SSMax,
    "adaptive_ssmax": AdaptiveSSMax,
    "yarn_temperature": YarnTemperature,
    "scale_invariant": ScaleInvariant,
    "linear": Linear,
    "window": Window,
}


_PLUGINS: dict[
    str, str
] = {}  # the module that registered a part from outside this package, by name; "": no module


def register(name: str, part: type[Part]) -> None:
    """Registers a part from outside this package; ValueError if another part or a preset has the
    name.

    A run whose scheme names it keeps the name of the calling module; see `plugin_modules`.
    """
    if name in PRESETS:
        raise ValueError(
            f"{name!r} is the name of a preset: {PRESETS[name]}; choose another name for the "
            "encoding"
        )
    if REGISTRY.setdefault(name, part) is not part or name == "nope":
        raise ValueError(f"encoding {name!r} is already registered")
    module = sys._getframe(1).f_globals["__name__"]
    if not module.startswith("posenc_jax."):
        found = module != "__main__" and PathFinder.find_spec(module.partition(".")[0])
        _PLUGINS.setdefault(name, module if found else "")


def plugin_modules(line: str) -> tuple[str, ...]:
    """Returns the modules outside this package that registered the parts of a scheme's line,
    sorted.

    "" stands for a file that cannot be imported by a name.
    """
    return tuple(sorted({_PLUGINS[name] for name in re.findall(r"\w+", line) if name in _PLUGINS}))


def registered_name(part: Part | RopeScaling) -> str:
    """Returns the registered name of a part or a RoPE scaling; ValueError if it has none."""
    name = display_name(part)
    if name not in REGISTRY | ROPE_SCALINGS:
        raise ValueError(f"{name} is not registered: call encodings.register(name, part)")
    return name


def display_name(part: Part | RopeScaling) -> str:
    """Returns the registered name of a part, or the name of its class."""
    names = {kind: name for name, kind in (REGISTRY | ROPE_SCALINGS).items()}
    return names.get(type(part), type(part).__name__)
