"""The verdict on the page: both rules, every statement, the forest plot."""

import csv
import html
import io
import json
import shutil

import pytest
from posenc_jax.report import StudyView, write_report
from posenc_jax.report.verdict_section import forest, section
from posenc_jax.results.load import load
from posenc_jax.study.auxiliary_runs import AuxiliaryRuns
from posenc_jax.study.preregistration import AnalysisPlan
from posenc_jax.study.verdict import banner, judge

from support.synthetic_verdicts import BIASLESS, HYBRID, ROTATIONLESS, YARN, write_outcome_study


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A study of three judged hybrids; the verdict is written as the command does."""
    folder = write_outcome_study(tmp_path_factory.mktemp("judged"), range(5))
    hybrids = (HYBRID, ROTATIONLESS, BIASLESS)
    three = AnalysisPlan(hybrids, "rope", ("alibi",), tuple(range(5)), {}, stretched=(YARN,))
    said = judge(load(folder), three, beside=AuxiliaryRuns(), frozen=None, deviations=["<none>"])
    (folder / "verdict.json").write_text(json.dumps(said))
    return folder, said


def test_the_page_shows_both_rules_and_every_statement(judged):
    _, said = judged
    text = section(said)
    for rule in (said, said["rule_1"]):
        assert html.escape(banner(rule)) in text
        for v in rule["verdicts"]:
            assert v["verdict"] in text
            for s in v["statements"]:
                assert html.escape(s["words"]) in text
                if s["estimate"] is not None:
                    assert f"{s['detectable']:.4f}".replace("-", "−") in text
                if s["said"]:
                    assert html.escape(s["said"]) in text
    assert "&lt;none&gt;" in text


def test_the_forest_plots_table_is_that_of_the_verdict(judged):
    folder, said = judged
    records = list(csv.DictReader(io.StringIO(forest(StudyView(load(folder)), said).csv())))
    tested = [s for v in said["verdicts"] for s in v["statements"] if s["estimate"] is not None]
    assert len(records) == len(tested) == 3 * 15
    for record, s in zip(records, tested, strict=True):
        for field in ("estimate", "low", "high", "threshold", "p", "detectable"):
            assert float(record[field]) == s[field]
        assert record["state"] == s["state"]


def test_the_forest_plot_marks_each_estimate_by_its_distance_past_the_threshold(judged):
    folder, said = judged
    figure = forest(StudyView(load(folder)), said).matplotlib_figure()
    lines = [line for axes in figure.axes for line in axes.lines]
    dots = sorted(x for line in lines if line.get_marker() in "oXD" for x in line.get_xdata())
    tested = [s for v in said["verdicts"] for s in v["statements"] if s["estimate"] is not None]
    assert dots == sorted(s["estimate"] - s["threshold"] for s in tested)


@pytest.mark.slow
def test_the_page_opens_with_the_status_and_says_when_rows_changed_after_the_verdict(
    judged, tmp_path
):
    folder = shutil.copytree(judged[0], tmp_path / "copy")
    text = write_report(load(folder), folder).read_text()
    assert text.index("EXPLORATORY: tier cpu, 5 seeds planned") < text.index('id="verdict"')
    assert "The verdict is older" not in text
    path = folder / "runs" / "arm0-s0" / "evaluation" / "rows.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    text = write_report(load(folder), folder).read_text()
    assert "The verdict is older than these rows: runs/arm0-s0 changed" in text


def test_a_page_without_a_verdict_says_so():
    assert "None was asked for: scripts/verdict.py writes one." in section(None)
