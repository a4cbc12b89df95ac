"""From rows to a verdict: outcomes by name, the frozen plan, what bars a confirmation, the command."""

import csv
import datetime
import html
import json
import shutil
import subprocess
import sys

import pytest
from synthetic_verdicts import (
    BIASLESS,
    HYBRID,
    ROTATIONLESS,
    L,
    edit,
    outcome_rows,
    write_outcome_study,
)

from posenc_jax.report import read_study, style, write_report
from posenc_jax.report.verdict import forest
from posenc_jax.study import prereg
from posenc_jax.study.decision import METRICS, Margins
from posenc_jax.study.outcomes import read_outcomes
from posenc_jax.study.prereg import Plan
from posenc_jax.study.verdict import judge, read_runs, words

ABLATIONS = {HYBRID: {"rotation": ROTATIONLESS, "bias": BIASLESS}}


def plan(seeds, ablations=ABLATIONS):
    return Plan((HYBRID,), "rope", "alibi", tuple(seeds), ablations)


def verdict(folder, seeds, *, frozen=None, split="test", ablations=ABLATIONS):
    runs = read_runs(folder, split)
    return judge(runs, plan(seeds, ablations), split=split, frozen=frozen, deviations=[])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_outcome_study(tmp_path_factory.mktemp("verdict"), range(8))


def changed(rows, metric, length, /, **fields):
    """The rows with one of them changed; it must be there."""
    hits = [r for r in rows if (r["metric"], r["length"]) == (metric, length)]
    assert hits
    return [r | fields if r in hits else r for r in rows]


def test_each_outcome_is_read_from_its_own_row():
    rows = outcome_rows("rope", 0)
    values = read_outcomes(rows).values
    by_place = {(r["metric"], r["length"], r["bucket"]): r["value"] for r in rows}
    wanted = {
        "Y_E": ("bpb_ctx", 256, "all"), "bpb_id": ("bpb_ctx", 64, "all"), "Y_R": ("Y_R", 256, "all"),
        "Y_R_far": ("Y_R_far", 256, "all"), "Y_R_id": ("Y_R_id", 64, "all"),
        "context_gain": ("context_gain", 256, "all"), "window_check": ("window_check", 256, "all"),
        "P1": ("P1_shift_error", 64, "all shift:512"), "P3": ("P3_offset_accuracy", 64, "all"),
        "P5": ("P5_monotone_share", 1024, "all"),
    }  # fmt: skip
    assert {m: values["rope", m][0] for m in wanted} == {m: by_place[p] for m, p in wanted.items()}
    assert values["rope", "repeat_gain"][0] == pytest.approx((0.4 + 0.2) / 2)
    assert {metric for _, metric in values} == set(METRICS)


def test_the_worst_shift_counts_and_a_missing_one_is_a_gap():
    rows = outcome_rows("rope", 0)
    worse = [r | {"value": 0.5} if r["bucket"] == "all shift:7" else r for r in rows]
    assert read_outcomes(worse).values["rope", "P1"][0] == 0.5
    fewer = [r for r in rows if r["bucket"] != "all shift:512"]
    reading = read_outcomes(fewer)
    assert reading.values["rope", "P1"][0] is None
    assert reading.gaps == ("rope, seed 0: no P1: not measured (no row P1_shift_error at all shift:512)",)  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"value": float("nan")}, "bpb_ctx is nan"),
        ({"value": None, "skipped": "too long"}, "skipped (too long)"),
        ({"length": 255}, "no row bpb_ctx at 256 tokens"),
    ],
)
def test_a_value_that_is_not_there_is_listed_with_its_reason(fields, says):
    reading = read_outcomes(changed(outcome_rows("alibi", 3), "bpb_ctx", 4 * L, **fields))
    assert reading.values["alibi", "Y_E"] == {3: None}
    (gap,) = reading.gaps
    assert gap.startswith("alibi, seed 3: no Y_E: ")
    assert says in gap


def test_a_monotone_share_short_of_16_L_does_not_count():
    rows = changed(outcome_rows("rope", 0), "P5_monotone_share", 16 * L, length=8 * L)
    assert read_outcomes(rows).values["rope", "P5"][0] is None


def test_a_row_twice_or_a_seed_from_two_runs_is_an_error():
    rows = outcome_rows("rope", 0)
    with pytest.raises(ValueError, match="two rows of bpb_ctx at 64"):
        read_outcomes([*rows, rows[0]])
    with pytest.raises(ValueError, match="both hold arm rope, seed 0"):
        read_outcomes([*rows, *(r | {"run": "other"} for r in rows)])


