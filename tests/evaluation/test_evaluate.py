"""Evaluation of a tiny trained run: suites, resuming, refusals, length extension."""

import json
import math
import shutil

import jax
import numpy as np
import pytest
from posenc_jax.encodings.backend import assume_backend
from posenc_jax.evaluation import evaluate, extrapolation, perplexity
from posenc_jax.evaluation.evaluate import EvaluationCounts
from posenc_jax.evaluation.load_run import load_run
from posenc_jax.evaluation.scorer import Scorer
from posenc_jax.model.decoder import Decoder
from posenc_jax.results.row_file import RowFile

from support import runs
from support.result_rows import row_of_8_tokens


@pytest.mark.thorough
def test_an_arm_without_the_positions_for_a_context_says_so(trained):
    """`learned` has L positions: the in-distribution row is measured, the longer ones are skipped in
    words.
    """
    path = evaluate.evaluate(
        trained, multiples=(1,), suites=("E3", "E7"), split="dev", stretch=None
    )
    found = {row["length"]: row for row in runs.rows(path) if row["metric"] == "bpb_ctx"}
    assert {length for length, row in found.items() if row["value"] is not None} == {4, 8, 16}
    assert found[32]["skipped"] == "a context of 32 and 16 targets exceed 32 positions"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp("run") / "x"
    config = runs.config(
        data_dir, "learned", model={"num_layers": 1}, train={"steps": 4, "data_devices": 1}
    )
    runs.finished(config, workdir)
    return workdir


def test_evaluation_resumes_per_item_and_gives_the_same_rows(trained, monkeypatch):
    path = evaluate.evaluate(trained, multiples=(1,), suites=None, split="dev", stretch=None)
    whole = path.read_text()
    kept = [line for line in whole.splitlines() if json.loads(line)["item"] != "mqar/1"]
    path.write_text("".join(line + "\n" for line in kept))
    measured = []
    score = Scorer.score
    monkeypatch.setattr(
        Scorer,
        "score",
        lambda self, rows, *window: measured.append(rows.shape) or score(self, rows, *window),
    )
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


@pytest.mark.thorough
def test_an_arm_that_reads_less_far_scores_the_same_targets(trained, monkeypatch):
    """The stretches come from the study's longest multiple, not from what fits the arm."""
    asked = []
    cut = perplexity.held_out_stretches
    monkeypatch.setattr(
        extrapolation, "held_out_stretches", lambda s, n, c: asked.append(n) or cut(s, n, c)
    )
    evaluate.evaluate(trained, multiples=(1,), suites=("E1",), split="test", stretch=None)
    assert asked == [8 * 32 + 16]


@pytest.mark.thorough
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
        ({"multiples": (0,)}, "--lengths=0 asks for 0 tokens"),
    ],
)
def test_wrong_questions_are_refused(trained, changes, message):
    ask = {"multiples": (1,), "suites": ("E",), "split": "test", "stretch": None} | changes
    with pytest.raises(ValueError, match=message):
        evaluate.evaluate(trained, **ask)


