"""From rows to both verdicts: what confirms, what bars a confirmation, the command."""

import dataclasses
import datetime
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from posenc_jax.results.load import load
from posenc_jax.study import preregistration, rule_1
from posenc_jax.study.auxiliary_runs import AuxiliaryRuns
from posenc_jax.study.decision import Margins
from posenc_jax.study.outcomes import oracle_gain
from posenc_jax.study.preregistration import AnalysisPlan
from posenc_jax.study.verdict import judge, verdict_text

from support import committed_verdicts
from support.synthetic_verdicts import (
    BIASLESS,
    HYBRID,
    ROTATIONLESS,
    YARN,
    L,
    edit,
    outcome_rows,
    write_outcome_study,
    write_run,
)

ABLATIONS = {HYBRID: {"rotation": ROTATIONLESS, "bias": BIASLESS}}


N = 12


CONFIRMED = tuple(range(100, 100 + N))


def plan(seeds, ablations=ABLATIONS, **changes):
    return AnalysisPlan(
        (HYBRID,), "rope", ("alibi",), tuple(seeds), ablations, stretched=(YARN,), **changes
    )


@pytest.fixture(scope="module")
def lookup(tmp_path_factory):
    """Runs of offset lookup alone, in a folder of their own: every arm learns it."""
    folder = tmp_path_factory.mktemp("lookup")
    return write_outcome_study(folder, range(N), arms=("rope", "alibi", HYBRID))


def verdict(folder, seeds, lookup=None, *, split="test", ablations=ABLATIONS, **changes):
    beside = AuxiliaryRuns(lookup=lookup and load(lookup))
    return judge(
        load(folder, split),
        plan(seeds, ablations, **changes),
        beside=beside,
        frozen=None,
        deviations=[],
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_outcome_study(tmp_path_factory.mktemp("verdict"), range(N))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("folder", "arms", "ablations", "said"),
    [
        ("screening", ["alibi-match"], {}, committed_verdicts.SCREENING),
        ("cpu", ["alibi-match", "alibi"], {}, committed_verdicts.CPU),
    ],
)
def test_rule_1_says_of_committed_rows_what_it_said_when_they_were_published(
    folder, arms, ablations, said
):
    """Every state, estimate and p, to the digits printed then."""
    data = load(Path("results") / folder)
    seeds = tuple(data.record["seeds"])
    asked = AnalysisPlan(
        tuple(said), "rope", tuple(arms), seeds, ablations, stretched=("rope yarn:4",)
    )
    again = judge(data, asked, beside=AuxiliaryRuns(), frozen=None, deviations=[])["rule_1"]
    for v in again["verdicts"]:
        word, statements = said[v["hybrid"]]
        assert v["verdict"] == word
        for (clause, state, estimate, p), s in zip(statements, v["statements"], strict=True):
            assert (s["clause"], s["state"]) == (clause, state)
            if estimate is not None:
                assert s["estimate"] == pytest.approx(estimate, abs=5.1e-5)
                assert s["p"] == pytest.approx(p, abs=1.01e-4)


def test_a_study_whose_hybrid_wins_is_yes_by_both_rules_and_both_factors_are_needed(study, lookup):
    said = verdict(study, range(N), lookup)
    (new,), (old,) = said["verdicts"], said["rule_1"]["verdicts"]
    assert (new["verdict"], old["verdict"]) == ("YES-RELIABLE", "YES-STRONG")
    assert (said["rule"], said["rule_1"]["rule"]) == (2, 1)
    for v in (new, old):
        assert [a["finding"] for a in v["attribution"]] == ["needed", "needed"]
    assert said["status"] == "exploratory"
    assert said["why"] == ["no plan was frozen beforehand"]
    assert said["gaps"] == said["unused"] == said["unplanned"] == []
    json.dumps(said, allow_nan=False)


def test_eleven_seeds_never_make_yes_and_the_others_are_named_as_not_read(study, lookup):
    said = verdict(study, range(N - 1), lookup)
    assert said["verdicts"][0]["verdict"] == "INCONCLUSIVE"
    assert any("YES needs 12 seeds" in r for r in said["verdicts"][0]["reasons"])
    assert "rope, seed 11: not among the planned seeds, not read" in said["unplanned"]


