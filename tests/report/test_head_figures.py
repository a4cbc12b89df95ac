"""Pictures of single heads: a panel an arm, however many arms, all on the same axes."""

import pathlib

import numpy as np
import pytest
from posenc_jax.report import StudyView, probe_figures
from posenc_jax.results.load import load

from support.synthetic_runs import MANY, one_row, synthetic_rows, write_study

TASKS, LAYERS, HEADS = ("mqar", "passkey"), 2, 4


def probed_rows(arm: str, seed: int) -> list[dict]:
    """Rows of E and R, and made-up ones of M9 and M10 for every head."""
    noise, rows = np.random.default_rng([9, MANY.index(arm), seed]), synthetic_rows(arm, seed)
    for task in TASKS:
        for layer, head in np.ndindex(LAYERS, HEADS):
            bucket = f"head:{layer}.{head} {task}"
            reach = float(2 ** noise.uniform(-1, 8))
            for metric, value in (
                ("M9_mass", noise.beta(0.5, 2)),
                ("M10_margin", 6.0),
                ("M10_predicted_reach", reach),
                ("M10_measured_reach", reach * 2 ** noise.normal(0, 0.5)),
                ("M10_agreement", 0.9),
            ):
                for k in (1.0, 4.0):
                    rows.append(one_row(arm, seed, "M", metric, k, value * k / 4, 32, bucket))
    return rows


def probed(folder: pathlib.Path, arms=MANY) -> StudyView:
    """A study of made-up runs whose heads were probed."""
    return StudyView(load(write_study(folder, arms, (0, 1), rows=probed_rows)))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return probed(tmp_path_factory.mktemp("probed"))


def in_use(figure):
    return [axes for axes in figure.axes if axes.axison]


@pytest.mark.parametrize("figure", [probe_figures.head_atlas, probe_figures.margin_budget])
def test_every_arm_has_a_panel_of_its_own_on_the_axes_of_all(study, figure):
    panels = in_use(figure(study).matplotlib_figure())
    names = {panel.get_title().replace("\n", " ") for panel in panels}
    assert len(panels) == len(names) == len(MANY) * len(TASKS)
    for panel in panels:
        assert (panel.get_xlim(), panel.get_ylim()) == (panels[0].get_xlim(), panels[0].get_ylim())


def test_a_mark_is_a_head_of_the_panels_arm_and_task(study):
    made = probe_figures.head_atlas(study)
    panels = in_use(made.matplotlib_figure())
    for number, panel in enumerate(panels):
        task, arm = TASKS[number // len(MANY)], study.arms[number % len(MANY)]
        own = [r for r in made.rows if (r["arm"], r["task"]) == (arm, task)]
        assert len(own) == 2 * LAYERS * HEADS
        drawn = np.concatenate([line.get_ydata() for line in panel.lines])
        assert sorted(drawn) == sorted(r["mass"] for r in own)
        full, hollow = panel.lines
        assert len(full.get_ydata()) == len([r for r in own if r["rotates"]])
        assert len(hollow.get_ydata()) == len([r for r in own if not r["rotates"]])
    assert {r["k"] for r in made.rows} == {4.0}
