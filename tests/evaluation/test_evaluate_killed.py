"""An evaluation that is killed at any moment and run again ends in the same rows, none twice.

Thorough: an evaluation is cut at every write; test_evaluate.py resumes one by default.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from posenc_jax.evaluation import evaluate

from support import runs

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]
ASK = ("E1", "E3", "E7", "passkey", "copy", "EL")


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data_dir):
    """A trained run that was never evaluated, and the rows of an evaluation in one go."""
    workdir = tmp_path_factory.mktemp("run") / "x"
    runs.finished(runs.config(data_dir, "rope|nope"), workdir)
    other = workdir.with_name("y") / "x"
    shutil.copytree(workdir, other)
    path = evaluate.evaluate(other, multiples=(1, 4), suites=ASK, split="dev", stretch=None)
    return workdir, path.read_bytes()


def test_an_evaluation_cut_between_any_two_writes_ends_in_the_same_rows(
    whole, tmp_path, monkeypatch
):
    workdir, rows = whole
    shutil.copytree(workdir, tmp_path / "x")
    replace, savez = os.replace, np.savez

    def until(count, real):
        left = [count]

        def cut(*args, **named):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real(*args, **named)

        return cut

    # Each turn ends before the replacement by a later item, the partial file already written, or before
    # the arrays of one.
    for turn in range(1, 40):
        monkeypatch.setattr(os, "replace", until(2 + turn % 2, replace))
        monkeypatch.setattr(np, "savez", until(1 + turn % 3, savez))
        try:
            path = evaluate.evaluate(
                tmp_path / "x", multiples=(1, 4), suites=ASK, split="dev", stretch=None
            )
        except Killed:
            continue
        break
    assert turn > 3
    assert path.read_bytes() == rows


@pytest.mark.slow
def test_an_evaluation_killed_outright_at_random_moments_ends_in_the_same_rows(whole, tmp_path):
    workdir, rows = whole
    shutil.copytree(workdir, tmp_path / "x")
    command = [
        sys.executable,
        "scripts/evaluate.py",
        f"--workdir={tmp_path / 'x'}",
        "--lengths=1,4",
        f"--suite={','.join(ASK)}",
    ]
    # Compiled as in this process (conftest.py): another compilation rounds in another way.
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    place = tmp_path / "x" / "evaluation_dev" / "rows.jsonl"
    moments, kills = random.Random(0), 0
    for _ in range(12):
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        began = place.stat().st_size if place.exists() else 0
        while process.poll() is None and (place.stat().st_size if place.exists() else 0) == began:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 3
    last = subprocess.run(command, cwd=ROOT, capture_output=True, env=environment)
    assert last.returncode == 0, last.stderr
    assert place.read_bytes() == rows
