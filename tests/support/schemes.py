"""The schemes that properties are asserted for: every registered part, alone and combined."""

import jax
import pytest
from posenc_jax.encodings import REGISTRY, Temperature, parse

COMBINATIONS = (
    "rope+alibi",
    "rope|alibi",
    "3*(rope+alibi)|1*nope~logn",
    "rope+alibi(slopes=match)|nope~logn(clip=false)",
    "rope(fraction=0.5,pairing=interleaved,stretch=yarn(factor=2.0))+alibi(factor=2.0)",
    "rope+alibi,nope~logn",
    "sinusoidal+t5|fire",
    "prope+log(c=2.0,t=10.0)~scale_invariant",
    "rope+forget(start=match)|nope~scale_invariant",
    "mixed|axial+alibi2d",
    "rope+linear,rope+annealed~yarn_temperature",
    "rope+window(size=5)|forget+window(size=12)~logn(clip=false)",
    "pope(start=uniform)+alibi&log~adaptive_ssmax|slopes&t5~scale_invariant",
)
ALONE = tuple(f"nope~{n}" if issubclass(p, Temperature) else n for n, p in REGISTRY.items())
ALL = ("nope", *ALONE, *COMBINATIONS)
SHAPE = {"num_heads": 4, "head_dim": 16, "model_dim": 32, "train_length": 64}


def placed(line, **shape):
    """The scheme in a model of this shape; defaults: SHAPE, and as many layers as the scheme has."""
    scheme = parse(line)
    return scheme.place(**SHAPE | {"num_layers": len(scheme.layers)} | shape)


def layer_of(line, **shape):
    """The scheme in its first layer."""
    return placed(line, **shape).layers[0]


def projected_from(layer, shape):
    """x_BTD, where a temperature of the layer is computed from tokens; None elsewhere."""
    if not layer.tempered_by_tokens:
        return None
    return jax.random.normal(jax.random.key(8), (*shape, layer.groups[0].context.model_dim))


def parts(line):
    """Every part of a scheme."""
    scheme = parse(line)
    inside = [part for layer in scheme.layers for heads in layer for part in heads.parts()]
    return inside + ([scheme.absolute] if scheme.absolute else [])


# One for each way that an encoding enters a model: the others are left to another tier.
FEW = (
    "rope",
    "alibi",
    "learned",
    "linear",
    "rope+forget(start=match)|nope~scale_invariant",
    "rope+alibi,nope~logn",
    "rope+window(size=5)|forget+window(size=12)~logn(clip=false)",
    "pope(start=uniform)+alibi&log~adaptive_ssmax|slopes&t5~scale_invariant",
)
# Of these the ones that a test of many seconds runs by default: float64 loops in tests of their own hold
# the rest.
FEWER = (
    "rope",
    "learned",
    "linear",
    "rope+forget(start=match)|nope~scale_invariant",
    "rope+alibi,nope~logn",
)
# An encoding that is not among them is new, and all its property tests run by default.
KNOWN = """
sinusoidal learned rope prope xpos pope axial mixed alibi alibi2d capped log power sandwich slopes
annealed forget kerple_log kerple_power t5 fire logn ssmax adaptive_ssmax yarn_temperature
scale_invariant linear window
"""
NEW = tuple(line for line in ALONE if line.removeprefix("nope~") not in KNOWN.split())
RELATIVE = tuple(line for line in ALL if all(part.relative for part in parts(line)))


def some(otherwise, lines=ALL, few=FEW):
    """The lines; all but FEW, and those of a new encoding, carry the mark `otherwise`.

    Of FEW those that a test leaves out of its own `few` are thorough.
    """

    def tier(line):
        if line in few or line in NEW:
            return ()
        return pytest.mark.thorough if line in FEW else otherwise

    return [pytest.param(line, marks=tier(line)) for line in lines]
