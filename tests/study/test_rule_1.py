"""Rule 1 on truth tables, and what it refuses."""

import pytest
from posenc_jax.study.decision import Margins
from posenc_jax.study.rule_1 import CLAUSES, decide
from scipy import stats

from support.rule_1_tables import outcomes, said

NOISE = (0.0001, -0.0001, 0.0002, -0.0002, 0.0, 0.0001, -0.0001, 0.0)


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
        ({"rope_Y_R_id": 0.96}, "C4", "TRADE-OFF"),  # worse than one of the parents alone
        ({"alibi_Y_R_id": 0.96}, "C4", "TRADE-OFF"),
        ({"rope_bpb_id": 0.994}, "G1", "NO"),
        ({"alibi_bpb_id": 0.994}, "G1", "NO"),
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


def test_every_tested_statement_says_estimate_interval_p_n_and_detectable_effect():
    tested = [s for s in said(outcomes()).statements if not s.check]
    assert len(tested) == 13
    for statement in tested:
        line = statement.sentence(0.05)
        words = ("interval", "bootstrap", "IQM", "p ", "n 5 seeds", "detectable", "under 6")
        assert all(word in line for word in words)


def test_beside_the_t_stand_the_seeds_bootstrap_iqm_and_pairs_of_runs():
    table = outcomes(8)
    table["alibi", "Y_E"] = dict(enumerate((1.0, 1.3, 0.9, 1.1, 0.8, 1.2, 0.95, 1.05)))
    c2 = said(table, 8).statements[1]
    alibi, hybrid = ([table[arm, "Y_E"][s] for s in range(8)] for arm in ("alibi", "H"))
    assert c2.iqm == pytest.approx(stats.trim_mean(c2.values, 0.25))
    assert c2.ahead == pytest.approx(stats.mannwhitneyu(alibi, hybrid).statistic / 64)
    low, high = c2.bootstrap(0.05)
    spread = c2.test.deviation * (7 / 8) ** 0.5 / 8**0.5  # of the resampled mean
    assert high - low == pytest.approx(2 * 1.645 * spread, rel=0.06)
    alone = [s.clause for s in said(table, 8).statements if s.ahead is None]
    assert alone == ["G2", "G2", "G3", "G3"]


def test_exact_properties_are_printed_as_checks_with_the_seeds_that_fail():
    table = outcomes()
    table["H", "P1"][3] = 2e-4
    p1, p5 = [s.sentence(0.05) for s in said(table).statements if s.check]
    assert "at most 0.0001: fails: seed 3 has 0.0002 (checked" in p1
    assert "passes" in p5
    assert "5 seeds, values 1 to 1" in p5
    assert not any("sign flip" in line for line in (p1, p5))


def test_one_failing_seed_of_a_check_refutes_it():
    table = outcomes()
    table["H", "P5"][2] = 7 / 8
    assert said(table).clauses["G2"] == "refuted"


def test_a_gain_that_lacks_a_seed_gives_way_to_the_other_and_is_named():
    table = outcomes()
    table["H", "context_gain"][4] = None
    table["H", "repeat_gain"] = dict(enumerate((0.1, 0.2, 0.15, 0.05, 0.1)))  # less clear
    found = said(table)
    assert found.verdict == "YES"
    line = next(s for s in found.statements if s.clause == "G3").sentence(0.05)
    assert "here repeat gain" in line
    assert "context gain left out: context_gain of H, seed 4" in line
    del table["H", "repeat_gain"]
    assert said(table).verdict == "INCONCLUSIVE"


def test_a_fourth_hybrid_or_a_parent_as_hybrid_is_refused():
    with pytest.raises(ValueError, match="1 to 3 hybrids"):
        said(outcomes(), hybrids=("a", "b", "c", "d"))
    with pytest.raises(ValueError, match="must all differ"):
        said(outcomes(), hybrids=("rope",))


def test_a_statement_has_the_p_of_scipys_one_sided_t_against_its_margin():
    table = outcomes(8)
    found = said(table, 8).statements
    c2 = [table["alibi", "Y_E"][s] - table["H", "Y_E"][s] for s in range(8)]
    assert found[1].p == pytest.approx(stats.ttest_1samp(c2, -0.005, alternative="greater").pvalue)
    table["H", "context_gain"] = dict(enumerate((0.1, -0.1, 0.2, 0.05, 0.3, -0.02, 0.1, 0.1)))
    table["H", "repeat_gain"] = dict.fromkeys(range(8), -1.0)
    gain = next(s for s in said(table, 8).statements if s.clause == "G3")
    alone = stats.ttest_1samp(gain.values, 0.0, alternative="greater").pvalue
    assert gain.p == pytest.approx(2 * alone)


def test_seeds_with_one_value_are_refused_and_are_no_yes():
    """Without spread a t test would say p = 0."""
    table = outcomes()
    table["H", "Y_E"] = {s: table["alibi", "Y_E"][s] - 0.5 for s in range(5)}
    found = said(table)
    c2 = found.statements[1]
    assert c2.identical
    assert c2.p == 1.0
    assert "all 5 seeds have the same value" in c2.sentence(0.05)
    assert found.verdict == "INCONCLUSIVE"
