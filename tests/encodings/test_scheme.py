"""The scheme language, and how a scheme lies on heads and layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from support import oracles
import pytest

from posenc_jax.encodings import (
    REGISTRY,
    Alibi,
    HeadGroup,
    LogN,
    Rope,
    Scheme,
    Sinusoidal,
    Temperature,
    parse,
    unparse,
)
from posenc_jax.encodings.scheme_presets import PRESETS

LINES = [
    "nope",
    "rope",
    "rope+alibi",
    "rope|alibi",
    "3*(rope+alibi)|1*nope~logn",
    "3*(rope+alibi),nope~logn",
    "2*(rope|alibi(slopes=match)),nope",
    "rope(base=match)",
    "rope(base=500.0,fraction=0.25,pairing=interleaved)+alibi~logn(clip=false)",
    "sinusoidal+alibi",
    "3*(rope+window),nope~logn",
    "rope+window(size=300)|alibi+window(size=L/4)",
    "learned(size=128)",
    "sinusoidal|alibi",
    "prope+log(c=2.0,t=10.0)~scale_invariant(t=20.0)",
    "rope+linear,rope+forget(start=match)",
    "rope(dim=6,stretch=yarn(factor=40.0,mscale=0.707,mscale_all_dim=0.707))~yarn_temperature(factor=40.0,mscale=0.707)",
    "rope(stretch=yarn(attention_factor=1.2))|rope(stretch=longrope(attention_factor=1.2))",
    "rope(stretch=longrope(short=[1.0,2.0],long=[2.0,4.0],length=500))",
    "prope(rounding=down)+alibi(max_exponent=6.0,factor=2.0,ntk=2.0)",
    "rope+capped(cap=3.0,factor=2.0)|slopes(floor=4.0,factor=2.0)|t5(factor=2.0)|fire(factor=1.5)",
]
SHAPE = {"num_layers": 2, "num_heads": 4, "head_dim": 16, "model_dim": 32, "train_length": 64}


@pytest.mark.parametrize("line", LINES)
def test_a_scheme_is_read_and_printed_back(line):
    assert unparse(parse(line)) == line
    assert hash(parse(line)) == hash(parse(f" {line} "))


@pytest.mark.parametrize("name", REGISTRY)
def test_every_registered_part_can_be_named_with_every_field_set(name):
    part = REGISTRY[name]()
    shown = {f.name: str(f.default) for f in dataclasses.fields(part)}
    settings = ",".join(
        f"{k}={v.lower() if v in ('True', 'False', 'None') else v}" for k, v in shown.items()
    )
    line = f"{name}({settings})" if settings else name
    before = "nope~" if issubclass(REGISTRY[name], Temperature) else ""
    assert parse(before + line) == parse(before + name)


def test_the_language_means_the_dataclasses():
    assert parse("rope(base=500)+alibi") == Scheme(((HeadGroup(Rope(base=500.0), Alibi()),),))
    coupled = (HeadGroup(Rope(), Alibi(), None, 3), HeadGroup(None, None, LogN(), 1))
    assert parse("3*(rope+alibi)|1*nope~logn") == Scheme((coupled,))
    one, two = (HeadGroup(Rope(), Alibi()),), (HeadGroup(None, None, LogN()),)
    assert parse("3*(rope+alibi),1*nope~logn") == Scheme((one, one, one, two))
    assert parse("sinusoidal") == Scheme(((HeadGroup(),),), Sinusoidal())


@pytest.mark.parametrize(
    ("line", "place", "what"),
    [
        ("ropee", 1, "did you mean 'rope'"),
        ("rope+albi", 6, "did you mean 'alibi'"),
        ("xyzzyq", 1, "known: adaptive_ssmax, alibi, "),
        ("rope+", 6, "expected an encoding"),
        ("rope rope", 6, "unexpected 'rope'"),
        ("rope(bas=3)", 6, "did you mean 'base'"),
        ("rope(fraction=true)", 15, "cannot be 'true'"),
        ("rope(base=1,base=2)", 19, "set twice"),
        ("alibi+alibi", 7, "a second bias"),
        ("rope~logn~logn", 10, "unexpected '~'"),
        ("logn", 1, "attach it with '~'"),
        ("rope~alibi", 6, "no temperature"),
        ("sinusoidal,learned", 12, "a second absolute"),
        ("0*rope", 1, "positive whole number"),
        ("(rope|alibi)|nope", 1, "split inside a head split"),
        ("rope)", 5, "unexpected ')'"),
        ("", 1, "expected an encoding"),
    ],
)
def test_a_mistake_is_pointed_at(line, place, what):
    with pytest.raises(ValueError, match="scheme ") as caught:
        parse(line)
    assert f"character {place}:" in str(caught.value)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


def test_heads_are_shared_out_in_order():
    layer = parse("3*(rope+alibi)|1*nope~logn").place(**SHAPE | {"num_heads": 8}).layers[0]
    assert [(g.first, g.stop) for g in layer.groups] == [(0, 6), (6, 8)]


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="4 heads do not divide into shares 2:1"):
        parse("2*rope|1*nope").place(**SHAPE)


def test_layers_cycle_through_the_pattern():
    placed = parse("2*rope,nope").place(**SHAPE | {"num_layers": 5})
    turns = [layer.groups[0].heads.rotation is not None for layer in placed.layers]
    assert turns == [True, True, False, True, True]


def test_a_scheme_of_more_layers_than_the_model_is_refused_with_both_numbers():
    message = r"^the scheme has 4 layers and the model 2: give the model at least 4 \(num_layers\), or the scheme fewer$"  # fmt: skip
    with pytest.raises(ValueError, match=message):
        parse(PRESETS["rnope-swa-4"]).place(**SHAPE)
    layers = parse(PRESETS["rnope-swa-4"]).place(**SHAPE | {"num_layers": 4}).layers
    assert [layer.window_N[0] for layer in layers] == [8, 8, 8, None]


def test_alibi_on_part_of_the_heads_uses_the_slopes_of_that_many_heads():
    bias = parse("rope|alibi").place(**SHAPE).layers[0].bias({}, jnp.array([[9]]), jnp.array([[8]]))
    np.testing.assert_allclose(bias[0, :, 0, 0], [0, 0, *-np.array(oracles.alibi_slopes(2))])


def test_only_the_heads_that_rotate_are_touched():
    layer = parse("rope|nope").place(**SHAPE).layers[0]
    x = jax.random.normal(jax.random.key(0), (1, 3, 4, 16))
    out = layer.rotate({}, x, jnp.array([[5, 6, 7]]), "query")
    np.testing.assert_array_equal(out[:, :, 2:], x[:, :, 2:])
    want = Rope().rotate({}, x, jnp.array([[5, 6, 7]]), layer.groups[0].context, "query")
    np.testing.assert_array_equal(out[:, :, :2], want[:, :, :2])


def test_temperature_reaches_its_own_heads_only():
    layer = parse("rope|nope~logn").place(**SHAPE).layers[0]
    tau = layer.temperature({}, jnp.array([[511]]), jnp.array([[0, 9]]))
    np.testing.assert_allclose(tau[0, :, 0, 0], [1, 1, 1.5, 1.5], rtol=1e-6)


def test_a_scheme_without_a_kind_of_part_returns_none_for_it():
    layer = parse("nope").place(**SHAPE).layers[0]
    assert layer.bias({}, jnp.zeros((1, 1), int), jnp.zeros((1, 1), int)) is None
    assert layer.temperature({}, jnp.zeros((1, 1), int), jnp.zeros((1, 1), int)) is None


def test_key_heads_are_shared_when_their_queries_turn_alike():
    layer = parse("rope|nope").place(**SHAPE).layers[0]
    assert layer.shares_keys(4)
    assert layer.shares_keys(2)
    assert not layer.shares_keys(1)


def test_the_longest_position_is_the_smallest_limit():
    assert parse("rope+alibi").place(**SHAPE).longest() is None
    assert parse("learned").place(**SHAPE).longest() == 64
    assert parse("learned(size=100)+alibi").place(**SHAPE).longest() == 100
