"""The report: reads what runs left on disk, draws it, and says what is not there."""

import csv
import dataclasses
import html
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from posenc_jax.report import StudyView, style, tables, write_report
from posenc_jax.report.page import render, sections
from posenc_jax.report.study_view import short_name
from posenc_jax.report.text_figures import octave_means
from posenc_jax.results.load import load, load_unmigrated
from posenc_jax.results.publish import publish

from support.synthetic_runs import ARMS, CHANCE, L, one_row, synthetic_rows, write_run, write_study


def figures(study: StudyView) -> list:
    """Every figure of the page in its order."""
    return [figure for found in sections(study).values() for figure in found]


def view_of(folder: pathlib.Path) -> StudyView:
    """The study below a folder, as the page shows it."""
    return StudyView(load(folder))


def drawn_from(folder: pathlib.Path) -> pathlib.Path:
    """The page of a folder, beside it."""
    return write_report(load(folder), folder)


DRAWN = ("rope", "alibi", ARMS[-1])


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"), DRAWN, (0, 1, 2))


@pytest.fixture(scope="module")
def report(study_folder):
    page = drawn_from(study_folder)
    return page, page.read_text(encoding="utf-8")


def read_csv(folder: pathlib.Path, name: str) -> list[dict]:
    with open(folder / "figures" / f"{name}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def one_run(folder: pathlib.Path, arm: str, rows: list[dict] | None = None) -> pathlib.Path:
    write_run(folder, arm, 0, rows)
    return folder


def page_without_figures(folder: pathlib.Path) -> str:
    study = view_of(folder)
    undrawn = {
        title: [dataclasses.replace(figure, panels=()) for figure in found]
        for title, found in sections(study).items()
    }
    return render(study, undrawn)


@pytest.mark.thorough
def test_importing_the_report_imports_no_jax():
    code = "import sys, posenc_jax.report; assert 'jax' not in sys.modules, 'jax was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.thorough
def test_every_figure_has_its_png_and_its_csv(report):
    folder = report[0].parent / "figures"
    pngs = {path.stem for path in folder.glob("*.png")}
    shown = [figure for figure in figures(view_of(report[0].parent)) if figure.panels]
    assert {figure.name for figure in shown} == pngs
    assert pngs | {"numbers"} == {path.stem for path in folder.glob("*.csv")}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))


def test_the_csv_of_a_curve_holds_exactly_the_rows_values(report, study_folder):
    drawn = {
        (r["arm"], int(r["seed"]), r["metric"], float(r["k"])): float(r["value"])
        for r in read_csv(study_folder, "bpb_against_length")
    }
    rows = {
        (r["arm"], r["seed"], r["metric"], float(r["k"])): r["value"]
        for arm in DRAWN
        for seed in (0, 1, 2)
        for r in synthetic_rows(arm, seed)
        if r["metric"].startswith("bpb_")
    }
    assert drawn == rows


def test_the_pareto_picture_reads_4L_and_corrects_for_chance(report, study_folder):
    for record in read_csv(study_folder, "pareto"):
        at_4 = {
            r["metric"]: r["value"]
            for r in synthetic_rows(record["arm"], int(record["seed"]))
            if r["k"] == 4 and r["bucket"] == "all"
        }
        mqar, passkey = (
            (at_4[f"{task}_accuracy"] - CHANCE[task]) / (1 - CHANCE[task])
            for task in ("mqar", "passkey")
        )
        assert float(record["bpb_ctx"]) == at_4["bpb_ctx"]
        assert float(record["retrieval"]) == pytest.approx((mqar + passkey) / 2)


def test_needle_maps_hold_the_mean_over_seeds(report, study_folder):
    (cell,) = [
        r
        for r in read_csv(study_folder, "needle_maps")
        if (r["arm"], r["task"], r["k"], r["decile"]) == ("alibi", "mqar", "4.0", "3")
    ]
    values = [
        r["value"]
        for seed in (0, 1, 2)
        for r in synthetic_rows("alibi", seed)
        if (r["metric"], r["k"], r["bucket"]) == ("mqar_corrected", 4, "depth:3")
    ]
    assert float(cell["corrected"]) == pytest.approx(np.mean(values))
    assert (cell["seeds"], cell["n"]) == ("3", "60")


