"""What a task hands out, and the randomness that it is made from: functions of (task, split, seed, index)."""

import dataclasses
import hashlib

import numpy as np

from posenc_jax.data.packing import Document

SPLITS = ("train", "dev", "test")
_TENTHS = ("train",) * 8 + ("dev", "test")


@dataclasses.dataclass(frozen=True)
class Answer:
    """tokens[start:stop] of an instance, predicted from positions start-1 ... stop-2.

    distance: tokens from the first answer token in the needle to the position that must predict it.
    depth: place of the needle in the context, 0 at its beginning and below 1. chance: how often the best
    policy is right that sees every token before the answer but binds no value to its key; 1 where
    nothing else is left, so that the answer is given away. kind: what was asked, where a task asks in
    several ways ("FIRST" or "LAST" of R8); empty otherwise.
    """

    start: int
    stop: int
    distance: int
    depth: float
    chance: float
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class Instance:
    """One retrieval document and what is asked in it."""

    tokens: np.ndarray
    answers: tuple[Answer, ...]

    @property
    def scored(self) -> tuple[Answer, ...]:
        """The answers that are not given away."""
        return tuple(answer for answer in self.answers if answer.chance < 1)

    def document(self, answer_weight: float = 1.0) -> Document:
        """The instance for packing: `answer_weight` on its answers, 0 elsewhere."""
        weights = np.zeros(len(self.tokens), np.float32)
        for answer in self.answers:
            weights[answer.start : answer.stop] = answer_weight
        return Document(self.tokens, weights)


def key_of(*parts: str | int) -> int:
    """The 128-bit Philox key that stands for the parts."""
    return int.from_bytes(
        hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:16], "little"
    )


def generator_of(task: str, split: str, seed: int, index: int) -> np.random.Generator:
    """The generator of one instance; ValueError for an unknown split."""
    check_split(split)
    return np.random.Generator(np.random.Philox(key=key_of(task, split, seed, index)))


def check_split(split: str) -> None:
    """Raises ValueError for a split that there is not."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")


def split_of(code: bytes) -> str:
    """The split that a key belongs to, by hash: 80 % train, 10 % dev, 10 % test."""
    return _TENTHS[hashlib.sha256(code).digest()[0] % 10]


def endless(generator: np.random.Generator, count: int) -> list[np.random.Generator]:
    """`count` generators of their own, so that how much is read of one changes nothing in another."""
    keys = generator.integers(0, 2**63, count)
    return [np.random.Generator(np.random.Philox(key=int(key))) for key in keys]


def symbols(generator: np.random.Generator, count: int, alphabet: int) -> np.ndarray:
    """The first `count` of an endless string over 0 ... alphabet-1; a longer one begins with a shorter."""
    return (generator.random(count) * alphabet).astype(np.int64)


def gap_lengths(spare: int, needles: int, cuts: np.ndarray, rounding: np.ndarray) -> np.ndarray:
    """Uniform spacings of `spare` tokens into needles+1 gaps; none shrinks when `spare` grows.

    Breaks a stick: of what remains, a gap takes the smallest of the remaining uniform cuts. With a
    fixed rounding offset the taken and the remaining part both grow with the whole.
    """
    gaps = np.empty(needles + 1, np.int64)
    remaining = spare
    for gap, (cut, offset) in enumerate(
        zip(cuts[:needles].tolist(), rounding.tolist(), strict=False)
    ):
        share = 1 - (1 - cut) ** (1 / (needles - gap))
        gaps[gap] = int(share * remaining + offset)
        remaining -= int(gaps[gap])
    gaps[needles] = remaining
    return gaps
