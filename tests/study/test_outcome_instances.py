"""Instances of an outcome: where they come from, and verdicts that draw them."""

import dataclasses
import json

import numpy as np
import pytest
from posenc_jax.evaluation import evaluate, retrieval
from posenc_jax.results.load import load
from posenc_jax.results.study_data import RunData
from posenc_jax.study import bootstrap
from posenc_jax.study.auxiliary_runs import AuxiliaryRuns
from posenc_jax.study.outcome_instances import SAMPLED, matching_sample, read_instances
from posenc_jax.study.outcomes import read_outcomes
from posenc_jax.study.preregistration import AnalysisPlan
from posenc_jax.study.verdict import judge

from support import runs
from support.synthetic_verdicts import HYBRID, YARN, add_instances, write_outcome_study


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, data_dir):
    """A run long enough for every outcome, its right answers made up, as the loader reads it."""
    workdir = tmp_path_factory.mktemp("run") / "x"
    config = runs.config(
        data_dir,
        "rope",
        train={"length": 96, "steps": 2},
        evaluation={"stretches": 5, "multiples": (1, 4, 8)},
    )
    runs.finished(config, workdir)
    random = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        score = retrieval.score_instances

        def lucky(*args):
            answers = score(*args)
            return dataclasses.replace(answers, correct=random.random(answers.correct.shape) < 0.6)

        patch.setattr(retrieval, "score_instances", lucky)
        suites = ("E3", "E7", "E8", "Y_R")
        evaluate.evaluate(workdir, multiples=(1, 4, 8), suites=suites, split="test", stretch=None)
    return load(workdir, "test").runs[0]


@pytest.mark.thorough
def test_the_arrays_of_a_run_give_the_value_of_every_outcome(evaluated):
    values = read_outcomes(evaluated.rows).values
    samples = read_instances(evaluated)
    assert set(samples) == set(SAMPLED)
    for outcome, sample in samples.items():
        assert not isinstance(sample, str), (outcome, sample)
        assert values["rope", outcome][0] == pytest.approx(
            bootstrap.sample_value(sample), rel=1e-9
        ), outcome
        assert matching_sample(sample, values["rope", outcome][0]) is sample
    sizes = {o: [len(s.total_I) for s in sample] for o, sample in samples.items()}
    assert sizes["Y_R"] == sizes["Y_R_id"] == sizes["window_drop"] == [10, 10, 10]
    assert sizes["Y_E"] == sizes["Y_id"] == sizes["price"] == [5]
    assert 0 < sizes["Y_R_far"][0] < 10  # a passkey within L has no say in it
    # Of 16 pairs the last answer is given away, and is not scored.
    assert [s.weight_I.max() for s in samples["Y_R"]] == [1, 1, 15]


def of_arrays(arrays):
    """A run with these arrays alone."""

    def read(name):
        if name not in arrays:
            raise ValueError(f"no arrays/{name}.npz")
        return arrays[name]

    return RunData("x", {"train_length": 64}, {}, (), "", (), "", {}, (), read)


def test_recall_is_above_the_mean_chance_of_the_answers_that_count():
    """Two answers within L, three beyond it; by hand."""
    distance, chance = np.array([10, 64, 65, 128, 200]), np.array([0.5, 0.1, 0.2, 0.4, 0.25])
    correct = np.array([1, 0, 1, 0, 1], bool)
    arrays = {
        "correct": correct,
        "distance": distance,
        "chance": chance,
        "instance": np.array([0, 0, 1, 1, 2]),
    }
    samples = read_instances(
        of_arrays({f"{task}_4": arrays for task in ("passkey", "needles_4", "mqar_16")})
    )
    guess = (0.2 + 0.4 + 0.25) / 3
    assert bootstrap.sample_value(samples["Y_R_far"]) == pytest.approx(
        (2 / 3 - guess) / (1 - guess)
    )
    everywhere = (0.6 - chance.mean()) / (1 - chance.mean())
    assert bootstrap.sample_value(samples["Y_R"]) == pytest.approx(everywhere)
    assert samples["Y_E"] == "no arrays/bpb_ctx_256.npz"


def test_arrays_that_are_lacking_old_or_of_other_rows_are_named():
    old = {"correct": np.ones(2, bool), "distance": np.ones(2), "instance": np.arange(2)}
    said = read_instances(
        of_arrays({f"{task}_4": old for task in ("passkey", "needles_4", "mqar_16")})
    )
    assert said["Y_R"] == "its arrays are of older definitions, without chance"
    assert said["Y_R_id"] == "no arrays/passkey_1.npz"
    bits = {"nats_R": np.ones(3), "bytes_R": np.ones(3)}
    sample = read_instances(of_arrays({"bpb_ctx_256": bits, "bpb_ctx_32": bits}))["Y_E"]
    assert matching_sample(sample, 1.0).endswith("its rows 1")


PLAN = AnalysisPlan((HYBRID,), "rope", ("alibi",), tuple(range(5)), {}, stretched=(YARN,))


def statements(folder):
    said = judge(load(folder), PLAN, beside=AuxiliaryRuns(), frozen=None, deviations=[])
    json.dumps(said, allow_nan=False)
    return {s["words"]: s for s in said["verdicts"][0]["statements"] if s["estimate"] is not None}


@pytest.fixture
def study(tmp_path):
    write_outcome_study(tmp_path, range(5), arms=("rope", YARN, "alibi", HYBRID))
    return tmp_path


def test_the_verdict_draws_seeds_and_instances_where_they_are_kept_and_says_so(study):
    before = statements(study)
    assert all(s["bootstrap_over"] == ("seeds",) for s in before.values())
    assert all(
        "no arrays/" in s["bootstrap_why"] and "seeds alone because" in s["sentence"]
        for s in before.values()
    )
    add_instances(study, 12)
    after = statements(study)
    for words, s in after.items():
        assert s["bootstrap_over"] == ("seeds", "instances"), words
        assert "bootstrap over seeds and instances" in s["sentence"]
        assert (s["estimate"], s["p"]) == pytest.approx(
            (before[words]["estimate"], before[words]["p"])
        )
        widths = [np.diff(x["bootstrap"]).item() for x in (before[words], s)]
        assert widths[1] > widths[0]


def test_one_run_without_its_arrays_leaves_seeds_alone_and_is_named(study):
    add_instances(study, 12)
    (study / "runs" / "arm2-s3" / "evaluation" / "arrays" / "bpb_ctx_256.npz").unlink()
    said = statements(study)
    alibi = said["Y_E of ALiBi less Y_E of the hybrid"]
    assert alibi["bootstrap_over"] == ("seeds",)
    assert alibi["bootstrap_why"] == "of alibi, seed 3, no arrays/bpb_ctx_256.npz"
    assert said["Y_E of RoPE less Y_E of the hybrid"]["bootstrap_over"] == ("seeds", "instances")


def test_arms_scored_on_other_instances_are_not_paired(study):
    add_instances(study, 12)
    path = study / "runs" / "arm0-s1" / "evaluation" / "arrays" / "bpb_ctx_256.npz"
    with np.load(path) as stored:
        kept = dict(stored)
    np.savez(path, **{name: np.r_[x[::-1]] for name, x in kept.items()})  # the same sums
    said = statements(study)["Y_E of RoPE less Y_E of the hybrid"]
    assert said["bootstrap_why"] == f"seed 1 of rope and {HYBRID} was scored on other instances"
