"""The figures that only a whole study has, and those of every suite that evaluation measures.

Thorough: figures of whole studies are drawn; test_page.py draws a page by default.
"""

import csv
import dataclasses
import functools
import io
import json
import re

import matplotlib
import numpy as np
import pytest
from posenc_jax.report import (
    StudyView,
    pareto_figures,
    retrieval_figures,
    structure_figures,
    style,
    tables,
    text_figures,
)
from posenc_jax.report.page import render, sections
from posenc_jax.results.load import load
from posenc_jax.results.schema import SUMMARY_TASKS
from posenc_jax.study.factorial import fit
from posenc_jax.study.pareto import hypervolume

from support.synthetic_runs import (
    ARMS,
    MANY,
    OFFSETS,
    L,
    class_rows,
    every_row,
    synthetic_rows,
    write_run,
    write_study,
)

pytestmark = pytest.mark.thorough


def figures(study: StudyView) -> list:
    """Every figure of the page in its order."""
    return [figure for found in sections(study).values() for figure in found]


def view_of(folder):
    """The study below a folder, as the page shows it."""
    return StudyView(load(folder))


FACTORS = {
    "nope": {"rotation": "none", "bias": "none"},
    "rope": {"rotation": "full", "bias": "none"},
    "alibi": {"rotation": "none", "bias": "linear"},
    "rope+alibi": {"rotation": "full", "bias": "linear"},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = write_study(tmp_path_factory.mktemp("study"), ARMS, (0, 1, 2))
    plan = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps(plan | {"factors": FACTORS}))
    curves = {
        "rope": {"rate": 0.01, "edge": False, "curve": [(0.003, 3.0), (0.01, 2.0), (0.03, None)]},
        "alibi": {"rate": 0.03, "edge": True, "curve": [(0.003, 3.0), (0.01, 2.0), (0.03, 1.0)]},
        "nope": {"rate": None, "edge": False, "curve": [(0.003, None), (0.01, None), (0.03, None)]},
    }
    for choice in curves.values():
        choice["curve"] = [{"rate": r, "bpb_ctx": v} for r, v in choice["curve"]]
    record = {"metric": "bpb_ctx", "split": "dev", "seed": 9, "steps": 300, "arms": curves}
    (folder / "tuning.json").write_text(json.dumps(record))
    return view_of(folder)


def outcomes(study, arm):
    return {
        run.seed: (run.value("bpb_ctx", 4), run.retrieval(4, ["mqar", "passkey"]))
        for run in study.of(arm)
    }


def test_the_front_is_drawn_from_4L_means_with_the_unigram_level_as_reference(study):
    (picture,) = pareto_figures.hypervolumes(study)
    assert [r["arm"] for r in picture.rows] == list(ARMS)
    for r in picture.rows:
        x, y = np.mean(list(outcomes(study, r["arm"]).values()), axis=0)
        assert (r["bpb_ctx"], r["retrieval"]) == pytest.approx((x, y))
        assert r["reference_bpb"] == 4.81
        assert r["hypervolume"] == pytest.approx(hypervolume([(x, y)], (4.81, 0.0)))
        assert r["low"] <= r["hypervolume"] <= r["high"]
    best = {r["arm"] for r in picture.rows if r["on_front"]}
    assert best == {"alibi", ARMS[-1]}


def test_an_arm_that_lacks_a_seed_is_named_and_left_out_of_front_and_effects(study):
    left = tuple(r for r in study.data.runs if (r.info["arm"], r.info["seed"]) != ("alibi", 1))
    lacking = StudyView(dataclasses.replace(study.data, runs=left))
    (front,) = pareto_figures.hypervolumes(lacking)
    (effect,) = pareto_figures.factorial_effects(lacking)
    for picture in (front, effect):
        assert any(line.startswith("ALiBi: not on every seed") for line in picture.missing)
    assert "alibi" not in {r["arm"] for r in front.rows}
    assert {r["term"] for r in effect.rows} == {"rotation", "bias"}
    assert any("rotation x bias" in line for line in effect.missing)


