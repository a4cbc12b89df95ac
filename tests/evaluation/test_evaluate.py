"""Known answers: scorers that must find what was planted, before they see a model."""

import json
import math
import shutil
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from support import runs

from posenc_jax.data.tokenizers import open_tokenizer
from posenc_jax.encodings.backend import assume_backend
from posenc_jax.evaluation import evaluate, extrapolation, perplexity, retrieval
from posenc_jax.evaluation.context import EvaluationContext, Multiples
from posenc_jax.evaluation.scorer import Scorer, Scores
from posenc_jax.results.row_file import RowFile, headline
from posenc_jax.results.schema import DEFINITIONS, Row
from posenc_jax.tasks.instances import Answer, Instance
from posenc_jax.training.inputs import unigram_bits_per_byte

V = 260
BYTES = open_tokenizer("bytes").byte_lengths_V


class Known:
    """A scorer whose probabilities are given by a function of (row, position) instead of a model."""

    def __init__(self, probability):
        self._probability = probability

    def score(self, rows_RT, window=None):
        p = np.array([[self._probability(row, t) for t in range(len(row) - 1)] for row in rows_RT])
        return Scores(-np.log(p), np.where(p > 0.5, 0, 3))


def stream_of(*documents):
    tokens = np.concatenate([np.r_[256, d] for d in documents])
    starts = np.r_[0, np.cumsum([len(d) + 1 for d in documents])]
    return types.SimpleNamespace(tokens=tokens, starts=starts)


def text(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, n)


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
    disjoint = [perplexity.bits_per_byte(*perplexity.disjoint_segments(unigram, rows, 16, k), BYTES) for k in (1, 2, 4, 8)]  # fmt: skip
    fixed = [perplexity.bits_per_byte(*perplexity.fixed_targets(unigram, rows, 16, c), BYTES) for c in (2, 16, 128)]  # fmt: skip
    np.testing.assert_allclose(disjoint, disjoint[0])
    np.testing.assert_allclose(fixed, fixed[0])
    want = -np.log2(share[rows[:, 9:]]).mean()  # the same targets, all but the first half length
    assert disjoint[0] == pytest.approx(want)


def test_a_planted_dependency_at_distance_w_shows_at_context_w_and_not_before():
    """Every byte repeats the one 20 before it, but only a context that reaches back finds it."""
    period = text(20)
    rows = perplexity.held_out_stretches(stream_of(np.tile(period, 100)), 8 * 16 + 8, 4)
    reader = Known(lambda row, t: 0.99 if t >= 19 else 1 / V)
    cost = {c: perplexity.bits_per_byte(*perplexity.fixed_targets(reader, rows, 16, c), BYTES) for c in (8, 16, 32)}  # fmt: skip
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
    counted = [np.sort(perplexity.disjoint_segments(scorer, rows, 16, k)[1], axis=None) for k in (1, 2, 4, 8)]  # fmt: skip
    for other in counted[1:]:
        np.testing.assert_array_equal(counted[0], other)


def test_special_ids_stand_for_no_byte():
    nll = np.full((1, 4), math.log(2))
    assert perplexity.bits_per_byte(nll, np.array([[65, 256, 66, 67]]), BYTES) == pytest.approx(1.0)


def test_octaves_cover_every_position_once():
    for length in (1, 5, 64, 100):
        covered = [p for a, b in perplexity.octaves(length) for p in range(a, b)]
        assert covered == list(range(length))


def test_an_answer_is_right_only_when_all_its_tokens_are():
    tokens = np.arange(10)
    instance = Instance(
        tokens, (Answer(4, 6, 3, 0.0, 0.1), Answer(6, 7, 1, 0.5, 1.0), Answer(7, 9, 5, 0.95, 0.2))
    )
    known = Known(lambda row, t: 0.1 if t + 1 == 5 else 0.9)
    answers = retrieval.score_instances(known, [instance])
    assert answers.correct.tolist() == [False, True]
    assert answers.rank.tolist() == [3, 0]
    assert answers.instance.tolist() == [0, 0]
    assert answers.chance.tolist() == [0.1, 0.2]  # the one that is given away is not scored
    np.testing.assert_allclose(answers.nll, [-(math.log(0.9) + math.log(0.1)) / 2, -math.log(0.9)])
    by_bucket = {name: chosen.tolist() for name, chosen in retrieval.buckets(answers, 4)}
    assert by_bucket["distance:L/4-L"] == [True, False]
    assert by_bucket["distance:L-2L"] == [False, True]
    assert by_bucket["depth:0"] == [True, False]
    assert by_bucket["depth:9"] == [False, True]


