"""What a run says of its time: the meter by a clock of our own, the watchdog, traces, Weights & Biases."""

import datetime
import sys
import threading
import types

import pytest
from support import runs

from posenc_jax.training import meter as meters
from posenc_jax.training.loop import train
from posenc_jax.training.meter import Meter, peak_flops
from posenc_jax.training.profile import Profile, parse_profile
from posenc_jax.training.watchdog import FIRST, Watchdog


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now


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
    monkeypatch.setattr(meters, "peak_flops", lambda kind: 1e12)
    row = leg(metered(clock), clock, wait=0.0, work=2.0, save=0.0, steps=4)
    assert row["mfu"] == pytest.approx(4e12 / 2.0 / (1e12 * 8))  # eight devices
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("cpu") is None


def test_a_stall_is_written_down_once_with_the_stacks_of_all_threads(tmp_path, capsys):
    def waiting_in_vain():
        never.wait()

    never, clock = threading.Event(), Clock(0.0)
    stuck = threading.Thread(target=waiting_in_vain, daemon=True)
    stuck.start()
    dog = Watchdog(tmp_path / "stalls.log", 60.0, "process 0 of 1", clock)
    clock.now = 60.0 * FIRST - 1
    assert not dog.check()  # the first step is compiled
    dog.finished(1)
    clock.now += 59.0
    assert not dog.check()
    clock.now += 1.0
    assert dog.check()
    assert not dog.check()
    dog.finished(2)
    clock.now += 61.0
    assert dog.check()
    never.set()
    said = (tmp_path / "stalls.log").read_text()
    assert said.count("process 0 of 1: step") == 2
    assert "step 2 has not finished for 60 s" in said
    assert "waiting_in_vain" in said
    assert "waiting_in_vain" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_run_that_stalls_is_told_and_goes_on(tmp_path, data_dir, monkeypatch):
    from posenc_jax.training import loop

    feed_of, told, log = loop.training_batches, threading.Event(), tmp_path / "x" / "stalls.log"

    def hesitant(*args, **kwargs):
        for number, batch in enumerate(feed_of(*args, **kwargs)):
            for _ in range(
                400 if number == 3 else 0
            ):  # 20 s at the most; step 6 saves, which is slow too
                if "in hesitant" in (log.read_text() if log.exists() else ""):
                    break
                told.wait(0.05)
            yield batch

    monkeypatch.setattr(loop, "training_batches", hesitant)
    config = runs.config(data_dir, train={"stall_seconds": 1.0, "data_devices": 1})
    rows = runs.finished(config, tmp_path / "x")
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert "in hesitant" in log.read_text()
    last = rows[-1]
    assert last["tokens_per_second"] > 0
    assert max(row["data_wait_share"] for row in rows[1:6]) > 0.5  # of the hesitation
    assert last["data_wait_share"] < 0.5
    assert 0 < last["goodput"] <= 1
    assert last["process_peak_rss_bytes"] > 1e7
    assert "mfu" not in last


@pytest.mark.thorough
def test_a_profile_is_a_trace_of_the_steps_asked_for(tmp_path, data_dir):
    config = runs.config(data_dir, train={"data_devices": 1})
    train(config, tmp_path / "x", "a test", Profile(5, 2))
    assert list((tmp_path / "x" / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("text", ["", "5", "0:3", "5:0", "a:b", "5:2:1"])
def test_a_profile_that_reads_wrong_is_refused(text):
    with pytest.raises(ValueError, match="must read first:count"):
        parse_profile(text)


def test_a_profile_of_steps_that_do_not_come_is_refused():
    parse_profile("39:2").check(done=0, steps=40)
    with pytest.raises(ValueError, match="asks for steps 40 to 41; to come are 1 to 40"):
        parse_profile("40:2").check(done=0, steps=40)
    with pytest.raises(ValueError, match="to come are 21 to 40"):
        parse_profile("20:2").check(done=20, steps=40)


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
