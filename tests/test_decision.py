"""The decision rule on truth tables, its refusals, and the frozen plan."""

import json
import subprocess
import sys
import time

import pytest

from posenc_jax.study import prereg
from posenc_jax.study.decision import CLAUSES, Margins, decide
from posenc_jax.study.simulation import simulated, truth
from posenc_jax.study.statistics import power

NOISE = (0.0001, -0.0001, 0.0002, -0.0002, 0.0, 0.0001, -0.0001, 0.0)
GOOD = {
    ("rope", "Y_E"): 2.0, ("alibi", "Y_E"): 1.0, ("H", "Y_E"): 1.0,
    ("rope", "Y_R"): 0.1, ("alibi", "Y_R"): 0.2, ("H", "Y_R"): 0.9,
    ("rope", "Y_R_far"): 0.0, ("alibi", "Y_R_far"): 0.1, ("H", "Y_R_far"): 0.8,
    ("rope", "Y_R_id"): 0.9, ("alibi", "Y_R_id"): 0.9, ("H", "Y_R_id"): 0.9,
    ("rope", "bpb_id"): 1.0, ("alibi", "bpb_id"): 1.0, ("H", "bpb_id"): 1.0,
    ("rope", "P3"): 0.9, ("H", "P3"): 0.9, ("H", "P1"): 0.0, ("H", "P5"): 1.0,
    ("H", "context_gain"): 0.1, ("H", "repeat_gain"): 0.1, ("H", "window_check"): 0.1,
}  # fmt: skip


def outcomes(n=5, **changes):
    """The table above with some values changed (H_Y_E=1.2), a little noise on every seed."""
    table = dict(GOOD)
    for name, value in changes.items():
        key = tuple(name.split("_", 1))
        assert key in table
        table[key] = value
    noisy = {}
    for index, (key, value) in enumerate(table.items()):
        wobble = NOISE[index % 3 :] + NOISE[: index % 3]
        exact = key[1] in ("P1", "P5")
        noisy[key] = {s: value + (0 if exact else wobble[s]) for s in range(n)}
    return noisy


def said(table, n=5, hybrids=("H",)):
    return decide(
        table, hybrids, rope="rope", alibi="alibi", seeds=range(n), margins=Margins()
    )[0]  # fmt: skip


def test_all_clauses_make_yes_and_beating_alibi_too_makes_it_strong():
    assert said(outcomes()).verdict == "YES"
    assert said(outcomes(H_Y_E=0.98)).verdict == "YES-STRONG"
    assert set(said(outcomes()).clauses) == set(CLAUSES)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_fewer_than_five_seeds_never_make_yes(n):
    verdict = said(outcomes(n, H_Y_E=0.98), n)
    assert verdict.verdict == "INCONCLUSIVE"
    assert any("needs 5 seeds" in reason for reason in verdict.reasons)


@pytest.mark.parametrize(
    ("change", "clause", "verdict"),
    [
        ({"rope_Y_E": 1.0}, "C1", "TRADE-OFF"),
        ({"rope_Y_E": 1.004}, "C1", "TRADE-OFF"),  # better, by less than the margin
        ({"H_Y_E": 1.006}, "C2", "TRADE-OFF"),
        ({"alibi_Y_R": 0.86}, "C3", "TRADE-OFF"),  # better, by less than the margin
        ({"H_Y_R_far": 0.09}, "C3", "TRADE-OFF"),
        ({"rope_Y_R": 0.91}, "C4", "TRADE-OFF"),
        ({"H_Y_R_id": 0.84}, "C4", "TRADE-OFF"),
        ({"H_bpb_id": 1.006}, "G1", "NO"),
        ({"H_P1": 2e-4}, "G2", "NO"),
        ({"H_P5": 0.99}, "G2", "NO"),
        ({"H_P3": 0.87}, "G2", "NO"),
        ({"H_window_check": -0.01}, "G3", "NO"),
        ({"H_context_gain": -0.01, "H_repeat_gain": -0.01}, "G3", "NO"),
    ],
)
def test_one_false_statement_refutes_its_clause_alone(change, clause, verdict):
    found = said(outcomes(**change))
    assert [c for c in CLAUSES if found.clauses[c] == "refuted"] == [clause]
    assert found.verdict == verdict


def test_within_the_margin_is_as_good():
    inside = outcomes(H_Y_E=1.004, H_bpb_id=1.004, H_Y_R_id=0.86, H_P3=0.89)
    assert said(inside).verdict == "YES"