def test_bands_span_the_smallest_and_the_largest_seed(study_folder):
    study = view_of(study_folder)
    (figure,) = [one for one in figures(study) if one.name == "bpb_against_length"]
    panel = figure.matplotlib_figure().axes[1]  # after the legend
    spans = [c.get_paths()[0].get_extents() for c in panel.collections]
    assert len(spans) == len(DRAWN)
    ends = [run.value("bpb_ctx", 8) for run in study.of("rope")]
    assert len(set(ends)) == 3
    assert max(span.y1 for span in spans) == max(ends)
    assert "bands span the smallest and the largest seed" in figure.caption


def test_positions_are_averaged_over_a_quarter_of_an_octave():
    position_T, nll_T = np.arange(256), np.arange(256).astype(float)
    means = dict(octave_means(position_T, nll_T, np.ones(256)))
    window = [x for x in range(1, 257) if 64 * 2**-0.125 <= x <= 64 * 2**0.125]
    assert means[64] == pytest.approx(np.mean(window) - 1)
    assert means[1] == 0.0


def test_a_pair_that_turns_fully_within_L_leaves_no_unseen_arc(report, study_folder):
    rings = read_csv(study_folder, "rotation_rings")
    assert {r["arm"] for r in rings} == {arm for arm in DRAWN if "rope" in arm}
    for ring in rings:
        assert (float(ring["turns_within_L"]) >= 1) == (float(ring["wavelength"]) <= L)
        assert float(ring["turns_within_reach"]) == pytest.approx(8 * L / float(ring["wavelength"]))


def test_the_answer_says_the_measured_losses_and_ratios(report, study_folder):
    study = view_of(study_folder)
    within, far = (np.mean([run.value("bpb_ctx", k) for run in study.of("rope")]) for k in (0.5, 4))
    assert f"RoPE {within:.3f} to {far:.3f} ({far / within:.2f}×)" in report[1]
    assert "a unigram model needs 4.810" in report[1]
    far = [run.far(task, 4)[0] for run in study.of("alibi") for task in ("passkey", "mqar")]
    assert f"ALiBi {100 * np.mean(far):.0f}\u00a0%" in report[1]


def test_the_unigram_level_is_that_of_the_split_of_the_rows(study_folder):
    data = view_of(study_folder).data
    assert {s: StudyView(dataclasses.replace(data, split=s)).unigram for s in ("dev", "test")} == {
        "dev": 4.87,
        "test": 4.81,
    }
    older = [
        dataclasses.replace(run, info={**run.info, "unigram_bpb": {"test": 4.5}})
        for run in data.runs
    ]
    assert StudyView(dataclasses.replace(data, split="dev", runs=tuple(older))).unigram is None


def test_far_accuracy_pools_only_the_bins_beyond_L(tmp_path):
    found = (("<=L/4", 1.0, 50), ("L-2L", 0.5, 30), ("2L-4L", 0.1, 10))
    rows = [
        one_row("rope", 0, "R", "mqar_corrected", 4, value, n, f"distance:{name}", 0.3)
        for name, value, n in found
    ]
    (run,) = view_of(one_run(tmp_path / "x", "rope", rows)).runs
    score, n = run.far("mqar", 4)
    assert n == 40
    assert score == pytest.approx(0.4)


def test_the_page_refers_to_nothing_but_itself_and_every_file_beside_it(report):
    assert "http" not in report[1]
    assert not re.search(r"<(script|link|iframe)\b", report[1])
    targets = re.findall(r'(?:src|href)="([^"]*)"', report[1])
    tables = {target for target in targets if target.startswith("figures/")}
    assert {path.name for path in (report[0].parent / "figures").iterdir()} == {
        target.removeprefix("figures/") for target in tables
    }
    for target in set(targets) - tables:
        assert target.startswith(("#", "data:")), target
    assert not re.search(r"url\((?!#)", report[1])


