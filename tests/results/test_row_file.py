"""rows.jsonl while an evaluation goes on: what a damaged file keeps, measures again or refuses."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from posenc_jax.evaluation.context import EvaluationContext, Multiples
from posenc_jax.results.row_file import RowFile
from posenc_jax.results.schema import DEFINITIONS, row_from_json

from support import runs
from support.result_folders import L, row
from support.result_rows import row_of_8_tokens

STAMPS = {"E": "x"}


ITEMS = {
    "E3/32": [row_from_json(row("bpb_ctx", L // 2, 2.0))],
    "E4/8": [row_from_json(row("nll_pos", 8 * L, v, bucket=f"[{v},9)")) for v in (1, 2, 3)],
}


def fill(rows):
    """Measures what is not measured yet; returns what that was."""
    asked = [item for item in ITEMS if not rows.has(item)]
    for item in asked:
        rows.add(item, ITEMS[item])
    return asked


def written(path):
    """Two items, of one and of three rows."""
    assert fill(RowFile(path, STAMPS)) == list(ITEMS)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("cut", "asked"), [(3, ["E4/8"]), (300, ["E4/8"]), (600, ["E3/32", "E4/8"])]
)
def test_an_item_that_may_have_been_cut_is_measured_again(tmp_path, cut, asked):
    path = tmp_path / "rows.jsonl"
    whole = written(path)
    path.write_bytes(whole[:-cut])
    assert fill(RowFile(path, STAMPS)) == asked
    assert path.read_bytes() == whole


def test_the_newline_at_the_end_is_not_missed(tmp_path):
    whole = written(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf\n" + whole[:-1])
    again = RowFile(tmp_path / "rows.jsonl", STAMPS)
    assert (again.has("E3/32"), again.has("E4/8"), again.dropped) == (True, True, 0)


@pytest.mark.parametrize("line", [b"[]", b"{}", b"{", b'{"suite": "E"}'])
def test_a_line_that_is_no_row_is_refused_by_its_number(tmp_path, line):
    whole = written(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_bytes(line + b"\n" + whole)
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1"):
        RowFile(tmp_path / "rows.jsonl", STAMPS)


def test_rows_of_a_suite_that_is_not_asked_for_are_replaced(tmp_path):
    written(tmp_path / "rows.jsonl")
    assert RowFile(tmp_path / "rows.jsonl", {"R": "x"}).dropped == 4


def test_rows_of_an_item_are_written_whole_and_once(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = RowFile(path, {"E": "one", "R": "one"})
    rows.add("E1/1", [row_of_8_tokens(value=1.0), row_of_8_tokens(value=2.0)])
    again = RowFile(path, {"E": "one", "R": "two"})
    assert again.has("E1/1")
    assert not again.has("E1/2")
    assert RowFile(path, {"E": "two", "R": "one"}).dropped == 2
    assert [json.loads(line)["value"] for line in path.read_text().splitlines()] == [1.0, 2.0]


def test_an_item_that_was_skipped_is_asked_again_and_one_of_older_definitions_too(tmp_path):
    """E7 without 4L stayed skipped for ever, also once 4L was measured."""
    path = tmp_path / "rows.jsonl"
    rows = RowFile(path, {"E": "one"})
    rows.add(
        "E7", [row_of_8_tokens(metric="context_gain", skipped="bpb_ctx at 4L is not measured")]
    )
    assert not rows.has("E7")
    rows.add("E7", [row_of_8_tokens(metric="context_gain", value=0.5)])
    assert rows.has("E7")
    assert len(runs.rows(path)) == 1
    older = runs.rows(path)[0] | {"definitions": DEFINITIONS - 1, "value": math.nan}
    path.write_text(json.dumps(older) + "\n")
    assert RowFile(path, {"E": "one"}).dropped == 1


def test_a_value_that_is_not_finite_is_no_value_and_says_so():
    config = runs.config("unused", "rope")
    lengths = Multiples((1,), (1,), 1)
    work = EvaluationContext(Path("x/evaluation"), config, None, "dev", None, lengths, None)
    for value in (math.nan, np.float32("inf"), -math.inf):
        found = work.row("E", "bpb_ctx", 32, "all", value, np.int64(3))
        assert (found.value, found.skipped) == (None, f"not finite ({value})")
        json.dumps(found.to_json(), allow_nan=False)
    found = work.row("E", "bpb_ctx", np.int64(64), "all", np.float32(0.5), 3)
    assert json.loads(json.dumps(found.to_json()))["k"] == 2.0
    assert (
        row_of_8_tokens(length=4, train_length=9).k == 0.5
    )  # of an odd L too, the loss within L is found at k = 1/2


def test_rows_of_other_counts_stay_and_are_not_taken_for_measured(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = RowFile(path, {"E": "x+3"})
    rows.add("E3/8", [row_of_8_tokens(value=2.0)])
    rows.add("E1/8", [row_of_8_tokens(metric="bpb_nonoverlap", value=3.0)])
    other = RowFile(path, {"E": "x+2"})
    assert other.dropped == 0
    assert not other.has("E3/8")
    assert other.value("bpb_ctx", 8) is None  # no summary mixes counts
    other.add("E3/8", [row_of_8_tokens(value=4.0)])
    assert [(r["item"], r["stamp"]) for r in runs.rows(path)] == [("E1/8", "x+3"), ("E3/8", "x+2")]
    usual = RowFile(path, {"E": "x"})
    assert (usual.dropped, usual.has("E3/8")) == (0, False)
    assert RowFile(path, {"E": "y"}).dropped == 2
