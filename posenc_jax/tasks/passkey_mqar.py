"""Passkey (R1) and multi-query associative recall (R3) in filler text (docs/evaluation.md).

An instance depends on (task, split, seed, index). A longer one has the same needles in the same
order, with more of the same filler in every gap, so that accuracies at several lengths are
comparable.
"""

import functools

import numpy as np

from posenc_jax.data.tokenizers import Tokenizer
from posenc_jax.tasks.filler import SYMBOLS, Filler
from posenc_jax.tasks.instances import (
    Answer,
    Instance,
    check_split,
    gap_lengths,
    generator_of,
    split_of,
)

_DIGITS = 5
_NUMBER_CHANCE = 10.0**-_DIGITS  # R1: every digit has to be right
_MQAR_DRAWS = 6  # rows of draws: keys, values, query order, gap sizes, their rounding, passages


def shortest_length(task: str, filler: Filler, pairs: int = 1, askings: int = 1) -> int:
    """Returns the tokens of a passkey or mqar instance without filler."""
    if task == "passkey":
        needle = len(filler.space) + len(filler.cue) + _DIGITS + len(filler.stop)
        return 1 + needle + 1 + len(filler.cue) + _DIGITS
    if task != "mqar":
        raise ValueError(f"this module makes passkey and mqar, not {task!r}")
    return 1 + 2 * pairs + 1 + 2 * pairs * askings


def passkey(
    tokenizer: Tokenizer, filler: Filler, *, split: str, seed: int, index: int, length: int
) -> Instance:
    """Returns R1: BOS, filler, ` key=12345.`, filler, SEP, `key=`, 12345; the answer is those last
    digits.

    The five digits differ between splits; the needle's depth is in the decile index % 10.
    Raises ValueError if the length is below the task's minimum.
    """
    _check("passkey", tokenizer, filler, length, 1)
    generator = generator_of("passkey", split, seed, index)
    return hidden_passkey(filler, generator, split, length, index % 10)


def mqar(
    tokenizer: Tokenizer,
    filler: Filler,
    *,
    split: str,
    seed: int,
    index: int,
    length: int,
    pairs: int,
) -> Instance:
    """Returns R3: BOS, key-value pairs at uniform positions in filler, SEP, every pair in random
    order.

    Keys and values are one id each, all different; an answer is the value after a repeated key.
    Raises ValueError if the length is below the minimum for so many pairs, or these exceed the
    alphabet.
    """
    check_pairs(pairs)
    _check("mqar", tokenizer, filler, length, pairs)
    return recalled_pairs(filler, generator_of("mqar", split, seed, index), length, pairs)


def check_pairs(pairs: int) -> None:
    """Raises ValueError for more pairs than the alphabet has, or none."""
    if not 1 <= pairs <= SYMBOLS:
        raise ValueError(f"mqar takes 1 to {SYMBOLS} pairs, one key each; not {pairs}")


def hidden_passkey(
    filler: Filler, generator: np.random.Generator, split: str, length: int, decile: int | None
) -> Instance:
    """Returns R1 from a generator; the depth is uniform in the decile, or overall for None."""
    draws = generator.random(4)
    share = float(draws[0] if decile is None else decile + draws[0])
    share = share if decile is None else share / 10
    tokens, first = _passkey_tokens(filler, split, length, share, draws[1:])
    start = length - _DIGITS
    return Instance(tokens, (Answer(start, length, start - 1 - first, share, _NUMBER_CHANCE),))


def recalled_pairs(
    filler: Filler, generator: np.random.Generator, length: int, pairs: int, askings: int = 1
) -> Instance:
    """Returns R3 from a generator; training may ask every pair several times.

    Each round asks all pairs in a new random order. With one order, later answers would be a fixed
    number of tokens back and could be copied without the key.
    """
    draws = generator.random((_MQAR_DRAWS, SYMBOLS + 1))
    orders = [draws[2, :pairs], *generator.random((askings - 1, SYMBOLS + 1))[:, :pairs]]
    query_pairs = np.concatenate([np.argsort(order) for order in orders])
    tokens, needles, starts = _mqar_tokens(filler, length, query_pairs, draws)
    context = length - 2 * len(query_pairs) - 1
    answers, nearest = [], needles + 1
    for turn, (pair, start) in enumerate(zip(query_pairs.tolist(), starts.tolist(), strict=True)):
        distance = start - 1 - int(nearest[pair])
        chance = _pair_chance(turn % pairs, pairs)
        answers.append(Answer(start, start + 1, distance, int(needles[pair]) / context, chance))
        nearest[pair] = start  # the answer is the pair's nearest copy from here on
    return Instance(tokens, tuple(answers))