def test_the_text_has_both_verdicts_side_by_side_and_the_deviations_first(study, lookup):
    said = verdict(study, range(N), lookup)
    text = verdict_text(said)
    assert text.startswith("EXPLORATORY: tier cpu, 12 seeds planned")
    lines = text.splitlines()
    assert lines[2:4] == ["Deviations:", "  - test was read without a frozen plan"]
    assert (
        f"{HYBRID}: YES-RELIABLE (exploratory) by rule 2, YES-STRONG (exploratory) by rule 1"
        in text
    )
    for rule in (said, said["rule_1"]):
        for s in rule["verdicts"][0]["statements"]:
            assert s["sentence"] in text
    assert "rotation is needed" in text
    assert "the study's own 12 seeds, 10 of which are asked for" in text
    assert "attribution: no ablation was named" in verdict_text(
        verdict(study, range(N), ablations={})
    )


def test_missing_outcomes_stand_once_for_all_seeds_of_an_arm(tmp_path):
    write_outcome_study(tmp_path, range(3))
    for path in tmp_path.glob("runs/*/evaluation/rows.jsonl"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if "Y_R_window" not in line))
    said = verdict(tmp_path, range(3))
    line = f"  - {HYBRID}, seed 0, 1, 2: no window_drop: not measured (no row Y_R_window at 256 tokens)"
    assert verdict_text(said).count(line) == 1


def test_deviations_of_the_study_are_printed_first(tmp_path):
    write_outcome_study(tmp_path, range(2))
    record = {"name": "x", "split": "test", "deviations": ["seed 9 died"]}
    (tmp_path / "study.json").write_text(json.dumps(record))
    said = verdict(tmp_path, range(2))
    assert said["deviations"] == ["seed 9 died", "test was read without a frozen plan"]
    assert "seed 9 died" in verdict_text(said).splitlines()[3]


def test_the_assay_is_asked_of_pilot_runs_where_they_are_named(study, lookup, tmp_path):
    pilot = write_outcome_study(
        tmp_path, range(50, 62), arms=("rope", "alibi", HYBRID), split="dev"
    )
    for seed in (50, 51, 52):  # RoPE learns recall in 9 of 12
        path = pilot / "runs" / f"arm0-s{seed}" / "evaluation_dev" / "rows.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [r | {"value": 0.1} if r["metric"] == "least_id" else r for r in rows]
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    beside = AuxiliaryRuns(pilot=load(pilot), lookup=load(lookup))
    said = judge(load(study), plan(range(N)), beside=beside, frozen=None, deviations=[])
    (v,) = said["verdicts"]
    assert (v["clauses"]["A0"], v["clauses"]["C3"]) == ("fails", "not assessable")
    assert v["verdict"] == "INCONCLUSIVE"
    assert (
        f"fails (rope 9 of 12, alibi 12 of 12, {HYBRID} 12 of 12; 12 pilot seeds of"
        in verdict_text(said)
    )


@pytest.mark.thorough
def test_an_assay_that_read_test_or_other_tokens_is_a_deviation(study, lookup, tmp_path):
    pilot = write_outcome_study(tmp_path, range(50, 62), arms=("rope", "alibi", HYBRID))
    edit(pilot / "runs" / "arm0-s50" / "run.json", tokens=5)
    beside = AuxiliaryRuns(pilot=load(pilot, "test"), lookup=load(lookup))
    said = judge(load(study), plan(range(N)), beside=beside, frozen=None, deviations=[])
    assert f"the assay read test in {tmp_path.name}" in said["deviations"]
    assert (
        "the runs and those of the assay differ in training tokens: 1000000 and 5"
        in said["deviations"]
    )


@pytest.mark.thorough
def test_runs_of_offset_lookup_that_were_not_trained_alike_are_a_deviation(study, tmp_path):
    folder = write_outcome_study(tmp_path, range(N), arms=("rope", "alibi", HYBRID))
    edit(folder / "runs" / "arm2-s3" / "run.json", tokens=5)
    said = verdict(study, range(N), folder)
    assert (
        "the runs of offset lookup differ in training tokens: 1000000 and 5" in said["deviations"]
    )