def test_one_of_the_two_gains_is_enough():
    assert said(outcomes(H_context_gain=-0.1)).verdict == "YES"
    assert said(outcomes(H_repeat_gain=-0.1)).verdict == "YES"


def test_both_axes_lost_is_no():
    assert said(outcomes(H_Y_E=1.5, H_Y_R=0.1)).verdict == "NO"


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_planned_seed_without_a_value_is_named_and_bars_yes(value):
    table = outcomes(8)
    table["H", "Y_R"][7] = value
    found = said(table, 8)
    assert found.verdict == "INCONCLUSIVE"
    assert any("Y_R" in reason and "seed 7" in reason for reason in found.reasons)


def test_a_measure_that_is_not_there_is_no_evidence():
    table = outcomes()
    del table["H", "P5"]
    assert said(table).clauses["G2"] == "open"
    assert said(table).verdict == "INCONCLUSIVE"


def test_seeds_are_paired():
    """Spread shared by all arms of a seed cancels; unpaired it would drown every difference."""
    table = outcomes()
    for (_, metric), values in table.items():
        if metric in ("Y_E", "bpb_id"):
            for seed in values:
                values[seed] += 10.0 * seed
    assert said(table).verdict == "YES"


def test_holm_over_hybrids_raises_the_bar():
    """A p between alpha / 2 and alpha is YES alone, and not as one of two hybrids."""
    table = outcomes()
    table["H", "Y_R_far"] = dict(enumerate(0.1 + x for x in (1.0, 0.2, 0.3, 0.1, 0.4)))
    alone = said(table)
    assert 0.025 < alone.p < 0.05
    assert alone.verdict == "YES"
    for (arm, metric), values in list(table.items()):
        if arm == "H":
            table["G", metric] = dict(values)
    both = decide(table, ["H", "G"], rope="rope", alibi="alibi", seeds=range(5), margins=Margins())
    assert [v.verdict for v in both] == ["INCONCLUSIVE"] * 2
    assert both[0].p == pytest.approx(2 * alone.p)


def test_every_statement_says_estimate_interval_p_n_and_detectable_effect():
    for statement in said(outcomes()).statements:
        line = statement.sentence(0.05)
        assert all(
            word in line for word in ("interval", "p ", "n 5 seeds", "detectable", "below 6")
        )


def test_a_fourth_hybrid_or_a_parent_as_hybrid_is_refused():
    with pytest.raises(ValueError, match="1 to 3 hybrids"):
        said(outcomes(), hybrids=("a", "b", "c", "d"))
    with pytest.raises(ValueError, match="must all differ"):
        said(outcomes(), hybrids=("rope",))


@pytest.mark.parametrize(("effect", "n"), [(0.0, 5), (1.3, 5)])
def test_a_few_simulated_studies_are_as_often_yes_as_theory_says(effect, n):
    """Three standard errors of 150 studies; 2,000 by scripts/simulate_decisions.py."""
    means = truth("C2", effect, Margins())
    yes = sum(simulated(means, n=n, study=i, margins=Margins()).verdict.startswith("YES") for i in range(150)) / 150  # fmt: skip
    theory = power(n, effect, alpha=0.05, two_sided=False)
    assert abs(yes - theory) < 3 * (theory * (1 - theory) / 150) ** 0.5


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "prereg.json"
    prereg.freeze(path, hybrids=["H"], rope="rope", alibi="alibi", seeds=range(100, 108))
    return path


def test_a_plan_is_frozen_once_and_confirms_only_younger_runs(plan):
    assert prereg.confirmed(plan, {"H-s100": time.time() + 1})["seeds"] == list(range(100, 108))
    with pytest.raises(ValueError, match="H-s100 began before"):
        prereg.confirmed(plan, {"H-s100": time.time() - 3600, "H-s101": time.time() + 1})
    with pytest.raises(ValueError, match="frozen already"):
        prereg.freeze(plan, hybrids=["H"], rope="rope", alibi="alibi", seeds=[1])


def test_a_plan_changed_after_freezing_is_refused(plan):
    stored = json.loads(plan.read_text())
    stored["plan"]["margins"]["bpb"] = 0.5
    plan.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="changed after it was frozen"):
        prereg.confirmed(plan, {})


def test_the_simulation_command_writes_a_row_for_every_truth(tmp_path):
    out = tmp_path / "decision" / "rows.jsonl"
    command = [sys.executable, "scripts/simulate_decisions.py", f"--out={out}", "--studies=2"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode in (0, 1), run.stderr  # two studies settle nothing
    assert len(out.read_text().splitlines()) == 32
