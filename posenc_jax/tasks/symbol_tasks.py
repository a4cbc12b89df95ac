"""Tasks with symbols instead of filler: R4 n-gram, R5 copy, R7 phone book, R9 n-back and flip-flop.

A longer instance has more symbols of the same two endless strings, one before the queried needle
and one after it (R5: one string; R9 n-back: more in front). Strings are value ids; names and
instructions are key ids.
"""

import functools

import numpy as np

from posenc_jax.tasks.filler import SYMBOLS, Filler
from posenc_jax.tasks.instances import Answer, Instance, endless, split_of, symbols

GRAM = 3
NAME, NUMBER = 3, 2  # ids of a name and of a number in the phone book
FARTHEST_BACK = 16  # of n-back; cues are the keys 0 ... 15
WRITE, IGNORE, READ = range(3)  # instructions of the flip-flop, as keys
WRITES = 0.1  # share of writes before the last one (Liu et al. 2023: sparse)


def ngram_length() -> int:
    """Returns the fewest tokens of R4: BOS, the 3-gram, its next symbol, and both again."""
    return 1 + 2 * (GRAM + 1)


def ngram_lookup(
    filler: Filler, generator: np.random.Generator, split: str, length: int, decile: int | None
) -> Instance:
    """Returns R4: BOS, a random string that ends with an earlier 3-gram and the symbol after it.

    The 3-gram occurs twice only. Its symbols differ, and splits share no 3-grams.
    """
    draws = generator.random(3)
    before_, after_ = endless(generator, 2)
    gram = _split_gram(int(draws[0] * SYMBOLS**GRAM), split)
    rest = np.setdiff1d(np.arange(SYMBOLS), gram)
    depth, spare = _depth(draws[1], decile), length - ngram_length()
    before = int(depth * spare)
    needle = [*gram, int(draws[2] * SYMBOLS)]
    parts = [
        _without(symbols(g, n, SYMBOLS), gram, rest[0])
        for g, n in ((before_, before), (after_, spare - before))
    ]
    text = np.concatenate([parts[0], needle, parts[1], needle])
    tokens = np.concatenate([[filler.bos], filler.values + text], dtype=np.int32)
    start, source = length - 1, 1 + before + GRAM
    chance = _ngram_chance(text[: -GRAM - 1], gram)
    return Instance(tokens, (Answer(start, length, start - 1 - source, depth, chance),))


def _ngram_chance(context_S: np.ndarray, gram: tuple[int, ...]) -> float:
    """Returns the chance of R4: the likeliest symbol for the answer, from the counts of visible
    symbols.

    The answer is equally likely at each position after the first three and before the last one. The
    3-gram right before it, whose symbols the question shows, is at these positions too, except for
    its symbols within the first three, and contains no symbol of the answer. All other symbols are
    independent and uniform, so Bayes' rule gives P(symbol | counts) over the positions of the
    answer.
    """
    positions = max(len(context_S) - GRAM - 1, 1)
    count_V = np.bincount(context_S[GRAM : GRAM + positions], minlength=SYMBOLS)
    odds_V = np.zeros(SYMBOLS)
    for inside in range(min(GRAM, positions - 1) + 1):  # last symbols of the 3-gram among them
        told = list(gram[GRAM - inside :])
        such = 1 if inside < GRAM else positions - GRAM
        rest = positions - np.arange(inside)
        likelihood = such * np.prod(SYMBOLS * count_V[told] / rest)
        other_V = count_V.astype(float)
        other_V[told] -= 1
        odds_V += likelihood * other_V / (positions - inside)
    return float(odds_V.max() / odds_V.sum())


def copy_length() -> int:
    """Returns the fewest tokens of R5: BOS, a symbol, SEP, the symbol."""
    return 4