def _pair_chance(asked: int, pairs: int) -> float:
    """Returns the chance of R3's answer after `asked` others of its round: a uniform guess of the
    rest.

    All values differ and all are asked, so the last answer of a round has chance 1. With a single
    pair the chance is that of the alphabet.
    """
    return 1 / (pairs - asked) if pairs > 1 else 1 / SYMBOLS


def _passkey_tokens(
    filler: Filler, split: str, length: int, share: float, draws: np.ndarray
) -> tuple[np.ndarray, int]:
    """Returns the tokens, and the index of the first digit in the needle."""
    numbers = _numbers(split)
    number = numbers[int(draws[0] * len(numbers))]
    answer = filler.digits[number // 10 ** np.arange(_DIGITS - 1, -1, -1) % 10]
    needle = np.concatenate([filler.space, filler.cue, answer, filler.stop])
    spare = length - shortest_length("passkey", filler)
    before = int(share * spare)
    starts = (draws[1:3] * len(filler)).astype(np.int64)
    text = filler.passages(starts, np.array([before, spare - before]))
    parts = [[filler.bos], text[:before], needle, text[before:], [filler.sep], filler.cue, answer]
    return np.concatenate(parts, dtype=np.int32), 1 + before + len(filler.space) + len(filler.cue)


def _mqar_tokens(
    filler: Filler, length: int, query_pairs: np.ndarray, draws: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the tokens, each pair's key index, and each answer's index, as asked."""
    pairs = int(query_pairs.max()) + 1
    keys = filler.keys + np.argsort(draws[0, :SYMBOLS])[:pairs]
    values = filler.values + np.argsort(draws[1, :SYMBOLS])[:pairs]
    spare = length - shortest_length("mqar", filler, pairs, len(query_pairs) // pairs)
    gaps = gap_lengths(spare, pairs, draws[3], draws[4])
    starts = (draws[5, : pairs + 1] * len(filler)).astype(np.int64)
    needles = 1 + np.cumsum(gaps[:-1]) + 2 * np.arange(pairs)
    answers = length - 2 * len(query_pairs) + 1 + 2 * np.arange(len(query_pairs))
    tokens = np.empty(length, np.int32)
    tokens[0], tokens[length - 2 * len(query_pairs) - 1] = filler.bos, filler.sep
    tokens[needles], tokens[needles + 1] = keys, values
    tokens[answers - 1], tokens[answers] = keys[query_pairs], values[query_pairs]
    filler_index = 1 + np.arange(spare) + 2 * np.repeat(np.arange(pairs + 1), gaps)
    tokens[filler_index] = filler.passages(starts, gaps)
    return tokens, needles, answers


@functools.cache
def _numbers(split: str) -> np.ndarray:
    """Returns the five-digit numbers of a split, by hash: 80 % train, 10 % dev, 10 % test."""
    check_split(split)
    numbers = range(10**_DIGITS)
    return np.array([number for number in numbers if split_of(b"%05d" % number) == split])


def _check(task: str, tokenizer: Tokenizer, filler: Filler, length: int, pairs: int) -> None:
    if tokenizer.fingerprint != filler.fingerprint:
        raise ValueError("the filler was made with another tokenizer than the task's")
    shortest = shortest_length(task, filler, pairs)
    if length < shortest:
        of_pairs = f" with {pairs} pairs" if task == "mqar" else ""
        raise ValueError(
            f"{task}{of_pairs} needs a length of at least {shortest} tokens; {length} is too short"
        )