def test_a_list_of_key_targets_replaces_the_skipped_rows_and_no_other(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = RowFile(path, {"E": "one"})

    rows.add("E3/8", [row_of_8_tokens(value=2.0)])
    rows.add("E5/8", [row_of_8_tokens(metric="bpb_key", skipped="no targets")])
    assert rows.value("bpb_key", 8) is None
    assert not rows.has("E5/8@ab")
    rows.add("E5/8@ab", [row_of_8_tokens(metric="bpb_key", value=3.0)])
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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
    # One a length, and E8's window on text, on retrieval and at the longest length.
    assert about["programs"] == 5 + 3
    assert about["programs"] < 30


@pytest.mark.thorough
def test_recall_under_its_two_names_is_scored_once(rotary, tmp_path, monkeypatch):
    workdir, scored = shutil.copytree(rotary, tmp_path / "x"), []
    config = json.loads((workdir / "config.json").read_text())
    config["evaluation"]["pairs"] = 8
    (workdir / "config.json").write_text(json.dumps(config))
    score = Scorer.score
    monkeypatch.setattr(
        Scorer,
        "score",
        lambda self, rows, *window: scored.append(rows.shape) or score(self, rows, *window),
    )
    asked = ("mqar", "mqar_8", "mqar_16")
    path = evaluate.evaluate(workdir, multiples=(3,), suites=asked, split="dev", stretch=None)
    assert len(scored) == 2
    rows = [row for row in runs.rows(path) if row["length"] == 96 and row["metric"][:4] == "mqar"]
    values = {
        name: [
            (r["bucket"], r["value"], r["n"])
            for r in rows
            if r["metric"].rpartition("_")[0] == name
        ]
        for name in asked
    }
    assert len(values["mqar"]) > 10
    assert values["mqar"] == values["mqar_8"] != values["mqar_16"]


@pytest.mark.thorough
def test_dynamic_stretches_by_the_length_that_is_read(rotary):
    ask = {"multiples": (1, 4), "suites": ("E1",), "split": "test"}

    def by_length(rule):
        rows = runs.rows(evaluate.evaluate(rotary, **ask, stretch=rule))
        return {row["length"]: row["value"] for row in rows if row["metric"] == "bpb_nonoverlap"}

    plain, dynamic = by_length(None), by_length("dynamic:1")
    assert dynamic[32] == plain[32]
    assert dynamic[128] != plain[128]


@pytest.mark.thorough
def test_a_stretch_that_cannot_be_is_refused_and_writes_nothing(rotary):
    before = sorted(rotary.rglob("*"))
    for rule, message in (("yran:2", "did you mean 'yarn'"), ("yarn:x", "positive number")):
        with pytest.raises(ValueError, match=message):
            evaluate.evaluate(rotary, multiples=(1,), suites=("E",), split="test", stretch=rule)
    assert sorted(rotary.rglob("*")) == before


def unmeasured(workdir, folder):
    """Returns a copy of a run without rows of dev."""
    copy = shutil.copytree(workdir, folder)
    shutil.rmtree(copy / "evaluation_dev", ignore_errors=True)
    return copy


def bits_of(run, rows_RT, size):
    """Bits per byte of disjoint pieces of `size` tokens, from logits in float64, row by row."""
    config, bytes_V = run.model_config(64), run.inputs.tokenizer.byte_lengths_V
    apply = jax.jit(lambda *ids: Decoder(config).apply({"params": run.params}, *ids)[0][0])
    nats = scored = 0
    for row in rows_RT[:, len(rows_RT[0]) - 1 - 256 :]:
        for start in range(0, 256, size):
            piece, targets = row[start : start + size], row[start + 1 : start + size + 1]
            places = np.arange(size, dtype=np.int32)[None]
            logits = np.asarray(apply(piece[None], places, np.ones_like(places)), float)
            counted = bytes_V[targets] > 0
            lost = np.log(np.exp(logits).sum(-1)) - logits[np.arange(size), targets]
            nats, scored = nats + lost[counted].sum(), scored + bytes_V[targets].sum()
    return nats / math.log(2) / scored


@pytest.mark.thorough
def test_a_share_of_the_training_length_is_a_length_too(rotary, tmp_path):
    ask = {"suites": ("E1", "E3", "passkey"), "split": "dev", "stretch": None}
    workdir = unmeasured(rotary, tmp_path / "x")
    path = evaluate.evaluate(workdir, multiples=(0.5, 1), **ask, counts=EvaluationCounts(2, 2))
    found = {(r["metric"], r["length"]): r for r in runs.rows(path) if r["bucket"] == "all"}
    assert {n for metric, n in found if metric == "bpb_ctx"} == {16, 32}
    half, whole = found["bpb_nonoverlap", 16], found["bpb_nonoverlap", 32]
    assert half["n"] == whole["n"] == 2 * 256
    run = load_run(rotary, None)
    rows_RT = perplexity.held_out_stretches(run.inputs.stream("dev"), 256 + 16, 2)
    for row in (half, whole):
        assert row["value"] == pytest.approx(bits_of(run, rows_RT, row["length"]), rel=1e-5)
    assert half["value"] != whole["value"]
    assert found["passkey_accuracy", 32]["n"] == 2
    assert "needs" in found["passkey_accuracy", 16]["skipped"]


@pytest.mark.thorough
def test_rows_of_other_counts_stay_until_their_item_is_measured_again(rotary, tmp_path):
    workdir = unmeasured(rotary, tmp_path / "x")
    ask = {"suites": ("passkey",), "split": "dev", "stretch": None}

    def counts(**given):
        path = evaluate.evaluate(workdir, **ask | given)
        rows = [r for r in runs.rows(path) if r["metric"] == "passkey_accuracy"]
        return {r["length"]: r["n"] for r in rows if r["bucket"] == "all" and r["n"]}

    assert counts(multiples=(1, 2), counts=EvaluationCounts(instances=3)) == {32: 3, 64: 3}
    assert counts(multiples=(2,), counts=EvaluationCounts(instances=2)) == {32: 3, 64: 2}
    assert counts(multiples=(1,), counts=EvaluationCounts(stretches=1)) == {32: 10, 64: 2}
    config = json.loads((workdir / "config.json").read_text())
    assert config["evaluation"]["instances"] == 10
