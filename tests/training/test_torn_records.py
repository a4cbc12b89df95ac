"""Records that a power loss tore block no resume: they are named and rebuilt; time is measured by a steady
clock.

Thorough: a run is trained and resumed in most tests.
"""

import ast
import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from posenc_jax.training import meter
from posenc_jax.training.loop import train
from posenc_jax.training.progress import MetricLog
from posenc_jax.training.workdir import check_same_config

from support import runs

pytestmark = pytest.mark.thorough

PACKAGE = Path(__file__).parents[2] / "posenc_jax"
CHANGING = {"began", "wall_seconds", "tokens_per_second"}


@pytest.fixture(scope="module")
def config(data_dir):
    return runs.config(data_dir, train={"steps": 2, "save_every": 1})


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory, compiled_once):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    runs.finished(config, workdir)
    return workdir


@pytest.mark.default_cases(4, thorough=0)
@pytest.mark.parametrize("name", ["run.json", "config.json"])
@pytest.mark.parametrize("damage", ["", "{", "\0" * 40, "[]", "\udcff\udcfe", "foreign"])
def test_a_torn_record_is_named_and_written_again(whole, config, tmp_path, capfd, name, damage):
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / name
    if damage == "foreign":  # JSON of another kind; a config.json of this kind is of another run
        damage = '{"arm": 3, "corpus_fingerprint": "x"}' if name == "run.json" else "[3]"
    before = json.loads(path.read_text())
    path.write_bytes(damage.encode(errors="surrogateescape"))
    train(config, tmp_path / "run", "a test")
    after = json.loads(path.read_text())
    assert {k: v for k, v in after.items() if k not in CHANGING} == {
        k: v for k, v in before.items() if k not in CHANGING
    }
    said = [line for line in capfd.readouterr().err.splitlines() if "written again" in line]
    assert len(said) == 1
    assert str(path) in said[0]


def test_a_torn_config_of_another_run_is_not_replaced_by_ours(whole, config, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run/config.json").write_text("{")
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=9))
    with pytest.raises(ValueError, match=r"saved by another run \(train\.seed: 9 here, 0 there\)"):
        train(other, tmp_path / "run", "a test")
    assert (tmp_path / "run/config.json").read_text() == "{"


def test_a_torn_config_without_a_checkpoint_is_refused_by_name(config, tmp_path):
    """Nothing else says whose folder it is."""
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        check_same_config(tmp_path, config)


def test_a_log_keeps_every_line_that_is_one_and_names_the_others(config, tmp_path, capfd):
    rows = [{"step": 1, "loss": 2.5, "chain": "a"}, {"step": 2, "loss": 0.1 + 0.2, "chain": "b"}]
    lines = [json.dumps(row).encode() for row in rows]
    torn = [
        b"\xff\xfe",
        b"[1]",
        b'{"loss": 1}',
        b'{"step": "2"}',
        b'{"step": 1, "loss": []}',
        b"\0" * 9,
    ]
    (tmp_path / "metrics.jsonl").write_bytes(
        b"\n".join([lines[0], *torn, lines[1], b'{"step": 3}'])
    )
    log = MetricLog(tmp_path, config, 2)
    log.close(failed=False)
    assert runs.rows(tmp_path / "metrics.jsonl") == rows
    assert log.last == rows[1]
    assert re.search(r"metrics\.jsonl: line 2, 3, 4, 5, 6, 7 is damaged", capfd.readouterr().err)


def test_the_clock_of_the_meter_is_never_set_back(monkeypatch):
    before = meter.steady_seconds()
    monkeypatch.setattr(meter.time, "time", lambda: -1e9)
    assert meter.steady_seconds() >= before
    assert abs(before - meter.steady_seconds()) < 60


def test_no_duration_is_measured_by_the_clock_of_the_day():
    found = [
        path.relative_to(PACKAGE).as_posix()
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "time.time"
    ]
    assert found == ["training/meter.py"]  # once, where the steady clock begins
