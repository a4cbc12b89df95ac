"""Rows of retrieval: accuracy with its chance, and summaries that the answers kept beside them give again."""

import dataclasses
import math
import shutil
import types

import numpy as np
import pytest
from posenc_jax.evaluation import evaluate, properties, retrieval
from posenc_jax.evaluation.suites import chosen_measures
from posenc_jax.results.schema import SUMMARY_TASKS
from posenc_jax.tasks.instances import Answer, Instance

from support import runs
from support.known_scorers import Known

L = 96


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp("run") / "x"
    config = runs.config(
        data_dir,
        "rope",
        train={"length": L, "steps": 2},
        evaluation={"instances": 20, "stretches": 4},
    )
    runs.finished(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def evaluated(trained):
    """Rows by (metric, k, bucket) and the folder of arrays; nine of ten passkeys and four of ten other
    answers are made right."""
    random = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        for module in (retrieval, properties):
            score = module.score_instances

            def lucky(*args, score=score):
                answers = score(*args)
                share = np.where(answers.chance < 0.01, 0.9, 0.4)
                right = random.random(answers.correct.shape) < share
                return dataclasses.replace(answers, correct=right)

            patch.setattr(module, "score_instances", lucky)
        suites = ("Y_R", "Y_R_window", "EL", "P3")
        path = evaluate.evaluate(
            trained, multiples=(1, 4), suites=suites, split="test", stretch=None
        )
    rows = {(row["metric"], row["k"], row["bucket"]): row for row in runs.rows(path)}
    return rows, path.parent / "arrays"


def corrected(arrays, name, beyond=-1):
    with np.load(arrays / f"{name}.npz") as stored:
        here = stored["distance"] > beyond
        right, chance = stored["correct"][here], stored["chance"][here]
    return (right.sum() - chance.sum()) / (1 - chance).sum()


@pytest.mark.thorough
def test_accuracies_carry_the_mean_chance_of_their_answers(evaluated):
    rows, arrays = evaluated
    for task, chance in (("passkey", 1e-5), ("needles_4", 1 / 4)):
        assert rows[f"{task}_accuracy", 4, "all"]["chance"] == pytest.approx(chance)
    recall = sum(1 / left for left in range(2, 17)) / 15  # the last answer is given away
    assert rows["mqar_16_accuracy", 4, "all"]["chance"] == pytest.approx(recall)
    assert rows["mqar_16_accuracy", 4, "all"]["n"] == 20 * 15
    checked = 0
    for (metric, k, bucket), row in rows.items():
        if metric.endswith("_corrected"):
            plain = rows[metric.replace("_corrected", "_accuracy"), k, bucket]
            above = (plain["value"] - row["chance"]) / (1 - row["chance"])
            assert row["value"] == pytest.approx(above)
            assert row["chance"] == plain["chance"]
            checked += 1
    assert checked > 40
    assert "chance" not in rows["mqar_16_nll", 4, "all"]
    assert rows["P3_offset_corrected", 1, "all"]["value"] == pytest.approx(
        corrected(arrays, "P3_1")
    )
    assert 1 / 64 < rows["P3_offset_accuracy", 1, "all"]["chance"] < 0.1


@pytest.mark.thorough
def test_summaries_are_what_the_answers_give(evaluated):
    rows, arrays = evaluated
    parts = [corrected(arrays, f"{task}_4") for task in SUMMARY_TASKS]
    assert rows["Y_R", 4, "all"]["value"] == pytest.approx(np.mean(parts))
    far = [corrected(arrays, f"{task}_4", L) for task in SUMMARY_TASKS]
    assert rows["Y_R_far", 4, "all"]["value"] == pytest.approx(np.mean(far))
    parts = [corrected(arrays, f"{task}_1") for task in SUMMARY_TASKS]
    assert rows["Y_R_id", 1, "all"]["value"] == pytest.approx(np.mean(parts))
    assert rows["least_id", 1, "all"]["value"] == pytest.approx(min(parts))
    windowed = [corrected(arrays, f"{task}_4_window") for task in SUMMARY_TASKS]
    assert rows["Y_R_window", 4, "all"]["value"] == pytest.approx(np.mean(windowed))
    assert ("Y_R", 1, "all") not in rows
    assert ("Y_R_id", 4, "all") not in rows


@pytest.mark.thorough
def test_a_reach_is_counted_from_a_task_that_is_learnt(evaluated):
    rows, _ = evaluated
    assert rows["EL_0.85", 4, "passkey"]["value"] in (L, 4 * L)
    for task in ("needles_4", "mqar_16"):
        row = rows["EL_0.85", 4, task]
        assert row["value"] is None
        assert f"{task} is not learnt at its shortest length, {L}" in row["skipped"]


def test_y_r_is_summed_up_at_every_multiple():
    work = types.SimpleNamespace(multiples=(1, 2, 8), inputs=types.SimpleNamespace(tokenizer=None))
    items = retrieval.retrieval_items(work, frozenset({"Y_R"}))
    assert list(items) == ["Y_R/1", "Y_R/2", "Y_R/8"]


def test_retrieval_under_a_window_comes_with_e8():
    assert chosen_measures(("E8",))["R"] == {"Y_R_window"}
    assert chosen_measures(("Y_R_window",))["R"] == {"Y_R_window", *SUMMARY_TASKS}
    assert "R" not in chosen_measures(("E7",))


@pytest.mark.thorough
def test_retrieval_under_a_window_says_what_it_lacks(trained):
    path = evaluate.evaluate(
        trained, multiples=(1,), suites=("Y_R_window",), split="dev", stretch=None
    )
    (row,) = (row for row in runs.rows(path) if row["metric"] == "Y_R_window")
    assert row["skipped"] == "passkey was not measured at 4L"


@pytest.mark.thorough
def test_text_under_a_window_says_what_it_lacks(trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "x")

    def evaluated(multiples, *suites):
        path = evaluate.evaluate(
            workdir, multiples=multiples, suites=suites, split="dev", stretch=None
        )
        return {row["metric"]: row for row in runs.rows(path)}

    missing = evaluated((1, 2), "E8")["window_check"]
    assert missing["skipped"] == "bpb_ctx at 4L is not measured"
    evaluated((4,), "E3")  # its row stands when the next evaluation asks for other lengths
    assert evaluated((1, 2), "E8")["window_check"]["skipped"] == "4L is not among the lengths"


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