def test_effects_are_those_of_the_arms_that_name_their_levels(study):
    (picture,) = pareto_figures.factorial_effects(study)
    for number, words in enumerate(("bits per byte", "retrieval, points")):
        cells = {
            tuple(levels.values()): {
                s: (1, 100)[number] * v[number] for s, v in outcomes(study, arm).items()
            }
            for arm, levels in FACTORS.items()
        }
        wanted = {
            (" x ".join(e.term), ", ".join(e.levels)): e.estimate
            for e in fit(cells, ("rotation", "bias"), draws=10, seed=0, level=0.95).effects
        }
        found = {
            (r["term"], r["levels"]): r["effect"] for r in picture.rows if r["outcome"] == words
        }
        assert found == pytest.approx(wanted)
        assert len(found) == 8


def test_learning_rate_curves_say_what_was_chosen_at_an_edge_and_what_failed(study):
    picture = text_figures.learning_rates(study)
    chosen = {
        r["arm"]: (r["learning_rate"], r["edge_of_grid"]) for r in picture.rows if r["chosen"]
    }
    assert chosen == {"rope": (0.01, False), "alibi": (0.03, True)}
    assert "a rate outside it may be better: alibi" in picture.caption
    assert "rope: no dev loss at learning rate 0.03 (the run failed)" in picture.missing
    assert "nope: no learning rate could be chosen" in picture.missing


def test_runs_at_another_rate_than_the_chosen_one_are_named(study):
    rates = {"rope": 0.01, "alibi": 0.02}
    runs = [
        dataclasses.replace(run, config={"optimizer": {"learning_rate": rates[run.arm]}})
        for run in study.data.runs
        if run.arm in rates
    ]
    other = StudyView(dataclasses.replace(study.data, runs=tuple(runs)))
    assert "took other rates than these: alibi 0.02." in text_figures.learning_rates(other).caption


def test_a_run_has_acquired_from_nine_tenths_on_its_worst_task_and_reaches_from_eight_beyond_L(
    measured,
):
    picture = retrieval_figures.acquisition(measured)
    assert len(picture.rows) == (len(MANY) - 1) * len(SEEDS)  # nope was not asked for pairs at L
    assert "NoPE, seed 0: no retrieval at L" in picture.missing
    for r in picture.rows:
        tasks = [value_of(r["arm"], r["seed"], f"{task}_corrected", 1) for task in SUMMARY_TASKS]
        assert r["least_at_L"] == min(tasks) < np.mean(tasks)
        assert r["acquired"] == (min(tasks) >= 0.9)
        assert r["far_at_4L"] == pytest.approx(value_of(r["arm"], r["seed"], "Y_R_far", 4))
        assert r["reaches"] == (r["far_at_4L"] >= 0.8)
    for name in ("acquired", "reaches"):
        assert {r[name] for r in picture.rows} == {True, False}
    left, right = drawn(picture).axes
    for axes, name in ((left, "acquired"), (right, "reaches")):
        counts = [t.get_text() for t in axes.texts]
        assert counts == [
            f"{sum(r[name] for r in picture.rows if r['arm'] == arm)} of 3" for arm in MANY[1:]
        ]


def test_a_rate_that_was_chosen_past_L_says_so(study):
    changed = dataclasses.replace(study.data, tuning=dict(study.data.tuning) | {"k": 0.5})
    within = text_figures.learning_rates(StudyView(changed)).caption
    assert "at c = L (positions L to 1.5 L)" in text_figures.learning_rates(study).caption
    assert "at L/2 (in distribution)" in within


def test_all_of_them_can_be_drawn(study):
    for figure in (
        *pareto_figures.hypervolumes(study),
        *pareto_figures.factorial_effects(study),
        *text_figures.training_figures(study),
    ):
        assert all(svg.startswith("<svg") for svg in figure.svgs())
        assert figure.csv().count("\n") == len(figure.rows) + 1


def test_two_seeds_make_no_front(tmp_path):
    assert pareto_figures.hypervolumes(view_of(write_study(tmp_path, ARMS, (0, 1)))) == []


SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Twelve arms, three seeds, every suite of a language model, and an arm trained at 4L."""
    roles = {"rope": "rope", "alibi": "alibi-match", "hybrids": ["sum", "coupled"]}
    folder = write_study(tmp_path_factory.mktemp("many"), MANY, SEEDS, every_row, roles)
    for seed in (0, 1):
        rows = [
            r | {"train_length": 4 * L, "length": 4 * r["length"]} for r in every_row("rope", seed)
        ]
        place = folder / "other_lengths" / f"rope-4L-s{seed}"
        write_run(place, "rope", seed, [r | {"arm": "rope-4L"} for r in rows])
        info = json.loads((place / "run.json").read_text())
        (place / "run.json").write_text(json.dumps(info | {"arm": "rope-4L"}))
    plan = json.loads((folder / "study.json").read_text())
    plan |= {"arms": [*plan["arms"], "rope-4L"], "seeds": [0, 1]}
    (folder / "study.json").write_text(json.dumps(plan))
    return view_of(folder)


@functools.cache
def written(arm, seed):
    """The rows of an arm and seed as they were written, by metric, multiple and bucket."""
    found = {(r["metric"], r["k"], r["bucket"]): r["value"] for r in every_row(arm, seed)}
    assert len(found) == len(every_row(arm, seed))
    return found


def value_of(arm, seed, metric, k, bucket="all"):
    return written(arm, seed)[metric, k, bucket]


def mean_of(arm, metric, k, bucket="all"):
    return np.mean([value_of(arm, seed, metric, k, bucket) for seed in SEEDS])


def drawn(figure):
    """The figure as one matplotlib figure."""
    with matplotlib.rc_context(style.settings()):
        return figure.matplotlib_figure()


def titled(figure):
    """The panels of a figure by their titles, in words on one line."""
    panels = {a.get_title(loc="left").replace("\n", " "): a for a in figure.axes}
    panels.pop("", None)
    return panels


def points(axes):
    """All (x, y) that markers or lines of the axes go through, as drawn."""
    return {
        (float(x), float(y)) for line in axes.lines for x, y in zip(*line.get_data(), strict=True)
    }


def test_lines_stand_where_rows_end_within_L(measured):
    for picture, ends in (
        (text_figures.context_curves(measured), {L / 2}),
        (text_figures.by_length(measured, "bpb_key"), {L / 2}),
        (text_figures.bpb_against_length(measured), {L / 2, L}),
        (text_figures.nll_by_position(measured), {L}),
    ):
        for axes in titled(drawn(picture)).values():
            lines = {
                line.get_xdata()[0]
                for line in axes.lines
                if line.get_color() == style.INK and list(line.get_ydata()) == [0, 1]
            }
            assert lines == ends, picture.name


def test_the_square_of_a_context_curve_is_the_windowed_loss_at_4L(measured):
    panels = titled(drawn(text_figures.context_curves(measured)))
    assert list(panels) == [measured.names[arm] for arm in MANY]
    for arm in MANY:
        squares = [
            line
            for line in panels[measured.names[arm]].lines
            if line.get_marker() == "s" and line.get_markerfacecolor() == style.SURFACE
        ]
        (square,) = [s.get_xydata()[0] for s in squares]
        assert tuple(square) == (4 * L, pytest.approx(mean_of(arm, "bpb_window", 4)))
        (words,) = [
            t.get_text() for t in panels[measured.names[arm]].texts if "saves" in t.get_text()
        ]
        gain, cost = (
            float(x.replace("−", "-")) for x in re.findall("[+−]?[0-9.]+$", words, re.MULTILINE)
        )
        assert gain == pytest.approx(mean_of(arm, "context_gain", 4), abs=5e-4)
        assert cost == pytest.approx(mean_of(arm, "window_check", 4), abs=5e-4)


def test_far_context_takes_repeats_from_2L_to_4L_back_and_the_fall_of_Y_R_under_a_window(measured):
    records = text_figures.far_context(measured).rows
    for r in records:
        if r["metric"] == "repeat_gain":
            wanted = np.mean([value_of(r["arm"], r["seed"], "repeat_gain", g) for g in (2, 4)])
        elif r["metric"] == "Y_R_window":
            whole = value_of(r["arm"], r["seed"], "Y_R", 4)
            wanted = whole - value_of(r["arm"], r["seed"], "Y_R_window", 4)
        else:
            wanted = value_of(r["arm"], r["seed"], r["metric"], 4)
        assert r["value"] == pytest.approx(wanted)
    assert len(records) == 4 * len(MANY) * len(SEEDS)


def test_curves_by_gap_and_length_hold_the_rows(measured):
    for picture, metric, ks in (
        (text_figures.by_length(measured, "repeat_gain"), "repeat_gain", (0.25, 0.5, 1, 2, 4)),
        (
            text_figures.by_length(measured, "early_token_curse", "bpb_sliding"),
            "early_token_curse",
            (1, 2, 4, 8),
        ),
        (text_figures.by_length(measured, "bpb_key"), "bpb_key", (1, 2, 4, 8)),
    ):
        found = {
            (r["arm"], r["seed"], r["k"]): r["value"] for r in picture.rows if r["metric"] == metric
        }
        assert found == {
            (arm, seed, k): value_of(arm, seed, metric, k)
            for arm in MANY
            for seed in SEEDS
            for k in ks
        }


def test_the_overview_gives_Y_R_as_evaluation_does_and_far_needles_apart(measured):
    picture = retrieval_figures.retrieval_overview(measured)
    found = {(r["arm"], r["k"], r["needles"], r["task"]): r["corrected"] for r in picture.rows}
    for arm in MANY:
        assert found[arm, 4, "all", "Y_R"] == pytest.approx(mean_of(arm, "Y_R", 4))
        assert found[arm, 4, "d > L", "Y_R"] == pytest.approx(mean_of(arm, "Y_R_far", 4))
        copied = mean_of(arm, "copy_corrected", 2)
        assert found[arm, 2, "all", "copy"] == pytest.approx(copied)
        first = mean_of(arm, "latest_first_corrected", 8, "kind:FIRST")
        assert found[arm, 8, "all", "latest_first kind:FIRST"] == pytest.approx(first)
    assert ("nope", 1, "all", "Y_R") not in found  # mqar_16 was not measured there
    assert found["rope", 1, "all", "Y_R"] == pytest.approx(mean_of("rope", "Y_R_id", 1))
    assert not [key for key in found if key[1] == 1 and key[2] == "d > L"]


def test_the_numbers_in_the_overview_stand_in_the_cells_of_their_arm_and_task(measured):
    picture = retrieval_figures.retrieval_overview(measured)
    axes = titled(drawn(picture))["4L, d > L"]
    shown = {t.get_position(): t.get_text() for t in axes.texts}
    tasks = list(dict.fromkeys(r["task"] for r in picture.rows if r["arm"] == "coupled"))
    for r in picture.rows:
        if (r["k"], r["needles"]) == (4, "d > L"):
            at = (tasks.index(r["task"]) + 0.5, MANY.index(r["arm"]) + 0.5)
            assert shown.pop(at) == f"{100 * r['corrected']:.0f}"
    assert not shown


def test_maps_draw_three_tasks_and_name_the_others(measured):
    picture = retrieval_figures.needle_maps(measured)
    assert {r["task"] for r in picture.rows} == {*SUMMARY_TASKS, "latest_first", "flipflop"}
    assert "In the CSV and not drawn: latest or first, flip-flop" in picture.missing
    labels = " ".join(titled(drawn(picture)))
    assert [word in labels for word in ("passkey", "needles 4", "MQAR 16", "flip-flop")] == [
        True,
        True,
        True,
        False,
    ]


def test_many_arms_turn_lines_by_distance_into_a_map(measured):
    picture = retrieval_figures.accuracy_by_distance(measured)
    axes = titled(drawn(picture))["passkey, contexts of 8L"]
    shown = {t.get_position(): t.get_text() for t in axes.texts}
    far = 100 * mean_of("coupled", "passkey_corrected", 8, "distance:4L-8L")
    assert shown[4.5, MANY.index("coupled") + 0.5] == f"{far:.0f}"


def test_shift_errors_are_the_largest_over_shifts_and_stand_beside_the_bound(measured):
    picture = structure_figures.structure(measured)
    for r in picture.rows:
        if r["bucket"] == "largest":
            wanted = [
                value_of(r["arm"], r["seed"], r["metric"], 1, f"all shift:{d}")
                for d in (1, 7, L, 8 * L)
            ]
            assert r["value"] == max(wanted)
    panels = titled(drawn(picture))
    assert list(panels) == [
        "P1, shift error",
        "P3 at L, all t",
        "P3 at L, %",
        "P3 at 4L, %",
        "P5, monotone",
    ]
    assert (1e-4, 0.0) in points(panels["P1, shift error"])
    rope = 100 * mean_of("rope", "P3_offset_accuracy", 1)
    assert (pytest.approx(rope - 2), 0.0) in [
        tuple(line.get_xydata()[0]) for line in panels["P3 at L, all t"].lines
    ]
    shown = {t.get_position(): t.get_text() for t in panels["P3 at 4L, %"].texts}
    third = 100 * mean_of("alibi", "P3_offset_accuracy", 4, f"distance:{OFFSETS[2]}")
    assert shown[2.5, MANY.index("alibi") + 0.5] == f"{third:.0f}"
    assert (75.0, MANY.index("capped")) in points(panels["P5, monotone"])


def test_the_tables_hold_summary_structure_and_reach(measured):
    found = {(r["arm"], r["metric"]): r for r in tables.records(measured)}
    assert found["coupled", "Y_R_far at 4L"]["mean"] == pytest.approx(
        mean_of("coupled", "Y_R_far", 4)
    )
    assert found["nope", "Y_R_id at L"]["mean"] is None
    assert found["rope", "EL_0.85 passkey (tokens)"]["mean"] == 2 * L
    assert found["nope", "EL_0.85 copy (tokens)"]["seeds"] == 0
    assert found["capped", "P5, monotone to 16L"]["mean"] == 0.75
    assert found["sum", "P2 at 4L, mean of heads"]["mean"] == pytest.approx(0.65)
    assert found["rope", "repeat_gain, gap 2L"]["seeds"] == 3
    for k, words in ((0.5, "at L/2 (in distribution)"), (1, "at c = L (positions L to 1.5 L)")):
        assert found["rope", f"bpb_ctx {words}"]["mean"] == pytest.approx(
            mean_of("rope", "bpb_ctx", k)
        )
    ratios = [
        value_of("rope", s, "bpb_ctx", 4) / value_of("rope", s, "bpb_ctx", 0.5) for s in SEEDS
    ]
    assert found["rope", "bpb_ctx 4L ÷ L/2"]["mean"] == pytest.approx(np.mean(ratios))
    assert found["rope", "least_id at L"]["mean"] == pytest.approx(mean_of("rope", "least_id", 1))
    assert "A model that finds passkeys and nothing else has Y_R 33\u00a0%" in tables.overview(
        measured
    )
    html = tables.section(measured)
    for title in (
        "Text",
        "Use of far context",
        "Retrieval",
        "Every retrieval task",
        "Relative structure",
    ):
        assert f"<details><summary>{title} <span>" in html


def test_an_arm_of_another_length_stands_in_a_table_of_its_own(measured):
    assert "rope-4L" not in measured.arms
    assert not [line for line in measured.unfinished if "4L" in line]
    records = {(r["arm"], r["metric"]): r for r in tables.elsewhere_records(measured)}
    assert {(r["arm"], r["train_length"]) for r in records.values()} == {("rope-4L", 4 * L)}
    for k, words in ((0.5, "at L/2 (in distribution)"), (1, "at c = L (positions L to 1.5 L)")):
        found = records["rope-4L", f"bpb_ctx {words}"]
        values = [value_of("rope", seed, "bpb_ctx", k) for seed in (0, 1)]
        assert (found["mean"], found["seeds"]) == (pytest.approx(np.mean(values)), 2)
    at_own = np.mean([value_of("rope", seed, "bpb_ctx", 0.5) for seed in (0, 1)])
    html = tables.elsewhere_section(measured)
    assert f"rope-4L: L = {4 * L} (4 times that of the others), seeds 0, 1" in html
    assert f"<td>{at_own:.3f}<small>" in html
    page = render(measured, {})
    assert "Trained at another length" in page
    assert "not to be subtracted" in page
    assert (
        tables.elsewhere_section(StudyView(dataclasses.replace(measured.data, elsewhere=()))) == ""
    )


def test_twelve_arms_have_a_panel_each_with_the_others_in_grey(measured):
    for picture in (
        text_figures.bpb_against_length(measured),
        text_figures.nll_by_position(measured),
        text_figures.training_curves(measured),
        text_figures.by_length(measured, "repeat_gain"),
    ):
        panels = titled(drawn(picture))
        assert list(panels) == [measured.names[arm] for arm in MANY], picture.name
        for arm, axes in zip(MANY, panels.values(), strict=True):
            colour = style.colour(measured.colours[arm])
            behind = [line for line in axes.lines if line.get_color() == style.BACKDROP]
            assert len(behind) == 11 - len({"rope", "alibi-match"} - {arm}), picture.name
            assert any(line.get_color() == colour for line in axes.lines), picture.name
    assert len({style.colour(i) for i in measured.colours.values()}) == 12


def test_a_study_of_before_says_in_one_line_each_what_it_lacks(tmp_path):
    study = view_of(write_study(tmp_path, ARMS[1:3], (0,), synthetic_rows))
    assert "Y_R" not in tables.section(study)
    undrawn = {p.name for p in figures(study) if not p.panels}
    assert undrawn == {
        "far_context",
        "repeat_gain",
        "early_token_curse",
        "bpb_key",
        "structure",
        "longtext",
    }
    (curve,) = [p for p in figures(study) if p.name == "context_curves"]
    assert list(curve.missing) == ["bpb_window (E8) was not measured, so no square"]
    assert list(titled(drawn(curve))) == ["RoPE", "ALiBi"]


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    return view_of(write_study(tmp_path_factory.mktemp("c"), MANY[:4], (0, 1), class_rows))


def test_classification_goes_by_length_with_the_bag_of_ids(classifiers):
    picture = structure_figures.classification(classifiers)
    buckets = ["length:<=L", "length:L-2L", "length:2L-4L", "length:4L-8L", "length:>8L", "all"]
    assert list(dict.fromkeys(r["bucket"] for r in picture.rows if r["arm"] == "rope")) == buckets
    for r in picture.rows:
        (row,) = [
            x
            for x in class_rows(r["arm"], r["seed"])
            if (x["metric"], x["bucket"]) == (r["metric"], r["bucket"])
        ]
        assert r["value"] == row["value"]
    assert "NoPE: nothing for documents of L–2L" in picture.missing
    _, axes = drawn(picture).axes  # the legend, then the panel
    bag = [
        line.get_ydata()
        for line in axes.lines
        if line.get_color() == style.INK and len(line.get_xdata()) == 5
    ]
    assert np.allclose(bag, [[8, 32, 25, 32, 42]])


def test_a_study_of_classifiers_is_summed_up_by_class(classifiers):
    page = render(classifiers, {})
    scores = [run.value("longtext_corrected", 8) for run in classifiers.of("rope")]
    assert f"RoPE {tables.percent(np.mean(scores))}" in page
    assert "a bag of ids has 29" in page
    assert "Bits per byte beyond L were not measured" not in page


def test_figures_of_every_suite_have_their_table_and_are_drawn(measured, classifiers):
    for study, names in ((measured, ("far_context", "structure")), (classifiers, ("longtext",))):
        for figure in figures(study):
            if figure.name in names:
                table = list(csv.DictReader(io.StringIO(figure.csv())))
                assert len(table) == len(figure.rows)
                assert len(figure.svgs()) == len(figure.panels) + (figure.legend is not None)


def test_a_repeat_at_another_place_has_a_picture_that_says_it_is_confounded(tmp_path):
    def rows(arm, seed):
        found = [r for r in every_row(arm, seed) if r["metric"] in ("bpb_ctx", "repeat_gain")]
        return [r | {"definitions": 1} for r in found]

    study = view_of(write_study(tmp_path, ARMS[1:3], (0,), rows))
    found = {p.name: p for p in text_figures.text_figures(study)}
    other = found["repeat_gain_other_place"]
    assert "place and repetition are confounded" in other.caption
    assert {r["value"] for r in other.rows} == {
        value_of(arm, 0, "repeat_gain", g) for arm in ARMS[1:3] for g in (0.25, 0.5, 1, 2, 4)
    }
    assert not found["repeat_gain"].panels
    assert not [r for r in found["far_context"].rows if r["metric"] == "repeat_gain"]
    assert "repeat_gain_other_place" not in {
        p.name for p in text_figures.text_figures(view_of(write_study(tmp_path / "x", ARMS[1:3])))
    }


def test_chance_stands_below_the_arms_as_the_rows_have_it(tmp_path):
    def rows(arm, seed):
        found = synthetic_rows(arm, seed)
        return [r | {"chance": 0.1} if r["bucket"] == "distance:4L-8L" else r for r in found]

    study = view_of(write_study(tmp_path, ARMS[1:3], (0,), rows))
    axes = titled(drawn(retrieval_figures.accuracy_by_distance(study)))["MQAR, contexts of 8L"]
    assert axes.get_yticklabels()[-1].get_text() == "chance itself"
    shown = {t.get_position(): t.get_text() for t in axes.texts}
    assert [shown[x + 0.5, 2.5] for x in range(5)] == ["34", "34", "34", "34", "10"]
