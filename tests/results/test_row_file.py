"""rows.jsonl while an evaluation goes on: what a damaged file keeps, measures again or refuses."""

import pytest
from support.result_folders import L, row

from posenc_jax.results.row_file import RowFile
from posenc_jax.results.schema import row_from_json

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
