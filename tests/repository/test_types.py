"""The type checker: where it runs, and how few of its reports are silenced."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_SILENCED = 30


def silenced():
    """Every comment that silences the type checker, as file and text."""
    for path in sorted((ROOT / "posenc_jax").rglob("*.py")):
        for match in re.finditer(r"# type: ignore\S*", path.read_text()):
            yield path.name, match[0]


def test_few_reports_are_silenced_and_each_names_its_code():
    found = list(silenced())
    assert 0 < len(found) < MOST_SILENCED
    assert [one for one in found if not re.fullmatch(r"# type: ignore\[[a-z-]+\]", one[1])] == []


def test_the_test_script_checks_the_types_of_the_package():
    assert ".venv/bin/mypy posenc_jax\n" in (ROOT / "scripts/test.sh").read_text()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert any(
        one.startswith("mypy") for one in settings["project"]["optional-dependencies"]["dev"]
    )
    assert settings["tool"]["mypy"]["cache_dir"] + "/" in (ROOT / ".gitignore").read_text()


def test_arrays_have_dim_suffixes_and_no_library_of_shapes():
    files = (ROOT / "posenc_jax").rglob("*.py")
    assert [path.name for path in files if "jaxtyping" in path.read_text()] == []
