"""Whose a checkpoint is, at every reading; what rows say of the run they were measured on; its record.

Thorough: two runs are trained and evaluated.
"""

import dataclasses
import json
import shutil

import jax
import pytest
from posenc_jax.checkpoints.manager import CheckpointManager
from posenc_jax.evaluation.evaluate import evaluate, write_key_targets
from posenc_jax.evaluation.load_run import load_run
from posenc_jax.model.decoder import Decoder
from posenc_jax.results.environment import environment
from posenc_jax.training.config import from_sections
from posenc_jax.training.loop import train
from posenc_jax.training.multi_seed import train_seeds
from posenc_jax.training.sharding import make_mesh
from posenc_jax.training.step import state_builder

from support import runs

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def two(tmp_path_factory, data_dir):
    """Two finished runs of four steps that differ in their seed, with the checkpoints of steps 2 and 4."""
    root = tmp_path_factory.mktemp("owner")
    config = runs.config(
        data_dir,
        "rope",
        model={"num_layers": 1},
        train={"steps": 4, "save_every": 2, "keep": 2, "data_devices": 1},
        evaluation={"multiples": (1,), "stretches": 2},
    )
    folders = {0: root / "s0", 1: root / "s1"}
    train_seeds(config, folders, "a test")
    return folders


@pytest.fixture
def copied(two, tmp_path):
    """A copy of the run with seed 0."""
    return shutil.copytree(two[0], tmp_path / "x")


def measured(workdir, **how):
    path = evaluate(workdir, multiples=(1,), suites=("E1",), split="test", stretch=None, **how)
    return runs.rows(path)


def edit(path, section, **values):
    stored = json.loads(path.read_text())
    (stored[section] if section else stored).update(values)
    path.write_text(json.dumps(stored))


def refused_everywhere(workdir, tmp_path, words):
    tuned = runs.config(
        "unused",
        "rope",
        model={"num_layers": 1},
        train={"data_devices": 1, "init_from": str(workdir)},
    )
    config = json.loads((workdir / "config.json").read_text())
    tuned = dataclasses.replace(
        tuned,
        data=dataclasses.replace(tuned.data, data_dir=config["data"]["data_dir"]),
        model=from_sections(config).model,
    )
    for read in (
        lambda: measured(workdir),
        lambda: load_run(workdir, None),
        lambda: train(tuned, tmp_path / "tuned", "a test"),
    ):
        with pytest.raises(ValueError, match=words) as said:
            read()
        assert "\n" not in str(said.value)
    assert not (workdir / "evaluation").exists()
    assert not (tmp_path / "tuned").exists()


def test_a_checkpoint_of_another_run_is_refused_with_the_difference_wherever_it_is_read(
    two, copied, tmp_path
):
    shutil.rmtree(copied / "checkpoints")
    shutil.copytree(two[1] / "checkpoints", copied / "checkpoints")
    refused_everywhere(
        copied, tmp_path, "checkpoint 4 .* another run .train.seed: 0 here, 1 there.; bring back"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scheme": "nope"}, "model.scheme: 'nope' here, 'rope' there"),
        ({"embedding_scale": 3.0}, "model.embedding_scale: 3.0 here, .* there"),
    ],
)
def test_a_config_edited_by_hand_is_refused_with_the_difference(copied, tmp_path, change, words):
    edit(copied / "config.json", "model", **change)
    edit(
        copied / "run.json",
        None,
        scheme=change.get("scheme", "rope"),
        arm=change.get("scheme", "rope"),
    )
    refused_everywhere(copied, tmp_path, words)


def test_a_record_of_another_run_is_refused(two, copied):
    shutil.copy(two[1] / "run.json", copied / "run.json")
    with pytest.raises(ValueError, match=r"run.json is that of another run \(seed: 0 in config"):
        measured(copied)


def test_targets_are_not_chosen_by_a_checkpoint_of_another_run(copied, tmp_path):
    edit(copied / "config.json", "train", seed=7)
    edit(copied / "run.json", None, seed=7)
    with pytest.raises(ValueError, match=r"train\.seed: 7 here, 0 there"):
        write_key_targets(copied, tmp_path / "targets.npz", split="dev")