def test_ids_are_unique_and_every_reference_is_defined(report):
    ids = re.findall(r'\bid="([^"]+)"', report[1])
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]+)"', report[1]) + re.findall(r"url\(#([^)]+)\)", report[1])
    assert used
    assert set(used) <= set(ids)


def test_figures_follow_the_theme(report):
    assert "prefers-color-scheme: dark" in report[1]
    svgs = "".join(re.findall(r"<svg.*?</svg>", report[1], re.DOTALL))
    assert not [hex_ for hex_ in style.NEUTRALS if hex_ in svgs]
    for index in range(len(DRAWN)):
        assert f"var(--arm-{index})" in svgs


def test_coordinates_are_rounded_and_words_are_not():
    svg = '<svg viewBox="0 0 1 1"><text x="1.23456" style="fill: #1d1d1f">0.00316</text></svg>'
    made = style.themed(svg, "x", "name")
    assert made.endswith('<text x="1.23" style="fill: var(--ink)">0.00316</text></svg>')


def test_colours_follow_the_arms_name_order_whatever_the_study_lists_first(tmp_path):
    forward = view_of(write_study(tmp_path / "a", ARMS))
    backward = view_of(write_study(tmp_path / "b", ARMS[::-1]))
    assert forward.arms == backward.arms[::-1] == ARMS
    assert forward.colours == backward.colours


def test_the_banner_tells_the_tier_and_the_seeds(report, tmp_path):
    assert "CPU tier" in report[1]
    assert "Exploratory: 3 seeds per arm, no verdict" in report[1]
    page = page_without_figures(one_run(tmp_path / "x", "rope"))
    assert "Exploratory: one seed, no verdict; RoPE was trained" in page


def test_unfinished_and_missing_runs_are_named(tmp_path):
    folder = write_study(tmp_path, ("rope", "alibi"))
    (folder / "runs/arm1-s0/evaluation/rows.jsonl").unlink()
    rows = folder / "runs/arm0-s0/evaluation/rows.jsonl"
    rows.write_text(rows.read_text()[:-20])
    lines = rows.read_text().count("\n") + 1
    assert view_of(folder).unfinished == (
        f"runs/arm0-s0: rows.jsonl, line {lines} is cut off; evaluate it again",
        "runs/arm1-s0: not evaluated to the end on test",
        "ALiBi: no evaluated run for seed 0",
    )
    assert "runs/arm1-s0: not evaluated to the end on test" in page_without_figures(folder)


def test_a_run_that_is_still_going_is_named(tmp_path):
    folder = write_study(tmp_path, ("rope",)) / "runs/arm0-s0"
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(info | {"finished": False}))
    assert view_of(tmp_path).unfinished == (
        "runs/arm0-s0: training has not finished: step 400 of 400",
    )


def test_what_was_not_measured_is_said_and_never_invented(tmp_path):
    rows = [r for r in synthetic_rows("alibi", 0) if r["metric"] == "bpb_ctx" and r["k"] <= 1]
    skipped = rows[0] | {"metric": "passkey_accuracy", "k": 8, "length": 512, "value": None}
    rows += [skipped | {"skipped": "past the learned table"}]
    rows += [skipped | {"metric": "skipped", "k": 4, "length": 256, "skipped": "no room"}]
    rows += [skipped | {"metric": "scheme", "k": 1, "length": 64, "n": 0}]
    folder = one_run(tmp_path / "x", "alibi", rows)
    shutil.rmtree(folder / "evaluation/arrays")
    (folder / "metrics.jsonl").unlink()
    page = drawn_from(folder).read_text()
    assert "Retrieval beyond L was not measured." in page
    assert "passkey_accuracy at 8L: skipped (past the learned table)" in page
    assert "ALiBi, seed 0: everything at 4L: no room" in page
    assert "scheme: no finite value" not in page
    section = page[page.index('<section id="not_drawn">') :].partition("</section>")[0]
    said = [line.partition(": ")[0] for line in re.findall("<li>(.*?)</li>", section)]
    undrawn = [figure.title for figure in figures(view_of(folder)) if not figure.panels]
    assert said == undrawn
    assert len(undrawn) > 10
    assert "<svg" not in section
    assert "Retrieval by distance: no retrieval task was measured" in section
    assert {p.stem for p in (folder / "figures").glob("*.png")} == {
        "bpb_against_length",
        "context_curves",
    }
    assert "passkey" not in (folder / "figures/numbers.csv").read_text()


