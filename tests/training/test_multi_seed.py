"""Seeds trained in one program: each run as if trained alone, resumed together, lost alone.

Thorough: whole runs are trained, alone and together.
"""

import json
import os
import shutil
import signal
import threading
import types

import jax
import numpy as np
import pytest
from posenc_jax.checkpoints.manager import CheckpointManager
from posenc_jax.model.decoder import Decoder
from posenc_jax.training import loop, multi_seed
from posenc_jax.training.config import read
from posenc_jax.training.loop import Diverged, Preempted, train
from posenc_jax.training.multi_seed import train_seeds
from posenc_jax.training.sharding import make_mesh
from posenc_jax.training.step import state_builder

from support import runs

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("compiled_once")]

SEEDS = (0, 3)


def small(data_dir, **changes):
    sections = {"train": {"data_devices": 1}} | changes
    sections["train"] = {"data_devices": 1} | sections["train"]
    return runs.config(data_dir, **sections)


def of(config, seed):
    """The configuration as a run of one seed."""
    sections = json.loads(config.to_json())
    sections["train"]["seed"] = seed
    return runs.from_sections(sections)


def folders(root, seeds=SEEDS):
    return {seed: root / f"x-s{seed}" for seed in seeds}


def metrics(workdir, *names):
    return [[row[n] for n in names] for row in runs.rows(workdir / "metrics.jsonl")]


