"""Scores of long-text classification by known answers."""

import math
import types

import jax
import numpy as np
import pytest
from posenc_jax.data.tokenizers import ByteTokenizer
from posenc_jax.evaluation import classification
from posenc_jax.evaluation.classification import Classifier, ClassScores
from posenc_jax.evaluation.context import EvaluationContext, Multiples
from posenc_jax.model.decoder import Decoder
from posenc_jax.tasks.longtext import LabelledCorpus, LabelTokenizer

from support import runs
from support.planted_classes import planted, small

SPLITS = ("train", "dev", "test")


L = 16


def test_buckets_have_exact_edges():
    lengths = np.array([3, 16, 17, 32, 33, 64, 65, 128, 129, 9999])
    found = [
        (name, k, lengths[chosen].tolist())
        for name, k, chosen in classification.length_buckets(lengths, L, (1, 2, 4, 8))
    ]
    assert found == [
        ("<=L", 1, [3, 16]),
        ("L-2L", 2, [17, 32]),
        ("2L-4L", 4, [33, 64]),
        ("4L-8L", 8, [65, 128]),
        (">8L", 8, [129, 9999]),
    ]


class Reader:
    """Stands for a classifier: logits by a function of a document's ids; keeps what it was given."""

    def __init__(self, logits):
        self._logits, self.seen = logits, []

    def logits(self, documents):
        self.seen += [np.asarray(ids) for ids in documents]
        return np.array([self._logits(ids) for ids in documents]).reshape(-1, 3)


def rows_of(corpus, logits, tmp_path, multiples=(1, 2, 4, 8), fits=(1, 2, 4, 8)):
    (tmp_path / "arrays").mkdir(exist_ok=True)
    trained = types.SimpleNamespace(seed=0, tier="smoke", length=L)
    config = types.SimpleNamespace(arm="x", train=trained, placed_length=L)
    lengths = Multiples(fits, multiples, max(fits))
    work = EvaluationContext(tmp_path, config, None, "test", None, lengths, None)
    tokenizer = LabelTokenizer(ByteTokenizer(), corpus.labels)
    reader = Reader(logits)
    scores = ClassScores(work, reader, corpus, tokenizer, multiples)
    rows = [row.to_json() for measure in scores.items().values() for row in measure()]
    return {(r["bucket"], r["metric"]): r for r in rows}, reader


def one_hot(c, classes=3):
    return [10.0 * (i == c) for i in range(classes)]


EVERY = [10, 14, 15, 30, 31, 62, 63, 126, 127, 300]  # texts; two more are read


def test_a_reader_of_the_planted_byte_is_right_everywhere(tmp_path):
    rows, _ = rows_of(planted(EVERY), lambda ids: one_hot(ids[3] - 48), tmp_path)
    for bucket in (
        "length:<=L",
        "length:L-2L",
        "length:2L-4L",
        "length:4L-8L",
        "length:>8L",
        "all",
    ):
        assert rows[bucket, "longtext_corrected"]["value"] == 1
        assert rows[bucket, "longtext_nll"]["value"] == pytest.approx(
            math.log(1 + 2 * math.exp(-10))
        )
        assert rows[bucket, "longtext_bag_corrected"]["value"] == 1
    assert rows["all", "longtext_corrected"]["n"] == 30
    assert rows["length:4L-8L", "longtext_corrected"]["length"] == 8 * L


def test_a_constant_answer_scores_exactly_zero_however_unequal_the_classes(tmp_path):
    corpus = planted([(n, c) for n in EVERY for c in (0, 0, 0, 0, 0, 1, 2, 2)])
    rows, _ = rows_of(corpus, lambda ids: one_hot(0), tmp_path)
    corrected = [r["value"] for (_, metric), r in rows.items() if metric == "longtext_corrected"]
    assert corrected == [0.0] * 6
    uniform, _ = rows_of(corpus, lambda ids: [7.0] * 3, tmp_path)
    assert uniform["all", "longtext_nll"]["value"] == pytest.approx(math.log(3))


def test_scores_are_those_of_loops_over_classes(tmp_path):
    """Against plain loops: the mean over classes of the mean over their documents."""
    generator = np.random.default_rng(0)
    corpus = planted([(n, int(c)) for n in EVERY for c in (0, 1, 1, 2, 2, 2)])
    given = {text: generator.normal(size=3) for _, text in corpus.documents("test")}
    zeros = np.zeros(3)  # for what was cut at L, which this test leaves aside

    def logits(ids):
        return given.get(ids[1:-1].astype(np.uint8).tobytes(), zeros)

    rows, _ = rows_of(corpus, logits, tmp_path)
    low, high = 2 * L, 4 * L
    right, nats = {0: [], 1: [], 2: []}, {0: [], 1: [], 2: []}
    for (_, text), c in zip(corpus.documents("test"), corpus.classes["test"].tolist(), strict=True):
        if low < len(text) + 2 <= high:
            z = given[text]
            right[c].append(1.0 if max(range(3), key=lambda i: z[i]) == c else 0.0)
            nats[c].append(math.log(sum(math.exp(v) for v in z)) - z[c])
    accuracy = sum(sum(v) / len(v) for v in right.values()) / 3
    loss = sum(sum(v) / len(v) for v in nats.values()) / 3
    assert rows["length:2L-4L", "longtext_accuracy"]["value"] == pytest.approx(accuracy)
    assert rows["length:2L-4L", "longtext_corrected"]["value"] == pytest.approx(
        (accuracy - 1 / 3) / (2 / 3)
    )
    assert rows["length:2L-4L", "longtext_nll"]["value"] == pytest.approx(loss)


