"""Encodings that a module of the user registers: trained, evaluated, refused and kept by name."""

import json
import re
import sys

import pytest
from posenc_jax.encodings import registry
from posenc_jax.training import config as configs

from support.entries import ROOT, typed

GAUSS = re.findall(
    r"```python\n(.*?)```",
    (ROOT / "README.md").read_text().split("## Add an encoding")[1],
    re.DOTALL,
)[0]
MODULE = GAUSS + '\n\nfrom posenc_jax.encodings import register\n\nregister("gauss", Gauss)\n'
LINE = "rope+gauss(sigma=9.0)"


@pytest.fixture
def forgotten():
    """The registry as it was before, after the test."""
    before = dict(registry.REGISTRY), dict(registry._PLUGINS)
    yield
    for table, kept in zip((registry.REGISTRY, registry._PLUGINS), before, strict=True):
        table.clear()
        table.update(kept)


@pytest.fixture
def package(tmp_path, monkeypatch, forgotten):
    """A module of the user, my_own.encodings, in a folder that is on no path yet."""
    (tmp_path / "my_own").mkdir()
    (tmp_path / "my_own" / "encodings.py").write_text(MODULE)
    yield tmp_path
    for name in ("my_own", "my_own.encodings"):
        sys.modules.pop(name, None)


def test_a_run_keeps_the_module_and_is_read_only_after_its_import(package, monkeypatch):
    sections = {"model": {"scheme": LINE}}
    with pytest.raises(ValueError, match="unknown encoding 'gauss'"):
        configs.from_sections(sections)
    monkeypatch.syspath_prepend(package)
    __import__("my_own.encodings")
    config = configs.from_sections(sections)
    assert config.model.imports == ("my_own.encodings",)
    assert configs.from_sections({"model": {"scheme": "rope"}}).model.imports == ()
    configs.check_encodings(config)

    path = package / "config.json"
    path.write_text(config.to_json())
    assert configs.read(path) == config
    del sys.modules["my_own.encodings"]
    with pytest.raises(
        ValueError, match=r"are registered by my_own\.encodings: add --import=my_own\.encodings"
    ):
        configs.read(path)
    assert "my_own.encodings" not in sys.modules  # what a file names is not run


def test_the_module_is_no_setting_that_identifies_a_run(package, monkeypatch):
    monkeypatch.syspath_prepend(package)
    __import__("my_own.encodings")
    config = configs.from_sections({"model": {"scheme": LINE}})
    assert "imports" not in configs.deciding(config)["model"]


def test_an_encoding_of_a_file_that_cannot_be_imported_is_refused_before_training(forgotten):
    exec(compile(MODULE, "a file", "exec"), {"__name__": "train_config"})
    config = configs.from_sections({"model": {"scheme": LINE}})
    with pytest.raises(ValueError, match="in a module of its own"):
        configs.check_encodings(config)


@pytest.mark.thorough
def test_it_trains_is_evaluated_and_drawn_with_import(package):
    workdir = package / "run"
    flags = (f"--workdir={workdir}", "--import=my_own.encodings")
    data = f"--config.data.data_dir={package / 'data'}"
    evaluate = (ROOT / "scripts/evaluate.py", "--lengths=1", "--suite=E3")
    for arguments in (
        (
            ROOT / "train.py",
            f"--config={ROOT}/configs/smoke.py:{LINE}",
            data,
            "--config.train.steps=2",
        ),
        evaluate,
    ):
        done = typed(*arguments, *flags, cwd=package, PYTHONPATH=str(ROOT))
        assert done.returncode == 0, done.stderr
    assert json.loads((workdir / "config.json").read_text())["model"]["imports"] == [
        "my_own.encodings"
    ]
    refused = typed(*evaluate, flags[0], cwd=package, PYTHONPATH=str(ROOT))
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "add --import=my_own.encodings" in refused.stderr


@pytest.mark.thorough
def test_an_installed_package_is_loaded_by_its_entry_point(package):
    info = package / "my_own-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my_own\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[posenc_jax.encodings]\ngauss = my_own.encodings\n")
    look = (
        ROOT / "scripts/inspect_scheme.py",
        f"--scheme={LINE}",
        "--num_heads=1",
        f"--out={package / 'look'}",
    )
    done = typed(*look, cwd=package, PYTHONPATH=f"{ROOT}:{package}")
    assert done.returncode == 0, done.stderr
    (info / "entry_points.txt").unlink()
    done = typed(*look, cwd=package, PYTHONPATH=f"{ROOT}:{package}")
    assert done.returncode == 2
    assert "unknown encoding 'gauss'" in done.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_own.nosuch", "No module named 'my_own.nosuch'"),
        ("broken", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(package, name, words):
    (package / "broken.py").write_text("1 / 0\n")
    done = typed(
        ROOT / "scripts/report.py",
        "--workdir=x",
        f"--import={name}",
        cwd=package,
        PYTHONPATH=str(ROOT),
    )
    assert done.returncode == 2
    assert done.stderr.strip().endswith(f"--import={name}: {words}") or words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_study_hands_the_module_to_every_command(package, monkeypatch):
    monkeypatch.syspath_prepend(package)
    __import__("my_own.encodings")
    from configs import smoke
    from posenc_jax.study.grid import Arm, Study
    from posenc_jax.study.runner import study_runner

    study = Study(tier="smoke", arms=(Arm("g", LINE), Arm("rope", "rope")), seeds=(0,))
    plan = study_runner(
        study, lambda run: study.fill(run, smoke.get_config()), "f.py", package, package
    )
    plan.check()
    given = {
        cell.arm.name: plan.run(cell).commands for cell in study.grid({"g": None, "rope": None})
    }
    assert all("--import=my_own.encodings" in command for command in given["g"])
    assert not any("--import" in word for command in given["rope"] for word in command)
