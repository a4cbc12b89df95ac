"""Hostile cases, drawn at random over all that the commands read: the right result, or one line.

A case is a function of its number. It damages one input (a file of rows, a record, a checkpoint, a cache, a
corpus, a scheme, a flag, a setting) and runs the command that reads it, in bounded time. A command may do its
work, with the same rows as before where the input is sealed by checksums, or refuse in one line.
"""

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from posenc_jax.encodings import REGISTRY
from posenc_jax.results.load import load
from posenc_jax.results.publish import publish
from posenc_jax.training.config import RunConfig

from faults.bad_inputs import _WRITES_ELSEWHERE
from support.hostile import damage, damage_bytes
from support.result_folders import write_study
from support.schemes import ALL

SECONDS = 60  # of CPU, in a process
DRAWN = 112
WORDS = """
-1 0 3 1e309 nan -inf ٣ 01 -0 1,1 1,,2 0x10 [] {} True None -- %s%n $(id) * {seed} ../nosuch /dev/null
/proc/self/mem yarn:0 yarn:nan pi:1e400 last best R99 E3,E3 test rope rope+alibi
"""
VALUES = ("", " ", "a\nb", "9" * 30, "x" * 300, "\u202eé", "\U0001f642", *WORDS.split())
FLAGS = {
    "evaluate": "lengths suite stretch checkpoint split key_targets",
    "generate": "prompt max_tokens temperature top_k top_p seed stretch",
    "report": "workdir results split",
    "publish": "workdir split",
    "verdict": "hybrid rope alibi seeds pilot prereg split lookup",
    "inspect_scheme": "num_layers num_heads head_dim train_length length margins bound stretch",
    "show_tasks": "task length split index seed tokenizer corpus",
}


class World:
    """What the commands read, made once; each case finds it whole at the same place.

    Runs name the folder of their texts, so that a copy elsewhere would be another run.
    """

    def __init__(self, folder: Path, forks):
        self.folder, self._whole, self.forks = folder / "world", folder / "whole", forks
        write_study(self.folder / "study")
        publish(load(self.folder / "study"), self.folder / "published", [])
        shutil.copytree(self.folder, self._whole)
        self._trained = False

    def restored(self) -> Path:
        """Returns the folder as it was before the cases."""
        shutil.rmtree(self.folder)
        return shutil.copytree(self._whole, self.folder)

    def trained(self) -> None:
        """Makes a run of four steps with its corpus, caches and rows."""
        if self._trained:
            return
        self.restored()
        text = self.folder / "text"
        text.mkdir()
        for number in range(12):
            (text / f"{number}.txt").write_text(
                f"text {number} of a few words, and a number\n" * 60
            )
        done = self.forks.run(*train(self.folder))
        assert done.returncode == 0, done.stderr
        done = self.forks.run(*evaluate(self.folder))
        assert done.returncode == 0, done.stderr
        rows = self.folder / "run" / "evaluation_dev"
        self.rows = values(rows / "rows.jsonl")
        shutil.rmtree(rows)
        shutil.rmtree(self._whole)
        shutil.copytree(self.folder, self._whole)
        self._trained = True


def train(folder, *flags):
    where = {"corpus": "text_folder", "folder": folder / "text", "data_dir": folder / "data"}
    settings = (f"--config.data.{name}={value}" for name, value in where.items())
    size = ("--config.model.num_layers=1", "--config.train.steps=4", "--config.train.save_every=2")
    return (
        "train.py",
        "--config=configs/smoke.py:rope",
        *settings,
        *size,
        f"--workdir={folder / 'run'}",
        *flags,
    )


def evaluate(folder, *flags):
    return "scripts/evaluate.py", f"--workdir={folder / 'run'}", "--suite=E3", "--lengths=1", *flags


def values(path):
    """The numbers of a file of rows, without stamps."""
    return re.findall(r'"value": ([^,}]*)', path.read_text())


def files(folder, pattern="*"):
    found = sorted(p for p in folder.rglob(pattern) if p.is_file() and not p.name.startswith("."))
    assert found, folder
    return found


def picked(items, rng):
    return items[int(rng.integers(len(items)))]


def damaged(folder, rng, pattern="*"):
    """Damages one file of a folder; returns its path."""
    path = picked(files(folder, pattern), rng)
    damage(path, rng)
    return path


# Each kind damages the copied world and returns the command, and whether its rows must stay the same.


def of_rows(folder, rng):
    damaged(folder / "study", rng, "rows.jsonl")
    return ("scripts/report.py", f"--workdir={folder / 'study'}"), False


def of_records(folder, rng):
    damaged(folder / "study", rng, "*.json*")
    return ("scripts/publish.py", f"--workdir={folder / 'study'}", f"--out={folder / 'out'}"), False


def of_study(folder, rng):
    name = picked(("study.json", "texts.json", "tuning.json"), rng)
    (folder / "study" / "tuning.json").write_text(
        '{"arms": {"rope": {"rate": 0.01, "tried": {"0.01": 2.0}}}, "steps": 5, "seed": 9}'
    )
    damage(folder / "study" / name, rng)
    return ("scripts/verdict.py", f"--workdir={folder / 'study'}", "--hybrid=rope"), False


def of_published(folder, rng):
    damaged(folder / "published", rng)
    return (
        "scripts/report.py",
        f"--results={folder / 'published'}",
        f"--out={folder / 'out'}",
    ), False


