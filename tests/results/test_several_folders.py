"""Results of several folders: one study for a page, one table for pandas, one table for a terminal."""

import json

import pytest
from posenc_jax.results.run_table import LINES, run_table
from posenc_jax.results.schema import Row
from posenc_jax.results.several_folders import load_rows, load_together

from support.entries import ROOT
from support.result_folders import L, row, write_run


def rows(value=2.0):
    lengths = (L // 2, L, 2 * L, 4 * L, 8 * L)
    return [row("bpb_ctx", n, value + n / L) for n in lengths] + [
        row("passkey_accuracy", n, 1 / (n // L), suite="R") for n in lengths[1:]
    ]


@pytest.fixture
def two(tmp_path):
    """A run on its own, and a study of two runs."""
    write_run(tmp_path / "a", rows(), arm="rope")
    for seed in (0, 1):
        write_run(tmp_path / "b" / "runs" / f"sum-s{seed}", rows(3.0), arm="sum", seed=seed)
    record = {"name": "b", "arms": ["sum"], "seeds": [0, 1], "split": "dev", "tier": "cpu"}
    record |= {"roles": {}, "factors": {}, "deviations": [], "skipped": {}}
    (tmp_path / "b" / "study.json").write_text(json.dumps(record))
    return tmp_path / "a", tmp_path / "b"


def test_runs_of_several_folders_are_one_study(two):
    study = load_together(two)
    names = [str(two[0]), f"{two[1]}/runs/sum-s0", f"{two[1]}/runs/sum-s1"]
    assert [run.name for run in study.runs] == names
    assert {r.run for run in study.runs for r in run.rows} == set(names)
    assert study.record["arms"] == ["sum", "rope"]
    assert (study.name, study.split) == ("a and b", "dev")
    assert load_together(two[:1]).runs[0].name == "a"


def test_folders_that_do_not_belong_on_one_page_are_refused(two, tmp_path):
    with pytest.raises(ValueError, match="given twice"):
        load_together([two[0], two[0]])
    write_run(tmp_path / "c", rows(), arm="rope")
    with pytest.raises(ValueError, match=r"both hold arm rope, seed 0"):
        load_together([two[0], tmp_path / "c"])
    write_run(tmp_path / "d", rows(), arm="other", split="test")
    with pytest.raises(ValueError, match="dev and test; choose one with --split"):
        load_together([two[0], tmp_path / "d"])
    longer = [one | {"train_length": 2 * L, "length": 2 * one["length"]} for one in rows()]
    write_run(tmp_path / "e", longer, arm="other", train_length=2 * L)
    with pytest.raises(ValueError, match="different lengths"):
        load_together([two[0], tmp_path / "e"])


@pytest.mark.thorough
def test_the_page_of_several_folders_holds_every_arm(two, tmp_path, forks):
    folders = [f"--workdir={folder}" for folder in two]
    done = forks.run("scripts/report.py", *folders)
    assert done.returncode == 2
    assert "--out=FOLDER" in done.stderr
    done = forks.run("scripts/report.py", *folders, f"--out={tmp_path / 'page'}")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page" / "report.html").read_text()
    assert "sum" in page
    assert "rope" in page
    assert not (two[0] / "report.html").exists()


def test_a_table_for_pandas_has_every_field_of_every_row(two):
    table = load_rows(*two)
    assert len(table) == 3 * len(rows())
    fields = {*Row.__dataclass_fields__, "k", "folder"}
    assert all(set(one) == fields for one in table)
    picked = [
        r for r in table if (r["arm"], r["seed"], r["metric"], r["k"]) == ("sum", 1, "bpb_ctx", 4)
    ]
    assert [r["value"] for r in picked] == [3.0 + 4]
    assert load_rows(str(two[0])) == load_rows(two[0])


def test_the_table_of_an_evaluation_has_bits_and_accuracies_by_length(two):
    path = two[0] / "evaluation_dev" / "rows.jsonl"
    lines = run_table(path)
    assert lines[0].split() == [
        "rope,",
        "seed",
        "0,",
        "dev",
        "(L",
        "=",
        f"{L})",
        *["L/2", "1", "L", "2", "L", "4", "L", "8", "L"],
    ]
    assert lines[1].split()[-5:] == ["2.500", "3.000", "4.000", "6.000", "10.000"]
    assert lines[2].split() == ["accuracy,", "passkey", "-", "1.000", "0.500", "0.250", "0.125"]
    assert len(lines) == 3
    many = [row(f"t{i}_accuracy", L, 0.5, suite="R") for i in range(20)]
    path.write_text("".join(json.dumps(one) + "\n" for one in many))
    assert len(run_table(path)) == LINES
    assert run_table(path)[-1] == "and 12 more tasks in rows.jsonl"
    path.write_text("")
    assert run_table(path) == []


def test_the_table_of_an_evaluation_has_a_column_for_every_length_that_was_asked_for(tmp_path):
    path = tmp_path / "rows.jsonl"
    stored = [row("bpb_nonoverlap", n, n / L) for n in (L // 4, L, 16 * L)]
    stored += [row("bpb_ctx", L // 8, 9.0), row("bpb_ctx", L // 2, 3.0)]
    path.write_text("".join(json.dumps(one) + "\n" for one in stored))
    head, first, second = run_table(path)
    assert head.endswith("L/4     L/2     1 L     2 L     4 L     8 L    16 L")
    assert first.split()[-7:] == ["-", "3.000", *"-----"]
    assert second.split()[-7:] == ["0.250", "-", "1.000", "-", "-", "-", "16.000"]


def test_every_field_of_a_row_is_on_its_page():
    page = (ROOT / "docs" / "rows.md").read_text()
    assert [name for name in (*Row.__dataclass_fields__, "k") if f"`{name}`" not in page] == []