def test_a_figure_that_can_no_longer_be_drawn_is_removed(tmp_path):
    rows = [r for r in synthetic_rows("nope", 0) if r["metric"] == "bpb_ctx"]
    folder = one_run(tmp_path / "x", "nope", rows)
    shutil.rmtree(folder / "evaluation/arrays")
    (folder / "figures").mkdir()
    (folder / "figures/pareto.png").write_bytes(b"old")
    drawn_from(folder)
    assert not (folder / "figures/pareto.png").exists()


def test_names_are_escaped(tmp_path):
    folder = one_run(tmp_path / "x", "rope")
    info = json.loads((folder / "run.json").read_text())
    rows = [json.dumps(r | {"arm": "<b>&"}) + "\n" for r in synthetic_rows("rope", 0)]
    (folder / "evaluation/rows.jsonl").write_text("".join(rows))
    info |= {"arm": "<b>&", "command": "train <script>", "corpus": "<script>", "scheme": "<script>"}
    info |= {"versions": {"<script>": "<script>"}, "hardware": "<script>"}
    (folder / "run.json").write_text(json.dumps(info))
    page = page_without_figures(folder)
    assert "<b>" not in page
    assert "<script>" not in page
    assert "&lt;b&gt;&amp;" in page


def test_two_arms_never_share_a_name(tmp_path):
    arms = ("2*(rope+alibi)|2*nope~logn", "3*(rope+alibi)|1*nope~logn", "rope")
    data = load(write_study(tmp_path, ARMS[:3]))
    renamed = [
        dataclasses.replace(run, info=dict(run.info) | {"arm": arm})
        for run, arm in zip(data.runs, arms, strict=True)
    ]
    study = StudyView(dataclasses.replace(data, runs=tuple(renamed), record={}))
    assert short_name(arms[0]) == short_name(arms[1]) == "coupled split"
    assert list(study.names.values()) == [
        "2*(RoPE + ALiBi) | 2*NoPE~logn",
        "3*(RoPE + ALiBi) | 1*NoPE~logn",
        "RoPE",
    ]


@pytest.mark.thorough
def test_the_same_folder_gives_the_same_bytes(tmp_path):
    rows = [r for r in synthetic_rows("rope", 0) if r["suite"] == "E"]
    folder = one_run(tmp_path / "x", "rope", rows)
    shutil.rmtree(folder / "evaluation/arrays")
    first = drawn_from(folder).read_bytes()
    drawn = {p.name: p.read_bytes() for p in (folder / "figures").iterdir()}
    assert drawn_from(folder).read_bytes() == first
    assert {p.name: p.read_bytes() for p in (folder / "figures").iterdir()} == drawn


def no_verdict(folder):
    write_run(folder / "a", "rope", 0)
    (folder / "verdict.json").write_text("{}")


@pytest.mark.parametrize(
    ("prepare", "words"),
    [(no_verdict, "verdict.json is no verdict"), (lambda folder: None, "no run below")],
)
def test_wrong_input_is_one_line_and_writes_nothing(tmp_path, prepare, words):
    folder = tmp_path / "x"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        drawn_from(folder)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("report.html"))
    assert not list(tmp_path.rglob("figures"))


