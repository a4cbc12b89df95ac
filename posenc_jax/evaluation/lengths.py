"""Evaluation lengths as multiples k of L, whole or shares such as 1/4, and their tokens."""

from collections.abc import Sequence
from fractions import Fraction

# Whole multiples are int, so that items and files are named "E1/2" and never "E1/2.0".
Multiple = int | float


def parse_multiples(texts: Sequence[str]) -> tuple[Multiple, ...]:
    """Returns the multiples that a list flag names: 4, 0.25 or 1/4.

    Raises:
      ValueError: no number, one that is not above 0, or one twice.
    """
    try:
        found = [Fraction(text) for text in texts]
    except (ValueError, ZeroDivisionError):
        found = []
    if not found or min(found) <= 0 or len(set(found)) < len(found):
        raise ValueError(
            "--lengths must be multiples of the training length, each once, such as 1/4,1,2; not "
            f"{','.join(texts)!r}"
        )
    return tuple(int(k) if k.denominator == 1 else float(k) for k in found)


def tokens_of(k: Multiple, train_length: int) -> int:
    """Returns k L as a number of tokens; `check_multiples` checks that it is whole."""
    return round(k * train_length)


def check_multiples(multiples: Sequence[Multiple], train_length: int) -> None:
    """Raises ValueError for a multiple that is not above 0, or whose k L is no number of tokens."""
    for k in multiples:
        tokens = k * train_length
        if not tokens > 0 or abs(tokens - round(tokens)) > 1e-6:
            raise ValueError(
                f"--lengths={k:g} asks for {tokens:g} tokens, {k:g} times the training length "
                f"{train_length}; it must be a whole number above 0"
            )
