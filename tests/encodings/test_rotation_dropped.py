"""The rule rotation.off: a trained scheme without its rotations."""

import pytest
from posenc_jax.encodings import extend_length, parse, unparse


def test_rotation_off_leaves_biases_temperatures_and_windows_alone():
    scheme = parse("3*(rope+alibi)|1*xpos~logn,prope")
    got = extend_length(scheme, "rotation.off", length=512, train_length=64)
    assert unparse(got) == "3*alibi|1*nope~logn,nope"


@pytest.mark.parametrize(("line", "rule", "message"), [
    ("alibi", "rotation.off", "no rotation that could be dropped"),
    ("rope", "bias.off", "unknown stretch 'off'"),
    ("rope", "rotation.off:2", "unknown stretch 'off'"),
])  # fmt: skip
def test_rotation_off_without_a_rotation_and_other_spellings_are_refused(line, rule, message):
    with pytest.raises(ValueError, match=message):
        extend_length(parse(line), rule, length=512, train_length=64)
