"""Rows of a run in Weights & Biases, where it is asked for."""

import sys
import types

import pytest
from posenc_jax.training.loop import train

from support import runs


@pytest.mark.thorough
def test_rows_go_to_weights_and_biases_when_asked_and_installed(tmp_path, data_dir, monkeypatch):
    config = runs.config(data_dir, train={"wandb_project": "lengths", "data_devices": 1})
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"config.train.wandb_project=lengths needs Weights & Biases"
    ):
        train(config, tmp_path / "x", "a test")
    monkeypatch.undo()

    logged = []
    page = types.SimpleNamespace(
        log=lambda row, step: logged.append((step, row)), finish=lambda: logged.append("finished")
    )
    asked = {}
    fake = types.ModuleType("wandb")
    fake.init = lambda **settings: asked.update(settings) or page
    fake.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    rows = runs.finished(config, tmp_path / "y")
    assert asked["project"] == "lengths"
    assert asked["config"]["model"]["scheme"] == "rope+alibi"
    assert [step for step, _ in logged[:-1]] == list(range(1, 13))
    assert logged[-2][1]["train/loss"] == rows[-1]["loss"]
    assert logged[-1] == "finished"


@pytest.mark.interop
def test_the_real_package_writes_every_row_to_the_workdir_when_offline(
    tmp_path, data_dir, monkeypatch
):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = runs.config(data_dir, train={"wandb_project": "lengths", "data_devices": 1})
    rows = runs.finished(config, tmp_path / "x")
    (page,) = (tmp_path / "x" / "wandb").glob("offline-run-*/*.wandb")
    written = page.read_bytes()
    assert all(str(row["loss"]).encode() in written for row in rows)
    assert b"lengths" in written
