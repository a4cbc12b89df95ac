"""The command that prints instances for a person to read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from posenc_jax.tasks.instance_text import render_instance
from posenc_jax.tasks.task_registry import find

from support.task_fillers import FILLER, TOKENIZER

ROOT = Path(__file__).parents[2]


def show(*flags):
    return subprocess.run(
        [sys.executable, "scripts/show_tasks.py", *flags],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=dict(os.environ),
    )


def test_sources_and_answers_are_marked_in_the_text():
    instance = find("needles_1").instance(FILLER, split="dev", seed=0, index=0, length=40)
    text = render_instance(instance, FILLER, TOKENIZER)
    line, place = text.rsplit("\n", 1)
    source = line.split("{{")[1].split("}}")[0]
    answer = line.split("[[")[1].split("]]")[0]
    assert source == answer
    assert source.startswith("<V")
    (only,) = instance.answers
    assert (
        place
        == f"  answer at 39..39: distance {only.distance}, depth {only.depth:.2f}, chance 0.01562"
    )


def test_every_task_is_printed_and_a_wrong_name_is_one_line(data_dir):
    run = show("--length=160", f"--data_dir={data_dir}")
    assert run.returncode == 0, run.stderr
    for name in ("R1 passkey", "R2 needles_16", "R7 phonebook", "R10 synonym"):
        assert name in run.stdout
    for flag, message in (
        ("--task=copi", "did you mean 'copy"),
        ("--split=valid", "split 'valid'"),
    ):
        wrong = show(flag, f"--data_dir={data_dir}")
        assert wrong.returncode == 2
        assert len(wrong.stderr.strip().splitlines()) == 1
        assert message in wrong.stderr


@pytest.mark.thorough
@pytest.mark.parametrize("length", [31])
def test_a_length_below_the_minimum_is_said_when_all_are_shown(data_dir, length):
    run = show(f"--length={length}", f"--data_dir={data_dir}")
    assert run.returncode == 0, run.stderr
    assert "R3 mqar_32: needs 130 tokens" in run.stdout
