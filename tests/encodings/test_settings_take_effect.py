"""Every setting of an encoding and of a scaling rule changes its output."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.encodings import REGISTRY, Absolute, HeadContext, Rotation, Temperature
from posenc_jax.encodings.base import TokenTemperature
from posenc_jax.encodings.rope_scaling import ROPE_SCALINGS, Yarn

PLACE = HeadContext(heads=4, num_heads=4, head_dim=16, model_dim=32, train_length=64)


WORDS = {
    "half": "interleaved",
    "interleaved": "half",
    "standard": "match",
    "match": "standard",
    "nearest": "down",
    "zero": "uniform",
}


GIVEN = {("prope", "rounding"): {"kept": 0.7}}  # of 8 pairs 5.6


POSITIONS = jnp.array([[0, 5, 63, 64, 400]])


def other(field):
    """Another legal value of a field."""
    if field.name == "stretch":
        return Yarn()
    if field.name in ("size", "width", "dim", "offset"):
        return {"size": 500, "width": 5, "dim": 6, "offset": 2}[field.name]
    if isinstance(field.default, bool):
        return not field.default
    if isinstance(field.default, str):
        return WORDS[field.default]
    return field.default * (0.5 if field.name in ("fraction", "kept") else 2)


def output(part):
    """What a part does to fixed inputs."""
    params = part.init(jax.random.key(0), PLACE)
    if isinstance(part, Absolute):
        return part.embed(params, POSITIONS[:, :3], PLACE), part.longest(PLACE)
    if isinstance(part, Rotation):
        x = jax.random.normal(jax.random.key(1), (1, 5, 4, 16))
        return part.rotate(params, x, POSITIONS, PLACE, "query"), None
    if isinstance(part, TokenTemperature):  # tokens at rest do not show all
        x = jax.random.normal(jax.random.key(1), (1, 5, 32))
        return part.of_tokens(params, x, POSITIONS, PLACE), None
    return part.temperature(params, POSITIONS, POSITIONS, PLACE), None


KINDS = (Absolute, Rotation, Temperature)  # biases: tests/encodings/test_bias.py


FIELDS = [
    (name, f.name)
    for name, part in REGISTRY.items()
    if issubclass(part, KINDS)
    for f in dataclasses.fields(part)
]


@pytest.mark.default_cases(8)
@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_every_setting_of_a_part_changes_it(name, field):
    part = REGISTRY[name](**GIVEN.get((name, field), {}))
    (chosen,) = (f for f in dataclasses.fields(part) if f.name == field)
    (a, limit_a), (b, limit_b) = (
        output(part),
        output(dataclasses.replace(part, **{field: other(chosen)})),
    )
    assert limit_a != limit_b or a.shape != b.shape or not np.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("name", ROPE_SCALINGS)
def test_every_setting_of_a_stretch_changes_it(name):
    freq_h = 10_000.0 ** (-np.arange(32) / 32)
    full = {
        "short": tuple(np.linspace(1, 2, 32)),
        "long": tuple(np.linspace(2, 4, 32)),
        "length": 5000,
    }
    part = ROPE_SCALINGS[name](
        **({k: v for k, v in full.items() if k in ROPE_SCALINGS[name].__dataclass_fields__})
    )
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if field.name == "length":
            changed = 1000 if name == "longrope" else 9000
        elif field.name == "short":
            continue  # serves up to the original length: tests/encodings/test_rope_scaling.py
        elif field.name in ("original", "attention_factor", "mscale_all_dim"):
            changed = {"original": 512, "attention_factor": 1.7, "mscale_all_dim": 0.7}[field.name]
        elif isinstance(value, bool):
            changed = not value
        elif isinstance(value, tuple):
            changed = tuple(2 * v for v in value)
        else:
            changed = value * 2
        rival = dataclasses.replace(part, **{field.name: changed})
        same = np.allclose(
            part.frequencies(freq_h, 10_000.0, 4096),
            rival.frequencies(freq_h, 10_000.0, 4096),
            rtol=1e-9,
        )
        assert not same or part.amplitude(4096) != rival.amplitude(4096), field.name
