"""Whole training runs: resuming, refusals, updates that are not finite."""

import dataclasses
import json
import os
import shutil
import signal
import threading

import jax
import numpy as np
import pytest
from posenc_jax.checkpoints.manager import CheckpointManager
from posenc_jax.encodings import parse
from posenc_jax.model.decoder import Decoder
from posenc_jax.training.loop import Diverged, Preempted, check_mesh, train
from posenc_jax.training.loss import token_losses
from posenc_jax.training.sharding import make_mesh
from posenc_jax.training.step import make_step, state_builder

from support import runs, schemes

pytestmark = pytest.mark.usefixtures("compiled_once")


def losses(rows):
    return [row["loss"] for row in rows]


def final_state(config, workdir):
    model = Decoder(config.model_config(260))
    mesh = make_mesh(1, 1)
    with jax.set_mesh(mesh), CheckpointManager(workdir, 2) as checkpoints:
        _, shapes = state_builder(config, model, mesh)
        return jax.device_get(checkpoints.restore(checkpoints.latest(), shapes))


@pytest.mark.parametrize(
    ("data", "model"),
    [
        pytest.param(8, 1, marks=pytest.mark.slow),
        pytest.param(4, 2, marks=pytest.mark.slow),
        (2, 4),
    ],
)
@pytest.mark.thorough
def test_eight_devices_give_the_losses_of_one(tmp_path, data_dir, data, model):
    one = runs.config(data_dir, train={"data_devices": 1, "model_devices": 1})
    many = runs.config(data_dir, train={"data_devices": data, "model_devices": model})
    a = losses(runs.finished(one, tmp_path / "one"))
    b = losses(runs.finished(many, tmp_path / "many"))
    assert len(a) == 12
    np.testing.assert_allclose(a, b, rtol=2e-5)


def test_an_interrupted_run_continues_bit_for_bit(tmp_path, data_dir):
    config = runs.config(data_dir, train={"data_devices": 1, "save_every": 4})
    whole = runs.finished(config, tmp_path / "whole")
    resumed = tmp_path / "resumed"

    # Stopped by a signal in the middle, at whatever step that is; then run again to the end.
    halted = threading.Thread(target=_stop_after, args=(resumed / "metrics.jsonl", 3))
    halted.start()
    with pytest.raises(Preempted, match="stopped by SIGTERM after step"):
        train(config, resumed, "a test")
    halted.join()
    record = json.loads((resumed / "run.json").read_text())
    stopped = int(max((resumed / "checkpoints").iterdir(), key=lambda f: int(f.name)).name)
    assert (record["steps"], record["steps_done"], record["finished"]) == (12, stopped, False)
    assert not record["finished"]
    stopped_at = len(runs.rows(resumed / "metrics.jsonl"))
    assert 3 <= stopped_at < 12
    again = runs.finished(config, resumed)
    assert json.loads((resumed / "run.json").read_text())["began"] == record["began"]
    for a, b in zip(whole, again, strict=True):
        for name in ("step", "loss", "grad_norm", "learning_rate", "chain", "data_chain"):
            assert a[name] == b[name]
    assert len({row["chain"] for row in whole}) == 12
    ends = [
        json.loads((folder / "run.json").read_text()) for folder in (tmp_path / "whole", resumed)
    ]
    assert len(ends[0]["state_sha256"]) > 10
    assert ends[0]["unigram_bpb"].keys() == {"dev", "test"}
    assert ends[0]["unigram_bpb"]["dev"] != ends[0]["unigram_bpb"]["test"]
    for name in ("chain", "data_chain", "state_sha256"):
        assert ends[0][name] == ends[1][name]
    for a, b in zip(
        *map(
            jax.tree.leaves, (final_state(config, tmp_path / "whole"), final_state(config, resumed))
        ),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def _stop_after(metrics, lines):
    while not metrics.exists() or len(metrics.read_text().splitlines()) < lines:
        pass
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
    """(configuration, workdir) of a run that has ended; tests that change the folder copy it."""
    config, workdir = runs.config(data_dir), tmp_path_factory.mktemp("finished") / "x"
    runs.finished(config, workdir)
    return config, workdir


@pytest.mark.thorough
def test_a_finished_run_is_left_alone(finished, capsys):
    config, workdir = finished
    before = (workdir / "metrics.jsonl").read_text()
    train(config, workdir, "a test")
    assert "has finished its 12 steps" in capsys.readouterr().out
    assert (workdir / "metrics.jsonl").read_text() == before


@pytest.mark.thorough
def test_a_folder_with_another_runs_config_is_refused_with_the_difference(
    finished, tmp_path, data_dir
):
    other = runs.config(data_dir, optimizer={"learning_rate": 0.1})
    with pytest.raises(ValueError, match=r"optimizer.learning_rate: 0.1 here, 0.003 there"):
        train(other, finished[1], "a test")
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="neither empty nor a run's folder"):
        train(other, tmp_path / "y", "a test")
    assert [p.name for p in (tmp_path / "y").iterdir()] == ["thesis.tex"]