@pytest.mark.parametrize(("field", "value"), [("split", "dev"), ("tier", "gpu"), ("train_length", 128)])  # fmt: skip
def test_rows_that_do_not_belong_together_are_an_error(field, value):
    other = [r | {field: value} for r in outcome_rows("rope", 1)]
    with pytest.raises(ValueError, match=f"one {field}"):
        read_outcomes(outcome_rows("rope", 0) + other)


def test_runs_with_other_repeat_gaps_are_an_error():
    fewer = [r for r in outcome_rows("rope", 1) if (r["metric"], r["length"]) != ("repeat_gain", 4 * L)]  # fmt: skip
    with pytest.raises(ValueError, match=r"repeat_gain has gaps \(128, 256\)"):
        read_outcomes(outcome_rows("rope", 0) + fewer)


def test_a_study_whose_hybrid_wins_is_yes_and_both_factors_are_needed(study):
    said = verdict(study, range(8))
    (v,) = said["verdicts"]
    assert v["verdict"] == "YES-STRONG"
    assert [a["finding"] for a in v["attribution"]] == ["needed", "needed"]
    assert said["status"] == "exploratory"
    assert said["why"] == ["no plan was frozen beforehand"]
    assert said["gaps"] == said["unused"] == said["unplanned"] == []
    json.dumps(said, allow_nan=False)


def test_four_seeds_never_make_yes_and_the_others_are_named_as_not_read(study):
    said = verdict(study, range(4))
    assert said["verdicts"][0]["verdict"] == "INCONCLUSIVE"
    assert any("YES needs 5 seeds" in r for r in said["verdicts"][0]["reasons"])
    assert "rope, seed 7: not among the planned seeds, not read" in said["unplanned"]


def test_the_text_has_every_statement_the_banner_and_the_attribution(study):
    said = verdict(study, range(8))
    text = words(said)
    assert text.startswith("EXPLORATORY: tier cpu, 8 seeds planned")
    for s in said["verdicts"][0]["statements"]:
        assert s["sentence"] in text
    assert "rotation is needed" in text
    assert "attribution: no ablation was named" in words(verdict(study, range(8), ablations={}))


@pytest.fixture
def confirmed(tmp_path):
    """A frozen plan, and the study whose runs all began after it."""
    prereg.freeze(tmp_path / "prereg.json", plan(range(100, 105)))
    write_outcome_study(tmp_path, range(100, 105))
    return tmp_path


def of_plan(folder, **kwargs):
    frozen = prereg.read(folder / "prereg.json")
    return judge(read_runs(folder, "test"), frozen.plan, split="test", frozen=frozen, deviations=[])


def test_runs_younger_than_the_frozen_plan_confirm_it(confirmed):
    said = of_plan(confirmed)
    assert (said["status"], said["why"]) == ("confirmed", [])
    assert said["verdicts"][0]["verdict"] == "YES-STRONG"
    assert said["prereg"]["sha256"][:12] in words(said)


@pytest.mark.parametrize(
    ("began", "says"),
    [
        ("2020-01-01T00:00:00+00:00", "runs/arm0-s100 began before the plan was frozen"),
        (None, "runs/arm0-s100: run.json does not say when it began"),
    ],
)
def test_one_run_older_than_the_plan_or_of_unknown_age_makes_it_exploratory(confirmed, began, says):
    edit(confirmed / "runs" / "arm0-s100" / "run.json", began=began)
    said = of_plan(confirmed)
    assert (said["status"], said["why"]) == ("exploratory", [says])


def test_rows_of_dev_confirm_nothing(tmp_path):
    prereg.freeze(tmp_path / "prereg.json", plan(range(100, 105)))
    write_outcome_study(tmp_path, range(100, 105), split="dev")
    frozen = prereg.read(tmp_path / "prereg.json")
    said = judge(read_runs(tmp_path, "dev"), frozen.plan, split="dev", frozen=frozen, deviations=[])
    assert (said["status"], said["why"]) == ("exploratory", ["scored on dev, not on test"])


def test_a_smoke_study_is_no_result(tmp_path):
    write_outcome_study(tmp_path, range(8), tier="smoke")  # YES-STRONG on another tier, see above
    said = verdict(tmp_path, range(8))
    assert said["status"] == "smoke"
    assert said["verdicts"][0]["verdict"] == "INCONCLUSIVE"
    assert words(said).startswith("SMOKE")


