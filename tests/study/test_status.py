"""Progress of a study and of a run, in a log: how often, what it counts, and what it estimates."""

import io
import json
import sys

import pytest
from posenc_jax.study import status
from posenc_jax.training import progress

STATES = {"a-s0": "done", "a-s1": "running", "b-s0": "failed", "b-s1": "waiting"}
ARMS = {name: name[0] for name in STATES}


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on when it is told to, for every module."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_a_log_gets_one_line_a_minute_and_the_table_at_the_end(clock, capsys):
    shown = status.Status(ARMS, every=60.0)
    for second in range(150):
        clock[0] = 1000.0 + second
        shown.show(STATES, ["a-s1 45% loss 2.00"], 90.0)
    lines = capsys.readouterr().out.splitlines()
    head = "[1/4 done, 1 waiting, 1 failed]"
    assert lines == [
        f"{head}  0:01:00 elapsed, about 0:01:30 left; a-s1 45% loss 2.00",
        f"{head}  0:02:00 elapsed, about 0:01:30 left; a-s1 45% loss 2.00",
    ]
    shown.show(STATES, [], None, last=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{head}  0:02:29 elapsed"
    assert len(lines) == 1 + 1 + len(set(ARMS.values()))


def test_time_left_is_that_of_usual_runs_shared_by_the_workers():
    assert status.time_left([], [5.0], 3, 2) is None
    # Runs take 10 s: 6 s and 0 s are left of the active ones, 20 s of those that wait.
    assert status.time_left([8.0, 12.0], [4.0, 15.0], 2, 2) == pytest.approx((6 + 0 + 20) / 2)


def test_a_run_counts_without_its_compilation(tmp_path):
    rows = [
        {"step": 5, "loss": 2.0, "productive_seconds": 3.5},
        {"step": 10, "loss": 1.5, "productive_seconds": 7.0},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert status.steps_seconds(tmp_path) == 7.0
    (tmp_path / "config.json").write_text('{"train": {"steps": 40}}')
    assert status.training_progress(tmp_path) == "25% loss 1.50"
    for damaged in ("", "[]\n", "x\n", '{"step": 10}\n', '{"step": "a", "loss": null}\n'):
        path.write_text(damaged)
        assert status.steps_seconds(tmp_path) is None
        assert status.training_progress(tmp_path) == "starting"


def test_an_evaluation_shows_its_counts(tmp_path):
    log = tmp_path / "x.log"
    assert status.evaluation_progress(log) == "evaluating"
    log.write_text("$ python train.py\nrope  5/40  loss 2.0\n")
    assert status.evaluation_progress(log) == "evaluating"
    before = log.read_text() + "$ python scripts/evaluate.py --split=dev\n"
    log.write_text(
        before + "evaluate rope  3/14  item E3/64\nevaluate rope  9/14  item R/x  0:10 left\n"
    )
    assert status.evaluation_progress(log) == "evaluating 9/14"
    with log.open("a") as file:  # the evaluation of a reading begins
        file.write("$ python scripts/evaluate.py --stretch=yarn:4\n")
    assert status.evaluation_progress(log) == "evaluating"


def test_a_line_of_a_run_estimates_from_the_steps_after_the_first_update(clock, monkeypatch):
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    bar = progress.Progress("rope", 0, 100, seconds_between_lines=15.0)
    clock[0] += 40  # of compilation
    bar.update(1, loss="4.0")
    for step in range(2, 52):
        clock[0] += 0.5
        bar.update(step, loss="3.0")
    lines = said.getvalue().splitlines()
    assert lines[0] == "rope  1/100  loss 4.0"  # nothing is known of its speed
    assert lines[1] == "rope  32/100  loss 3.0  0:34 left"


def test_the_status_counts_runs_by_arm_and_says_what_is_left():
    head = status.summary(STATES, 60.0, 60.0)
    assert head == "[1/4 done, 1 waiting, 1 failed]  0:01:00 elapsed, about 0:01:00 left"
    lines = status.table(ARMS, STATES, ["a-s1 45% loss 2.00"], head)
    assert [line.split() for line in lines[1:]] == [
        ["arm", "done", "running", "waiting", "failed"],
        ["a", "1", "1", "0", "0"],
        ["b", "0", "0", "1", "1"],
        ["a-s1", "45%", "loss", "2.00"],
    ]