@pytest.mark.thorough
def test_another_text_under_the_same_name_is_refused(finished, tmp_path):
    config, workdir = finished
    shutil.copytree(workdir, tmp_path / "x")
    record = json.loads((tmp_path / "x" / "run.json").read_text())
    (tmp_path / "x" / "run.json").write_text(json.dumps(record | {"corpus_fingerprint": "0" * 64}))
    with pytest.raises(ValueError, match="was begun with corpus_fingerprint 000000000000"):
        train(config, tmp_path / "x", "a test")


def test_a_second_trainer_in_one_folder_is_refused(tmp_path, data_dir):
    from posenc_jax.training.workdir import lock_workdir

    with (
        lock_workdir(tmp_path / "x"),
        pytest.raises(ValueError, match="another trainer is at work"),
        lock_workdir(tmp_path / "x"),
    ):
        pass
    with lock_workdir(tmp_path / "x"):
        pass


def steps(config, batches):
    """States after each batch [slices, B, T], on the devices of the configuration (one, if unsaid)."""
    mesh = make_mesh(config.train.data_devices or 1, config.train.model_devices)
    batch_sharding = jax.NamedSharding(mesh, jax.P(None, "data", None))
    with jax.set_mesh(mesh):
        model = Decoder(config.model_config(260))
        build, _ = state_builder(config, model, mesh)
        state, step, seen = build(jax.random.key(0)), make_step(config, model), []
        seen.append(jax.device_get(state))
        for batch in batches:
            state, metrics = step(state, jax.device_put(batch, batch_sharding))
            seen.append(jax.device_get(state) | {"metrics": jax.device_get(metrics)})
    return seen


def random_batch(slices=1, rows=8, length=16, seed=0, weights=None):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 256, (slices, rows, length + 1), dtype=np.int32)
    ones = np.ones((slices, rows, length), np.int32)
    return {
        "tokens_BT": tokens[..., :-1],
        "targets_BT": tokens[..., 1:],
        "positions_BT": np.broadcast_to(np.arange(length, dtype=np.int32), ones.shape),
        "segments_BT": ones,
        "weights_BT": rng.integers(0, 2, ones.shape).astype(np.float32)
        if weights is None
        else weights,
    }


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_accumulating_gradients_over_slices_changes_nothing_but_rounding(tmp_path, name):
    whole = runs.config(
        tmp_path, train={"accumulation": 1}, optimizer={"name": name, "epsilon": 1e-4}
    )
    sliced = dataclasses.replace(whole, train=dataclasses.replace(whole.train, accumulation=4))
    batch = random_batch()
    cut = {k: v.reshape(4, 2, *v.shape[2:]) for k, v in batch.items()}
    assert len({float(w.sum()) for w in cut["weights_BT"]}) > 1  # slices of unequal weight
    a, b = steps(whole, [batch])[1], steps(sliced, [cut])[1]
    np.testing.assert_allclose(a["metrics"]["loss"], b["metrics"]["loss"], rtol=1e-6)
    np.testing.assert_allclose(a["metrics"]["grad_norm"], b["metrics"]["grad_norm"], rtol=1e-5)
    for x, y in zip(jax.tree.leaves(a["params"]), jax.tree.leaves(b["params"]), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-4)


def test_a_non_finite_update_is_skipped_and_counted(tmp_path):
    good = random_batch()
    bad = random_batch(weights=np.full((1, 8, 16), np.nan, np.float32))
    start, after_bad, after_good = steps(runs.config(tmp_path), [bad, good])
    for x, y in zip(
        jax.tree.leaves(start["params"]), jax.tree.leaves(after_bad["params"]), strict=True
    ):
        np.testing.assert_array_equal(x, y)
    assert (after_bad["skipped"], after_bad["skipped_in_a_row"]) == (1, 1)
    assert (after_good["skipped"], after_good["skipped_in_a_row"], after_good["step"]) == (1, 0, 2)
    moved = [
        (x != y).any()
        for x, y in zip(
            jax.tree.leaves(start["params"]), jax.tree.leaves(after_good["params"]), strict=True
        )
    ]
    assert all(moved)


