"""What the README says, done exactly as it says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import machine

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SCHEMES = (ROOT / "docs" / "encodings" / "README.md").read_text()


def blocks(section, page=README):
    """The fenced Python blocks of one section."""
    text = page.split(f"## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_ten_lines_with_the_functions_alone_run():
    (code,) = blocks("Only the functions, in your own model", SCHEMES)
    names = {}
    exec(code, names)
    assert names["out"].shape == names["q"].shape
    assert len([line for line in code.splitlines() if line]) <= 10


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository with the README's encoding added as the README says."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("posenc_jax", "configs", "scripts", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    part, line = blocks("Add an encoding")
    assert len(part.splitlines()) <= 30
    (root / "posenc_jax" / "encodings" / "gauss.py").write_text(part)
    with (root / "posenc_jax" / "encodings" / "registry.py").open("a") as registry:
        registry.write("\n" + line)
    return root


def run(root, *arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), **machine.ONE_DEVICE},
    )


@pytest.mark.thorough
def test_an_encoding_added_from_the_readme_trains_evaluates_and_is_drawn(copy):
    workdir = copy / "x"
    for arguments in (
        ("train.py", "--config=configs/smoke.py:rope+gauss(sigma=9.0)|nope~logn"),
        ("scripts/evaluate.py",),
        ("scripts/report.py",),
    ):
        out = run(copy, *arguments, f"--workdir={workdir}")
        assert out.returncode == 0, out.stderr
    assert "rope+gauss(sigma=9.0)|nope~logn" in (workdir / "report.html").read_text()
    look = run(
        copy,
        "scripts/inspect_scheme.py",
        "--scheme=rope+gauss(sigma=9.0)",
        "--num_heads=2",
        "--train_length=32",
        "--length=128",
        f"--out={copy / 'look'}",
    )
    assert look.returncode == 0, look.stderr
    assert (copy / "look" / "bias.png").exists()


@pytest.mark.thorough
def test_an_encoding_added_from_the_readme_brings_its_own_property_tests(copy):
    files = [
        "tests/attention/test_attend.py",
        "tests/model/test_decoder.py",
        "tests/encodings/test_grammar.py",
    ]
    out = run(copy, "-m", "pytest", "-p", "no:cacheprovider", "-vv", *files, "-k", "gauss")
    assert out.returncode == 0, out.stdout
    for file in files:
        assert re.search(rf"{file}::\S*gauss.* PASSED", out.stdout), out.stdout


def test_every_file_that_the_readme_names_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


@pytest.mark.parametrize(("page", "fewest"), [(README, 6), (SCHEMES, 9)], ids=["README", "docs"])
def test_the_scheme_table_is_true(page, fewest):
    from posenc_jax.encodings import parse

    table = page.split("| scheme | what it is |")[1].split("\n\n")[0]
    lines = [
        line.replace("\\|", "|")
        for cell in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
        for line in re.findall(r"`([^`]+)`", cell)
    ]
    assert len(lines) >= fewest
    for line in lines:
        parse(line)
