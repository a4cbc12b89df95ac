"""Rows from version 1 of the definitions under today's: answers by hand, and committed results."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from posenc_jax.results.load import load

from support.result_folders import L, row, write_run

RESULTS = Path(__file__).parents[2] / "results"


def old(metric, length, value, bucket="all", n=100, **changes):
    suite = "E" if metric.startswith(("bpb", "context", "repeat")) else "R"
    one = row(metric, length, value, bucket=bucket, n=n, suite=suite) | changes
    return {k: v for k, v in one.items() if k != "definitions"}


def redrawn(tmp_path, rows):
    study = load(write_run(tmp_path / "rope-s0", rows), "dev")
    return {(r.metric, r.length, r.bucket): r for r in study.runs[0].rows}, study.notes


def test_context_gain_begins_within_the_training_length(tmp_path):
    rows = [old("bpb_ctx", L // 2, 2.0), old("bpb_ctx", L, 5.0), old("bpb_ctx", 4 * L, 1.75)]
    found, _ = redrawn(tmp_path, [*rows, old("context_gain", 4 * L, 3.25)])
    assert found["context_gain", 4 * L, "all"].value == 0.25
    assert found["bpb_ctx", L, "all"].value == 5.0
    assert {r.definitions for r in found.values()} == {2}


def test_one_unigram_level_is_that_of_test(tmp_path):
    folder = write_run(tmp_path / "rope-s0", [old("bpb_ctx", L, 2.0)])
    path = folder / "run.json"
    for stored, read in ((4.5, {"test": 4.5}), ({"dev": 4.6, "test": 4.5},) * 2):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"unigram_bpb": stored}))
        (run,) = load(folder, "dev").runs
        assert run.info["unigram_bpb"] == read


def test_a_context_gain_without_its_rows_is_none_in_words(tmp_path):
    rows = [old("bpb_ctx", L, 5.0), old("bpb_ctx", 4 * L, 1.75), old("context_gain", 4 * L, 3.25)]
    found, _ = redrawn(tmp_path, rows)
    gain = found["context_gain", 4 * L, "all"]
    assert gain.value is None
    assert "L/2" in gain.skipped


# Accuracy and its correction by hand: one of four values, one of two, 25/12/4 of four pairs (config: 8).
H8 = sum(1 / i for i in range(1, 9)) / 8


@pytest.mark.parametrize(
    ("task", "accuracy", "chance"),
    [
        ("needles_4", 0.25, 0.25),
        ("needles_16", 0.5, 1 / 16),
        ("latest_first", 0.5, 0.5),
        ("variables_2", 0.75, 0.5),
        ("synonym", 1.0, 0.25),
        ("passkey", 0.6, 1e-5),
        ("mqar_16", 0.211, sum(1 / i for i in range(1, 17)) / 16),
        ("mqar", 0.5, H8),
    ],
)
def test_accuracy_is_corrected_by_chance_without_binding(tmp_path, task, accuracy, chance):
    rows = [old(f"{task}_accuracy", L, accuracy), old(f"{task}_corrected", L, 0.123)]
    found, _ = redrawn(tmp_path, rows)
    assert found[f"{task}_corrected", L, "all"].value == pytest.approx(
        (accuracy - chance) / (1 - chance)
    )
    assert found[f"{task}_accuracy", L, "all"].value == accuracy
    assert [r.chance for r in found.values()] == pytest.approx([chance, chance])


@pytest.mark.parametrize("task", ["copy", "ngram", "phonebook", "nback", "flipflop", "needles_1"])
def test_a_task_whose_chance_must_be_played_is_not_corrected(tmp_path, task):
    rows = [
        old(f"{task}_accuracy", L, 0.9),
        old(f"{task}_corrected", L, 0.8),
        old("EL_0.85", L, 64.0, task),
    ]
    found, notes = redrawn(tmp_path, rows)
    assert found[f"{task}_corrected", L, "all"].value is None
    assert found["EL_0.85", L, task].value is None
    assert any(task in said for said in notes)


def answers(k, all_, far):
    """Rows of the three tasks of Y_R at kL: corrected accuracy `all_` of 100 answers, `far` of 40 and 20
    beyond L.
    """
    rows = []
    for task, guess in (
        ("passkey", 1e-5),
        ("needles_4", 0.25),
        ("mqar_16", sum(1 / i for i in range(1, 17)) / 16),
    ):
        shift = {"passkey": 0.03, "needles_4": 0.0, "mqar_16": -0.03}[task]
        for bucket, value, n in (
            ("all", all_, 100),
            ("distance:L-2L", far, 40),
            ("distance:2L-4L", far + 0.03, 20),
        ):
            right = guess + (1 - guess) * (value + shift)
            rows += [
                old(f"{task}_accuracy", k * L, right, bucket, n),
                old(f"{task}_corrected", k * L, 9, bucket, n),
            ]
    return rows


def test_summaries_of_retrieval_are_computed_again_at_every_length(tmp_path):
    rows = [
        *answers(1, 0.9, 0.0),
        *answers(2, 0.7, 0.6),
        *answers(4, 0.5, 0.3),
        *answers(8, 0.2, 0.1),
    ]
    rows += [old("Y_R", 4 * L, 9), old("Y_R_far", 4 * L, 9), old("Y_R_id", L, 9)]
    found, _ = redrawn(tmp_path, rows)
    got = {(m, at // L): r.value for (m, at, _), r in found.items() if m[:3] in ("Y_R", "lea")}
    # Of 60 answers beyond L a third scores 0.03 more.
    wanted = {
        ("Y_R_id", 1): 0.9,
        ("least_id", 1): 0.87,
        ("Y_R", 2): 0.7,
        ("Y_R_far", 2): 0.61,
        ("Y_R", 4): 0.5,
        ("Y_R_far", 4): 0.31,
        ("Y_R", 8): 0.2,
        ("Y_R_far", 8): 0.11,
    }
    assert got == {key: pytest.approx(value) for key, value in wanted.items()}
    assert found["Y_R", 4 * L, "all"].n == 300
    assert found["Y_R_far", 4 * L, "all"].n == 180


def test_a_summary_without_a_task_is_none_in_words(tmp_path):
    rows = [one for one in answers(4, 0.5, 0.3) if "mqar" not in one["metric"]]
    found, _ = redrawn(tmp_path, [*rows, old("Y_R", 4 * L, 9)])
    assert found["Y_R", 4 * L, "all"].skipped == "mqar_16 was not measured at 4L"


@pytest.mark.parametrize(
    ("scores", "reach"),
    [
        ((0.9, 0.9, 0.8, 0.1), 4 * L),
        ((0.9, 0.7, 0.9, 0.9), L),
        ((0.49, 0.49, 0.49, 0.49), None),
        ((0.5, 0.5, 0.5, 0.5), 8 * L),
    ],
)
def test_reach_is_counted_from_a_task_that_is_learnt(tmp_path, scores, reach):
    rows = [old("EL_0.85", 8 * L, 8.0 * L, "needles_4")]
    for k, score in zip((1, 2, 4, 8), scores, strict=True):
        rows += [
            old("needles_4_accuracy", k * L, 0.25 + 0.75 * score),
            old("needles_4_corrected", k * L, 9),
        ]
    found, _ = redrawn(tmp_path, rows)
    assert found["EL_0.85", 8 * L, "needles_4"].value == reach


def test_the_confounded_gain_keeps_its_rows_under_another_name(tmp_path):
    found, notes = redrawn(tmp_path, [old("repeat_gain", 2 * L, -0.04)])
    assert {m for m, _, _ in found} == {"repeat_gain_other_place"}
    assert any("E6" in said for said in notes)


committed = functools.cache(lambda name: load(RESULTS / name, "test"))


def by_arm(name, metric, k):
    found = {}
    for run in committed(name).runs:
        for one in run.rows:
            if one.metric == metric and one.k == k and one.bucket == "all":
                found.setdefault(run.info["arm"], []).append(one.value)
    return found


def test_the_committed_screening_reads_within_the_training_length():
    within, past = by_arm("screening", "bpb_ctx", 0.5), by_arm("screening", "bpb_ctx", 1)
    assert np.round(within["rope"], 2).tolist() == [1.78, 1.79, 1.75, 1.78]
    assert np.round(past["rope"], 2).tolist() == [1.82, 1.98, 1.77, 1.91]
    lead = {
        arm: np.mean(np.array(within["rope"]) - within[arm])
        for arm in ("coupled", "sum", "coupled-unrotated")
    }
    assert lead == {
        "coupled": pytest.approx(0.013, abs=5e-4),
        "sum": pytest.approx(0.025, abs=5e-4),
        "coupled-unrotated": pytest.approx(-0.049, abs=5e-4),
    }


def test_the_committed_cpu_study_reads_within_the_training_length():
    assert np.round(by_arm("cpu", "bpb_ctx", 0.5)["logtail"][0], 2) == 2.12
    assert np.round(by_arm("cpu", "bpb_ctx", 1)["logtail"][0], 2) == 2.52


def test_what_guesses_among_the_values_in_sight_has_not_learnt_them():
    least = by_arm("screening", "least_id", 1)
    assert max(least["rope"] + least["nope"]) < 0 < 0.95 < min(least["sum"])


def test_a_committed_study_says_what_cannot_be_redrawn():
    said = " ".join(committed("screening").notes)
    for words in ("bootstrap draws seeds alone", "given away", "E6", "E8", "P3"):
        assert words in said


def test_a_committed_reading_under_a_stretch_has_the_record_of_its_run():
    runs = {run.name: run for run in committed("screening").runs}
    read, of = runs["runs/rope-s2/stretched/yarn_4"], runs["runs/rope-s2"]
    assert (read.info["arm"], read.info["seed"]) == ("rope yarn:4", 2)
    assert read.info["began"] == of.info["began"]
    assert json.dumps(of.info)  # plain JSON