def test_too_many_bad_updates_in_a_row_end_the_run_between_rows_too(
    tmp_path, data_dir, monkeypatch
):
    """Steps 2 to 6 are bad and the later ones good, with a row every 8: the third bad one is step 4."""

    def poisoned(*args, **kwargs):
        for step, batch in enumerate(feed(*args, **kwargs), 1):
            bad = {"weights_BT": batch["weights_BT"] * np.nan} if 2 <= step <= 6 else {}
            yield batch | bad

    from posenc_jax.training import loop

    feed = loop.training_batches
    monkeypatch.setattr(loop, "training_batches", poisoned)
    config = runs.config(data_dir, train={"bad_steps": 3, "log_every": 8, "save_every": 8})
    with pytest.raises(Diverged, match="3 updates in a row were not finite, up to step 4"):
        train(config, tmp_path / "x", "a test")
    rows = runs.rows(tmp_path / "x" / "metrics.jsonl")
    assert [(row["step"], row["skipped_in_a_row"]) for row in rows] == [(4, 3)]
    assert not list((tmp_path / "x" / "checkpoints").iterdir())


SINGLE = [line for line in schemes.ALL if "," not in line and parse(line).absolute is None]


STACKS = [",".join(SINGLE[i : i + 6]) for i in range(0, len(SINGLE), 6)]


STACKS += [line for line in schemes.ALL if line not in SINGLE]  # interleaved, absolute


def on_mesh(tmp_path, stack, data, model):
    """The configuration of a stack, one layer per scheme, on a mesh."""
    return runs.config(
        tmp_path,
        stack,
        model={"num_layers": len(parse(stack).layers)},
        optimizer={"epsilon": 1e-3},
        train={"data_devices": data, "model_devices": model},
    )


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.thorough
def test_every_scheme_gives_the_same_loss_on_a_mesh_and_a_step_that_can_be_laid_out(
    tmp_path, stack
):
    """Layers of different schemes; gradients are laid out (a wrong layout raises), not compiled."""
    batch = random_batch(weights=np.ones((1, 8, 16), np.float32))
    losses, state = [], None
    for data, tensor in ((1, 1), (2, 4)):
        config = on_mesh(tmp_path, stack, data, tensor)
        mesh, model = make_mesh(data, tensor), Decoder(config.model_config(260))
        batch_sharding = jax.NamedSharding(mesh, jax.P(None, "data", None))
        with jax.set_mesh(mesh):
            build, like = state_builder(config, model, mesh)
            if state is None:
                state = build(jax.random.key(0))
            state = jax.tree.map(
                lambda x, s: jax.device_put(np.asarray(x), s.sharding), state, like
            )
            placed = jax.device_put(batch, batch_sharding)

            def loss(params, batch, model=model):
                read = (batch[k][0] for k in ("tokens_BT", "positions_BT", "segments_BT"))
                logits, _ = model.apply({"params": params}, *read)
                return token_losses(logits, batch["targets_BT"][0]).mean()

            losses.append(float(jax.jit(loss)(state["params"], placed)))
            jax.eval_shape(make_step(config, model), state, placed)
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stack", STACKS)
def test_every_scheme_trains_on_a_mesh_as_on_one_device(tmp_path, stack):
    batch = random_batch(weights=np.ones((1, 8, 16), np.float32))
    one, many = (steps(on_mesh(tmp_path, stack, *axes), [batch])[1] for axes in ((1, 1), (2, 4)))
    np.testing.assert_allclose(one["metrics"]["loss"], many["metrics"]["loss"], rtol=1e-5)
    np.testing.assert_allclose(one["metrics"]["grad_norm"], many["metrics"]["grad_norm"], rtol=1e-4)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one["params"]),
        jax.tree.leaves(many["params"]),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=jax.tree_util.keystr(path))


def test_a_step_of_multi_query_attention_can_be_laid_out_over_more_devices_than_key_heads(tmp_path):
    """One key head on two devices; tests of the mesh take such steps."""
    config = on_mesh(tmp_path, "rope+alibi|nope~logn", 2, 2)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, num_kv_heads=1))
    mesh, model = make_mesh(2, 2), Decoder(config.model_config(260))
    batch_sharding = jax.NamedSharding(mesh, jax.P(None, "data", None))
    check_mesh(config, mesh)
    with jax.set_mesh(mesh):
        _, state = state_builder(config, model, mesh)
        batch = jax.device_put(random_batch(), batch_sharding)
        after, _ = jax.eval_shape(make_step(config, model), state, batch)
    layouts = [s["params"]["layer_0"]["attention"]["key_DKH"].sharding.spec for s in (state, after)]
    assert layouts == [jax.P("fsdp", None, None)] * 2
