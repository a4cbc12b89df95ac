"""The scheme grammar: text to scheme and back, and errors that point at the mistake."""

import dataclasses

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
