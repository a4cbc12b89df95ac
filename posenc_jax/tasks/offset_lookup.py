"""Offset lookup (P3): predict the token exactly t back, which only positions can identify.

An instance is BOS, symbols, SEP, and questions of two tokens: a cue for an offset t, and the symbol
t tokens before the cue. Symbols are random ids of this task, so only the distance identifies the
right one. Instances depend on (split, seed, index); a longer one has more symbols in front and the
same offsets.
"""

import numpy as np

from posenc_jax.data.packing import Document, Example, pack
from posenc_jax.data.pipeline import ENDLESS
from posenc_jax.tasks.filler import SYMBOLS, Filler
from posenc_jax.tasks.instances import Answer, Instance, generator_of, key_of

OFFSETS = 8  # questions of every instance; fewer where L is below 64


def shortest_length(offsets: tuple[int, ...]) -> int:
    """Returns the fewest tokens in which every offset reaches a symbol in any order."""
    return 1 + max(offsets) + 2 * len(offsets)


def asked_offsets(train_length: int) -> tuple[int, ...]:
    """Returns the offsets of P3 at a training length; ValueError without room for them."""
    return spread_offsets(train_length, min(OFFSETS, train_length // 8))


def spread_offsets(train_length: int, count: int) -> tuple[int, ...]:
    """Returns `count` offsets, geometric from the nearest that all questions can reach, within L.

    The nearest is 2 * count: a cue that is asked last must look over all earlier questions.

    Raises:
      ValueError: L has no room for so many.
    """
    nearest, farthest = 2 * count, train_length - 2 * count - 1
    offsets = np.unique(np.geomspace(nearest, max(farthest, 1), count).round().astype(int))
    if farthest < nearest or len(offsets) < count:
        raise ValueError(f"a length of {train_length} has no room for {count} different offsets")
    return tuple(int(t) for t in offsets)


def offset_lookup(
    filler: Filler, *, split: str, seed: int, index: int, length: int, offsets: tuple[int, ...]
) -> Instance:
    """Returns an instance that asks every offset once, in random order.

    `Answer.distance` is t, from the symbol to the cue that must predict it.

    Args:
      filler: its key ids are the cues (the i-th for the i-th offset), its value ids the symbols.
      split, seed, index: identify the instance. length: tokens. offsets: tokens back, different,
        rising.

    Raises:
      ValueError: a length or an offset that does not fit.
    """
    _check(length, offsets)
    draws = generator_of("offset", split, seed, index)
    order = np.argsort(draws.random(SYMBOLS)[: len(offsets)])
    tokens, starts = _tokens(filler, length, offsets, order, draws)
    answers = tuple(
        Answer(
            start,
            start + 1,
            offsets[i],
            (start - 1 - offsets[i]) / length,
            _chance(tokens[: start - offsets[0]] - filler.values, offsets),
        )
        for i, start in zip(order.tolist(), starts.tolist(), strict=True)
    )
    return Instance(tokens, answers)


def _chance(reached_S: np.ndarray, offsets: tuple[int, ...]) -> float:
    """Returns the chance of an answer: the most frequent symbol from the nearest to the farthest
    offset.

    reached_S: symbols up to the nearest offset.
    """
    span = offsets[-1] - offsets[0] + 1
    return float(np.bincount(reached_S[-span:]).max() / span)


class OffsetWindows:
    """Endless training windows of one instance each, functions of (seed, split, index).

    As `posenc_jax.tasks.retrieval_windows.RetrievalWindows`: an item is a packed `Example` with
    weight `answer_weight` on each answer. Every window fills `length`.
    """

    def __init__(
        self,
        filler: Filler,
        *,
        offsets: tuple[int, ...],
        length: int,
        seed: int,
        split: str,
        answer_weight: float,
        pad: int,
    ):
        _check(length, offsets)
        self._filler, self._offsets, self._length, self._pad = filler, offsets, length, pad
        self._answer_weight, self._key = answer_weight, key_of("offset windows", split, seed)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Example:
        draws = np.random.Generator(np.random.Philox(key=self._key, counter=index << 64))
        order = np.argsort(draws.random(SYMBOLS)[: len(self._offsets)])
        tokens, starts = _tokens(self._filler, self._length, self._offsets, order, draws)
        weights = np.zeros(self._length, np.float32)
        weights[starts] = self._answer_weight
        return pack([Document(tokens, weights)], self._length, self._pad)


def _tokens(filler, length, offsets, order, draws) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens and the index of each answer, in the order of the questions."""
    count = len(offsets)
    end = length - 2 * count - 1  # index of SEP, after the symbols
    symbols = filler.values + draws.integers(0, SYMBOLS, end - 1)[::-1]  # from SEP backwards
    tokens = np.empty(length, np.int32)
    tokens[0], tokens[1:end], tokens[end] = filler.bos, symbols, filler.sep
    cues = end + 1 + 2 * np.arange(count)
    tokens[cues] = filler.keys + order
    tokens[cues + 1] = tokens[cues - np.asarray(offsets)[order]]
    return tokens, cues + 1


def _check(length: int, offsets: tuple[int, ...]) -> None:
    nearest = 2 * len(offsets)
    if not 1 <= len(offsets) <= SYMBOLS or list(offsets) != sorted(set(offsets)):
        raise ValueError(f"offsets must be 1 to {SYMBOLS} different numbers, rising; not {offsets}")
    if offsets[0] < nearest:
        raise ValueError(
            f"offset {offsets[0]} would end among {len(offsets)} questions; the nearest that "
            f"cannot is {nearest}"
        )
    if length < shortest_length(offsets):
        raise ValueError(
            f"offset {offsets[-1]} with {len(offsets)} questions needs a length of at least "
            f"{shortest_length(offsets)} tokens; {length} is too short"
        )