def final_state(config, workdir):
    mesh = make_mesh(1, 1)
    with jax.set_mesh(mesh), CheckpointManager(workdir, 2) as checkpoints:
        _, shapes = state_builder(config, Decoder(config.model_config(260)), mesh)
        return jax.device_get(checkpoints.restore(checkpoints.latest(), shapes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    """50 steps of two seeds, alone and together, and the batches that each was fed."""
    root, config = (
        tmp_path_factory.mktemp("together"),
        small(data_dir, train={"steps": 50, "save_every": 25}),
    )
    fed = {"alone": {seed: [] for seed in SEEDS}, "together": []}
    with pytest.MonkeyPatch.context() as patch:
        place, placed = loop._place, multi_seed._placed
        patch.setattr(
            loop,
            "_place",
            lambda c, mesh, batch: (
                fed["alone"][c.train.seed].append(batch) or place(c, mesh, batch)
            ),
        )
        patch.setattr(
            multi_seed,
            "_placed",
            lambda c, mesh, batches: fed["together"].append(batches) or placed(c, mesh, batches),
        )
        for seed, folder in folders(root / "alone").items():
            train(of(config, seed), folder, "a test")
        train_seeds(config, folders(root / "together"), "a test")
    return types.SimpleNamespace(root=root, config=config, fed=fed)


def test_each_seed_is_fed_what_it_is_fed_alone(trained):
    assert len(trained.fed["together"]) == 50
    for i, seed in enumerate(SEEDS):
        for batches, alone in zip(trained.fed["together"], trained.fed["alone"][seed], strict=True):
            assert batches[i].keys() == alone.keys()
            for name in alone:
                np.testing.assert_array_equal(batches[i][name], alone[name])
    first = trained.fed["together"][0]
    assert not np.array_equal(first[0]["tokens_BT"], first[1]["tokens_BT"])


def test_each_seed_has_the_losses_it_has_alone(trained):
    found = {}
    for seed in SEEDS:
        a, b = (
            np.array(
                metrics(
                    trained.root / how / f"x-s{seed}", "step", "loss", "learning_rate", "skipped"
                )
            )
            for how in ("alone", "together")
        )
        assert len(a) == 50
        np.testing.assert_array_equal(a[:, [0, 3]], b[:, [0, 3]])
        np.testing.assert_allclose(a, b, rtol=1e-5)
        found[seed] = b
    assert abs(found[0] - found[3]).max() > 1e-2  # they are not one run twice


def test_a_run_trained_together_is_a_run(trained, capsys):
    """Same files, config and record; its checkpoint is that of the run alone, and it can go on alone."""
    for seed, folder in folders(trained.root / "together").items():
        alone = trained.root / "alone" / folder.name
        assert {p.name for p in folder.iterdir()} == {p.name for p in alone.iterdir()}
        assert (
            read(folder / "config.json") == read(alone / "config.json") == of(trained.config, seed)
        )
        record, other = (json.loads((f / "run.json").read_text()) for f in (folder, alone))
        assert record.pop("seeds_in_program") == 2
        # Rounding differs, so the bits of losses and of the state do; what was read does not.
        differ = {"began", "wall_seconds", "tokens_per_second", "chain", "state_sha256"}
        assert {k for k in other if record[k] != other[k]} <= differ
        assert record.keys() == other.keys()
        a, b = final_state(trained.config, alone), final_state(trained.config, folder)
        assert a["step"] == b["step"] == 50
        for (path, x), y in zip(
            jax.tree_util.tree_leaves_with_path(a["params"]),
            jax.tree.leaves(b["params"]),
            strict=True,
        ):
            np.testing.assert_allclose(x, y, atol=2e-3, err_msg=jax.tree_util.keystr(path))
    train(of(trained.config, 3), trained.root / "together" / "x-s3", "a test")
    assert "has finished its 50 steps" in capsys.readouterr().out


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data_dir):
    """Twelve steps together, without a break; a save every four."""
    root = tmp_path_factory.mktemp("whole")
    config = small(data_dir, train={"save_every": 4, "keep": 3})
    train_seeds(config, folders(root), "a test")
    return types.SimpleNamespace(root=root, config=config)


def same(a, b):
    """Whether two folders hold the same numbers, bit for bit."""
    names = ("step", "loss", "grad_norm", "learning_rate")
    return [metrics(a / f"x-s{s}", *names) for s in SEEDS] == [
        metrics(b / f"x-s{s}", *names) for s in SEEDS
    ]


def test_stopped_together_and_resumed_is_uninterrupted_bit_for_bit(whole, tmp_path):
    last = tmp_path / "x-s3" / "metrics.jsonl"

    def stop():
        while not last.exists() or len(last.read_text().splitlines()) < 3:
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    halted = threading.Thread(target=stop)
    halted.start()
    with pytest.raises(Preempted, match="stopped by SIGTERM after step"):
        train_seeds(whole.config, folders(tmp_path), "a test")
    halted.join()
    assert not any(
        json.loads((f / "run.json").read_text())["finished"] for f in folders(tmp_path).values()
    )
    train_seeds(whole.config, folders(tmp_path), "a test")
    assert same(tmp_path, whole.root)
    for folder in folders(tmp_path).values():
        a, b = (final_state(whole.config, root / folder.name) for root in (tmp_path, whole.root))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_array_equal(x, y)


def unfinished(whole, root, kept):
    """A copy of the whole runs of which each has these checkpoints left."""
    for seed, steps in kept.items():
        folder = root / f"x-s{seed}"
        shutil.copytree(whole.root / folder.name, folder)
        for path in (folder / "checkpoints").iterdir():
            if path.name.isdigit() and int(path.name) not in steps:
                shutil.rmtree(path)
    return folders(root)


def test_a_run_that_a_kill_left_ahead_goes_back_to_the_last_step_of_all(whole, tmp_path):
    workdirs = unfinished(whole, tmp_path, {0: (4,), 3: (4, 8)})
    train_seeds(whole.config, workdirs, "a test")
    assert [row["step"] for row in runs.rows(workdirs[3] / "metrics.jsonl")] == list(range(1, 13))
    with CheckpointManager(workdirs[3], 3) as checkpoints:
        assert checkpoints.steps() == [4, 8, 12]
    assert same(tmp_path, whole.root)


def test_a_finished_run_is_left_alone_and_the_others_go_on(whole, tmp_path, capsys):
    workdirs = unfinished(whole, tmp_path, {0: (8,), 3: (8, 12)})
    before = (workdirs[3] / "metrics.jsonl").read_bytes()
    train_seeds(whole.config, workdirs, "a test")
    assert "x-s3 has finished its 12 steps" in capsys.readouterr().out
    assert (workdirs[3] / "metrics.jsonl").read_bytes() == before
    assert json.loads((workdirs[3] / "run.json").read_text())["seeds_in_program"] == 2
    assert json.loads((workdirs[0] / "run.json").read_text())["seeds_in_program"] == 1
    assert same(tmp_path, whole.root) or np.allclose(
        metrics(workdirs[0], "loss"), metrics(whole.root / "x-s0", "loss"), rtol=1e-5
    )


def test_runs_without_a_saved_step_in_common_are_refused(whole, tmp_path):
    workdirs = unfinished(whole, tmp_path, {0: (8,), 3: ()})
    with pytest.raises(ValueError, match=r"no saved step in common .*x-s0 8, .*x-s3 0"):
        train_seeds(whole.config, workdirs, "a test")


def test_a_seed_that_diverges_is_named_and_the_others_finish(data_dir, tmp_path, monkeypatch):
    feed = multi_seed.training_batches

    def poisoned(config, *args, **kwargs):
        for number, batch in enumerate(feed(config, *args, **kwargs)):
            bad = config.train.seed == 3 and 4 <= number <= 6  # good again before the next row
            yield batch | ({"weights_BT": batch["weights_BT"] * np.nan} if bad else {})

    monkeypatch.setattr(multi_seed, "training_batches", poisoned)
    config = small(data_dir, train={"bad_steps": 3, "save_every": 4, "log_every": 12})
    with pytest.raises(
        Diverged, match="x-s3: 3 updates in a row were not finite, up to step 7"
    ) as caught:
        train_seeds(config, folders(tmp_path), "a test")
    assert "x-s0" not in str(caught.value)
    done = [
        json.loads((f / "run.json").read_text())["finished"] for f in folders(tmp_path).values()
    ]
    assert done == [True, False]
    logged = [runs.rows(f / "metrics.jsonl") for f in folders(tmp_path).values()]
    assert [[row["step"] for row in rows] for rows in logged] == [[7, 12], [7]]
    with CheckpointManager(tmp_path / "x-s3", 2) as checkpoints:
        assert checkpoints.steps() == [4]  # the last good one


def test_several_devices_or_one_folder_for_all_are_refused(data_dir, tmp_path):
    with pytest.raises(
        ValueError, match=r"on one device; config.train asks for 8: set config.train.data_devices=1"
    ):
        train_seeds(runs.config(data_dir), folders(tmp_path), "a test")
    with pytest.raises(ValueError, match="a --workdir each"):
        train_seeds(small(data_dir), dict.fromkeys(SEEDS, tmp_path / "x"), "a test")
    assert not list(tmp_path.iterdir())
