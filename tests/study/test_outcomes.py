"""Outcomes of a study by name, read from its rows."""

import dataclasses

import pytest
from posenc_jax.results.schema import row_from_json
from posenc_jax.study import rule_1, rule_2
from posenc_jax.study.outcomes import read_outcomes

from support.synthetic_verdicts import HYBRID, L, outcome_rows


def rows_of(arm, seed):
    return [row_from_json(row) for row in outcome_rows(arm, seed)]


def changed(rows, metric, length, /, **fields):
    """The rows with one of them changed; it must be there."""
    hits = [r for r in rows if (r.metric, r.length, r.bucket) == (metric, length, "all")]
    assert len(hits) == 1
    return [dataclasses.replace(r, **fields) if r in hits else r for r in rows]


def test_each_outcome_of_rule_2_is_read_from_its_own_rows():
    rows = rows_of(HYBRID, 0)
    values = read_outcomes(rows).values
    by_place = {(r.metric, r.length, r.bucket): r.value for r in rows}
    wanted = {
        "Y_E": ("bpb_ctx", 256, "all"), "Y_id": ("bpb_ctx", 32, "all"), "Y_R": ("Y_R", 256, "all"),
        "Y_R_far": ("Y_R_far", 256, "all"), "Y_R_8": ("Y_R", 512, "all"), "Y_R_id": ("Y_R_id", 64, "all"),
        "least_id": ("least_id", 64, "all"), "P1": ("P1_shift_error", 64, "all shift:512"),
        "P4": ("P4_bpb_ctx_change", 64, "rotation off"), "P5": ("P5_monotone_share", 1024, "all"),
    }  # fmt: skip
    assert {m: values[HYBRID, m][0] for m in wanted} == {m: by_place[p] for m, p in wanted.items()}
    near, far = by_place["bpb_ctx", 32, "all"], by_place["bpb_ctx", 256, "all"]
    assert values[HYBRID, "context_gain"][0] == -values[HYBRID, "price"][0] == near - far
    window = by_place["Y_R_window", 256, "all"]
    assert values[HYBRID, "window_drop"][0] == by_place["Y_R", 256, "all"] - window
    assert {metric for _, metric in values} == set(rule_2.METRICS)


def test_the_outcomes_of_rule_1_are_those_it_was_defined_with():
    """bpb at c = L, chance 1/64 from the accuracies, the gain from c = L on."""
    rows = rows_of("rope", 0)
    values = read_outcomes(rows, rule_1.RULE).values
    by_place = {(r.metric, r.length, r.bucket): r.value for r in rows}
    assert values["rope", "bpb_id"][0] == by_place["bpb_ctx", 64, "all"]
    assert (
        values["rope", "context_gain"][0]
        == by_place["bpb_ctx", 64, "all"] - by_place["bpb_ctx", 256, "all"]
    )
    guess = {"passkey": 1e-5, "needles_4": 1 / 64, "mqar_16": 1 / 64}
    for outcome, length, bucket in (
        ("Y_R", 256, "all"),
        ("Y_R_id", 64, "all"),
        ("Y_R_far", 256, "distance:L-2L"),
    ):
        found = [
            (by_place[f"{t}_accuracy", length, bucket] - g) / (1 - g) for t, g in guess.items()
        ]
        assert values["rope", outcome][0] == pytest.approx(sum(found) / 3, rel=1e-12)
    gains = [by_place["repeat_gain", k * L, "all"] for k in (2, 4)]
    assert values["rope", "repeat_gain"][0] == pytest.approx(sum(gains) / 2)
    assert {metric for _, metric in values} == set(rule_1.METRICS)


def test_the_worst_shift_counts_and_a_missing_one_is_a_gap():
    rows = rows_of("rope", 0)
    worse = [dataclasses.replace(r, value=0.5) if r.bucket == "all shift:7" else r for r in rows]
    assert read_outcomes(worse).values["rope", "P1"][0] == 0.5
    fewer = [r for r in rows if r.bucket != "all shift:512"]
    reading = read_outcomes(fewer)
    assert reading.values["rope", "P1"][0] is None
    assert reading.gaps == (
        "rope, seed 0: no P1: not measured (no row P1_shift_error at all shift:512)",
    )


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"value": float("nan")}, "bpb_ctx is nan"),
        ({"value": None, "skipped": "too long"}, "skipped (too long)"),
        ({"length": 255}, "no row bpb_ctx at 256 tokens"),
    ],
)
def test_a_value_that_is_not_there_is_listed_with_its_reason(fields, says):
    reading = read_outcomes(changed(rows_of("alibi", 3), "bpb_ctx", 4 * L, **fields))
    assert reading.values["alibi", "Y_E"] == {3: None}
    gap = next(gap for gap in reading.gaps if gap.startswith("alibi, seed 3: no Y_E: "))
    assert says in gap


def test_a_scheme_that_does_not_rotate_has_no_p4_and_says_why():
    rows = [r for r in rows_of("alibi", 0) if not r.metric.startswith("P4")]
    one = dataclasses.replace(
        rows[0], metric="P4_change", bucket="rotation off", value=None, skipped="nothing rotates"
    )
    reading = read_outcomes([*rows, one])
    assert reading.gaps == ("alibi, seed 0: no P4: skipped (nothing rotates)",)


def test_a_monotone_share_short_of_16_L_does_not_count():
    rows = changed(rows_of("rope", 0), "P5_monotone_share", 16 * L, length=8 * L)
    assert read_outcomes(rows).values["rope", "P5"][0] is None


def test_a_row_twice_or_a_seed_from_two_runs_is_an_error():
    rows = rows_of("rope", 0)
    with pytest.raises(ValueError, match="two rows of bpb_ctx at 32"):
        read_outcomes([*rows, rows[0]])
    with pytest.raises(ValueError, match="both hold arm rope, seed 0"):
        read_outcomes([*rows, *(dataclasses.replace(r, run="other") for r in rows)])


@pytest.mark.parametrize(
    ("field", "value"), [("split", "dev"), ("tier", "gpu"), ("train_length", 128)]
)
def test_rows_that_do_not_belong_together_are_an_error(field, value):
    other = [dataclasses.replace(r, **{field: value}) for r in rows_of("rope", 1)]
    with pytest.raises(ValueError, match=f"one {field}"):
        read_outcomes(rows_of("rope", 0) + other)


def test_runs_with_other_repeat_gaps_are_an_error_under_rule_1():
    fewer = [r for r in rows_of("rope", 1) if (r.metric, r.length) != ("repeat_gain", 4 * L)]
    with pytest.raises(ValueError, match=r"repeat_gain has gaps \(128, 256\)"):
        read_outcomes(rows_of("rope", 0) + fewer, rule_1.RULE)
