"""Multiples of the training length, whole and shares of it."""

import pytest
from posenc_jax.evaluation.lengths import check_multiples, parse_multiples, tokens_of


def test_multiples_are_whole_numbers_fractions_and_decimals():
    found = parse_multiples(["1/4", "0.5", "1", "2.0", "16"])
    assert found == (0.25, 0.5, 1, 2, 16)
    assert [f"E1/{k}" for k in found] == ["E1/0.25", "E1/0.5", "E1/1", "E1/2", "E1/16"]


@pytest.mark.parametrize(
    "texts", [[], ["0"], ["-1"], ["x"], ["1/0"], ["1/4", "0.25"], ["nan"], ["inf"]], ids=str
)
def test_other_multiples_are_refused(texts):
    with pytest.raises(ValueError, match="--lengths must be multiples of the training length"):
        parse_multiples(texts)


def test_a_share_is_a_whole_number_of_tokens():
    assert tokens_of(0.29, 100) == 29 != int(0.29 * 100)
    assert tokens_of(parse_multiples(["1/3"])[0], 768) == 256
    check_multiples((0.25, 1, 1.5), 8)
    with pytest.raises(ValueError, match=r"--lengths=0\.3 asks for 2\.4 tokens"):
        check_multiples((1, 0.3), 8)
