"""The commands as a user types them, in processes of their own, at toy size."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import machine
from support.entries import ROOT, typed


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The quickstart's path at toy size: study, evaluation and report."""
    workdir = tmp_path_factory.mktemp("studies") / "smoke"
    run = typed("scripts/study.py", "--study=configs/studies/smoke.py", f"--workdir={workdir}")
    assert run.returncode == 0, run.stdout + run.stderr
    return workdir


@pytest.mark.slow  # .ci/run walks the same path with scripts/quickstart.sh smoke
def test_a_study_ends_in_rows_for_every_run_and_a_report(study, forks):
    for arm in ("rope", "coupled"):
        rows = (study / "runs" / f"{arm}-s0" / "evaluation_dev" / "rows.jsonl").read_text()
        for metric in ("bpb_nonoverlap", "bpb_ctx", "nll_pos", "passkey_accuracy", "mqar_accuracy"):
            assert f'"{metric}"' in rows
    report = forks.run("scripts/report.py", f"--workdir={study}")
    assert report.returncode == 0, report.stderr
    page = Path(report.stdout.splitlines()[-1])
    assert page == study / "report.html"
    assert "http://" not in page.read_text().replace("http://www.w3.org", "")
    figures = {path.stem for path in (study / "figures").glob("*.png")}
    assert len(figures) > 5
    assert figures <= {path.stem for path in (study / "figures").glob("*.csv")}


@pytest.mark.slow
def test_running_a_study_again_does_nothing_twice(study, forks):
    before = {p: p.read_bytes() for p in study.rglob("*.jsonl")}
    run = forks.run("scripts/study.py", "--study=configs/studies/smoke.py", f"--workdir={study}")
    assert run.returncode == 0, run.stderr
    assert {p: p.read_bytes() for p in study.rglob("*.jsonl")} == before


def smoke(*overrides):
    return ("train.py", "--config=configs/smoke.py:rope", *overrides)


@pytest.mark.thorough
def test_a_run_and_its_evaluation_say_what_was_done_and_what_comes_next(tmp_path, forks):
    text, workdir = tmp_path / "text", tmp_path / "run"
    text.mkdir()
    for number in range(12):
        (text / f"{number}.txt").write_text(f"text {number} of a few words\n" * 60)
    done = forks.run(
        *smoke("--config.model.num_layers=1", "--config.train.steps=2"),
        "--config.train.save_every=2",
        "--config.train.dev_every=2",
        "--config.train.dev_windows=8",
        "--config.data.corpus=text_folder",
        f"--config.data.folder={text}",
        f"--config.data.data_dir={tmp_path / 'data'}",
        f"--workdir={workdir}",
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((workdir / "run.json").read_text())
    first, *_, last, following = done.stdout.splitlines()
    for words in (f"{record['parameters']:,} parameters", f"{record['tokens']:,} tokens", "cpu"):
        assert words in first
    dev = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["dev_loss"]
    assert last.endswith(f"dev loss {dev:.4f}")
    assert following == f"next: python scripts/evaluate.py --workdir={workdir}"
    done = forks.run(*following.split()[2:], "--suite=E3", "--lengths=1")
    assert done.returncode == 0, done.stderr
    head, bits, *_, path, following = done.stdout.splitlines()
    assert head.split()[-4:] == ["4", "L", "8", "L"]
    assert bits.startswith("bits per byte")
    assert path == f"{workdir / 'evaluation_dev' / 'rows.jsonl'}"
    assert following == f"next: python scripts/report.py --workdir={workdir}"


WRONG = [
    (("train.py", "--config=configs/smoke.py:ropee"), "did you mean 'rope'"),
    (("train.py", "--config=configs/nosuch.py"), "configs/nosuch.py"),
    (
        ("train.py", "--config=configs/large.py:1.4b"),
        "1.4b: configs/large.py has the sizes 1.3b, 7b",
    ),
    (("train.py",), "--config"),
    (smoke("--config.train.stpes=3"), 'Did you mean "steps"'),
    (smoke("--config.train.steps=many"), "config.train.steps=many"),
    (smoke("--config.optimizer.learning_rate=nan"), "config.optimizer.learning_rate"),
    (smoke("--config.optimizer.learning_rate=-1"), "config.optimizer.learning_rate"),
    (smoke("--config.model.num_heads=5"), "model.num_heads=5"),
    (smoke("--config.model.head_dim=7"), "head dim 7 is odd"),
    (smoke("--config.data.corpus=text_folder", "--config.data.folder={empty}"), "{empty}"),
    (smoke("--config.data.corpus=text_folder", "--config.data.folder={latin}"), "b.txt"),
    (smoke("--config.data.tokenizer=nosuch.model"), "nosuch.model"),
    (smoke("--config.train.nosuch=3"), "nosuch is not a setting of the configuration"),
    (smoke("--wrokdir=x"), "Did you mean: workdir"),
    (smoke("extra"), "unexpected argument 'extra'"),
    (("scripts/evaluate.py",), "no trained run"),
    (("scripts/evaluate.py", "--stretches=x"), "--stretches=x: 'x' is no whole number"),
    (smoke("--config.train.steps=x"), "'x' is no whole number"),
    (smoke("--config.optimizer.learning_rate=x"), "'x' is no number"),
    (
        ("scripts/evaluate.py", "--lengths=1,x"),
        "--lengths must be multiples of the training length",
    ),
    (("scripts/generate.py", "--prompt=x"), "holds no trained run"),
    (("scripts/generate.py", "--prompt=x", "--temperature=-1"), "temperature >= 0"),
    (("scripts/generate.py", "--prompt=x", "--top_p=0"), "top_p"),
    (("scripts/generate.py", "--prompt=x", "--top_k=many"), "--top_k=many"),
    (("scripts/generate.py", "--prompt=x", "--max_tokens=0"), "--max_tokens must be at least 1"),
    (("scripts/generate.py", "--prompt=x", "--seed=-1"), "--seed=-1"),
    (("scripts/report.py",), "is no folder"),
    (("scripts/report.py", "--results=results/cpu"), "one of them"),
    (("scripts/verdict.py", "--results=results/cpu"), "one of them"),
    (("scripts/publish.py", "--out={empty}"), "is no folder"),
    (("scripts/publish.py",), "--out must have a value"),
    (("scripts/study.py", "--study=configs/nosuch.py"), "configs/nosuch.py is no file"),
    (("scripts/study.py", "--study=README.md"), "README.md is no file of Python"),
]


def refused(run, tmp_path, arguments, message):
    """Asserts that `run(*arguments)` says in a line what is wrong with them, and does nothing."""
    empty, latin = tmp_path / "empty", tmp_path / "latin"
    empty.mkdir()
    latin.mkdir()
    for name in "abc":
        (latin / f"{name}.txt").write_bytes(b"text " * 50)
    (latin / "b.txt").write_bytes(b"caf\xe9 au lait")
    places = {"empty": empty, "latin": latin}
    workdir = tmp_path / "workdir"
    ended = run(
        *(a.format(**places) for a in arguments),
        f"--workdir={workdir}",
        *(
            [f"--config.data.data_dir={tmp_path / 'data'}"]
            if len(arguments) > 1 and arguments[0] == "train.py" and "nosuch.py" not in arguments[1]
            else []
        ),
    )
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert message.format(**places) in ended.stderr
    assert not workdir.exists()


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_input_is_one_line_exit_code_two_and_nothing_written(
    tmp_path, forks, arguments, message
):
    refused(forks.run, tmp_path, arguments, message)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (smoke("--config.model.head_dim=7"), "head dim 7 is odd"),
        (("scripts/evaluate.py",), "no trained run"),
        (("scripts/study.py", "--study=configs/nosuch.py"), "configs/nosuch.py is no file"),
    ],
)
def test_so_it_is_in_a_process_that_a_user_starts(tmp_path, arguments, message):
    refused(typed, tmp_path, arguments, message)