def test_what_may_change_from_leg_to_leg_may_be_edited_and_rows_stay(copied, capsys):
    first = measured(copied)
    edit(copied / "config.json", "data", threads=1)
    edit(copied / "config.json", "train", keep=5)
    assert measured(copied) == first
    said = capsys.readouterr()
    assert "replaced" not in said.out
    assert "unfinished" not in said.err


def test_rows_of_another_run_or_of_a_replaced_checkpoint_are_measured_again(two, copied, capsys):
    first = measured(copied)
    for name in ("config.json", "run.json"):
        shutil.copy(two[1] / name, copied / name)
    shutil.rmtree(copied / "checkpoints")
    shutil.copytree(two[1] / "checkpoints", copied / "checkpoints")
    second = measured(copied)
    assert f"{len(first)} rows" in capsys.readouterr().out
    assert ({row["seed"] for row in first}, {row["seed"] for row in second}) == ({0}, {1})

    replace_checkpoint(copied, 4)
    third = measured(copied)
    assert f"{len(first)} rows" in capsys.readouterr().out
    assert values(second) != values(third)
    assert len({row["stamp"] for rows in (first, second, third) for row in rows}) >= 3


def values(rows):
    return [
        (row["metric"], row["bucket"], row["value"]) for row in rows if row["value"] is not None
    ]


def replace_checkpoint(workdir, step):
    """Puts another state under the same step and the same owner, sealed as a trainer seals it."""
    config = load_run(workdir, None).config
    mesh = make_mesh(1, 1)
    with jax.set_mesh(mesh):
        _, shapes = state_builder(config, Decoder(config.model_config(260)), mesh)
        with CheckpointManager(workdir, 9) as checkpoints:
            state, record = checkpoints.restore(step, shapes), checkpoints.record(step)
        shutil.rmtree(workdir / "checkpoints" / str(step))
        state["params"] = jax.tree.map(lambda x: 1.5 * x, state["params"])
        with CheckpointManager(workdir, 9) as checkpoints:
            checkpoints.save(step, state, record)


def test_an_unfinished_run_is_named_and_its_rows_are_marked(copied, capsys):
    shutil.rmtree(copied / "checkpoints" / "4")
    rows = measured(copied)
    assert {(row["step"], row["unfinished"]) for row in rows} == {(2, True)}
    said = capsys.readouterr().err.splitlines()
    assert sum("is unfinished: 2 of 4 steps" in line for line in said) == 1
    assert load_run(copied, None).unfinished


def test_rows_of_an_unfinished_run_give_way_once_it_has_ended(two, copied):
    shutil.move(copied / "checkpoints" / "4", copied / "kept")
    assert all(row["unfinished"] for row in measured(copied))
    shutil.move(copied / "kept", copied / "checkpoints" / "4")
    assert not any("unfinished" in row for row in measured(copied))


def test_the_record_says_how_many_steps_were_asked_for_and_taken(two):
    record = json.loads((two[0] / "run.json").read_text())
    assert (record["steps"], record["steps_done"], record["finished"]) == (4, 4, True)


def test_the_environment_that_can_change_a_result_is_recorded(two):
    some = {
        "HOME": "/x",
        "XLA_FLAGS": "--a",
        "JAX_B": "1",
        "GLIBC_TUNABLES": "c",
        "LIBTPU_INIT_ARGS": "d",
        "TF_CLI_CONFIG_FILE": "no",
        "TF_XLA_FLAGS": "e",
        "PATH": "",
        "NCCL_ALGO": "Ring",
    }
    assert environment(some) == {
        "GLIBC_TUNABLES": "c",
        "JAX_B": "1",
        "LIBTPU_INIT_ARGS": "d",
        "NCCL_ALGO": "Ring",
        "TF_XLA_FLAGS": "e",
        "XLA_FLAGS": "--a",
    }
    recorded = json.loads((two[0] / "run.json").read_text())["environment"]
    assert recorded == environment()
    assert "device_count=8" in recorded["XLA_FLAGS"]