def copied_string(
    filler: Filler, generator: np.random.Generator, split: str, length: int, decile: int | None
) -> Instance:
    """Returns R5: BOS, a random string, SEP (two for an odd length), the string as answers."""
    count, odd = divmod(length - 2, 2)
    drawn = symbols(generator, count, SYMBOLS)
    text, middle = filler.values + drawn, [filler.sep] * (1 + odd)
    tokens = np.concatenate([[filler.bos], text, middle, text], dtype=np.int32)
    first = 1 + count + len(middle)
    distance = first - 1 - 1
    # The most frequent of the symbols that are not copied yet; the last one has chance 1.
    left_IV = np.cumsum(np.eye(SYMBOLS, dtype=np.int32)[drawn[::-1]], axis=0)[::-1]
    chances = (left_IV.max(1) / np.arange(count, 0, -1)).tolist()
    return Instance(
        tokens,
        tuple(
            Answer(first + i, first + i + 1, distance, i / count, chance)
            for i, chance in enumerate(chances)
        ),
    )


def phonebook_length() -> int:
    """Returns the fewest tokens of R7: BOS, one entry, SEP, the queried entry."""
    return 1 + (NAME + NUMBER) + 1 + NAME + NUMBER


def phone_book(
    filler: Filler, generator: np.random.Generator, split: str, length: int, decile: int | None
) -> Instance:
    """Returns R7: entries `n1 n2 n3 v1 v2` fill the context; SEP, a name, its number.

    Names differ within a book, and splits share no names. Filler after BOS takes the tokens that
    whole entries leave. Raises ValueError if a split has too few names for the length.
    """
    entry = NAME + NUMBER
    others, left = divmod(length - phonebook_length(), entry)
    names = _names_of(split)
    if (
        2 * others >= len(names) - 1
    ):  # entries before and after each use every second name of a cycle
        raise ValueError(
            f"phonebook of {length} tokens needs {2 * others + 2} names; split {split} has "
            f"{len(names)}"
        )
    draws = generator.random(3)
    before_, after_ = endless(generator, 2)
    depth = _depth(draws[0], decile)
    before = int(depth * others)
    queried, first, step = int(draws[1] * len(names)), int(draws[2] * 2**30), _stride(len(names))
    # Entries before and after take names in opposite directions of one cycle without the queried
    # name.
    turn = np.concatenate([-np.arange(before, 0, -1), np.arange(1, others - before + 1)])
    slot = first + np.where(turn < 0, 2 * -turn - 1, 2 * turn) * step
    other = (queried + 1 + slot % (len(names) - 1)) % len(names)
    numbers = [
        symbols(g, NUMBER * n, SYMBOLS).reshape(n, NUMBER)
        for g, n in ((before_, before), (after_, others - before))
    ]
    number = symbols(generator, NUMBER, SYMBOLS)
    beside = np.concatenate([numbers[0][::-1], numbers[1]])
    same = (beside == number).all(1)
    beside[same, -1] = (beside[same, -1] + 1) % SYMBOLS
    rows = np.concatenate([filler.keys + names[other], filler.values + beside], axis=1)
    needle = np.concatenate([filler.keys + names[queried], filler.values + number])
    book = np.insert(rows, before, needle, axis=0).reshape(-1)
    text = filler.passages(np.array([first % len(filler)]), np.array([left]))
    tokens = np.concatenate([[filler.bos], text, book, [filler.sep], needle], dtype=np.int32)
    start, source = length - NUMBER, 1 + left + before * entry + NAME
    chance = _number_chance(book.reshape(-1, entry)[:, NAME:] - filler.values)
    return Instance(tokens, (Answer(start, length, start - 1 - source, depth, chance),))


def _number_chance(numbers_NS: np.ndarray) -> float:
    """Returns the chance of R7: the probability of the likeliest number of a book.

    The queried number occurs once, and not in the last of several entries. The task replaces a
    number equal to it by the next one, so a number whose successor occurs c times is 2^c times as
    likely.
    """
    codes_N = numbers_NS[:, 0] * SYMBOLS + numbers_NS[:, 1]
    next_N = numbers_NS[:, 0] * SYMBOLS + (numbers_NS[:, 1] + 1) % SYMBOLS
    count_C = np.bincount(codes_N, minlength=SYMBOLS**NUMBER)
    odds_N = np.where(count_C[codes_N] == 1, 2.0 ** count_C[next_N], 0)[: max(len(codes_N) - 1, 1)]
    return float(odds_N.max() / odds_N.sum())


def nback_length() -> int:
    """Returns the fewest tokens of R9's n-back."""
    return 1 + FARTHEST_BACK + 1 + 2


