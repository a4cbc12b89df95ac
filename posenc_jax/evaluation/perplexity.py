"""E: bits per byte past the training length (EVALUATION.md, sec. 1).

All measures read the same held-out stretches, so that every context length is scored on the same
targets: a stretch is (longest multiple) * L + L/2 tokens inside one document, cut from its end.
"""

import itertools
import math

import numpy as np

from posenc_jax.data.token_stream import TokenStream
from posenc_jax.evaluation.scorer import Scorer
from posenc_jax.tasks.instances import key_of

LN2 = math.log(2)


def held_out_stretches(stream: TokenStream, length: int, count: int) -> np.ndarray:
    """Returns rows_RT of `length` + 1 tokens, each inside one document, at most `count` of them.

    The first stretch of every document ends with its last token; further ones lie before it without
    overlap, and are taken round by round over the documents, so none is favoured.

    Raises:
      ValueError: no document is that long.
    """
    size = length + 1
    per_document = [(stop - start) // size for start, stop in zip(stream.starts[:-1], stream.starts[1:], strict=True)]  # fmt: skip
    found = [
        (turn, number, int(stream.starts[number + 1]) - (turn + 1) * size)
        for number, pieces in enumerate(per_document)
        for turn in range(int(pieces))
    ]
    if not found:
        raise ValueError(
            f"no held-out document has {size} tokens; the longest has "
            f"{int(np.diff(stream.starts).max())}: evaluate at smaller multiples"
        )
    starts = [start for _, _, start in sorted(found)[:count]]
    return np.stack([stream.tokens[s : s + size] for s in starts]).astype(np.int32)


def bits_per_byte(nll: np.ndarray, targets: np.ndarray, byte_lengths_V: np.ndarray) -> float:
    """Returns sum of nats / ln 2 / bytes over the given targets; special ids stand for no byte."""
    counted = byte_lengths_V[targets] > 0
    return float(nll[counted].sum(dtype=np.float64) / LN2 / byte_lengths_V[targets].sum())


def nats_and_bytes(
    nll: np.ndarray, targets: np.ndarray, byte_lengths_V: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns nats_R and bytes_R of each row of targets: what `bits_per_byte` sums over all of them."""
    bytes_RT = byte_lengths_V[targets]
    nats_R = np.where(bytes_RT > 0, nll, 0).sum(1, dtype=np.float64)
    return {"nats_R": nats_R, "bytes_R": bytes_RT.sum(1)}


def disjoint_segments(
    scorer: Scorer, rows_RT: np.ndarray, train_length: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (nll, targets) [segments, kL] of E1: the stretches cut into disjoint pieces of kL.

    The first L/2 tokens of a stretch are left out; every k that divides the longest multiple scores the
    same targets.
    """
    size = k * train_length
    whole = (rows_RT.shape[1] - 1 - train_length // 2) // size * size
    first = rows_RT.shape[1] - 1 - whole
    pieces = np.concatenate(
        [rows_RT[:, s : s + size + 1] for s in range(first, first + whole, size)], axis=0
    )
    nll, _ = scorer.score(pieces)
    return nll, pieces[:, 1:]


def fixed_targets(
    scorer: Scorer, rows_RT: np.ndarray, train_length: int, context: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (nll, targets) [stretches, L/2] of E3: the last L/2 tokens after `context` others.

    A context of L/2 makes rows of L tokens, so that every target lies within L: the in-distribution
    loss. After a context of L the targets lie at positions L to 1.5 L.
    """
    asked = train_length // 2
    nll, _ = scorer.score(rows_RT[:, -(context + asked) :])
    return nll[:, -asked:], rows_RT[:, -asked:]


def windowed_targets(
    scorer: Scorer, rows_RT: np.ndarray, train_length: int, context: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (nll, targets) of E8: E3 at `context` with attention to the last L tokens alone."""
    asked = train_length // 2
    nll, _ = scorer.score(rows_RT[:, -(context + asked) :], window=train_length)
    return nll[:, -asked:], rows_RT[:, -asked:]


def sliding_windows(
    scorer: Scorer, rows_RT: np.ndarray, train_length: int, k: int, stride: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (nll, targets) [stretches, targets] of E2: windows of kL that move on by `stride`.

    The tokens of E1, each scored once: all of the first window, then the new ones of each (Press et al.
    2021, sec. 2.2). A target past the first window has between kL - stride and kL tokens before it.
    """
    size = k * train_length
    whole = (rows_RT.shape[1] - 1 - train_length // 2) // size * size
    first = rows_RT.shape[1] - 1 - whole
    stops = [*range(size, whole, stride), whole]
    windows = np.concatenate([rows_RT[:, first + e - size : first + e + 1] for e in stops])
    nll_WRT = scorer.score(windows).nll_RT.reshape(len(stops), len(rows_RT), size)
    new = [size, *(b - a for a, b in itertools.pairwise(stops))]
    nll = np.concatenate([nll_RT[:, size - n :] for nll_RT, n in zip(nll_WRT, new, strict=True)], 1)
    return nll, rows_RT[:, first + 1 :]


SPAN_BYTES = 64  # of E6


def repeated_spans(
    scorer: Scorer, rows_RT: np.ndarray, train_length: int, gap: int, byte_lengths_V: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (fresh_R, repeated_R) of E6: bits per byte of a span at the end of a row.

    A row is text, an early span, `gap` tokens of text, and the span that is scored. Two rows that differ
    in the early span alone make one entry: it is the scored span (repeated), or another order of the
    same tokens (fresh). Both orders are shuffles of a piece of the next stretch's text (of the first's,
    for the last). So the scored tokens, their place and what stands right before them are equal, and so
    is the bag of all tokens before: unigrams, n-grams, positions and topics that are read off counts
    cancel exactly, and counts that fade over some 50 tokens are off by less than 0.01 bits per byte,
    against a gain. A natural span against another natural one would not do: the early one tells the byte
    frequencies of the scored one.

    The piece is the fewest tokens with at least 64 bytes, at most 64; whatever that leaves is text in
    front, at least L/8. A longer gap has the same spans.

    Raises:
      ValueError: a single row, which has no other one to take a span of.
    """
    if len(rows_RT) < 2:
        raise ValueError(
            "a span that is inserted comes from another stretch, and there is only one"
        )
    total = repeat_length(train_length, gap)
    rows, spans = [], []
    for number, (row, other) in enumerate(zip(rows_RT, np.roll(rows_RT, -1, axis=0), strict=True)):
        start = len(other) - SPAN_BYTES
        size = int(np.searchsorted(np.cumsum(byte_lengths_V[other[start:]]), SPAN_BYTES) + 1)
        random = np.random.Generator(np.random.Philox(key=key_of("repeat_gain", number)))
        fresh, scored = (random.permutation(other[start : start + size]) for _ in range(2))
        text = row[2 * size - total :]
        front, between = text[:-gap], text[-gap:]
        rows += [np.concatenate([front, early, between, scored]) for early in (fresh, scored)]
        spans.append(scored)
    nll_RT, _ = scorer.score(np.stack(rows))
    bits = [
        [nll_T[-len(span) :].sum(dtype=np.float64) / (LN2 * byte_lengths_V[span].sum()) for nll_T in pair]
        for pair, span in zip(nll_RT.reshape(len(spans), 2, -1), spans, strict=True)
    ]  # fmt: skip
    fresh_R, repeated_R = np.array(bits).T
    return fresh_R, repeated_R


def repeat_length(train_length: int, gap: int) -> int:
    """Returns the tokens of an E6 row: L/8 of text and one more, the gap, and the span twice."""
    return 1 + train_length // 8 + gap + 2 * SPAN_BYTES


def octaves(length: int) -> list[tuple[int, int]]:
    """Returns the buckets [0, 1), [1, 2), [2, 4), ... that cover `length` positions."""
    edges = [0] + [2**i for i in range(math.ceil(math.log2(length)) + 1)]
    return [(a, min(b, length)) for a, b in itertools.pairwise(edges) if a < length]
