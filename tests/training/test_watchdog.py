"""The watchdog: a stall is written down once with the stacks of all threads."""

import threading

import pytest
from posenc_jax.training.watchdog import FIRST, Watchdog

from support import runs
from support.clocks import Clock


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
