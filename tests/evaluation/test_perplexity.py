"""Perplexity by known answers: segments, fixed targets, stretches of text, the unigram level."""

import math

import numpy as np
import pytest
from posenc_jax.data.tokenizers import open_tokenizer
from posenc_jax.evaluation import perplexity
from posenc_jax.evaluation.scorer import Scores
from posenc_jax.training.inputs import unigram_bits_per_byte

from support.byte_streams import BYTES, stream_of, text
from support.known_scorers import Known

V = 260


def test_a_uniform_model_costs_log2_of_the_vocabulary_everywhere():
    rows = perplexity.held_out_stretches(stream_of(text(3000)), 8 * 16 + 8, 5)
    uniform = Known(lambda row, t: 1 / V)
    for k in (1, 2, 4, 8):
        nll, targets = perplexity.disjoint_segments(uniform, rows, 16, k)
        assert perplexity.bits_per_byte(nll, targets, BYTES) == pytest.approx(math.log2(V))
        nll, targets = perplexity.fixed_targets(uniform, rows, 16, k * 16)
        assert perplexity.bits_per_byte(nll, targets, BYTES) == pytest.approx(math.log2(V))


def test_under_a_unigram_model_no_measure_depends_on_the_length():
    share = np.random.default_rng(1).dirichlet(np.ones(V))
    rows = perplexity.held_out_stretches(stream_of(text(3000)), 8 * 16 + 8, 5)
    unigram = Known(lambda row, t: share[row[t + 1]])
    disjoint = [
        perplexity.bits_per_byte(*perplexity.disjoint_segments(unigram, rows, 16, k), BYTES)
        for k in (1, 2, 4, 8)
    ]
    fixed = [
        perplexity.bits_per_byte(*perplexity.fixed_targets(unigram, rows, 16, c), BYTES)
        for c in (2, 16, 128)
    ]
    np.testing.assert_allclose(disjoint, disjoint[0])
    np.testing.assert_allclose(fixed, fixed[0])
    want = -np.log2(share[rows[:, 9:]]).mean()  # the same targets, all but the first half length
    assert disjoint[0] == pytest.approx(want)


def test_a_planted_dependency_at_distance_w_shows_at_context_w_and_not_before():
    """Every byte repeats the one 20 before it, but only a context that reaches back finds it."""
    period = text(20)
    rows = perplexity.held_out_stretches(stream_of(np.tile(period, 100)), 8 * 16 + 8, 4)
    reader = Known(lambda row, t: 0.99 if t >= 19 else 1 / V)
    cost = {
        c: perplexity.bits_per_byte(*perplexity.fixed_targets(reader, rows, 16, c), BYTES)
        for c in (8, 16, 32)
    }
    assert cost[8] == pytest.approx(math.log2(V))
    assert math.log2(V) > cost[16] > cost[32] == pytest.approx(-math.log2(0.99))


class Revealing:
    """A scorer whose loss at a target is the number of tokens that stood before it in the row."""

    def score(self, rows_RT, window=None):
        before = np.broadcast_to(
            np.arange(1.0, rows_RT.shape[1]), (len(rows_RT), rows_RT.shape[1] - 1)
        )
        self.seen = rows_RT
        return Scores(before, before.astype(int))


def test_fixed_targets_are_the_last_half_length_with_exactly_the_context_asked_for():
    rows = np.arange(3 * 137).reshape(3, 137)  # numbered tokens: 8 L + L/2 + 1 with L = 16
    scorer = Revealing()
    for context in (2, 16, 128):
        before, targets = perplexity.fixed_targets(scorer, rows, 16, context)
        np.testing.assert_array_equal(targets, rows[:, -8:])
        np.testing.assert_array_equal(before, np.broadcast_to(context + np.arange(8), (3, 8)))
        np.testing.assert_array_equal(scorer.seen, rows[:, -(context + 8) :])


def test_disjoint_segments_score_every_later_token_once_from_a_fresh_start():
    rows = np.arange(3 * 137).reshape(3, 137)
    for k in (1, 2, 4, 8):
        before, targets = perplexity.disjoint_segments(Revealing(), rows, 16, k)
        assert before.shape == targets.shape == (3 * 8 // k, 16 * k)
        np.testing.assert_array_equal(
            before, np.broadcast_to(1.0 + np.arange(16 * k), before.shape)
        )
        np.testing.assert_array_equal(np.sort(targets, axis=None), np.sort(rows[:, 9:], axis=None))
        assert (np.diff(targets, axis=1) == 1).all()


def test_stretches_never_overlap():
    stream = stream_of(np.arange(256).repeat(1)[:200], np.arange(0, 256)[:150])
    stream.tokens = np.arange(len(stream.tokens))  # every place numbered
    rows = perplexity.held_out_stretches(stream, 24, 100)
    assert len(np.unique(rows)) == rows.size


def test_the_unigram_yardstick_is_the_cross_entropy_of_smoothed_frequencies():
    train, test = stream_of(np.array([65, 65, 65, 66])), stream_of(np.array([65, 67]))
    share = {65: 4 / 260, 67: 1 / 260}  # add one over 256 bytes and 4 tokens
    want = -(math.log2(share[65]) + math.log2(share[67])) / 2
    assert unigram_bits_per_byte(train, test, open_tokenizer("bytes")) == pytest.approx(want)


def test_stretches_end_with_their_document_and_never_cross_one():
    a, b = text(100, 1), text(60, 2)
    stream = stream_of(a, b)
    rows = perplexity.held_out_stretches(stream, 24, 100)
    assert len(rows) == 101 // 25 + 61 // 25
    np.testing.assert_array_equal(rows[0], a[-25:])
    np.testing.assert_array_equal(rows[1], b[-25:])
    whole = [stream.tokens[s : s + 25].tolist() for s in range(len(stream.tokens) - 24)]
    for row in rows:
        start = whole.index(row.tolist())
        assert start + 25 <= 101 or start >= 101
    assert len({row.tobytes() for row in rows}) == len(rows)


def test_documents_that_are_too_short_are_named():
    with pytest.raises(ValueError, match="no held-out document has 41 tokens; the longest has 31"):
        perplexity.held_out_stretches(stream_of(text(30)), 40, 5)


def test_every_multiple_scores_the_same_targets():
    rows = perplexity.held_out_stretches(stream_of(text(3000)), 8 * 16 + 8, 5)
    scorer = Known(lambda row, t: 1 / V)
    counted = [
        np.sort(perplexity.disjoint_segments(scorer, rows, 16, k)[1], axis=None)
        for k in (1, 2, 4, 8)
    ]
    for other in counted[1:]:
        np.testing.assert_array_equal(counted[0], other)


def test_special_ids_stand_for_no_byte():
    nll = np.full((1, 4), math.log(2))
    assert perplexity.bits_per_byte(nll, np.array([[65, 256, 66, 67]]), BYTES) == pytest.approx(1.0)


def test_octaves_cover_every_position_once():
    for length in (1, 5, 64, 100):
        covered = [p for a, b in perplexity.octaves(length) for p in range(a, b)]
        assert covered == list(range(length))
