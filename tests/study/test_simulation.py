"""Simulated studies under rule 2: error rates on the boundary of every clause."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from posenc_jax.study.decision import Margins
from posenc_jax.study.roles import choose_parents
from posenc_jax.study.rule_2 import decide
from posenc_jax.study.scenarios import (
    ALIBI,
    HYBRID,
    RECALL,
    ROPE,
    STATEMENTS,
    STRETCHED,
    margin_of,
    scenarios,
)
from posenc_jax.study.seed_counts import Counts
from posenc_jax.study.simulation import draw, judged, tally

N = 12


def as_outcomes(truth, n, studies, seed, study):
    """One simulated study as the engine reads it: drawn again, value by value."""
    import posenc_jax.study.simulation as simulation

    kept = {}
    original = simulation._tested

    def spy(truth, values, noise, margins):
        kept.update(values=values, noise=noise)
        return original(truth, values, noise, margins)

    simulation._tested = spy
    try:
        entries, reaches = draw(truth, n=n, studies=studies, seed=seed, margins=Margins())
        entries = list(entries)
    finally:
        simulation._tested = original
    table = {}
    for arm in (ROPE, STRETCHED, ALIBI, HYBRID):
        for metric in (*RECALL, "least_id", "window_drop"):
            table[arm, metric] = dict(enumerate(kept["values"][arm][metric][study]))
    for name, (_, first, second, metric, threshold) in STATEMENTS.items():
        if metric in ("Y_E", "Y_id"):
            limit = margin_of(threshold, Margins())
            past = (
                truth.bits[name] * simulation.BITS * 2**0.5
                if name in truth.bits
                else simulation.SURE
            )
            table[first, metric] = dict(
                enumerate(limit + past + kept["noise"][first][metric][study])
            )
            table[second, metric] = dict(enumerate(kept["noise"][second][metric][study]))
    for metric, value in (
        ("P1", 0.0),
        ("P5", 1.0),
        ("P4", 1.0),
        ("context_gain", 1.0),
        ("price", 0.0),
    ):
        wobble = 0 if metric in ("P1", "P5") else 0.001
        table[HYBRID, metric] = {s: value + wobble * s for s in range(n)}
    return table, entries[study], reaches[study]


@pytest.mark.parametrize(
    "name",
    [
        "C3: on its boundary, 20% of the seeds of both arms fail",
        "C1: on its boundary",
        "50% of the seeds of the hybrid and of ALiBi fail beyond L",
    ],
)
def test_the_simulated_rule_is_the_rule(name):
    """Word and clauses of simulated studies are those of `decide` on the same numbers."""
    truth = next(t for t in scenarios() if t.name == name)
    for study in range(4):
        table, entries, reach = as_outcomes(truth, N, 4, 3, study)
        word, states = judged(entries, reach, N, 0.05)[0]
        roles, _ = choose_parents(ROPE, (STRETCHED,), (ALIBI,), "", None)
        counted = Counts(
            dict.fromkeys((ROPE, ALIBI, HYBRID), (12, 12)),
            "",
            dict.fromkeys((ROPE, HYBRID), (12, 12)),
        )
        (found,) = decide(
            table, [HYBRID], roles=roles, counts=counted, seeds=range(N), margins=Margins()
        )
        assert (found.verdict, dict(found.clauses)) == (word, states)


def cells():
    """Truths that a rule without failing seeds, or by t alone, gets wrong most often."""
    names = (
        "C3: on its boundary, 5% of the seeds of the hybrid fail",
        "C4: on its boundary, 10% of the seeds of the hybrid fail",
        "C4b 8L: on its boundary, 20% of the seeds of the hybrid fail",
        "C3: on its boundary, 50% of the seeds of both arms fail",
    )
    return [t for t in scenarios() if t.name in names]


@pytest.mark.parametrize("truth", cells(), ids=lambda t: t.name)
@pytest.mark.parametrize("n", [5, 8, 12])
def test_a_clause_on_its_boundary_holds_in_at_most_five_percent_of_studies(truth, n):
    """Three standard errors of 400 studies; every truth by scripts/simulate_decisions.py."""
    found = tally(truth, n=n, studies=400, seed=0, margins=Margins())
    most = 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5
    assert max(found.holds, found.refuted, found.counted) <= most


def test_by_t_and_sign_flip_alone_unseen_failures_would_pass_in_half_of_the_studies(monkeypatch):
    """Why the rule asks for failing seeds: 12 seeds show no failing one in 54 % of studies at a share of 5
    %.
    """
    from posenc_jax.study import hypothesis_tests

    monkeypatch.setattr(
        hypothesis_tests,
        "failing_seeds",
        lambda values_XP, ahead_XP, threshold: np.zeros(len(values_XP)),
    )
    found = tally(cells()[0], n=12, studies=200, seed=0, margins=Margins())
    assert found.holds == pytest.approx(0.95**12, abs=0.12)


@pytest.mark.parametrize(
    "name", ["C4: on its boundary, 30% of the seeds of both arms fail", "C1b: on its boundary"]
)
def test_a_committed_row_of_the_simulation_is_drawn_again(name):
    """To two studies of 2,000, which rounding on another machine may move."""
    rows = [
        json.loads(line) for line in Path("results/decision/rows.jsonl").read_text().splitlines()
    ]
    row = next(r for r in rows if r["truth"] == name and r["n"] == 12)
    truth = next(t for t in scenarios() if t.name == name)
    found = tally(truth, n=12, studies=row["studies"], seed=row["seed"], margins=Margins())
    for mine, theirs in (
        (found.holds, row["holds"]),
        (found.refuted, row["refuted"]),
        (found.counted, row["share"]),
    ):
        assert mine == pytest.approx(theirs, abs=2 / row["studies"])


def test_every_statement_has_a_truth_on_its_boundary():
    names = {name.split(":")[0] for name in (t.name for t in scenarios() if t.kind == "error")}
    assert set(STATEMENTS) <= names


def test_the_simulation_command_writes_a_row_for_every_truth_and_n(tmp_path):
    command = [
        sys.executable,
        "scripts/simulate_decisions.py",
        f"--out={tmp_path}",
        "--studies=1",
        "--only=G3",
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode in (0, 1), run.stderr  # one study settles nothing
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    first = [row for row in rows if row["studies"] == 1]
    assert len(first) == 3 * sum("G3" in t.name for t in scenarios()) > 0
    assert all(row["studies"] in (1, 10) for row in rows)
