"""Instances of tasks with their answers, and randomness as a function of (task, split, seed,
index).
"""

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
    depth: relative position of the needle in the context, in [0, 1). chance: accuracy of the best
    policy that sees all tokens before the answer but binds no value to its key; 1 if only one
    answer is possible.
    kind: the form of the question, for tasks with several ("FIRST" or "LAST" of R8); else empty.
    """

    start: int
    stop: int
    distance: int
    depth: float
    chance: float
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class Instance:
    """One retrieval document and its answers."""

    tokens: np.ndarray
    answers: tuple[Answer, ...]

    @property
    def scored(self) -> tuple[Answer, ...]:
        """The answers with a chance below 1."""
        return tuple(answer for answer in self.answers if answer.chance < 1)

    def document(self, answer_weight: float = 1.0) -> Document:
        """Returns the instance for packing: weight `answer_weight` on its answers, 0 elsewhere."""
        weights = np.zeros(len(self.tokens), np.float32)
        for answer in self.answers:
            weights[answer.start : answer.stop] = answer_weight
        return Document(self.tokens, weights)


def key_of(*parts: str | int) -> int:
    """Returns the 128-bit Philox key of the parts."""
    return int.from_bytes(
        hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:16], "little"
    )


def generator_of(task: str, split: str, seed: int, index: int) -> np.random.Generator:
    """Returns the generator of one instance; ValueError for an unknown split."""
    check_split(split)
    return np.random.Generator(np.random.Philox(key=key_of(task, split, seed, index)))


def check_split(split: str) -> None:
    """Raises ValueError for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")


def split_of(code: bytes) -> str:
    """Returns the split of a key, by hash: 80 % train, 10 % dev, 10 % test."""
    return _TENTHS[hashlib.sha256(code).digest()[0] % 10]


def endless(generator: np.random.Generator, count: int) -> list[np.random.Generator]:
    """Returns `count` independent generators: drawing more from one changes no other."""
    keys = generator.integers(0, 2**63, count)
    return [np.random.Generator(np.random.Philox(key=int(key))) for key in keys]


def symbols(generator: np.random.Generator, count: int, alphabet: int) -> np.ndarray:
    """Returns the first `count` symbols of an endless string over 0 ... alphabet-1."""
    return (generator.random(count) * alphabet).astype(np.int64)


def gap_lengths(spare: int, needles: int, cuts: np.ndarray, rounding: np.ndarray) -> np.ndarray:
    """Returns uniform spacings of `spare` tokens in needles+1 gaps; no gap shrinks when `spare`
    grows.

    Stick breaking: each gap is the smallest of the uniform cuts of the remaining stick. With fixed
    rounding offsets, both the gap and the remainder grow with the stick.
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
