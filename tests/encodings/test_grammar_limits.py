"""Scheme lines of absurd size: one short line, at once."""

import time

import pytest
from posenc_jax.encodings import parse

from support import schemes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(" * 10_000 + "rope" + ")" * 10_000, "more than 20 brackets inside each other"),
        ("(" * 10_000, "more than 20 brackets inside each other"),
        ("rope(" * 10_000, "has no setting 'rope'"),
        ("9" * 25 + "*rope", "a positive whole number below 10000, not 9999999999999999999999999"),
        ("9" * 10_000 + "*rope", "a positive whole number below 10000, not 999"),
        ("100000000*rope", "a positive whole number below 10000, not 100000000"),
        (",".join(["9999*rope"] * 10_000), "more than 9,999 layers"),
        (",".join(["rope"] * 10_000), "more than 9,999 layers"),
        ("rope(base=" + "9" * 10_000 + ")", "rope: base must be"),
        ("window(size=" + "9" * 10_000 + ")", "window: size"),
        ("x" * 50_000, "unknown encoding 'xxx"),
        ("rope(" + "x" * 50_000 + "=1)", "rope has no setting 'xxx"),
        ("rope+" * 1_000 + "rope", "a second rotation on the same heads"),
        ("|".join(["rope"] * 10_000), "heads do not divide into shares 1:1"),
        ("rope" * 30_000, "a scheme of 120,000 characters; there may be 100,000"),
        ("sandwich(dim=16000000)", "at most 4096"),
        ("fire(width=16000000)", "at most 4096"),
    ],
)
def test_a_line_of_absurd_size_is_refused_in_one_short_line(text, said):
    start = time.process_time()
    with pytest.raises(ValueError, match=r"scheme|heads|dim|width|base|size") as caught:
        schemes.placed(text)
    message = str(caught.value)
    assert said in message
    assert len(message.splitlines()) == 1
    assert len(message) < 800  # a list of all known names is about 600
    assert time.process_time() - start < 5


def test_a_model_of_a_hundred_million_layers_is_refused():
    with pytest.raises(ValueError, match="100,000,000 layers: a model may have 9,999"):
        schemes.placed("rope", num_layers=100_000_000)


def test_the_largest_scheme_is_placed_at_once():
    start = time.process_time()
    assert len(schemes.placed("9998*(rope+alibi),nope").layers) == 9_999
    assert time.process_time() - start < 20


@pytest.mark.parametrize("text", ["(" * 20 + "rope" + ")" * 20, "((rope|(alibi)))"])
def test_brackets_that_a_person_writes_are_read(text):
    assert parse(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nope~logn(clip=False)", "clip must be true or false, not 'False': write clip=false"),
        ("nope~logn(clip=TRUE)", "clip must be true or false, not 'TRUE': write clip=true"),
        ("nope~logn(clip=0)", "clip must be true or false, not '0'"),
        ("pope(phases=off)", "phases must be true or false, not 'off'"),
    ],
)
def test_the_spelling_of_a_truth_value_is_said(text, said):
    with pytest.raises(ValueError, match=said):
        parse(text)
