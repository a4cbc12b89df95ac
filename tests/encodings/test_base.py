"""What every encoding refuses when it is placed."""

import dataclasses

import pytest
from posenc_jax.encodings import Alibi, HeadContext, Learned, Rope, Sinusoidal

PLACE = HeadContext(heads=4, num_heads=4, head_dim=16, model_dim=32, train_length=64)


@pytest.mark.parametrize(
    ("part", "place", "message"),
    [
        (Rope(), {"head_dim": 7}, "head dim 7 is odd"),
        (Rope(fraction=1.5), {}, "fraction"),
        (Rope(fraction=0.05), {}, "leaves no pair"),
        (Rope(base=-1.0), {}, "base"),
        (Rope(base=float("nan")), {}, "base"),
        (Rope(base="matched"), {}, "base"),
        (Rope(pairing="both"), {}, "pairing"),
        (Alibi(slopes="steep"), {}, "slopes"),
        (Sinusoidal(), {"model_dim": 33}, "odd"),
        (Learned(size=10), {}, "shorter than the training length"),
    ],
)
def test_a_part_that_cannot_stand_where_it_is_put_says_why(part, place, message):
    with pytest.raises(ValueError, match=message):
        part.check(dataclasses.replace(PLACE, **place))