@pytest.mark.parametrize(
    ("file", "fields", "says"),
    [
        ("evaluation/evaluation.json", {"step": 300}, "scored at step 300 of 400; only the last"),
        ("run.json", {"finished": False}, "training has not finished"),
    ],
)
def test_a_run_that_is_not_at_its_last_step_does_not_count_and_bars_yes(confirmed, file, fields, says):  # fmt: skip
    edit(confirmed / "runs" / "arm2-s103" / file, **fields)
    said = of_plan(confirmed)
    assert says in said["unused"][0]
    assert said["verdicts"][0]["verdict"] == "INCONCLUSIVE"
    assert any("Y_E" in r and "seed 103" in r for r in said["verdicts"][0]["reasons"])


def test_a_run_that_was_never_made_is_listed(tmp_path):
    write_outcome_study(tmp_path, range(5))
    said = verdict(tmp_path, range(6))
    assert "rope, seed 5: no run" in said["unused"]


@pytest.mark.parametrize("field", ["corpus_fingerprint", "train_length"])
def test_runs_of_other_text_or_length_are_refused(confirmed, field):
    edit(confirmed / "runs" / "arm1-s101" / "run.json", **{field: "other"})
    with pytest.raises(ValueError, match=f"differ in {field}"):
        of_plan(confirmed)


def test_runs_of_other_evaluation_settings_are_refused(confirmed):
    edit(confirmed / "runs" / "arm1-s101" / "evaluation" / "evaluation.json", settings="fewer")
    with pytest.raises(ValueError, match="differ in evaluation settings"):
        of_plan(confirmed)


def test_other_training_tokens_are_a_deviation_that_nobody_has_to_type(confirmed):
    edit(confirmed / "runs" / "arm1-s101" / "run.json", tokens=5)
    assert any("training tokens" in line for line in of_plan(confirmed)["deviations"])


def test_a_plan_is_frozen_once_and_read_back_whole(tmp_path):
    path = tmp_path / "prereg.json"
    sha256 = prereg.freeze(path, plan(range(100, 108)))
    stored = prereg.read(path)
    assert (stored.plan, stored.sha256) == (plan(range(100, 108)), sha256)
    assert abs((datetime.datetime.now(datetime.UTC) - stored.at).total_seconds()) < 60
    with pytest.raises(ValueError, match="frozen already"):
        prereg.freeze(path, plan([1]))


@pytest.mark.parametrize(("field", "value"), [("seeds", [1]), ("margins", {"bpb": 0.5}), ("frozen", "2020")])  # fmt: skip
def test_a_plan_changed_after_freezing_is_refused(tmp_path, field, value):
    path = tmp_path / "prereg.json"
    prereg.freeze(path, plan(range(100, 108)))
    stored = json.loads(path.read_text())
    stored["plan"][field] = value
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="changed after it was frozen"):
        prereg.read(path)


def test_a_plan_of_another_rule_is_refused(tmp_path):
    path = tmp_path / "prereg.json"
    prereg.freeze(path, plan(range(5)))
    body = json.loads(path.read_text())["plan"] | {"rule": 2}
    path.write_text(json.dumps({"plan": body, "sha256": prereg.digest(body)}))
    with pytest.raises(ValueError, match="rule version 2"):
        prereg.read(path)


def test_margins_come_from_the_plan(study):
    strict = Plan((HYBRID,), "rope", "alibi", tuple(range(8)), {}, Margins(bpb=0.6))
    said = judge(read_runs(study, "test"), strict, split="test", frozen=None, deviations=[])
    assert said["verdicts"][0]["clauses"]["C1"] == "refuted"


