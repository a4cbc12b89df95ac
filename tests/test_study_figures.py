"""The figures that only a whole study has: the front, the effects, learning rates, acquisition."""

import dataclasses
import json

import numpy as np
import pytest
from synthetic_runs import ARMS, write_study

from posenc_jax.report import effects, read_study, style, tradeoff, tuning
from posenc_jax.study.factorial import fit
from posenc_jax.study.pareto import hypervolume

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
    return read_study(folder)


def outcomes(study, arm):
    return {
        run.seed: (run.value("bpb_ctx", 4), run.retrieval(4, ["mqar", "passkey"]))
        for run in study.of(arm)
    }


def test_the_front_is_drawn_from_4L_means_with_the_unigram_level_as_reference(study):
    (picture,) = tradeoff.pictures(study)
    assert [r["arm"] for r in picture.records] == list(ARMS)
    for r in picture.records:
        x, y = np.mean(list(outcomes(study, r["arm"]).values()), axis=0)
        assert (r["bpb_ctx"], r["retrieval"]) == pytest.approx((x, y))
        assert r["reference_bpb"] == 4.81
        assert r["hypervolume"] == pytest.approx(hypervolume([(x, y)], (4.81, 0.0)))
        assert r["low"] <= r["hypervolume"] <= r["high"]
    best = {r["arm"] for r in picture.records if r["on_front"]}
    assert best == {"alibi", ARMS[-1]}


def test_an_arm_that_lacks_a_seed_is_named_and_left_out_of_front_and_effects(study):
    lacking = dataclasses.replace(study, runs=tuple(r for r in study.runs if (r.arm, r.seed) != ("alibi", 1)))  # fmt: skip
    (front,) = tradeoff.pictures(lacking)
    (effect,) = effects.pictures(lacking)
    for picture in (front, effect):
        assert any(line.startswith("ALiBi: not on every seed") for line in picture.missing)
    assert "alibi" not in {r["arm"] for r in front.records}
    assert {r["term"] for r in effect.records} == {"rotation", "bias"}
    assert any("rotation x bias" in line for line in effect.missing)


def test_effects_are_those_of_the_arms_that_name_their_levels(study):
    (picture,) = effects.pictures(study)
    for number, words in enumerate(("bits per byte", "retrieval, points")):
        cells = {
            tuple(levels.values()): {s: (1, 100)[number] * v[number] for s, v in outcomes(study, arm).items()}
            for arm, levels in FACTORS.items()
        }  # fmt: skip
        wanted = {(" x ".join(e.term), ", ".join(e.levels)): e.estimate for e in fit(cells, ("rotation", "bias"), draws=10, seed=0, level=0.95).effects}  # fmt: skip
        found = {(r["term"], r["levels"]): r["effect"] for r in picture.records if r["outcome"] == words}  # fmt: skip
        assert found == pytest.approx(wanted)
        assert len(found) == 8


def test_learning_rate_curves_say_what_was_chosen_at_an_edge_and_what_failed(study):
    picture = tuning.pictures(study)[0]
    chosen = {r["arm"]: (r["learning_rate"], r["edge_of_grid"]) for r in picture.records if r["chosen"]}  # fmt: skip
    assert chosen == {"rope": (0.01, False), "alibi": (0.03, True)}
    assert "a rate outside it may be better: alibi" in picture.caption
    assert "rope: no dev loss at learning rate 0.03 (the run failed)" in picture.missing
    assert "nope: no learning rate could be chosen" in picture.missing


def test_a_run_has_acquired_retrieval_from_nine_tenths_at_L(study):
    picture = tuning.pictures(study)[1]
    assert len(picture.records) == len(study.runs)
    for r in picture.records:
        (run,) = [x for x in study.of(r["arm"]) if x.seed == r["seed"]]
        assert r["accuracy_at_L"] == pytest.approx(run.retrieval(1, ["mqar", "passkey"]))
        assert r["acquired"] == (r["accuracy_at_L"] >= 0.9)
    assert len({r["acquired"] for r in picture.records}) == 2


def test_all_of_them_can_be_drawn_in_both_layouts(study):
    for picture in (*tradeoff.pictures(study), *effects.pictures(study), *tuning.pictures(study)):
        assert picture.svg(style.WIDE).startswith("<svg")
        assert picture.svg(style.NARROW).startswith("<svg")
        assert picture.csv().count("\n") == len(picture.records) + 1


def test_two_seeds_make_no_front(tmp_path):
    assert tradeoff.pictures(read_study(write_study(tmp_path, ARMS, (0, 1)))) == []
