"""Simulated studies under rule 1 against the noncentral t."""

import json
import subprocess
import sys

import pytest
from posenc_jax.study.decision import Margins
from posenc_jax.study.simulation_rule_1 import scenarios_rule_1, tally
from scipy import stats

from support.rule_1_tables import outcomes, said

NOISE = (0.0001, -0.0001, 0.0002, -0.0002, 0.0, 0.0001, -0.0001, 0.0)


def test_the_theory_of_a_truth_is_the_noncentral_t():
    truth = next(t for t in scenarios_rule_1() if t.name == "whole rule, three axes apart")
    one = stats.nct.sf(stats.t.ppf(0.95, 7), 7, 2.0 * 8**0.5)
    assert truth.expected(8) == pytest.approx(one**3, abs=1e-6)


@pytest.mark.parametrize(
    "name", ["C2 on its boundary", "C2 past its threshold", "G1 refuted", "G3: one of the gains"]
)
def test_a_few_simulated_studies_are_as_often_yes_as_theory_says(name):
    """Three standard errors of 150 studies; 2,000 and every truth by scripts/simulate_decisions.py."""
    truth = next(t for t in scenarios_rule_1() if t.name == name)
    hits, answers = tally(truth, n=5, studies=150, seed=0, margins=Margins())
    theory = truth.expected(5)
    assert sum(answers.values()) == 150
    assert abs(hits / 150 - theory) < 3 * (theory * (1 - theory) / 150) ** 0.5


def test_a_study_of_many_boundaries_is_hardly_ever_refuted():
    """Without Holm over the statements it would be in four of ten studies."""
    truth = next(t for t in scenarios_rule_1() if t.name == "all on their boundaries: refuted")
    hits, _ = tally(truth, n=5, studies=150, seed=0, margins=Margins())
    assert hits / 150 < 0.05 + 3 * (0.05 * 0.95 / 150) ** 0.5


def test_every_statement_of_the_rule_has_a_truth_on_its_boundary():
    statements = [s for s in said(outcomes()).statements if not s.check]
    boundaries = [t for t in scenarios_rule_1() if t.kind == "at most" and len(t.effects) == 1]
    alone = [t for t in boundaries if set(t.effects[0].values()) == {0.0} and t.counted[0] != "NO"]
    assert len(alone) == len(statements) + 1  # and all of them at once


def test_the_simulation_command_writes_a_row_for_every_truth_and_n(tmp_path):
    command = [
        sys.executable,
        "scripts/simulate_decisions.py",
        "--rule=1",
        f"--out={tmp_path}",
        "--studies=1",
        "--only=G1",
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode in (0, 1), run.stderr  # one study settles nothing
    rows = [json.loads(line) for line in (tmp_path / "rule_1_rows.jsonl").read_text().splitlines()]
    first = [row for row in rows if row["studies"] == 1]
    assert len(first) == 2 * sum("G1" in t.name for t in scenarios_rule_1()) > 0
    assert all(row["studies"] in (1, 10) for row in rows)