@pytest.mark.thorough
def test_the_script_prints_the_page_or_one_line_and_exits_2(tmp_path):
    script = pathlib.Path(__file__).parents[2] / "scripts" / "report.py"
    rows = [r for r in synthetic_rows("nope", 0) if r["metric"] == "bpb_ctx"]
    folder = one_run(tmp_path / "x", "nope", rows)
    shutil.rmtree(folder / "evaluation/arrays")

    def run(*flags):
        return subprocess.run([sys.executable, script, *flags], capture_output=True, text=True)

    good = run(f"--workdir={folder}")
    assert good.returncode == 0, good.stderr
    assert good.stdout.splitlines()[-1] == str(folder / "report.html")
    bad = run(f"--workdir={tmp_path / 'nowhere'}")
    assert bad.returncode == 2
    assert len(bad.stderr.splitlines()) == 1
    assert "nowhere" in bad.stderr


def test_the_top_says_the_split_the_seeds_and_what_cannot_be_redrawn(report, tmp_path):
    top = report[1].partition("<h2>")[0]
    assert "split test" in top
    assert "3 seeds per arm" in top
    assert "Rows are of the test split." in top
    rows = [r | {"definitions": 1} for r in synthetic_rows("rope", 0)]
    older = view_of(one_run(tmp_path / "x", "rope", rows))
    assert older.data.notes
    top = page_without_figures(tmp_path / "x").partition("<h2>")[0]
    for note in older.data.notes:
        assert html.escape(note) in top


def test_a_published_folder_gives_the_tables_of_its_run_folders(study_folder, tmp_path):
    publish(load_unmigrated(study_folder), tmp_path / "out", [])
    there, here = figures(view_of(study_folder)), figures(view_of(tmp_path / "out"))
    assert [one.csv() for one in here] == [one.csv() for one in there]
    assert [(one.name, len(one.panels)) for one in here] == [
        (one.name, len(one.panels)) for one in there
    ]
    assert tables.records(view_of(tmp_path / "out")) == tables.records(view_of(study_folder))


def test_without_arrays_and_logs_each_lost_figure_is_one_line(study_folder, tmp_path):
    publish(load_unmigrated(study_folder), tmp_path / "out", [])
    for name in ("arrays.npz", "metrics.jsonl.gz"):
        (tmp_path / "out" / name).unlink()
    study = view_of(tmp_path / "out")
    undrawn, before = (
        {figure.name for figure in figures(one) if not figure.panels}
        for one in (study, view_of(study_folder))
    )
    lost = undrawn - before
    assert lost == {"nll_by_position", "bias_maps", "training_curves"}
    page = page_without_figures(tmp_path / "out")
    section = page[page.index('<section id="not_drawn">') :].partition("</section>")[0]
    for title in ("Loss by position", "Bias of each head", "Training curves"):
        assert len(re.findall(f"<li>{title}: ", section)) == 1


EVIL = "<script>x</script>"


def evil_verdict(rule):
    """A verdict whose every word is hostile."""
    tested = {
        "estimate": 0.1,
        "low": 0.0,
        "high": 0.2,
        "threshold": 0.05,
        "p": 0.01,
        "sign_flip": 0.1,
        "detectable": 0.1,
        "n": 3,
        "values": [0.1],
        "check": "",
    }
    counted = dict.fromkeys(("estimate", "low", "high", "p", "sign_flip", "detectable"))
    counted |= {"threshold": 0, "n": 0, "values": [], "check": "count", "said": EVIL}
    words = {
        "clause": EVIL,
        "words": EVIL,
        "note": EVIL,
        "state": EVIL,
        "contradiction": EVIL,
        "sentence": EVIL,
        "problems": [EVIL],
        "iqm": None,
        "ahead": None,
        "unit": "accuracy",
    }
    hybrid = {
        "hybrid": EVIL,
        "verdict": EVIL,
        "clauses": {EVIL: EVIL},
        "reasons": [EVIL],
        "statements": [words | tested, words | counted],
        "attribution": [{"words": EVIL}],
    }
    return {
        "rule": rule,
        "status": "exploratory",
        "tier": EVIL,
        "split": EVIL,
        "train_length": L,
        "seeds": [3],
        "prereg": None,
        "margins": {"bpb": 0.005, "accuracy": 0.05},
        "runs": {EVIL: ""},
        "verdicts": [hybrid],
    } | {name: [EVIL] for name in ("deviations", "notes", "why", "unused", "unplanned", "gaps")}


