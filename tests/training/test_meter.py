"""The meter of a run: step time, waits, saves, goodput and MFU by a clock of the test."""

import datetime

import pytest
from posenc_jax.training import meter as meters
from posenc_jax.training.meter import Meter, peak_flops_per_second

from support.clocks import Clock


def metered(clock, **settings):
    began = datetime.datetime.fromtimestamp(900.0, datetime.UTC).isoformat()
    given = {"tokens": 50, "flops": 4e12, "began": began, "before": {}, "first": 0}
    return Meter(**given | settings, clock=clock)


def feed(clock, seconds, count):
    for number in range(count):
        clock.now += seconds
        yield number


def leg(meter, clock, *, wait, work, save, steps, idle=lambda: True):
    """Steps that wait, work and save so many seconds each; returns the row at the end."""
    for _ in meter.waiting(feed(clock, wait, steps), idle):
        clock.now += work
        meter.finished()
        with meter.saving():
            clock.now += save
    clock.now += work
    meter.finished()
    return meter.row()


def test_steps_waits_and_saves_are_told_apart_and_the_first_step_is_in_none():
    clock = Clock()
    row = leg(metered(clock), clock, wait=1.0, work=2.0, save=0.5, steps=4)
    # The first step ends at 3 s, then three of 1 + 2 s after a save of 0.5 s, then one of 2 s after one.
    assert row["step_seconds"] == pytest.approx((3 * 3 + 2) / 4)
    assert row["tokens_per_second"] == pytest.approx(50 * 4 / (11 + 2), abs=0.1)
    assert row["data_wait_share"] == pytest.approx(3 / 13, abs=1e-4)
    assert row["save_share"] == pytest.approx(2 / 13, abs=1e-4)
    assert row["productive_seconds"] == pytest.approx(11)
    assert row["goodput"] == pytest.approx(11 / (clock.now - 900), abs=1e-4)


def test_waiting_for_data_counts_when_the_devices_ran_out_of_work_meanwhile():
    clock, asked = Clock(), iter([True, False, True, False, False])  # before each batch and the end
    row = leg(
        metered(clock), clock, wait=1.0, work=2.0, save=0.0, steps=4, idle=lambda: next(asked)
    )
    # Three steps of 1 + 2 s and one of 2 s: one second of the third batch alone found them idle.
    assert row["data_wait_share"] == pytest.approx(1 / 11, abs=1e-4)


def test_goodput_goes_on_over_legs_and_counts_saved_steps_that_no_row_has():
    clock = Clock(2000.0)
    before = {"step": 40, "productive_seconds": 300.0, "step_seconds": 2.0}
    row = metered(clock, before=before, first=50).row()
    assert row["productive_seconds"] == 320.0
    assert row["goodput"] == pytest.approx(320 / 1100, abs=1e-4)
    assert "tokens_per_second" not in row  # no step was measured


def test_mfu_is_given_where_the_chip_is_known_and_left_out_elsewhere(monkeypatch):
    clock = Clock()
    assert "mfu" not in leg(metered(clock), clock, wait=0.0, work=2.0, save=0.0, steps=4)
    monkeypatch.setattr(meters, "peak_flops_per_second", lambda kind: 1e12)
    row = leg(metered(clock), clock, wait=0.0, work=2.0, save=0.0, steps=4)
    assert row["mfu"] == pytest.approx(4e12 / 2.0 / (1e12 * 8))  # eight devices
    assert peak_flops_per_second("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops_per_second("TPU v5 lite") == 197e12
    assert peak_flops_per_second("cpu") is None
