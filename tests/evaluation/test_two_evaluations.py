"""Two evaluations of one run at a time: the second waits, and no row of either is lost."""

import dataclasses
import os
import subprocess
import sys
import threading

import pytest
from posenc_jax.evaluation.evaluate import _only_evaluation
from posenc_jax.results.row_file import RowFile
from posenc_jax.results.schema import Row

from support import machine, runs
from support.entries import ROOT

ROW = Row("r", "rope", 0, "smoke", "E", "bpb_ctx", 32, 64, "all", 2.0, 1, "dev")
STAMPS = {"E": "stamp"}


def test_the_second_evaluation_waits_and_reads_the_rows_of_the_first(tmp_path, capfd):
    begun = threading.Event()

    def second():
        begun.set()
        with _only_evaluation(tmp_path):
            rows = RowFile(tmp_path / "rows.jsonl", STAMPS)
            rows.add("E3/2", [dataclasses.replace(ROW, length=128)])

    with _only_evaluation(tmp_path):
        rows = RowFile(tmp_path / "rows.jsonl", STAMPS)
        other = threading.Thread(target=second)
        other.start()
        begun.wait()
        other.join(0.3)
        assert other.is_alive()
        rows.add("E3/1", [ROW])
    other.join()
    found = RowFile(tmp_path / "rows.jsonl", STAMPS)
    assert found.has("E3/1")
    assert found.has("E3/2")
    assert f"another evaluation is at work in {tmp_path}" in capfd.readouterr().err


@pytest.mark.slow
def test_two_evaluate_scripts_on_one_workdir_leave_the_rows_of_both(tmp_path, data_dir):
    runs.finished(runs.config(data_dir, train={"steps": 2, "save_every": 2}), tmp_path / "run")
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "scripts/evaluate.py",
                f"--workdir={tmp_path / 'run'}",
                f"--suite={suite}",
                "--lengths=1",
            ],
            cwd=ROOT,
            env={**os.environ, **machine.ONE_DEVICE},
        )
        for suite in ("E3", "passkey")
    ]
    assert [process.wait() for process in started] == [0, 0]
    found = {row["metric"] for row in runs.rows(tmp_path / "run/evaluation_dev/rows.jsonl")}
    assert {"bpb_ctx", "passkey_accuracy"} <= found