def test_no_word_of_a_verdict_or_a_record_is_html(tmp_path):
    folder = write_study(tmp_path, ("rope",))
    verdict = evil_verdict(2) | {"rule_1": evil_verdict(1)}
    (folder / "verdict.json").write_text(json.dumps(verdict))
    study = json.loads((folder / "study.json").read_text())
    study |= {"name": EVIL, "factors": {EVIL: {EVIL: EVIL}}, "roles": {"rope": EVIL}}
    (folder / "study.json").write_text(json.dumps(study))
    curve = [{"rate": 0.1, "bpb_ctx": None}]
    tuned = {EVIL: {"rate": None, "edge": False, "curve": curve}}
    (folder / "tuning.json").write_text(json.dumps({"steps": 1, "seed": 9, "arms": tuned}))
    said = page_without_figures(folder)
    assert "<script" not in said
    assert said.count("&lt;script&gt;") > 20
    forests = [figure for figure in figures(view_of(folder)) if figure.name.startswith("verdict")]
    assert [figure.name for figure in forests] == ["verdict", "verdict_rule_1"]
    for figure in forests:
        assert "<script" not in "".join(figure.svgs())


def test_a_fine_tuned_arm_may_have_fewer_tokens_and_no_other(tmp_path):
    folder = write_study(tmp_path, ("rope", "coupled"))
    run = folder / "runs/arm1-s0"
    info, config = (json.loads((run / name).read_text()) for name in ("run.json", "config.json"))
    (run / "run.json").write_text(json.dumps(info | {"tokens": 1}))
    warning = "saw different numbers of tokens"
    assert warning in page_without_figures(folder)
    config["train"]["init_from"] = "runs/arm0-s0"
    (run / "config.json").write_text(json.dumps(config))
    assert warning not in page_without_figures(folder)


def test_seeds_that_are_planned_and_not_run_do_not_count(tmp_path):
    folder = write_study(tmp_path, ("rope", "coupled"))
    verdict = evil_verdict(2)
    verdict["verdicts"][0] |= {"hybrid": "coupled", "verdict": "INCONCLUSIVE"}
    verdict["seeds"] = [0, 98, 99]
    (folder / "verdict.json").write_text(json.dumps(verdict))
    assert "1 of 3 seeds) finds INCONCLUSIVE" in page_without_figures(folder)


def test_both_rules_stand_side_by_side(tmp_path):
    folder = write_study(tmp_path, ("rope", "coupled"))
    verdict = evil_verdict(2) | {"rule_1": evil_verdict(1)}
    for number, judged in enumerate((verdict, verdict["rule_1"])):
        judged["seeds"] = [0]
        judged["verdicts"][0] |= {"hybrid": "coupled", "verdict": ("YES", "TRADE-OFF")[number]}
        judged["verdicts"][0]["clauses"] = {("A0", "C1")[number]: "holds"}
    (folder / "verdict.json").write_text(json.dumps(verdict))
    page = page_without_figures(folder)
    assert (
        "Rule 2 (exploratory, 1 seed) finds YES for coupled; "
        "rule 1 (exploratory, 1 seed) finds TRADE-OFF for coupled." in page
    )
    table = page[page.index("<table class='sides'>") :].partition("</table>")[0]
    rows = [re.findall("<t[hd].*?>(.*?)</t[hd]>", row) for row in table.split("<tr>")[1:]]
    assert rows == [
        ["hybrid", "rule", "verdict", "A0", "C1"],
        ["coupled", "2", "YES", "holds", ""],
        ["coupled", "1", "TRADE-OFF", "", "holds"],
    ]
