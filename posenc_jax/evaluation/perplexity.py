"""Perplexity measures E1 to E8: bits per byte past the training length (docs/evaluation.md).

All measures use the same held-out stretches, so that every context length has the same targets. A
stretch is (longest multiple) * L + L/2 tokens of one document, cut from its end.
"""

import itertools
import math

import numpy as np

from posenc_jax.data.token_stream import TokenStream
from posenc_jax.evaluation.lengths import Multiple, tokens_of
from posenc_jax.evaluation.scorer import Scorer
from posenc_jax.tasks.instances import key_of

LN2 = math.log(2)


def held_out_stretches(stream: TokenStream, length: int, count: int) -> np.ndarray:
    """Returns rows_RT of `length` + 1 tokens, each inside one document, at most `count` of them.

    The first stretch of every document ends with its last token; the next ones precede it without
    overlap. They are taken in rounds over the documents: one from each, then a second one, and so
    on.

    Raises:
      ValueError: no document is that long.
    """
    size = length + 1
    per_document = [
        (stop - start) // size
        for start, stop in zip(stream.starts[:-1], stream.starts[1:], strict=True)
    ]
    candidates = [
        (turn, number, int(stream.starts[number + 1]) - (turn + 1) * size)
        for number, pieces in enumerate(per_document)
        for turn in range(int(pieces))
    ]
    if not candidates:
        raise ValueError(
            f"no held-out document has {size} tokens; the longest has "
            f"{int(np.diff(stream.starts).max())}: evaluate at smaller multiples"
        )
    starts = [start for _, _, start in sorted(candidates)[:count]]
    return np.stack([stream.tokens[s : s + size] for s in starts]).astype(np.int32)


def bits_per_byte(nll: np.ndarray, targets: np.ndarray, byte_lengths_V: np.ndarray) -> float:
    """Returns sum of nats / ln 2 / bytes over the targets; special ids do not count."""
    counted = byte_lengths_V[targets] > 0
    return float(nll[counted].sum(dtype=np.float64) / LN2 / byte_lengths_V[targets].sum())


def nats_and_bytes(
    nll: np.ndarray, targets: np.ndarray, byte_lengths_V: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns nats_R and bytes_R of each row of targets, the sums behind `bits_per_byte`."""
    bytes_RT = byte_lengths_V[targets]
    nats_R = np.where(bytes_RT > 0, nll, 0).sum(1, dtype=np.float64)
    return {"nats_R": nats_R, "bytes_R": bytes_RT.sum(1)}


def disjoint_segments(
    scorer: Scorer, rows_RT: np.ndarray, train_length: int, k: Multiple
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (nll, targets) [segments, kL] of E1: the stretches cut into disjoint pieces of kL.

    The first L/2 tokens of a stretch are left out; every k that divides the longest multiple scores
    the same targets.
    """
    size = tokens_of(k, train_length)
    first, whole = _whole_pieces(rows_RT, train_length, size)
    pieces = np.concatenate(
        [rows_RT[:, s : s + size + 1] for s in range(first, first + whole, size)], axis=0
    )
    nll, _ = scorer.score(pieces)
    return nll, pieces[:, 1:]


def _whole_pieces(rows_RT: np.ndarray, train_length: int, size: int) -> tuple[int, int]:
    """Returns (first, whole): the first input, and the tokens, of whole pieces of `size`."""
    inputs = rows_RT.shape[1] - 1
    whole = (inputs - train_length // 2) // size * size
    return inputs - whole, whole


def fixed_targets(
    scorer: Scorer, rows_RT: np.ndarray, train_length: int, context: int, window: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (nll, targets) [stretches, L/2] of E3: the last L/2 tokens after `context` others.

    A context of L/2 makes rows of L tokens, so that every target is within L: the in-distribution
    loss. After a context of L the targets are at positions L to 1.5 L.

    Args:
      window: attention sees that many tokens only (E8).
    """
    count = train_length // 2
    nll, _ = scorer.score(rows_RT[:, -(context + count) :], window)
    return nll[:, -count:], rows_RT[:, -count:]


def sliding_windows(
    scorer: Scorer, rows_RT: np.ndarray, train_length: int, k: Multiple, stride: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (nll, targets) [stretches, targets] of E2: windows of kL that move on by `stride`.

    The tokens of E1, each scored once: all of the first window, then the new ones of each (Press et
    al. 2021, sec. 2.2). A target past the first window has between kL - stride and kL tokens before
    it.
    """
    size = tokens_of(k, train_length)
    first, whole = _whole_pieces(rows_RT, train_length, size)
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

    A row is text, an early span, `gap` tokens of text, and the scored span. One entry compares two
    rows that differ in the early span only: it equals the scored span (repeated), or has its tokens
    in another order (fresh). Both orders are shuffles of a piece of the next stretch's text (of the
    first's, for the last). The two rows have equal scored tokens, equal tokens right before them,
    and an equal bag of all earlier tokens. Effects of token counts and positions therefore cancel
    exactly; counts that fade over some 50 tokens lower the gain by less than 0.01 bits per byte.
    Natural spans would not do as fresh
    ones: they differ from the scored span in byte frequencies.

    A piece has the fewest tokens with at least 64 bytes, at most 64; the text in front has at least
    L/8 tokens. A longer gap has the same spans.

    Raises:
      ValueError: a single row, so that no other stretch gives a span.
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
        [
            nll_T[-len(span) :].sum(dtype=np.float64) / (LN2 * byte_lengths_V[span].sum())
            for nll_T in pair
        ]
        for pair, span in zip(nll_RT.reshape(len(spans), 2, -1), spans, strict=True)
    ]
    fresh_R, repeated_R = np.array(bits).T
    return fresh_R, repeated_R


def repeat_length(train_length: int, gap: int) -> int:
    """Returns the tokens of an E6 row: L/8 of text and one more, the gap, and the span twice."""
    return 1 + train_length // 8 + gap + 2 * SPAN_BYTES


def octaves(length: int) -> list[tuple[int, int]]:
    """Returns the buckets [0, 1), [1, 2), [2, 4), ... that cover `length` positions."""
    edges = [0] + [2**i for i in range(math.ceil(math.log2(length)) + 1)]
    return [(a, min(b, length)) for a, b in itertools.pairwise(edges) if a < length]
