"""Needle tasks in corpus text: R2 several keys, R6 variables, R8 latest and first, R10 synonyms.

Every function makes one instance from a generator. Needles have uniform positions (R2: the queried
one in a given decile) in filler; a longer instance has more filler in every gap.
"""

import functools

import numpy as np

from posenc_jax.tasks.filler import CUES, SYMBOLS, Filler
from posenc_jax.tasks.instances import Answer, Instance, gap_lengths, split_of

ASSIGNMENTS = 4  # values that R8's key is given, one after another
CHAINS = 2  # of R6: the queried chain and a distractor
CONCEPTS = SYMBOLS // 2  # keys of R10, each with a synonym among the other half
SYNONYM_PAIRS = 4  # in the context of an instance of R10


def needles_length(keys: int) -> int:
    """Returns the tokens of R2 without filler: BOS, needles, SEP, question, answer."""
    return 1 + 3 * keys + 1 + 3


def asked_needle(
    filler: Filler,
    generator: np.random.Generator,
    split: str,
    length: int,
    decile: int | None,
    keys: int,
) -> Instance:
    """Returns R2: needles `k1 k2 v` in filler, SEP, `k1 k2`, v: the value of one of the keys.

    A key is a pair of ids; splits share no pairs. The queried needle is in the decile, the others
    are at uniform positions that do not depend on it, so positions do not reveal which needle is
    queried.
    """
    draws = generator.random((6, SYMBOLS))
    pairs = _pairs_of(split)
    # Steps of at least one that sum to at most one round: all keys differ.
    first = int(draws[0, 0] * len(pairs))
    chosen = (
        first + np.cumsum(1 + (draws[0, :keys] * (len(pairs) // keys - 1)).astype(int))
    ) % len(pairs)
    values = np.argsort(draws[1])[:keys]
    depth = float(draws[2, 0] if decile is None else (decile + draws[2, 0]) / 10)
    earlier = int((draws[2, 1:keys] < depth).sum())  # of the other needles precede the queried one
    spare = length - needles_length(keys)
    before = int(depth * spare)
    gaps = np.concatenate(
        [
            gap_lengths(before, earlier, draws[3], draws[4]),
            gap_lengths(spare - before, keys - 1 - earlier, draws[3, ::-1], draws[4, ::-1]),
        ]
    )
    needles = [
        [*(filler.keys + pairs[c]), filler.values + v] for c, v in zip(chosen, values, strict=True)
    ]
    queried = needles[earlier]
    tokens, needle_starts = _laid_out(filler, needles, gaps, draws[5], [filler.sep, *queried])
    # All needles are equally likely; with one key, chance is a guess among all symbols.
    chance = 1 / keys if keys > 1 else 1 / SYMBOLS
    return _one(tokens, needle_starts[earlier] + 2, depth, chance)


def latest_first_length(filler: Filler) -> int:
    """Returns the tokens of R8 without filler, with the longer cue."""
    cue = max(len(filler.words[word]) for word in CUES)
    return 1 + 3 * ASSIGNMENTS + 1 + cue + 3


def latest_or_first(
    filler: Filler, generator: np.random.Generator, split: str, length: int, decile: int | None
) -> Instance:
    """Returns R8: a key gets four values in turn; SEP, `FIRST` or `LAST`, the key, and that value.

    Needles and keys as in R2, at uniform positions; the decile is not used.
    """
    draws = generator.random((5, SYMBOLS))
    pairs = _pairs_of(split)
    key = filler.keys + pairs[int(draws[0, 0] * len(pairs))]
    values = filler.values + np.argsort(draws[1])[:ASSIGNMENTS]
    cue = CUES[int(draws[0, 1] * 2)]
    tail = [filler.sep, *filler.words[cue], *key]
    needles = [[*key, value] for value in values]
    which = 0 if cue == "FIRST" else ASSIGNMENTS - 1
    spare = length - 1 - 3 * ASSIGNMENTS - len(tail) - 1
    gaps = gap_lengths(spare, ASSIGNMENTS, draws[2], draws[3])
    tokens, needle_starts = _laid_out(filler, needles, gaps, draws[4], [*tail, values[which]])
    # A policy that ignores the cue answers with the first value or with the last.
    depth = needle_starts[which] / (length - len(tail) - 1)
    return _one(tokens, needle_starts[which] + 2, depth, 1 / len(CUES), cue)


def variables_length(hops: int) -> int:
    """Returns the tokens of R6 without filler."""
    return 1 + 2 * CHAINS * (hops + 1) + 1 + 2


def tracked_variable(
    filler: Filler,
    generator: np.random.Generator,
    split: str,
    length: int,
    decile: int | None,
    hops: int,
) -> Instance:
    """Returns R6: `x0 v`, `x1 x0`, `x2 x1` ... in filler with a second chain; SEP, the last
    variable, v.

    Variables and values are one id each. The chains are randomly interleaved, each in its order.
    Bindings are random; variables are the same ids in every split.
    """
    draws = generator.random((6, SYMBOLS))
    names = (filler.keys + np.argsort(draws[0])[: CHAINS * (hops + 1)]).reshape(CHAINS, hops + 1)
    values = filler.values + np.argsort(draws[1])[:CHAINS]
    steps = [
        [[name, value if hop == 0 else chain[hop - 1]] for hop, name in enumerate(chain)]
        for chain, value in zip(names, values, strict=True)
    ]
    turns = np.argsort(draws[2, : CHAINS * (hops + 1)]) % CHAINS
    needles, taken, root = [], [0] * CHAINS, 0
    for index, chain in enumerate(turns.tolist()):
        root = index if chain == 0 and taken[0] == 0 else root
        needles.append(steps[chain][taken[chain]])
        taken[chain] += 1
    gaps = gap_lengths(length - variables_length(hops), len(needles), draws[3], draws[4])
    tail = [filler.sep, names[0, -1], values[0]]
    tokens, needle_starts = _laid_out(filler, needles, gaps, draws[5], tail)
    return _one(
        tokens, needle_starts[root] + 1, needle_starts[root] / (length - len(tail)), 1 / CHAINS
    )


def synonym_of(key: np.ndarray | int) -> np.ndarray | int:
    """Returns a concept's synonym: a fixed bijection from ids 0..31 to 32..63 of the keys."""
    return CONCEPTS + (5 * key + 11) % CONCEPTS


def synonyms_length() -> int:
    """Returns the tokens of R10 without filler."""
    return 1 + 2 * SYNONYM_PAIRS + 1 + 2


def latent_match(
    filler: Filler, generator: np.random.Generator, split: str, length: int, decile: int | None
) -> Instance:
    """Returns R10: pairs of a concept and a value in filler; SEP, the synonym of one concept, its
    value.

    The context does not contain the synonym. Splits query different concepts: training shows a test
    concept in `associations` only, never in a retrieval.
    """
    draws = generator.random((6, SYMBOLS))
    own = _concepts_of(split)
    queried = own[int(draws[0, 0] * len(own))]
    others = [c for c in np.argsort(draws[1, :CONCEPTS]).tolist() if c != queried]
    index = int(draws[0, 1] * SYNONYM_PAIRS)
    concepts = [*others[:index], queried, *others[index : SYNONYM_PAIRS - 1]]
    values = np.argsort(draws[2])[:SYNONYM_PAIRS]
    needles = [[filler.keys + c, filler.values + v] for c, v in zip(concepts, values, strict=True)]
    gaps = gap_lengths(length - synonyms_length(), SYNONYM_PAIRS, draws[3], draws[4])
    tail = [filler.sep, filler.keys + synonym_of(queried), needles[index][1]]
    tokens, needle_starts = _laid_out(filler, needles, gaps, draws[5], tail)
    depth = needle_starts[index] / (length - len(tail))
    return _one(tokens, needle_starts[index] + 1, depth, 1 / SYNONYM_PAIRS)


def associations(
    filler: Filler, generator: np.random.Generator, split: str, length: int, decile: int | None
) -> Instance:
    """Returns a training document for R10: BOS, filler, SEP, a concept, its synonym.

    The context does not contain the answer; the model must memorise it. Every split has all
    concepts.
    """
    draws = generator.random(2)
    concept = int(draws[0] * CONCEPTS)
    text = filler.passages(np.array([int(draws[1] * len(filler))]), np.array([length - 4]))
    tail = [filler.sep, filler.keys + concept, filler.keys + synonym_of(concept)]
    parts: list = [[filler.bos], text, tail]
    tokens = np.concatenate(parts, dtype=np.int32)
    return Instance(tokens, (Answer(length - 1, length, 0, 0.0, 1 / CONCEPTS),))


def _one(tokens: np.ndarray, source: int, depth: float, chance: float, kind: str = "") -> Instance:
    """Returns an instance whose last token is the only answer; `source`: the needle's."""
    start = len(tokens) - 1
    return Instance(tokens, (Answer(start, start + 1, start - 1 - source, depth, chance, kind),))


def _laid_out(
    filler: Filler, needles: list, gaps: np.ndarray, draws: np.ndarray, tail: list
) -> tuple[np.ndarray, list[int]]:
    """Returns the tokens (BOS, needles in filler, tail) and the start of each needle."""
    starts = (draws[: len(gaps)] * len(filler)).astype(np.int64)
    pieces = np.split(filler.passages(starts, gaps), np.cumsum(gaps)[:-1])
    parts: list = [[filler.bos], pieces[0]]
    needle_starts, at = [], 1 + int(gaps[0])
    for needle, piece in zip(needles, pieces[1:], strict=True):
        parts += [needle, piece]
        needle_starts.append(at)
        at += len(needle) + len(piece)
    return np.concatenate([*parts, tail], dtype=np.int32), needle_starts


@functools.cache
def _pairs_of(split: str) -> np.ndarray:
    """Returns the keys of a split: pairs [k1, k2] of different ids, by hash."""
    pairs = [(a, b) for a in range(SYMBOLS) for b in range(SYMBOLS) if a != b]
    return np.array([pair for pair in pairs if split_of(b"pair %d %d" % pair) == split])


@functools.cache
def _concepts_of(split: str) -> tuple[int, ...]:
    """Returns the concepts that a split queries: 24 in train, 4 in dev, 4 in test."""
    first, last = {"train": (0, 24), "dev": (24, 28), "test": (28, 32)}[split]
    return tuple(range(first, last))