def of_scheme(folder, rng):
    """Pieces of the language in any order, or a scheme with characters moved, lost and doubled."""
    pieces = (
        *REGISTRY,
        *"+|,~&*()=.",
        "(base=",
        "1e400",
        "9" * 25,
        "-0",
        "nan",
        "²",
        " ",
        "((",
        "3*(",
    )
    if rng.random() < 0.5:
        line = "".join(picked(pieces, rng) for _ in range(rng.integers(1, 12)))
    else:
        line = list(picked(ALL, rng))
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(len(line)))
            line[at : at + int(rng.integers(2))] = [picked("+|,~&*()=.9 é", rng)] * int(
                rng.integers(3)
            )
            line = line or ["("]
        line = "".join(line)
    shape = ("--num_heads=4", "--head_dim=16", "--train_length=64", "--length=256")
    return ("scripts/inspect_scheme.py", f"--scheme={line}", *shape), False


def of_flag(folder, rng):
    script = picked([*FLAGS], rng)
    known = {
        "evaluate": evaluate(folder)[1:],
        "generate": (f"--workdir={folder / 'run'}", "--prompt=text", "--max_tokens=3"),
        "report": (f"--workdir={folder / 'study'}", f"--out={folder / 'out'}"),
        "publish": (f"--workdir={folder / 'study'}", f"--out={folder / 'out'}"),
        "verdict": (f"--workdir={folder / 'study'}", f"--out={folder / 'out'}"),
        "inspect_scheme": ("--scheme=rope+alibi", "--train_length=64", "--length=256"),
        "show_tasks": (
            *(
                "--corpus=text_folder",
                f"--folder={folder / 'text'}",
                f"--data_dir={folder / 'data'}",
            ),
            *("--task=passkey", "--length=100"),
        ),
    }[script]
    flag = f"--{picked(FLAGS[script].split(), rng)}={picked(VALUES, rng)}"
    return (f"scripts/{script}.py", *known, flag), False


def of_setting(folder, rng):
    """A finished run is started with one setting changed: it has finished, or the change is refused."""
    section = picked(dataclasses.fields(RunConfig), rng)
    names = [field.name for field in dataclasses.fields(section.type)]
    names = [name for name in names if (section.name, name) not in _WRITES_ELSEWHERE]
    changed = f"--config.{section.name}.{picked(names, rng)}={picked(VALUES, rng)}"
    return train(folder, changed), False


def of_config(folder, rng):
    damage(folder / "run" / picked(("config.json", "run.json"), rng), rng)
    return evaluate(folder), False


def of_log(folder, rng):
    shutil.rmtree(folder / "run" / "checkpoints" / "4")  # a finished run does not read its log
    damage(folder / "run" / "metrics.jsonl", rng)
    return train(folder), False


def of_checkpoint(folder, rng):
    damaged(folder / "run" / "checkpoints" / "4", rng)
    return evaluate(folder), True


def of_checkpoint_resumed(folder, rng):
    damaged(folder / "run" / "checkpoints", rng)
    return train(folder), False


def of_token_cache(folder, rng):
    damaged(folder / "data" / "streams", rng)
    return evaluate(folder), True


def of_prepared_corpus(folder, rng):
    path = picked([p for p in files(folder / "data") if "streams" not in p.parts], rng)
    damage(path, rng)
    shutil.rmtree(folder / "data" / "streams")
    return evaluate(folder), True


def of_text(folder, rng):
    """Another text, or one that is none: the run's own corpus has changed, and it says so."""
    path = damaged(folder / "text", rng)
    path.write_bytes(damage_bytes(path.read_bytes(), rng))
    return evaluate(folder), False


CHEAP = (of_rows, of_records, of_study, of_published, of_scheme)
KINDS = (
    *CHEAP,
    of_flag,
    of_setting,
    of_config,
    of_log,
    of_checkpoint,
    of_checkpoint_resumed,
    of_token_cache,
    of_prepared_corpus,
    of_text,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory, forks):
    return World(tmp_path_factory.mktemp("hostile"), forks)


def assert_answered(world, kind, number):
    """Runs one case; its result is right or refused in one line."""
    rng = np.random.default_rng([number, len(kind.__name__)])
    if kind not in CHEAP:
        world.trained()
    folder = world.restored()
    command, sealed = kind(folder, rng)
    ended = world.forks.run(*command, seconds=SECONDS)
    said = f"{command}\n{ended.returncode}\n{ended.stdout[-2000:]}\n{ended.stderr}"
    assert "Traceback" not in ended.stderr + ended.stdout, said
    assert ended.returncode >= 0, said  # no signal, the one of the time limit included
    notices = [line for line in ended.stderr.strip().splitlines() if " is damaged" in line]
    if ended.returncode:
        assert len(ended.stderr.strip().splitlines()) - len(notices) <= 1, said
        assert ended.stderr, said
    elif sealed:
        assert values(folder / "run" / "evaluation_dev" / "rows.jsonl") == world.rows, said


@pytest.mark.parametrize("kind", [of_records, of_study, of_scheme])
def test_a_few_hostile_cases_end_in_the_right_result_or_one_line(world, kind):
    assert_answered(world, kind, 0)


@pytest.mark.default_cases(0, thorough=14)
@pytest.mark.parametrize("number", range(DRAWN))
def test_a_hostile_case_ends_in_the_right_result_or_one_line(world, number):
    assert_answered(world, KINDS[number % len(KINDS)], number)
