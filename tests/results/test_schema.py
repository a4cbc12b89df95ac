"""What a result is stands once, in the package of results: metric names, buckets, chance, exit codes, the
atomic write.
"""

import ast
import functools
import re
from pathlib import Path

import pytest
from posenc_jax.results import schema
from posenc_jax.results.schema import METRICS

ROOT = Path(__file__).parents[2]
FILES = [
    ROOT / "train.py",
    *sorted((ROOT / "scripts").glob("*.py")),
    *sorted((ROOT / "posenc_jax").rglob("*.py")),
]
HOME = ROOT / "posenc_jax/results"
TREES = {path: ast.parse(path.read_text()) for path in FILES}
NAMES = {name for names in METRICS.values() for name in names}
FAMILY = re.compile(
    r"(bpb|Y_R|EL|P[1-9]\d*|M[1-9]\d*|longtext|repeat_gain|context_gain|window|early|least)(_[A-Za-z0-9.]+)*"
)
# Words of these families that are no metric of a row: files of arrays and figures, outcomes of the rules.
OTHERS = {
    "bpb_against_length",
    "bpb_id",
    "Y_R_8",
    "window_drop",
    "least_at_L",
    "P3_offset",
    "longtext",
    "context_gain",
}
WHOLE = re.compile(
    r"(P|M)\d+|EL|M12_\w+|P4_\w+|bpb|window|early|least"
)  # ids of measures, plain words


def constants(path):
    """String constants of a file, but for docstrings."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@functools.cache
def assigned(path):
    """Names that a file defines anywhere: assignments and functions."""
    nodes = list(ast.walk(TREES[path]))
    stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return stored | {n.name for n in nodes if isinstance(n, ast.FunctionDef)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_metric_is_called_as_the_schema_calls_it(path):
    package = path.relative_to(ROOT).parts[1] if path.parent != ROOT else ""
    if package in ("attention", "encodings", "model", "bench", "training", "data", "tasks"):
        return  # they write and read no rows
    said = {s for s in constants(path) if FAMILY.fullmatch(s) and not WHOLE.fullmatch(s)}
    assert said - NAMES - OTHERS == set()


def test_every_metric_of_the_schema_is_written_by_the_evaluation():
    written = set()
    for path in FILES:
        if path.parent.name == "evaluation":
            written |= set(constants(path))
    named = {name for name in NAMES if "_" in name} - {
        schema.BPB,
        schema.OTHER_PLACE,
        f"EL_{schema.PASSING}",
    }
    lacking = {name for name in named - written if not name.startswith(("P3_", "P4_"))}
    assert lacking == set()
    assert {"P3_offset"} <= written


@pytest.mark.parametrize(
    "name",
    ["DONE", "FAILED", "WRONG_INPUT", "UNWRITABLE", "STOPPED", "INTERRUPTED", "DISTANCES", "DISTANCE_BUCKETS",
     "FAR_BUCKETS", "SUMMARY_TASKS", "ACQUIRED", "REACHES", "PASSING", "LEARNT", "FAR", "CHANCE", "corrected",
     "longest_passing", "replace_bytes", "replace_text", "write_json", "json_lines", "row_from_json"],
)  # fmt: skip
def test_it_is_defined_once(name):
    homes = [str(path.relative_to(ROOT)) for path in FILES if name in assigned(path)]
    assert len(homes) == 1
    assert homes[0].startswith("posenc_jax/results/")


def test_an_exit_code_is_called_by_its_name():
    codes = {schema.UNWRITABLE, schema.STOPPED, schema.INTERRUPTED}
    for path in FILES:
        ends = [node.value for node in ast.walk(TREES[path]) if isinstance(node, ast.Return)]
        ends += [
            node.args[0]
            for node in ast.walk(TREES[path])
            if isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("sys.exit", "exit")
            and node.args
        ]
        found = [node.value for node in ends if isinstance(node, ast.Constant)]
        assert not [value for value in found if type(value) is int and value in codes], path


def test_a_file_is_replaced_in_one_place():
    for path in FILES:
        if path.parent != HOME:
            assert not [s for s in constants(path) if s.endswith(".partial")], path
            calls = {ast.unparse(n.func) for n in ast.walk(TREES[path]) if isinstance(n, ast.Call)}
            assert "os.replace" not in calls, path


def test_a_bucket_of_distance_is_called_by_its_name():
    for path in FILES:
        if path.parent != HOME:
            assert set(constants(path)) & set(schema.DISTANCE_BUCKETS) == set(), path


def test_the_chance_of_older_rows_is_known_to_rule_1_alone():
    for path in FILES:
        shares = [ast.unparse(n) for n in ast.walk(TREES[path]) if isinstance(n, ast.BinOp)]
        if path != ROOT / "posenc_jax/study/outcomes.py":
            assert "1 / 64" not in shares, path
