"""Validation during training: the dev loss, on which windows, and the checkpoint it chooses.

Thorough: whole runs are trained.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.evaluation import evaluate
from posenc_jax.evaluation.load_run import load_run
from posenc_jax.model.decoder import Decoder
from posenc_jax.results.manifest import verify
from posenc_jax.training import loop
from posenc_jax.training.inputs import dev_examples, open_inputs
from posenc_jax.training.multi_seed import train_seeds

from support import runs
from support.stored_steps import chosen, steps

pytestmark = pytest.mark.thorough


MEASURED = {"data_devices": 1, "save_every": 2, "dev_every": 4, "dev_windows": 9, "keep": 1}


DIVERGING = {
    "learning_rate": 3.0,
    "warmup_steps": 12,
    "final_fraction": 1.0,
}  # a rate that grows until the loss does, which no rounding decides: 16, 27 and 48 nats


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data_dir):
    """A run whose loss is lowest at the first of three measurements."""
    workdir = tmp_path_factory.mktemp("best") / "whole"
    runs.finished(runs.config(data_dir, train=MEASURED, optimizer=DIVERGING), workdir)
    return workdir


def measured(workdir):
    rows = runs.rows(workdir / "metrics.jsonl")
    return {row["step"]: row["dev_loss"] for row in rows if "dev_loss" in row}


def test_the_dev_loss_is_the_mean_over_fixed_dev_windows_in_float64(data_dir, whole):
    config = load_run(whole, None).config
    examples = dev_examples(config, open_inputs(config))
    assert len(examples) == 9
    starts = {example["tokens_T"].tobytes() for example in examples}
    assert len(starts) == 9
    other = runs.config(data_dir, "nope", train=MEASURED | {"seed": 5})
    again = dev_examples(other, open_inputs(other))
    assert starts == {example["tokens_T"].tobytes() for example in again}

    found = measured(whole)
    assert list(found) == [4, 8, 12]
    assert found[4] < 0.9 * found[8] < 0.9 * found[12]
    nats = weight = 0.0
    run = load_run(whole, None)
    params = jax.tree.map(jnp.asarray, run.params)
    for example in examples:
        given = (jnp.asarray(example[n])[None] for n in ("tokens_T", "positions_T", "segments_T"))
        logits_TV = np.asarray(
            Decoder(run.model_config(32)).apply({"params": params}, *given)[0][0], np.float64
        )
        top_T = logits_TV.max(-1)
        nll_T = np.log(np.exp(logits_TV - top_T[:, None]).sum(-1)) + top_T
        nll_T -= logits_TV[np.arange(32), example["targets_T"]]
        nats, weight = (
            nats + (nll_T * example["weights_T"]).sum(),
            weight + example["weights_T"].sum(),
        )
    assert found[12] == pytest.approx(nats / weight, rel=1e-5)


def test_the_best_stands_beside_the_last_with_its_loss(whole):
    assert steps(whole) == [4, 12]
    assert chosen(whole, "best") == 4
    record = verify(whole / "checkpoints" / "4")["record"]
    assert record["dev_loss"] == measured(whole)[4]


@pytest.mark.parametrize("last", [9, pytest.param(3, marks=pytest.mark.slow)])
def test_an_interrupted_run_keeps_the_same_best_bit_for_bit(tmp_path, data_dir, whole, last):
    """Stopped at a step that is no save of the whole run's, after the best one or before it."""
    config = runs.config(data_dir, train=MEASURED, optimizer=DIVERGING)
    workdir = tmp_path / "x"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            loop.PreemptionRequest, "at", lambda self, step: "SIGTERM" if step == last else None
        )
        with pytest.raises(loop.Preempted):
            loop.train(config, workdir, "a test")
    runs.finished(config, workdir)
    assert measured(workdir) == measured(whole)
    assert steps(workdir) == [4, 12]
    ours, theirs = (verify(folder / "checkpoints" / "4") for folder in (workdir, whole))
    assert ours["sums"] == theirs["sums"]
    assert ours["record"] == theirs["record"]
    ends = [json.loads((folder / "run.json").read_text()) for folder in (workdir, whole)]
    assert ends[0]["state_sha256"] == ends[1]["state_sha256"]
    assert ends[0]["chain"] == ends[1]["chain"]


def test_measuring_changes_no_number_of_the_training(tmp_path, data_dir, whole):
    config = runs.config(data_dir, train={"data_devices": 1}, optimizer=DIVERGING)
    rows = runs.finished(config, tmp_path / "plain")
    assert [row["chain"] for row in rows] == [
        row["chain"] for row in runs.rows(whole / "metrics.jsonl")
    ]