def test_testing_reads_up_to_eight_lengths_and_says_what_the_first_length_gives(tmp_path):
    """The class stands at the very end: found wherever the end is read."""
    pairs = [(n, c) for n in EVERY for c in range(3)]
    texts = [(f"d{i}", b"x" * (n - 1) + b"%d" % c) for i, (n, c) in enumerate(pairs)]
    class_R = np.array([c for _, c in pairs], np.int32)
    corpus = LabelledCorpus(
        "ended",
        "",
        ("a", "b", "c"),
        {"test": texts, "train": texts},
        {"test": class_R, "train": class_R},
    )
    rows, reader = rows_of(
        corpus, lambda ids: one_hot(ids[-2] - 48 if ids[-2] < 99 else 0), tmp_path
    )
    buckets = ("length:<=L", "length:L-2L", "length:2L-4L", "length:4L-8L", "length:>8L")
    assert [rows[b, "longtext_corrected"]["value"] for b in buckets] == [1, 1, 1, 1, 0]
    assert [rows[b, "longtext_cut_corrected"]["value"] for b in buckets] == [1, 0, 0, 0, 0]
    assert {ids[0] for ids in reader.seen} == {256}
    assert {ids[-1] for ids in reader.seen} == {257}
    assert max(len(ids) for ids in reader.seen) == 8 * L


@pytest.mark.parametrize("fits", [(1,), (1, 2)])
def test_what_does_not_fit_or_lacks_a_class_is_skipped_with_its_reason(tmp_path, fits):
    rows, reader = rows_of(planted(EVERY), lambda ids: one_hot(0), tmp_path, fits=fits)
    skipped = {bucket for (bucket, _), row in rows.items() if row["value"] is None}
    assert {"length:2L-4L", "length:4L-8L", "length:>8L", "all"} <= skipped
    assert ("length:L-2L" in skipped) == (2 not in fits)
    assert max(len(ids) for ids in reader.seen) == max(fits) * L
    lacking, _ = rows_of(planted([10, (20, 1)]), lambda ids: one_hot(0), tmp_path)
    assert (
        "no document of class0, class2" in lacking["length:L-2L", "longtext_corrected"]["skipped"]
    )


@pytest.mark.thorough
def test_class_logits_are_a_linear_head_on_the_last_token_and_padding_changes_nothing():
    tokenizer = LabelTokenizer(ByteTokenizer(), ("a", "b", "c"))
    config = small().model_config(tokenizer.vocab_size)
    generator = np.random.default_rng(0)
    tokens_T = np.array([256, *generator.integers(0, 256, 11), 257], np.int32)
    ones_1T, pos_1T = np.ones((1, 13), np.int32), np.arange(13, dtype=np.int32)[None]
    model = Decoder(config)
    params = model.init(jax.random.key(0), tokens_T[None], pos_1T, ones_1T)["params"]
    classifier = Classifier({16: config, 40: config}, params, 80, tokenizer.labels_C)
    others = [generator.integers(0, 256, n).astype(np.int32) for n in (40, 3, 17, 16)]
    logits = classifier.logits([others[0], tokens_T, *others[1:]])
    alone, _ = model.apply({"params": params}, tokens_T[None], pos_1T, ones_1T)
    np.testing.assert_allclose(logits[1], alone[0, -1, 260:], atol=1e-5)

    # The rows of the classes are weights: twice the rows, twice the logits, and nothing else moves.
    doubled = {**params, "embedding_VD": params["embedding_VD"].at[260:].multiply(2)}
    twice, _ = model.apply({"params": doubled}, tokens_T[None], pos_1T, ones_1T)
    np.testing.assert_allclose(twice[0, :, 260:], 2 * alone[0, :, 260:], rtol=1e-5)
    np.testing.assert_array_equal(twice[0, :, :260], alone[0, :, :260])
    with pytest.raises(ValueError, match="41 inputs exceeds the longest length 40"):
        classifier.logits([np.zeros(41, np.int32)])


def test_a_language_model_has_no_classes_to_score():
    with pytest.raises(ValueError, match=r"--config=configs/longtext\.py trains a classifier"):
        classification.check_suites(runs.config("unused"), ("C",))