def run(*flags):
    command = [sys.executable, "scripts/verdict.py", *flags]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_freezes_judges_and_writes_what_it_prints(tmp_path):
    arms = [f"--hybrid={HYBRID}", f"--without_rotation={ROTATIONLESS}", f"--without_bias={BIASLESS}"]  # fmt: skip
    frozen = run(f"--workdir={tmp_path}", "--freeze", *arms, "--seeds=100-104")
    assert "frozen, sha256" in frozen.stdout, frozen.stderr
    write_outcome_study(tmp_path, range(100, 105))
    done = run(f"--workdir={tmp_path}", f"--prereg={tmp_path}/prereg.json", "--deviation=seed 9 died")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "verdict.txt").read_text()
    said = json.loads((tmp_path / "verdict.json").read_text())
    assert (said["status"], said["deviations"]) == ("confirmed", ["seed 9 died"])
    again = run(f"--workdir={tmp_path}", "--freeze", f"--prereg={tmp_path}/b.json", *arms, "--seeds=104-105")  # fmt: skip
    assert again.returncode == 2
    assert "has begun; freeze the plan first" in again.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--hybrid=x", "--seeds=0-4"], "no run of 'x' with a planned seed; arms here: alibi"),
        ([], "name the arms and seeds"),
        (["--prereg=nowhere.json", "--seeds=0-4"], "--seeds is in the frozen plan"),
    ],
)
def test_wrong_flags_are_one_line_and_exit_code_two(study, flags, says):
    done = run(f"--workdir={study}", *flags)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A study of three judged hybrids with its page; the verdict is written as the command does."""
    folder = write_outcome_study(tmp_path_factory.mktemp("page"), range(5))
    hybrids = (HYBRID, ROTATIONLESS, BIASLESS)
    three = Plan(hybrids, "rope", "alibi", tuple(range(5)), {})
    said = judge(read_runs(folder, "test"), three, split="test", frozen=None, deviations=["<none>"])
    (folder / "verdict.json").write_text(json.dumps(said))
    return folder, said, write_report(folder).read_text()


def test_the_page_opens_with_the_verdicts_status_and_shows_every_statement(page):
    _, said, text = page
    top = text.index("EXPLORATORY: tier cpu, 5 seeds planned")
    assert top < text.index('id="verdict"')
    assert "no verdict" not in text
    for v in said["verdicts"]:
        assert f"{v['verdict']} (exploratory)" in text
        for s in v["statements"]:
            assert html.escape(s["words"]) in text
            if not s["check"]:
                assert f"{s['detectable']:.4f}".replace("-", "−") in text
    assert "checked in every seed" in text
    assert "&lt;none&gt;" in text


def test_the_forest_plots_table_is_that_of_the_verdict(page):
    folder, said, _ = page
    with open(folder / "figures" / "verdict.csv", newline="") as file:
        records = list(csv.DictReader(file))
    tested = [s for v in said["verdicts"] for s in v["statements"] if not s["check"]]
    assert len(records) == len(tested) == 3 * 13
    for record, s in zip(records, tested, strict=True):
        for field in ("estimate", "low", "high", "threshold", "p", "detectable"):
            assert float(record[field]) == s[field]
        assert record["state"] == s["state"]


def test_the_forest_plot_marks_each_estimate_by_its_distance_past_the_threshold(page):
    folder, said, _ = page
    figure = forest(read_study(folder), said).draw(style.WIDE)
    lines = [line for axes in figure.axes for line in axes.lines]
    dots = sorted(x for line in lines if line.get_marker() in "oX" for x in line.get_xdata())
    ends = sorted(x for line in lines if line.get_marker() == "None" for x in line.get_xdata())
    tested = [s for v in said["verdicts"] for s in v["statements"] if not s["check"]]
    assert dots == sorted(s["estimate"] - s["threshold"] for s in tested)
    expected = [s[k] - s["threshold"] for s in tested for k in ("low", "high")]
    assert ends == sorted([*expected, 0, 0, 0, 0])  # and a line at 0 in each of two panels
    hollow = [line for line in lines if line.get_marker() == "o" and line.get_markerfacecolor() != line.get_markeredgecolor()]  # fmt: skip
    assert len(hollow) == sum(s["state"] == "open" for s in tested) > 0


@pytest.mark.thorough
def test_the_page_says_when_rows_changed_after_the_verdict(page, tmp_path):
    folder = shutil.copytree(page[0], tmp_path / "copy")
    assert "The verdict is older" not in page[2]
    path = folder / "runs" / "arm0-s0" / "evaluation" / "rows.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert "The verdict is older than these rows: runs/arm0-s0 changed" in write_report(folder).read_text()  # fmt: skip


def test_a_page_without_a_verdict_says_so(tmp_path):
    write_outcome_study(tmp_path, range(1), arms=("rope",))
    text = write_report(tmp_path).read_text()
    assert "None was asked for: scripts/verdict.py writes one." in text
    assert not (tmp_path / "figures" / "verdict.png").exists()
