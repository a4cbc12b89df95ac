"""E5 end to end: a reference at 4L chooses the targets, an arm at L is scored on them.

Thorough: two runs are trained and evaluated.
"""

import json

import jax
import numpy as np
import pytest
from posenc_jax.evaluation import evaluate, key_targets, load_run, perplexity
from posenc_jax.model.decoder import Decoder

from support import runs

pytestmark = pytest.mark.thorough

L = 32
ASK = {"multiples": None, "suites": ("E5",), "split": "test", "stretch": None}


@pytest.fixture(scope="module")
def pair(tmp_path_factory, data_dir):
    """A reference trained at 4L and an arm at L, for a few steps."""
    folder = tmp_path_factory.mktemp("runs")
    small = {"retrieval_share": 0.0}
    evaluation = {"multiples": (1, 2, 4), "stretches": 4, "instances": 10}
    longer = {"steps": 8, "length": 4 * L, "batch_size": 8, "log_every": 4, "save_every": 8}
    runs.finished(
        runs.config(data_dir, "rope", train=longer, data=small, evaluation=evaluation),
        folder / "reference",
    )
    shorter = longer | {"length": L}
    runs.finished(
        runs.config(data_dir, "rope+alibi", train=shorter, data=small, evaluation=evaluation),
        folder / "arm",
    )
    return folder / "reference", folder / "arm"


def losses(workdir, context):
    """Nats and ids of the last L/2 tokens of each stretch after `context` others, without the scorer."""
    run = load_run.load_run(workdir, None)
    rows_RT = perplexity.held_out_stretches(run.inputs.stream("test"), 4 * L + L // 2, 4)
    rows_RT = rows_RT[:, -(context + L // 2) :]
    tokens_RT, targets_RT = rows_RT[:, :-1], rows_RT[:, 1:]
    pos_RT = np.broadcast_to(np.arange(tokens_RT.shape[1], dtype=np.int32), tokens_RT.shape)
    model = Decoder(run.model_config(tokens_RT.shape[1]))
    params = jax.device_put(run.params)
    logits_RTV, _ = model.apply({"params": params}, tokens_RT, pos_RT, np.ones_like(pos_RT))
    nll_RTV = -np.asarray(jax.nn.log_softmax(np.asarray(logits_RTV, np.float64)))
    nll_RT = np.take_along_axis(nll_RTV, targets_RT[:, :, None], 2)[:, :, 0]
    return nll_RT[:, -(L // 2) :], targets_RT[:, -(L // 2) :]


@pytest.mark.slow
def test_targets_that_a_reference_chose_are_what_an_arm_is_scored_on(pair, tmp_path, monkeypatch):
    reference, arm = pair
    # Eight steps teach nothing that far context could add to: any gain counts, and any loss.
    monkeypatch.setattr(key_targets, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(key_targets, "MOST_LOSS", 100.0)
    count = evaluate.write_key_targets(reference, tmp_path / "targets.json", split="test")
    near, far = losses(reference, L)[0], losses(reference, 4 * L)[0]
    sure_RT = np.abs(near - far) > 1e-4
    content = json.loads((tmp_path / "targets.json").read_text())
    chosen_RT = np.zeros((4, L // 2), bool)
    chosen_RT[tuple(np.array(content["chosen"]).T)] = True
    np.testing.assert_array_equal(chosen_RT[sure_RT], (near > far)[sure_RT])
    assert 0 < count == chosen_RT.sum() < chosen_RT.size
    assert content["about"]["train_length"] == L

    without = runs.rows(evaluate.evaluate(arm, **ASK))
    assert {row["value"] for row in without if row["metric"] == "bpb_key"} == {None}
    rows = runs.rows(evaluate.evaluate(arm, **ASK, key_targets=tmp_path / "targets.json"))
    found = {row["length"]: row for row in rows if row["metric"] == "bpb_key"}
    assert list(found) == [4, 8, 16, L, 2 * L, 4 * L]
    assert {row["n"] for row in found.values()} == {count}
    for context in (8, L, 4 * L):
        nll, targets = losses(arm, context)
        assert (targets < 256).all()  # every target is a byte
        want = nll[chosen_RT].mean() / np.log(2)
        assert found[context]["value"] == pytest.approx(want, rel=1e-5)


def test_targets_of_other_stretches_and_references_of_other_lengths_are_refused(pair, tmp_path):
    reference, arm = pair
    evaluate.write_key_targets(reference, tmp_path / "targets.json", split="dev")
    with pytest.raises(
        ValueError, match="lists targets of split=dev; this evaluation has split=test"
    ):
        evaluate.evaluate(arm, **ASK, key_targets=tmp_path / "targets.json")
    config, run = (json.loads((arm / name).read_text()) for name in ("config.json", "run.json"))
    config["train"]["length"] = run["train_length"] = L + 2
    (tmp_path / "odd").mkdir()
    for path in arm.iterdir():
        (tmp_path / "odd" / path.name).symlink_to(path)
    for name, content in {"config.json": config, "run.json": run}.items():
        (tmp_path / "odd" / name).unlink()
        (tmp_path / "odd" / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="was trained at 34 tokens, not at 4 L"):
        evaluate.write_key_targets(tmp_path / "odd", tmp_path / "none.json", split="test")
