"""The bench of a training step beside its PyTorch reference."""

import importlib.machinery
import importlib.util

import numpy as np
import pytest
from posenc_jax.bench import step_cost
from posenc_jax.training.config import RunConfig
from posenc_jax.training.config_sections import ModelSection, TrainSection


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the peers' own imports
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_step_under_every_scheme_is_timed_beside_nope_and_twins_start_from_its_losses(
    monkeypatch,
):
    monkeypatch.setattr(step_cost, "HEAD_DIM", 8)
    outcome = step_cost.measure(
        step_cost.StepSettings(
            schemes=("rope+alibi",),
            train_length=16,
            batch=2,
            layers=1,
            model_dim=16,
            rounds=2,
            compiled=False,
        )
    )
    rows = {(row["implementation"], row["scheme"]): row for row in outcome.rows}
    assert {("ours", "nope"), ("ours", "rope+alibi")} <= set(rows)
    assert rows["ours", "nope"]["ratio"] == 1
    assert all(row["same_ratio"] == 1 for name, row in rows.items() if name[0] == "ours")
    assert all(
        row["split_ratio"] == 1 for name, row in rows.items() if name[0] == "ours, 2 devices"
    )
    assert rows["ours, 2 devices", "rope+alibi"]["difference"] < 1e-6
    if importlib.util.find_spec("torch") is None:
        assert any("torch: not installed" in line for line in outcome.settings["skipped"])
    else:
        assert rows["PyTorch twin", "rope+alibi"]["difference"] < 1e-6
    with pytest.raises(ValueError, match="model_dim must be a multiple of 8"):
        step_cost.measure(step_cost.StepSettings(model_dim=20))
    with pytest.raises(
        ValueError, match="3 devices: there are 8, and they must divide a batch of 4"
    ):
        step_cost.measure(step_cost.StepSettings(batch=4, devices=3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the peers' own imports
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_step_in_bfloat16_differs_from_its_twin_by_rounding_alone():
    pytest.importorskip("torch")
    outcome = step_cost.measure(
        step_cost.StepSettings(
            schemes=("alibi",),
            train_length=16,
            batch=2,
            layers=1,
            model_dim=64,
            rounds=1,
            compiled=False,
            dtype="bfloat16",
        )
    )
    rows = {(row["implementation"], row["scheme"]): row for row in outcome.rows}
    assert 0 < rows["PyTorch twin", "alibi"]["difference"] < 1e-2
    assert "bfloat16" in outcome.caption


@pytest.mark.thorough
def test_our_step_over_devices_lies_on_them_and_takes_the_same_steps():
    model = ModelSection(scheme="alibi", num_layers=1, model_dim=16, num_heads=2, head_dim=8)
    losses = []
    for devices in (1, 2):
        train = TrainSection(length=16, batch_size=2, data_devices=devices)
        run = step_cost._Ours(RunConfig(model=model, train=train), 0)
        assert len(run.batch["tokens_BT"].sharding.device_set) == devices
        losses.append([float(run()[0]) for _ in range(3)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    assert losses[0][2] != losses[0][0]


@pytest.mark.parametrize(("batch", "devices"), [(4, 4), (6, 6), (12, 6), (7, 7), (9, 3), (1, 1)])
def test_a_batch_is_split_over_as_many_devices_as_divide_it(batch, devices):
    assert step_cost._devices(None, batch) == devices  # of eight
    assert step_cost._devices(1, batch) == 1


def test_a_peer_that_fails_is_a_missing_row_and_ours_is_an_error():
    def broken():
        raise RuntimeError("no such kernel\nand more")

    missing = {}
    ours = {("ours", "nope"): lambda: lambda: (1.0, 2.0)}
    calls, losses, _ = step_cost._first_steps(ours | {("theirs", "nope"): broken}, missing)
    assert set(calls) == {("ours", "nope")}
    assert losses["ours", "nope"] == [1.0] * step_cost.CHECKED
    assert missing == {("theirs", "nope"): "RuntimeError: no such kernel"}
    with pytest.raises(RuntimeError, match="no such kernel"):
        step_cost._first_steps({("ours", "nope"): broken}, missing)