def symbol_back(
    filler: Filler, generator: np.random.Generator, split: str, length: int, decile: int | None
) -> Instance:
    """Returns R9's n-back: BOS, a string, SEP, a cue for n in 1 ... 16, the n-th last symbol."""
    back = 1 + int(generator.random() * FARTHEST_BACK)
    count = length - 4
    drawn = symbols(generator, count, SYMBOLS)[::-1]
    text = filler.values + drawn
    tail = [filler.sep, filler.keys + back - 1, text[-back]]
    tokens = np.concatenate([[filler.bos], text, tail], dtype=np.int32)
    source = 1 + count - back
    depth = (count - back) / count
    # A policy that ignores the cue answers with the most frequent of the last 16 symbols.
    chance = float(np.bincount(drawn[-FARTHEST_BACK:]).max() / FARTHEST_BACK)
    return Instance(tokens, (Answer(length - 1, length, length - 2 - source, depth, chance),))


def flipflop_length() -> int:
    """Returns the fewest tokens of R9's flip-flop at any length: BOS, a stop, a write, the read."""
    return 6


def flip_flop(
    filler: Filler, generator: np.random.Generator, split: str, length: int, decile: int | None
) -> Instance:
    """Returns R9's flip-flop (Liu et al. 2023): `write b`, `ignore b` ..., `read`, the last written
    bit.

    The last write is in the decile; a tenth of the steps before it are writes, none after it. An
    even length has a stop after BOS.
    """
    draws = generator.random(2)
    sides = endless(generator, 2)
    steps, odd = divmod(length - 5, 2)
    depth = _depth(draws[0], decile)
    before = int(depth * steps)
    bit = int(draws[1] * 2)
    parts, bits = [], [np.array([bit])]
    for side, count, share in zip(sides, (before, steps - before), (WRITES, 0.0), strict=True):
        drawn = side.random((count, 2))
        orders = filler.keys + np.where(drawn[:, 0] < share, WRITE, IGNORE)
        bits.append((drawn[:, 1] * 2).astype(int))
        parts.append(np.stack([orders, filler.digits[bits[-1]]], 1).reshape(-1))
    write = [filler.keys + WRITE, filler.digits[bit]]
    read = [filler.keys + READ, filler.digits[bit]]
    stop = filler.stop[:odd]
    tokens = np.concatenate([[filler.bos], stop, parts[0], write, parts[1], read], dtype=np.int32)
    source = 1 + odd + 2 * before + 1
    # A policy that ignores the instructions answers with the majority bit; the last of several
    # steps is no write.
    share = np.concatenate([bits[1], bits[0], bits[2]])[: max(steps, 1)].mean()
    chance = float(max(share, 1 - share))
    return Instance(tokens, (Answer(length - 1, length, length - 2 - source, depth, chance),))


def _depth(draw: float, decile: int | None) -> float:
    return float(draw if decile is None else (decile + draw) / 10)


def _without(text: np.ndarray, gram: tuple[int, ...], plain: int) -> np.ndarray:
    """Returns the text with a plain symbol where the gram's last two symbols occur in sequence."""
    matches = np.zeros(len(text), bool)
    matches[1:] = (text[:-1] == gram[-2]) & (text[1:] == gram[-1])
    return np.where(matches, plain, text)


def _split_gram(code: int, split: str) -> tuple[int, ...]:
    """Returns the first 3-gram of the split with different symbols, at `code` or after it."""
    while True:
        gram = tuple(code // SYMBOLS**i % SYMBOLS for i in range(GRAM))
        if len(set(gram)) == GRAM and split_of(b"gram %d %d %d" % gram) == split:
            return gram
        code = (code + 1) % SYMBOLS**GRAM


@functools.cache
def _names_of(split: str) -> np.ndarray:
    """Returns the names of a split: triples of ids, by hash."""
    every = np.stack(np.unravel_index(np.arange(SYMBOLS**NAME), (SYMBOLS,) * NAME), 1)
    own = [split_of(b"name %d %d %d" % tuple(name)) == split for name in every.tolist()]
    return every[own]


def _stride(names: int) -> int:
    """Returns a stride that visits all other names before it repeats one."""
    step = int(0.618 * names)
    while np.gcd(step, names - 1) != 1:
        step += 1
    return step
