"""verdict.json on the page: its text is escaped, and a file of another shape is refused in one line."""

import json
import types
from pathlib import Path

import numpy as np
import pytest
from posenc_jax.report.verdict_section import read_verdict, section

PUBLISHED = Path(__file__).parents[2] / "results" / "cpu"
SCRIPT = "<script>alert('&')</script>"


def texts(value, path=()):
    """Yields the path of every string in a JSON value."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from texts(one, (*path, key))


def changed(value, path, to):
    """Returns a JSON value with another one at a path."""
    if not path:
        return to
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], to)
    return copy


@pytest.fixture(scope="module")
def verdict():
    return json.loads((PUBLISHED / "verdict.json").read_text())


def written(folder, value):
    (folder / "verdict.json").write_text(json.dumps(value))
    return types.SimpleNamespace(folder=str(folder))


def test_no_text_of_a_verdict_reaches_the_page_as_markup(verdict):
    page, seen = section(verdict), 0
    fields = {
        tuple(str(k) if isinstance(k, str) else 0 for k in path): path for path in texts(verdict)
    }
    for path in fields.values():  # every field once
        if path[-1] == "status":  # one of three words, or the file is refused
            continue
        shown = section(changed(verdict, path, SCRIPT))
        assert SCRIPT not in shown, path
        assert "<script" not in shown, path
        seen += shown != page
    assert seen > 20


def test_a_name_that_is_markup_is_escaped_too(verdict):
    clauses = verdict["verdicts"][0]["clauses"]
    shown = section(changed(verdict, ("verdicts", 0, "clauses"), clauses | {SCRIPT: "holds"}))
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown


def test_a_verdict_of_any_other_shape_is_refused_in_one_line(verdict, tmp_path):
    values = (None, True, -1, 10**30, "", [], {}, [None], {"a": []})
    rng, refused = np.random.default_rng(0), 0
    paths = [p[:n] for p in texts(verdict) for n in range(len(p) + 1)]
    for at in rng.integers(len(paths), size=150):
        hostile = changed(verdict, paths[at], values[rng.integers(len(values))])
        study = written(tmp_path, hostile)
        try:
            page = section(read_verdict(study))
        except ValueError as error:
            said = str(error)
            refused += 1
        else:
            said = "verdict.json"
            assert page.startswith("<")
        assert "verdict.json" in said
        assert "\n" not in said
    assert refused > 50
