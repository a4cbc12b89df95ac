"""Tables and stored rows of fault trials."""

import dataclasses
import gzip
import json

import pytest

from faults.suite import chosen
from faults.trial import Trial, failed, kept, stored, table


def test_a_table_counts_trials_and_says_what_did_not_hold():
    rows = [
        Trial("kill", lost_steps=3),
        Trial("kill", wrong=2),
        Trial("flip", seconds=0.16, peak_mb=301.2),
        Trial("stop", lost_steps=6),
        Trial("cut", lost_steps=4),
        Trial("cut", lost_steps=10, save_cut=True),
        Trial("late", lost_steps=11, save_cut=True),
        Trial("disk full", skipped="no mount"),
    ]
    assert table(rows).splitlines()[2:] == [
        "| kill | 2 | 1 | 0 | 3 | - | - | - | FAILED |",
        "| flip | 1 | 0 | 0 | 0 | - | 0.2 | 301 | held |",
        "| stop | 1 | 0 | 0 | 6 | - | - | - | FAILED |",
        "| cut | 2 | 0 | 0 | 4 | 10 | - | - | held |",
        "| late | 1 | 0 | 0 | - | 11 | - | - | FAILED |",
        "| disk full | 0 | - | - | - | - | - | - | skipped: no mount |",
    ]
    assert failed(rows) == [rows[1], rows[3], rows[6]]
    with pytest.raises(ValueError, match="--only=flp is no fault; did you mean 'flip"):
        chosen(["flp"])


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_stored_rows_are_the_trials_again(tmp_path, name):
    rows = [Trial("kill", "x", lost_steps=3, save_cut=True), Trial("flip", seconds=0.5)]
    text = "".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows)
    (tmp_path / name).write_bytes(
        gzip.compress(text.encode()) if name.endswith("gz") else text.encode()
    )
    assert stored(tmp_path / name) == rows
    (tmp_path / "x").write_text('{"faults": 1}\n')
    with pytest.raises(ValueError, match="holds no trials"):
        stored(tmp_path / "x")


def test_a_failed_trial_keeps_its_exit_codes_and_the_beginning_of_its_output():
    text = f"the cause {'x' * 9000} the end"
    trial = kept(Trial("kill", undetected=True, exit_codes="-9 1", output=text))
    assert trial.output.startswith("the cause x")
    assert trial.output.endswith("x the end")
    assert len(trial.output) < 5000
    assert trial.exit_codes == "-9 1"
    assert kept(Trial("kill", exit_codes="-9 0", output=text)).output == ""