@pytest.mark.parametrize("name", ["pilot", "lookup"])
def test_an_assay_or_offset_lookup_of_another_tier_or_length_is_refused(study, tmp_path, name):
    """A model that learns recall or offsets on a smaller thing says nothing of the study."""
    write_outcome_study(tmp_path, range(N), arms=("rope", "alibi", HYBRID), tier="smoke")
    with pytest.raises(
        ValueError, match="arm0-s0 has tier smoke, runs/arm0-s0 has cpu; its recall"
    ):
        judge(
            load(study),
            plan(range(N)),
            beside=AuxiliaryRuns(**{name: load(tmp_path)}),
            frozen=None,
            deviations=[],
        )


def test_a_factor_is_open_where_neither_arm_learns_recall(tmp_path):
    """Two arms at the floor of recall are alike whatever the factor is worth."""
    write_outcome_study(tmp_path, range(3))
    for path in tmp_path.glob("runs/*/evaluation/rows.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        lost = [r["metric"] == "least_id" and r["arm"] in (HYBRID, ROTATIONLESS) for r in rows]
        rows = [r | {"value": 0.02} if one else r for r, one in zip(rows, lost, strict=True)]
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    (v,) = verdict(tmp_path, range(3))["verdicts"]
    said = {a["factor"]: a["words"] for a in v["attribution"]}
    assert (
        said["rotation"]
        == f"rotation: open; neither {HYBRID} nor {ROTATIONLESS} learns recall at L"
    )
    assert "learns recall" not in said["bias"]


def test_pilot_seeds_of_a_plan_need_their_runs_and_count_nowhere_else(study):
    with pytest.raises(ValueError, match="the plan names pilot seeds; give the folder"):
        verdict(study, range(N), pilot=tuple(range(50, 62)))
    with pytest.raises(ValueError, match="pilot seeds must count nowhere else"):
        preregistration.freeze(Path("nowhere"), plan(range(N), pilot=(3,)))


def test_a_copy_of_a_run_is_refused(tmp_path):
    write_outcome_study(tmp_path, range(2))
    info = {"arm": HYBRID, "seed": 2, "tier": "cpu", "train_length": L}
    rows = [r | {"seed": 2} for r in outcome_rows(HYBRID, 1)]
    write_run(tmp_path / "runs" / "copy-s2", info, rows, "test")
    with pytest.raises(ValueError, match="have the same values in every row: one is a copy"):
        verdict(tmp_path, range(3))


def test_the_oracles_gain_is_read_within_its_own_length_and_asks_for_the_hybrids(tmp_path, lookup):
    """It breaks past 4L, as RoPE does: read after a context of 4L it would show no gain."""
    write_outcome_study(tmp_path, range(N))
    for seed in range(N):
        rows = [
            r | {"arm": "far", "length": r["length"]}
            for r in outcome_rows("rope", seed)
            if r["metric"] == "bpb_ctx"
        ]
        rows = [r | {"value": 2.4 + 0.01 * seed} if r["length"] == 2 * L else r for r in rows]
        rows = [r | {"value": 9.0 + 0.01 * seed} if r["length"] == 4 * L else r for r in rows]
        info = {"arm": "far", "seed": seed, "tier": "cpu", "train_length": 4 * L}
        write_run(tmp_path / "other_lengths" / f"far-s{seed}", info, rows, "test")
    data = load(tmp_path)
    gain = oracle_gain(data.elsewhere[0].rows, L)
    assert gain == pytest.approx(
        next(r.value for r in data.elsewhere[0].rows if r.length == L // 2) - 2.4
    )
    said = verdict(tmp_path, range(N), lookup, oracle="far")
    states = {
        s["words"]: (s["state"], s["note"])
        for s in said["verdicts"][0]["statements"]
        if s["clause"] == "G3"
    }
    assert states["context gain"] == ("holds", "asked for, since the oracle shows one")
    assert states["context gain of the oracle, RoPE trained at 4L, within 4L"][0] == "reported"
    info["train_length"] = 2 * L
    shutil.rmtree(tmp_path / "other_lengths")
    write_run(tmp_path / "other_lengths" / "far-s11", info, rows, "test")
    with pytest.raises(ValueError, match="is no oracle: it was trained at 128"):
        verdict(tmp_path, range(N), lookup, oracle="far")


@pytest.fixture
def confirmed(tmp_path):
    """A frozen plan, and the study whose runs all began after it."""
    preregistration.freeze(tmp_path / "prereg.json", plan(CONFIRMED))
    return write_outcome_study(tmp_path, CONFIRMED)


def of_plan(folder, lookup=None):
    frozen = preregistration.read(folder / "prereg.json")
    beside = AuxiliaryRuns(lookup=lookup and load(lookup))
    return judge(load(folder, "test"), frozen.plan, beside=beside, frozen=frozen, deviations=[])


def test_runs_younger_than_the_frozen_plan_confirm_it_under_its_rule_alone(tmp_path):
    preregistration.freeze(tmp_path / "prereg.json", plan(CONFIRMED, lookup=tuple(range(N))))
    confirmed = write_outcome_study(tmp_path, CONFIRMED)
    lookup = write_outcome_study(
        tmp_path.with_name("lookup"), range(N), arms=("rope", "alibi", HYBRID)
    )
    said = of_plan(confirmed, lookup)
    assert (said["status"], said["why"], said["deviations"]) == ("confirmed", [], [])
    assert said["verdicts"][0]["verdict"] == "YES-RELIABLE"
    assert said["prereg"]["sha256"][:12] in verdict_text(said)
    old = said["rule_1"]
    assert (old["status"], old["why"]) == (
        "exploratory",
        ["the plan was frozen for rule version 2"],
    )


@pytest.mark.thorough
def test_offset_lookup_that_the_plan_did_not_foresee_is_a_deviation(confirmed, lookup):
    """Its seeds are not in the plan, and they ran before it."""
    edit(lookup / "runs" / "arm1-s3" / "run.json", began="2020-01-01T00:00:00+00:00")
    lines = of_plan(confirmed, lookup)["deviations"]
    assert f"the plan names no lookup seeds; those of {lookup.name} were read" in lines
    assert any(
        line.startswith("offset lookup: runs/arm") and "began before" in line for line in lines
    )


@pytest.mark.default_cases(1)
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


def test_a_rule_that_changed_after_freezing_is_noticed(confirmed, monkeypatch):
    monkeypatch.setattr(preregistration, "rule_digest", lambda: "another")
    said = of_plan(confirmed)
    assert (said["status"], said["why"]) == (
        "exploratory",
        ["the source of the rule has changed since the plan was frozen"],
    )


def test_the_rules_hash_covers_every_module_that_decides():
    """Each module that rule 2 imports, directly or not, is in the hash or decides nothing."""
    script = (
        "import sys; import posenc_jax.study.rule_2, posenc_jax.study.outcomes; "
        "print(*sorted(m.removeprefix('posenc_jax.') for m in sys.modules if "
        "m.startswith(('posenc_jax.study.', 'posenc_jax.results.'))))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    # The bootstrap beside the tests; the older rule and older rows.
    neutral = {"study.bootstrap", "study.rule_1", "results.migration"}
    assert set(run.stdout.split()) - neutral <= set(preregistration.SOURCES)
    assert "results.schema" in preregistration.SOURCES  # 0.9 to acquire, 0.8 to reach, 4L
    assert preregistration.rule_digest(("study.rule_2",)) != preregistration.rule_digest(
        ("study.hypothesis_tests",)
    )


def test_rows_of_dev_confirm_nothing(tmp_path):
    preregistration.freeze(tmp_path / "prereg.json", plan(CONFIRMED, split="dev"))
    write_outcome_study(tmp_path, CONFIRMED, split="dev")
    frozen = preregistration.read(tmp_path / "prereg.json")
    said = judge(
        load(tmp_path, "dev"), frozen.plan, beside=AuxiliaryRuns(), frozen=frozen, deviations=[]
    )
    assert (said["status"], said["why"]) == ("exploratory", ["scored on dev, not on test"])
    assert said["deviations"] == []


def test_a_smoke_study_is_no_result(tmp_path):
    smoke = write_outcome_study(
        tmp_path / "study", range(N), tier="smoke"
    )  # YES on another tier, see above
    lookup = write_outcome_study(
        tmp_path / "lookup", range(N), arms=("rope", "alibi", HYBRID), tier="smoke"
    )
    said = verdict(smoke, range(N), lookup)
    for rule in (said, said["rule_1"]):
        assert rule["status"] == "smoke"
        assert rule["verdicts"][0]["verdict"] == "INCONCLUSIVE"
    assert verdict_text(said).startswith("SMOKE")


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("file", "fields", "says"),
    [
        ("evaluation/evaluation.json", {"step": 300}, "scored at step 300 of 400; only the last"),
        ("run.json", {"finished": False}, "training has not finished"),
    ],
)
def test_a_run_that_is_not_at_its_last_step_does_not_count_and_bars_yes(
    confirmed, lookup, file, fields, says
):
    edit(confirmed / "runs" / "arm3-s103" / file, **fields)
    said = of_plan(confirmed, lookup)
    assert says in said["unused"][0]
    assert said["verdicts"][0]["verdict"] == "INCONCLUSIVE"
    assert any("Y_E" in r and "seed 103" in r for r in said["verdicts"][0]["reasons"])


def test_runs_of_other_evaluation_settings_are_refused(confirmed):
    edit(confirmed / "runs" / "arm1-s101" / "evaluation" / "evaluation.json", settings="fewer")
    with pytest.raises(ValueError, match="differ in evaluation settings"):
        of_plan(confirmed)


@pytest.mark.thorough
def test_other_training_tokens_are_a_deviation_that_nobody_has_to_type(confirmed):
    edit(confirmed / "runs" / "arm1-s101" / "run.json", tokens=5)
    assert any("training tokens" in line for line in of_plan(confirmed)["deviations"])


WHOLE = {"pilot": (1, 2), "lookup": (5, 6), "oracle": "far", "margins": Margins(bpb=0.01)}


def test_a_plan_is_frozen_once_and_read_back_whole(tmp_path):
    path = tmp_path / "prereg.json"
    sha256 = preregistration.freeze(path, plan(CONFIRMED, **WHOLE))
    stored = preregistration.read(path)
    assert (stored.plan, stored.sha256, stored.rule) == (plan(CONFIRMED, **WHOLE), sha256, 2)
    assert stored.rule_sha256 == preregistration.rule_digest()
    assert abs((datetime.datetime.now(datetime.UTC) - stored.at).total_seconds()) < 60
    with pytest.raises(ValueError, match="frozen already"):
        preregistration.freeze(path, plan([1]))


@pytest.mark.parametrize(
    ("field", "value"),
    [("seeds", [1]), ("margins", {"bpb": 0.5}), ("frozen", "2020"), ("rule_sha256", "0")],
)
def test_a_plan_changed_after_freezing_is_refused(tmp_path, field, value):
    path = tmp_path / "prereg.json"
    preregistration.freeze(path, plan(CONFIRMED))
    stored = json.loads(path.read_text())
    stored["plan"][field] = value
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="changed after it was frozen"):
        preregistration.read(path)


def test_a_plan_of_rule_1_is_still_read_and_confirms_rule_1_alone(confirmed):
    old = {
        "rule": 1,
        "metrics": list(rule_1.METRICS),
        "frozen": "2026-01-01T00:00:00+00:00",
        "hybrids": [HYBRID],
        "rope": "rope",
        "alibi": "alibi",
        "seeds": list(CONFIRMED),
        "ablations": {},
        "margins": dataclasses.asdict(Margins()),
    }
    path = confirmed / "prereg.json"
    path.write_text(json.dumps({"plan": old, "sha256": preregistration.digest(old)}))
    said = of_plan(confirmed)
    assert (said["status"], said["rule_1"]["status"]) == ("exploratory", "confirmed")
    assert said["rule_1"]["verdicts"][0]["verdict"] == "YES-STRONG"
    assert said["verdicts"][0]["verdict"] == "INCONCLUSIVE"  # it named no stretched RoPE


@pytest.mark.parametrize(
    "change", [{"rule": []}, {"margins": {"bpb": 0.1, "x": 1}}, {"seeds": 3}, {"extra": 1}, None]
)
def test_a_plan_with_a_hash_that_fits_and_fields_that_do_not_is_refused(tmp_path, change):
    preregistration.freeze(
        tmp_path / "p.json", preregistration.AnalysisPlan(("h",), "rope", ("alibi",), (1, 2), {})
    )
    body = json.loads((tmp_path / "p.json").read_text())["plan"]
    body = {} if change is None else body | change
    (tmp_path / "p.json").write_text(
        json.dumps({"plan": body, "sha256": preregistration.digest(body)})
    )
    with pytest.raises(ValueError, match="no plan that --freeze wrote"):
        preregistration.read(tmp_path / "p.json")


def test_a_plan_of_an_unknown_rule_is_refused(tmp_path):
    path = tmp_path / "prereg.json"
    preregistration.freeze(path, plan(CONFIRMED))
    body = json.loads(path.read_text())["plan"] | {"rule": 3}
    path.write_text(json.dumps({"plan": body, "sha256": preregistration.digest(body)}))
    with pytest.raises(ValueError, match="rule version 3"):
        preregistration.read(path)


def test_margins_come_from_the_plan(study):
    said = verdict(study, range(N), margins=Margins(bpb=0.6))
    assert said["verdicts"][0]["clauses"]["C1"] == "refuted"


def run(*flags):
    command = [sys.executable, "scripts/verdict.py", *flags]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_freezes_judges_and_writes_what_it_prints(tmp_path, tmp_path_factory):
    arms = [
        f"--hybrid={HYBRID}",
        f"--stretched={YARN}",
        f"--without_rotation={ROTATIONLESS}",
        f"--without_bias={BIASLESS}",
    ]
    frozen = run(
        f"--workdir={tmp_path}", "--freeze", *arms, "--seeds=100-111", "--lookup_seeds=0-11"
    )
    assert "frozen, sha256" in frozen.stdout, frozen.stderr
    write_outcome_study(tmp_path, CONFIRMED)
    lookup = write_outcome_study(
        tmp_path_factory.mktemp("later"), range(N), arms=("rope", "alibi", HYBRID)
    )
    done = run(
        f"--workdir={tmp_path}",
        f"--prereg={tmp_path}/prereg.json",
        f"--lookup={lookup}",
        "--deviation=seed 9 died",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "verdict.txt").read_text()
    said = json.loads((tmp_path / "verdict.json").read_text())
    assert (said["status"], said["deviations"]) == ("confirmed", ["seed 9 died"])
    assert said["verdicts"][0]["verdict"] == "YES-RELIABLE"
    again = run(
        f"--workdir={tmp_path}", "--freeze", f"--prereg={tmp_path}/b.json", *arms, "--seeds=111-112"
    )
    assert again.returncode == 2
    assert "has begun; freeze the plan first" in again.stderr


@pytest.mark.thorough
def test_a_published_folder_is_judged_without_run_folders_by_the_roles_it_names(tmp_path):
    done = run("--results=results/screening", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "verdict.json").read_text())
    roles = json.loads(Path("results/screening/study.json").read_text())["roles"]
    assert [v["hybrid"] for v in said["verdicts"]] == roles["hybrids"]
    assert "bootstrap over seeds alone" in done.stdout
    assert "Measured under older definitions" in done.stdout


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--hybrid=x", "--seeds=0-4"], "no run of 'x' with a planned seed; arms here: alibi"),
        ([], "name the arms and seeds"),
        (["--prereg=nowhere.json", "--seeds=0-4"], "--seeds is in the frozen plan"),
        (["--results=results/cpu"], "one of them"),
    ],
)
def test_wrong_flags_are_one_line_and_exit_code_two(study, flags, says):
    done = run(f"--workdir={study}", *flags)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