def test_distance_bins_cover_every_distance_once():
    distance = np.arange(0, 700)
    answers = retrieval.Answers(
        distance > 0,
        distance * 1.0,
        distance,
        distance,
        distance / 700,
        distance * 0.0,
        np.full(700, ""),
        distance,
    )
    bins = [
        chosen for name, chosen in retrieval.buckets(answers, 64) if name.startswith("distance")
    ]
    np.testing.assert_array_equal(np.sum(bins, axis=0), 1)


def test_the_scorer_pads_without_changing_a_number(tmp_path):
    config = runs.config(tmp_path).model_config(V)
    from posenc_jax.model.decoder import Decoder

    ones = np.ones((1, 4), np.int32)
    params = Decoder(config).init(__import__("jax").random.key(0), ones, ones, ones)["params"]
    rows = np.stack([text(21, s) for s in range(5)])
    exact = Scorer({20: config}, params, 40)
    padded = Scorer({32: config, 64: config}, params, 96)
    for a, b in zip(exact.score(rows), padded.score(rows), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert padded.compilations == 1
    with pytest.raises(ValueError, match="rows of 70 inputs exceed the longest length 64"):
        padded.score(np.zeros((1, 71), np.int32))


def row(suite="E", metric="bpb_ctx", length=8, value=None, **changes):
    """A row of a run that trained at 8 tokens."""
    fields = {
        "run": "x",
        "arm": "rope",
        "seed": 0,
        "tier": "smoke",
        "suite": suite,
        "metric": metric,
    }
    fields |= {"length": length, "train_length": 8, "bucket": "all", "value": value, "n": 1}
    return Row(**fields | {"split": "dev"} | changes)


def test_rows_of_an_item_are_written_whole_and_once(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = RowFile(path, {"E": "one", "R": "one"})
    rows.add("E1/1", [row(value=1.0), row(value=2.0)])
    again = RowFile(path, {"E": "one", "R": "two"})
    assert again.has("E1/1")
    assert not again.has("E1/2")
    assert RowFile(path, {"E": "two", "R": "one"}).dropped == 2
    assert [json.loads(line)["value"] for line in path.read_text().splitlines()] == [1.0, 2.0]


def test_an_item_that_was_skipped_is_asked_again_and_one_of_older_definitions_too(tmp_path):
    """E7 without 4L stayed skipped for ever, also once 4L was measured."""
    path = tmp_path / "rows.jsonl"
    rows = RowFile(path, {"E": "one"})
    rows.add("E7", [row(metric="context_gain", skipped="bpb_ctx at 4L is not measured")])
    assert not rows.has("E7")
    rows.add("E7", [row(metric="context_gain", value=0.5)])
    assert rows.has("E7")
    assert len(runs.rows(path)) == 1
    older = runs.rows(path)[0] | {"definitions": DEFINITIONS - 1, "value": math.nan}
    path.write_text(json.dumps(older) + "\n")
    assert RowFile(path, {"E": "one"}).dropped == 1


@pytest.mark.thorough
def test_an_arm_without_the_positions_for_a_context_says_so(trained):
    """`learned` has L positions: the in-distribution row is measured, the longer ones are skipped in words."""
    path = evaluate.evaluate(
        trained, multiples=(1,), suites=("E3", "E7"), split="dev", stretch=None
    )
    found = {row["length"]: row for row in runs.rows(path) if row["metric"] == "bpb_ctx"}
    assert {length for length, row in found.items() if row["value"] is not None} == {4, 8, 16}
    assert found[32]["skipped"] == "a context of 32 and 16 targets exceed 32 positions"


def test_the_headline_names_the_loss_within_l_and_past_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = RowFile(path, {"E": "one"})
    rows.add("E1/1", [row(metric="bpb_nonoverlap", value=9.0)])
    assert headline(path) == ""
    for length, value in ((4, 2.0), (8, 2.5), (32, 3.0), (64, None)):
        rows.add(f"E3/{length}", [row(length=length, value=value)])
    assert headline(path) == "bits per byte of dev: 2.000 within L (c = L/2), 3.000 after 4L"


def test_a_value_that_is_not_finite_is_no_value_and_says_so():
    config = runs.config("unused", "rope")
    lengths = Multiples((1,), (1,), 1)
    work = EvaluationContext(Path("x/evaluation"), config, None, "dev", None, lengths, None)
    for value in (math.nan, np.float32("inf"), -math.inf):
        found = work.row("E", "bpb_ctx", 32, "all", value, np.int64(3))
        assert (found.value, found.skipped) == (None, f"not finite ({value})")
        json.dumps(found.to_json(), allow_nan=False)
    found = work.row("E", "bpb_ctx", np.int64(64), "all", np.float32(0.5), 3)
    assert json.loads(json.dumps(found.to_json()))["k"] == 2.0
    assert (
        row(length=4, train_length=9).k == 0.5
    )  # of an odd L too, the loss within L is found at k = 1/2


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp("run") / "x"
    runs.finished(runs.config(data_dir, "learned"), workdir)
    return workdir


def test_evaluation_resumes_per_item_and_gives_the_same_rows(trained, monkeypatch):
    path = evaluate.evaluate(trained, multiples=(1,), suites=None, split="dev", stretch=None)
    whole = path.read_text()
    kept = [line for line in whole.splitlines() if json.loads(line)["item"] != "mqar/1"]
    path.write_text("".join(line + "\n" for line in kept))
    measured = []
    score = Scorer.score
    monkeypatch.setattr(Scorer, "score", lambda self, rows, *window: measured.append(rows.shape) or score(self, rows, *window))  # fmt: skip
    evaluate.evaluate(trained, multiples=(1,), suites=None, split="dev", stretch=None)
    assert len(measured) == 1
    assert sorted(path.read_text().splitlines()) == sorted(whole.splitlines())


def test_asking_for_less_keeps_what_was_measured_and_dev_lies_apart(trained):
    path = evaluate.evaluate(trained, multiples=None, suites=None, split="test", stretch=None)
    whole = path.read_text()
    evaluate.evaluate(trained, multiples=(1,), suites=("E1", "E3"), split="test", stretch=None)
    apart = evaluate.evaluate(trained, multiples=(1,), suites=("E1",), split="dev", stretch=None)
    assert path.read_text() == whole
    assert apart.parent == trained / "evaluation_dev"


def test_an_arm_that_reads_less_far_scores_the_same_targets(trained, monkeypatch):
    """The stretches come from the study's longest multiple, not from what fits the arm."""
    asked = []
    cut = perplexity.held_out_stretches
    monkeypatch.setattr(extrapolation, "held_out_stretches", lambda s, n, c: asked.append(n) or cut(s, n, c))  # fmt: skip
    evaluate.evaluate(trained, multiples=(1,), suites=("E1",), split="test", stretch=None)
    assert asked == [8 * 32 + 16]


def test_a_context_too_short_for_a_task_is_written_down_as_skipped(tmp_path, data_dir):
    config = runs.config(data_dir, "rope", train={"length": 16}, data={"retrieval_share": 0.0})
    runs.finished(config, tmp_path / "x")
    path = evaluate.evaluate(
        tmp_path / "x", multiples=(1, 2), suites=("R",), split="test", stretch=None
    )
    skipped = {(row["metric"], row["k"]) for row in runs.rows(path) if "skipped" in row}
    assert ("passkey_accuracy", 1.0) in skipped
    assert ("passkey_accuracy", 2.0) not in skipped
    assert {k for metric, k in skipped if metric == "needles_16_accuracy"} == {1.0, 2.0}


def test_a_length_past_a_learned_table_is_refused_when_asked_for_and_written_down_otherwise(
    trained,
):
    with pytest.raises(
        ValueError,
        match=r"--lengths=2 asks for 80 positions .*'learned' has 32: ask for lengths up to 1",
    ):
        evaluate.evaluate(trained, multiples=(1, 2), suites=("E",), split="test", stretch=None)
    path = evaluate.evaluate(trained, multiples=None, suites=("E1",), split="test", stretch=None)
    skipped = [row for row in runs.rows(path) if row["metric"] == "skipped"]
    assert [row["length"] for row in skipped] == [64, 128, 256]
    assert all("exceed the 32 positions" in row["skipped"] for row in skipped)
    assert all(row["value"] is None for row in skipped)
    assert all(math.isfinite(row["value"]) for row in runs.rows(path) if row["value"] is not None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suites": ("X",)}, "--suite must name some of E, R"),
        ({"split": "train"}, "scores on training text mean nothing"),
        ({"multiples": (0,)}, "--lengths must be whole multiples"),
    ],
)
def test_wrong_questions_are_refused(trained, changes, message):
    ask = {"multiples": (1,), "suites": ("E",), "split": "test", "stretch": None} | changes
    with pytest.raises(ValueError, match=message):
        evaluate.evaluate(trained, **ask)


def test_a_list_of_key_targets_replaces_the_skipped_rows_and_no_other(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = RowFile(path, {"E": "one"})

    rows.add("E3/8", [row(value=2.0)])
    rows.add("E5/8", [row(metric="bpb_key", skipped="no targets")])
    assert rows.value("bpb_key", 8) is None
    assert not rows.has("E5/8@ab")
    rows.add("E5/8@ab", [row(metric="bpb_key", value=3.0)])
    assert rows.has("E5/8")
    assert rows.has("E5/8@ab")
    assert rows.value("bpb_key", 8) == (3.0, 1)
    assert [r["item"] for r in runs.rows(path)] == ["E3/8", "E5/8@ab"]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no trained run"):
        evaluate.evaluate(tmp_path, multiples=None, suites=("E",), split="test", stretch=None)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def rotary(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp("run") / "rotary"
    runs.finished(runs.config(data_dir, "rope+alibi|nope~logn"), workdir)
    return workdir


def test_everything_is_measured_with_whole_float32_products_on_a_gpu(rotary, tmp_path, monkeypatch):
    """P1 of a rotation came out as 4e-3, of TF32, where only the scores had asked for whole products."""
    folder = tmp_path / "as_if_on_a_gpu"
    shutil.copytree(rotary, folder)
    asked, real = [], evaluate.RowFile.add

    def add(self, item, rows):
        asked.append(jax.config.jax_default_matmul_precision)
        return real(self, item, rows)

    monkeypatch.setattr(evaluate.RowFile, "add", add)
    with assume_backend("gpu"):
        evaluate.evaluate(folder, multiples=(1,), suites=("P5",), split="test", stretch=None)
    assert asked
    assert set(asked) == {"highest"}
    assert jax.config.jax_default_matmul_precision is None


def test_reading_under_a_stretch_is_an_arm_of_its_own_and_factor_one_changes_nothing(rotary):
    ask = {"multiples": (1, 2), "suites": ("E1", "E3"), "split": "test"}
    plain = runs.rows(evaluate.evaluate(rotary, **ask, stretch=None))
    same = runs.rows(evaluate.evaluate(rotary, **ask, stretch="rotation.pi:1"))
    far = evaluate.evaluate(rotary, **ask, stretch="yarn:4")
    assert far.parent.parent == rotary / "stretched" / "yarn_4"
    assert [a["value"] for a in plain] == [b["value"] for b in same]
    moved = [
        (a["value"], b["value"])
        for a, b in zip(plain, runs.rows(far), strict=True)
        if "bpb" in a["metric"]
    ]
    assert len(moved) > 5
    assert all(a != b for a, b in moved)
    assert {row["arm"] for row in runs.rows(far)} == {"rope+alibi|nope~logn yarn:4"}
    config = json.loads((far.parent.parent / "config.json").read_text())
    assert config["model"]["scheme"] == "rope(stretch=yarn)+alibi(factor=4.0)|nope~logn"
    assert runs.rows(rotary / "evaluation" / "rows.jsonl") == plain


@pytest.mark.thorough
def test_all_of_e_and_r_is_few_programs(rotary):
    ask = {"multiples": (1, 2, 4, 8), "suites": ("E", "R"), "split": "dev"}
    path = evaluate.evaluate(rotary, **ask, stretch=None)
    about = json.loads((path.parent / "evaluation.json").read_text())
    assert {"E", "R"} <= {row["suite"] for row in runs.rows(path)}
    assert list(about["attention"]) == ["32", "64", "128", "256", "272"]
    assert about["programs"] == 5 + 2  # one a length, and E8's window on text and on retrieval
    assert about["programs"] < 30


def test_recall_under_its_two_names_is_scored_once(rotary, tmp_path, monkeypatch):
    workdir, scored = shutil.copytree(rotary, tmp_path / "x"), []
    config = json.loads((workdir / "config.json").read_text())
    config["evaluation"]["pairs"] = 8
    (workdir / "config.json").write_text(json.dumps(config))
    score = Scorer.score
    monkeypatch.setattr(Scorer, "score", lambda self, rows, *window: scored.append(rows.shape) or score(self, rows, *window))  # fmt: skip
    asked = ("mqar", "mqar_8", "mqar_16")
    path = evaluate.evaluate(workdir, multiples=(3,), suites=asked, split="dev", stretch=None)
    assert len(scored) == 2
    rows = [row for row in runs.rows(path) if row["length"] == 96 and row["metric"][:4] == "mqar"]
    values = {name: [(r["bucket"], r["value"], r["n"]) for r in rows if r["metric"].rpartition("_")[0] == name] for name in asked}  # fmt: skip
    assert len(values["mqar"]) > 10
    assert values["mqar"] == values["mqar_8"] != values["mqar_16"]


def test_dynamic_stretches_by_the_length_that_is_read(rotary):
    ask = {"multiples": (1, 4), "suites": ("E1",), "split": "test"}

    def by_length(rule):
        rows = runs.rows(evaluate.evaluate(rotary, **ask, stretch=rule))
        return {row["length"]: row["value"] for row in rows if row["metric"] == "bpb_nonoverlap"}

    plain, dynamic = by_length(None), by_length("dynamic:1")
    assert dynamic[32] == plain[32]
    assert dynamic[128] != plain[128]


def test_a_stretch_that_cannot_be_is_refused_and_writes_nothing(rotary):
    before = sorted(rotary.rglob("*"))
    for rule, message in (("yran:2", "did you mean 'yarn'"), ("yarn:x", "positive number")):
        with pytest.raises(ValueError, match=message):
            evaluate.evaluate(rotary, multiples=(1,), suites=("E",), split="test", stretch=rule)
    assert sorted(rotary.rglob("*")) == before