def test_a_measured_step_has_a_row_where_no_row_was_due(tmp_path, data_dir):
    train = {"data_devices": 1, "save_every": 2, "dev_every": 2, "log_every": 3, "steps": 5}
    rows = runs.finished(runs.config(data_dir, train=train), tmp_path / "x")
    assert [(row["step"], "dev_loss" in row) for row in rows] == [
        (2, True),
        (3, False),
        (4, True),
        (5, True),
    ]


@pytest.mark.slow
def test_eight_devices_measure_the_loss_of_one(tmp_path, data_dir, whole):
    train = MEASURED | {"data_devices": 4, "model_devices": 2}
    runs.finished(runs.config(data_dir, train=train), tmp_path / "many")
    runs.finished(runs.config(data_dir, train=MEASURED), tmp_path / "one")
    many, one = measured(tmp_path / "many"), measured(tmp_path / "one")
    assert list(many) == list(one) == [4, 8, 12]
    np.testing.assert_allclose([*many.values()], [*one.values()], rtol=2e-5)


@pytest.mark.slow
def test_seeds_in_one_program_measure_what_each_alone_does(tmp_path, data_dir, whole):
    config = runs.config(data_dir, train=MEASURED, optimizer=DIVERGING)
    folders = {seed: tmp_path / f"x-s{seed}" for seed in (0, 3)}
    train_seeds(config, folders, "a test")
    alone = measured(whole)[4]
    assert measured(folders[0])[4] == pytest.approx(
        alone, rel=2e-3
    )  # a rate that blows rounding up
    assert abs(measured(folders[3])[4] - alone) > 0.02 * alone
    for folder in folders.values():
        found = measured(folder)
        best = min(found, key=found.get)
        assert chosen(folder, "best") == best
        assert steps(folder) == sorted({best, 12})


def test_scores_of_another_checkpoint_lie_apart_and_say_whose_they_are(tmp_path, whole):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    ask = {"multiples": (1,), "suites": ("E1",), "split": "test", "stretch": None}
    last = evaluate.evaluate(workdir, **ask)
    rows = last.read_bytes()
    best = evaluate.evaluate(workdir, **ask, checkpoint="best")
    assert best == workdir / "evaluation_best" / "rows.jsonl"
    fourth = evaluate.evaluate(workdir, **ask, checkpoint="4")
    assert fourth == workdir / "evaluation_4" / "rows.jsonl"
    assert evaluate.evaluate(workdir, **ask).read_bytes() == rows == last.read_bytes()
    of_last, of_best, of_fourth = (runs.rows(path) for path in (last, best, fourth))
    assert not any("checkpoint" in row for row in of_last)
    assert {(row["checkpoint"], row["step"]) for row in of_best} == {("best", 4)}
    assert {(row["checkpoint"], row["step"]) for row in of_fourth} == {("4", 4)}
    values = [
        [row["value"] for row in found if row["metric"] == "bpb_nonoverlap"]
        for found in (of_last, of_best, of_fourth)
    ]
    assert values[1] == values[2] != values[0]
    assert values[1][0] < values[0][0]
    record = json.loads((workdir / "evaluation_best" / "evaluation.json").read_text())
    assert (record["checkpoint"], record["step"]) == ("best", 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train": {"dev_every": 3}},
            "dev_every=3 must be 0 or a multiple of config.train.save_every=2",
        ),
        ({"train": {"dev_every": -2}}, "dev_every must lie in"),
        ({"train": {"dev_windows": 0}}, "dev_windows must lie in"),
        (
            {"train": {"dev_windows": 1_000_000}},
            "asks for 1000000 windows of 32 tokens where the dev split has",
        ),
        ({"data": {"retrieval_share": 1.0}}, "measures text, and config.data has none"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_the_door(tmp_path, data_dir, changes, message):
    changes["train"] = MEASURED | changes.get("train", {})
    with pytest.raises(ValueError, match=message):
        loop.train(runs.config(data_dir, **changes), tmp_path / "x", "a test")
    assert not (tmp_path / "x").exists()


def test_a_resume_under_other_measurements_is_refused(tmp_path, data_dir, whole):
    config = runs.config(data_dir, train=MEASURED | {"dev_windows": 8}, optimizer=DIVERGING)
    with pytest.raises(ValueError, match=r"train\.dev_windows: 8 here, 9 there"):
        loop.train(config, whole, "a test")


def test_classes_are_measured_alike(data_dir):
    data = {"corpus": "stdlib_definitions", "task": "classification", "retrieval_share": 0.0}
    config = runs.config(data_dir, data=data, train={"dev_windows": 17})
    inputs = open_inputs(config)
    labels = [
        int(example["targets_T"][example["weights_T"] == 1][-1])
        for example in dev_examples(config, inputs)
    ]
    counts = [labels.count(label) for label in inputs.tokenizer.labels_C]
    assert sorted(counts) == [2] * 7 + [3]
