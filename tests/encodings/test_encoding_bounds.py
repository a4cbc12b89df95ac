"""Numbers that a part cannot compute with are refused where a scheme is placed, in one line that names the
field.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.encodings import (
    REGISTRY,
    Absolute,
    Alibi,
    Bias,
    Form,
    HeadGroup,
    Rope,
    Rotation,
    Scheme,
    Temperature,
    extend_length,
    parse,
)
from posenc_jax.encodings.rope_scaling import ROPE_SCALINGS, LongRope, Yarn

SHAPE = {"num_layers": 1, "num_heads": 4, "head_dim": 16, "model_dim": 32, "train_length": 64}
NAMES = [*REGISTRY, *ROPE_SCALINGS]
NEVER = [
    math.nan,
    math.inf,
    -math.inf,
    1e300,
    1e39,
    1e31,
    1e-31,
    -1e300,
    10**400,
    "much",
    None,
    True,
]


def scheme_of(part):
    """A scheme that carries the part (or stretch) and nothing else."""
    if isinstance(part, tuple(ROPE_SCALINGS.values())):
        part = Rope(stretch=part)
    if isinstance(part, Absolute):
        return Scheme(absolute=part)
    kinds = {Rotation: "rotation", Bias: "bias", Temperature: "temperature", Form: "form"}
    kind = next(kind for base, kind in kinds.items() if isinstance(part, base))
    return Scheme(((HeadGroup(**{kind: part}),),))


def numeric(name):
    """The fields of a part or stretch that hold numbers, lists of them too."""
    part = (REGISTRY | ROPE_SCALINGS)[name]()
    fields = dataclasses.fields(part)
    return [
        f
        for f in fields
        if isinstance(f.default, int | float | tuple) and not isinstance(f.default, bool)
    ]


FIELDS = [(name, field.name) for name in NAMES for field in numeric(name)]


def with_value(name, field, value):
    part = (REGISTRY | ROPE_SCALINGS)[name]()
    if isinstance(getattr(part, field), tuple):
        value = (value,) * 8
    return dataclasses.replace(part, **{field: value})


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_a_number_that_float32_cannot_hold_is_refused_by_name(name, field):
    for value in NEVER:
        if (value, field, name) in {("much", "base", n) for n in ("rope", "prope", "pope", "xpos")}:
            continue  # a word may stand there; an unknown one is refused by the part
        with pytest.raises(ValueError, match=rf"^{name}: {field} must be ") as caught:
            scheme_of(with_value(name, field, value)).place(**SHAPE)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 150


def values(scheme):
    """All numbers that a placed scheme of one part gives at positions near and far."""
    far = min(scheme.longest() or 100_001, 100_001) - 1
    layer, pos = scheme.layers[0], jnp.minimum(jnp.array([[0, 1, 5, 63, 400, 100_000]]), far)
    params = layer.init(jax.random.key(0))
    x = jnp.ones((1, 6, 4, 16))
    out = [layer.rotate(params, x, pos, "query"), layer.rotate(params, x, pos, "key")]
    out += [layer.bias(params, pos, pos), layer.temperature(params, pos, pos)]
    out.append(scheme.embed(scheme.init_absolute(jax.random.key(1)), pos[:, :4]))
    return [array for array in out if array is not None]


FLOATS = [(n, f.name) for n in NAMES for f in numeric(n) if not isinstance(f.default, int)]


@pytest.mark.default_cases(20)
@pytest.mark.parametrize(("name", "field"), FLOATS)
def test_the_largest_and_least_numbers_are_refused_or_give_finite_values(name, field):
    for value in (1e30, 1e-30):
        refusal, scheme = "", scheme_of(with_value(name, field, value))
        try:
            placed = scheme.place(**SHAPE)
        except ValueError as refused:
            refusal = str(refused)
        if refusal:
            assert refusal.startswith((f"{name}: ", "rope: "))
        else:
            assert all(np.isfinite(array).all() for array in values(placed)), value


@pytest.mark.parametrize("field", ["short", "long"])
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_longrope_takes_no_divisor_of_zero_or_below(field, value):
    factors = (1.0,) * 7 + (value,)
    with pytest.raises(
        ValueError, match=f"longrope: {field} must be a positive number, not {value}"
    ):
        scheme_of(LongRope(**{field: factors})).place(**SHAPE)


@pytest.mark.parametrize("number", ["1e300", "1e31", "1e-31", "1e999", "nan", "inf", "-4", "0"])
@pytest.mark.parametrize("rule", ["pi", "ntk", "yarn", "llama3", "dynamic", "abf", "slopes"])
def test_a_rule_takes_no_number_that_float32_cannot_hold(rule, number):
    with pytest.raises(ValueError, match="needs a positive number that float32 holds"):
        extend_length(parse("rope+alibi"), f"{rule}:{number}", length=256, train_length=64)


def test_factors_that_grow_over_several_readings_are_refused_in_the_end():
    scheme = parse("alibi")
    for _ in range(2):
        scheme = extend_length(scheme, "slopes:1e20", length=256, train_length=64)
    with pytest.raises(ValueError, match="alibi: factor must be 0 or a number of size"):
        scheme.place(**SHAPE)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("rope(dim=6,fraction=0.5)", "rope: dim=6 and fraction=0.5 both set the number of dims"),
        ("rope(dim=7)", "rope: dim must be an even number up to head dim 16, not 7"),
        ("rope(dim=18)", "rope: dim must be an even number up to head dim 16, not 18"),
        ("rope(dim=-2)", "rope: dim must be an even number up to head dim 16, not -2"),
        ("rope(base=1.0,stretch=yarn)", "yarn: needs a base above 1, not 1"),
        (
            "rope(stretch=yarn(attention_factor=1.2,mscale=0.7))",
            "yarn: attention_factor replaces mscale",
        ),
        (
            "rope(stretch=yarn(attention_factor=-1.0))",
            "yarn: attention_factor must be a positive number",
        ),
        (
            "rope(stretch=longrope(original=1))",
            "longrope: the original length must be at least 2 tokens, not 1",
        ),
        ("rope(stretch=dynamic(length=-5))", "dynamic.*: length must be a positive number, not -5"),
        ("prope(rounding=up)", "prope: rounding must be one of .*, not 'up'"),
        ("xpos(gamma=1e20)", r"xpos: gamma=1e\+20 is too large"),
        (
            "xpos(scale=0.9)",
            "xpos: scale=0.9 leaves float32 within the training length 64; take at least 1",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(line, words):
    with pytest.raises(ValueError, match=words) as caught:
        parse(line).place(**SHAPE)
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_are_numbers():
    placed = scheme_of(Alibi(factor=np.float32(2.0), max_exponent=np.int64(8))).place(**SHAPE)
    pos = jnp.arange(9)[None]
    want = parse("alibi(factor=2.0)").place(**SHAPE).layers[0].bias({}, pos, pos)
    np.testing.assert_array_equal(placed.layers[0].bias({}, pos, pos), want)
    scheme_of(Yarn(original=np.int32(64))).place(**SHAPE)


def test_a_count_that_would_fill_the_memory_is_refused():
    assert len(parse("9999*rope").layers) == 9999
    for count in (10_000, 10**12, 10**5000):
        with pytest.raises(ValueError, match="a count must be a positive whole number below 10000"):
            parse(f"{count}*rope" if count < 10**20 else "9" * 5001 + "*rope")