def test_a_byte_that_is_not_utf8_is_named_with_its_offset(tmp_path, forks):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_bytes(b"text " * 50)
    (tmp_path / "b.txt").write_bytes(b"caf\xe9 au lait")
    run = forks.run(
        *smoke("--config.data.corpus=text_folder", f"--config.data.folder={tmp_path}"),
        f"--workdir={tmp_path / 'w'}",
        f"--config.data.data_dir={tmp_path / 'data'}",
    )
    assert run.returncode == 2
    assert "b.txt" in run.stderr
    assert " 3" in run.stderr


@pytest.mark.parametrize("entry", ["train", "study"])
@pytest.mark.parametrize("place", ["{file}", "{file}/below", "/proc/nothere/x"])
def test_a_workdir_that_cannot_be_is_one_line(tmp_path, forks, entry, place):
    file = tmp_path / "file"
    file.write_text("mine")
    workdir = f"--workdir={place.format(file=file)}"
    data = f"--config.data.data_dir={tmp_path / 'data'}"
    run = (
        forks.run(*smoke(data), workdir)
        if entry == "train"
        else forks.run("scripts/study.py", "--study=configs/studies/smoke.py", workdir)
    )
    assert run.returncode == 2, run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
    assert file.read_text() == "mine"


@pytest.mark.slow  # test_grid.py kills a study of stand-ins
@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_a_study_that_is_stopped_stops_its_runs_and_goes_on_later(tmp_path, how):
    workdir = tmp_path / "study"
    arguments = [
        sys.executable,
        "scripts/study.py",
        "--study=configs/studies/smoke.py",
        f"--workdir={workdir}",
    ]
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **machine.ONE_DEVICE},
    )
    while not list(workdir.glob("runs/*/metrics.jsonl")):
        time.sleep(0.1)
        assert process.poll() is None
    getattr(process, how)()
    _, said = process.communicate(timeout=60)
    assert process.returncode == (75 if how == "terminate" else -signal.SIGKILL)
    assert "Warning" not in said.decode()
    deadline = time.time() + 30
    while children_of(workdir) and time.time() < deadline:
        time.sleep(0.2)  # after a kill they save and end by themselves
    assert not children_of(workdir)
    again = typed("scripts/study.py", "--study=configs/studies/smoke.py", f"--workdir={workdir}")
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.splitlines()[-1] == str(workdir / "report.html")


def children_of(workdir):
    """Processes whose command line names the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(workdir) in text and int(path.parent.name) != os.getpid():
            found.append(text)
    return found
