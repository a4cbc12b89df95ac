"""A study as a list of runs: arms, rates, seeds, settings, refusals."""

import dataclasses
import re

import pytest
from configs.studies import cpu, gpu, quickstart, rivals, screening
from posenc_jax.study.grid import Arm, GridCell, Tuning, unique
from posenc_jax.training.config import from_sections

from support.study_of_arms import base, study

ROPE, SUM = Arm("rope", "rope"), Arm("sum", "rope+alibi")


TUNING = Tuning(rates=(0.001, 0.01), seed=9, steps=5)


def test_a_grid_is_arms_by_rates_by_seeds_each_once():
    tuned = study(tuning=TUNING)
    assert [c.setting for c in tuned.tuning_grid()] == [
        "rope-s9-lr0.001",
        "sum-s9-lr0.001",
        "rope-s9-lr0.01",
        "sum-s9-lr0.01",
    ]
    cells = tuned.grid({"rope": 0.01, "sum": 0.001})
    assert [c.setting for c in cells] == [
        "rope-s0-lr0.01",
        "sum-s0-lr0.001",
        "rope-s1-lr0.01",
        "sum-s1-lr0.001",
    ]
    assert [c.name for c in cells] == tuned.slots() == ["rope-s0", "sum-s0", "rope-s1", "sum-s1"]
    assert tuned.grid({"sum": 0.001}) == [c for c in cells if c.arm == SUM]
    assert study().tuning_grid() == []


def test_lists_of_runs_add_up_without_repetition_and_without_two_runs_in_one_folder():
    cells = study().grid({"rope": None, "sum": None})
    assert unique(cells + cells[1:]) == cells
    other = dataclasses.replace(ROPE, scheme="rope(base=500.0)")
    with pytest.raises(ValueError, match="two different runs are called 'rope-s0'"):
        unique([*cells, GridCell(other, None, 0, False)])


def test_a_tuning_run_lies_where_no_report_looks(tmp_path):
    tuned = study(tuning=TUNING)
    assert tuned.tuning_grid()[0].folder(tmp_path) == tmp_path / "tuning" / "rope-s9-lr0.001"
    assert tuned.grid({"rope": 0.01})[0].folder(tmp_path) == tmp_path / "runs" / "rope-s0"


def test_a_setting_fills_in_arm_seed_rate_and_the_shorter_budget_of_tuning():
    arm = Arm("rope", "rope(base=match)", overrides={"model.num_heads": 2})
    tuned = study(arms=(arm,), tuning=TUNING)
    before = base()
    ratio = before["optimizer"]["muon_learning_rate"] / before["optimizer"]["learning_rate"]
    c = from_sections(tuned.fill("rope-s1-lr0.01", base()))
    assert (c.model.scheme, c.model.num_heads, c.train.seed, c.arm) == (
        "rope(base=match)",
        2,
        1,
        "rope",
    )
    assert c.optimizer.learning_rate == 0.01
    assert c.optimizer.muon_learning_rate == pytest.approx(0.01 * ratio)
    assert c.train.steps == before["train"]["steps"]
    assert tuned.fill("rope-s9-lr0.001", base())["train"]["steps"] == 5
    few = study(arms=(dataclasses.replace(arm, overrides={"train.steps": 7}),), tuning=TUNING)
    assert [few.fill(f"rope-s{seed}-lr0.01", base())["train"]["steps"] for seed in (1, 9)] == [7, 5]


def test_an_arm_with_its_own_length_sees_equally_many_tokens_a_step():
    oracle = Arm("oracle", "rope", length=256)
    c = study(arms=(ROPE, oracle)).fill("oracle-s0", base())
    plain = study(arms=(ROPE, oracle)).fill("rope-s0", base())
    assert (c["train"]["length"], plain["train"]["length"]) == (256, 64)
    tokens = [x["train"]["length"] * x["train"]["batch_size"] for x in (c, plain)]
    assert tokens[0] == tokens[1]
    assert c["train"]["steps"] == plain["train"]["steps"]
    with pytest.raises(ValueError, match="no whole number of rows"):
        study(arms=(Arm("odd", "rope", length=96),)).fill("odd-s0", base())


def test_skipped_runs_carry_their_reason():
    tuned = study(
        tuning=TUNING,
        skip=lambda c: "known to diverge" if c.rate == 0.01 and c.arm == SUM else None,
    )
    assert tuned.skipped() == {"sum-s9-lr0.01": "known to diverge"}
    assert "sum-s9-lr0.01" not in [c.setting for c in tuned.tuning_grid()]
    assert tuned.record()["skipped"] == tuned.skipped()


def test_a_reading_is_an_arm_that_trains_nothing():
    s = study(arms=(Arm("rope", "rope", readings=("yarn:4",)), SUM))
    assert s.record()["arms"] == ["rope", "sum", "rope yarn:4"]
    assert len(s.slots()) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": (ROPE, ROPE)}, "each once; twice: ['rope']"),
        ({"seeds": (0, 0)}, "each once; twice: [0]"),
        ({"arms": (ROPE, Arm("same", "rope"))}, "'rope' and 'same' train the same thing"),
        ({"arms": (Arm("a/b", "rope"),)}, "a name is a folder"),
        ({"arms": (Arm("a-s1", "rope"),)}, "no -s<number>"),
        ({"tuning": Tuning((0.01, 0.001), 9)}, "ascending"),
        ({"tuning": Tuning((0.001, 0.01), 1)}, "also a seed that counts"),
        ({"roles": {"rope": "rope", "hybrids": ["h1"]}}, "does not have: h1"),
        ({"roles": {"rope": "rope", "alibi": ["sum", "a1"]}}, "does not have: a1"),
        ({"roles": {"rope": ["rope"]}}, "roles['rope'] is one arm, not a list"),
        ({"roles": {"rope": "rope", "oracle": ["sum"]}}, "roles['oracle'] is one arm, not a list"),
        ({"split": "train"}, "split must be dev or test"),
        ({"prereg": "plan.json"}, 'belongs to split="test"'),
    ],
)
def test_a_study_that_cannot_be_is_refused(changes, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        study(**changes)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("rpoe-s0-lr0.01", "did you mean"),
        ("rope-s0", "needs a learning rate"),
        ("rope-s0-lr0.02", "rope-s0-lr0.001, rope-s0-lr0.01"),
        ("rope-s7-lr0.01", "seed 7 is not of the study"),
    ],
)
def test_a_run_that_is_none_is_refused_in_words(setting, words):
    with pytest.raises(ValueError, match=words):
        study(tuning=TUNING).cell(setting)


def test_an_override_of_no_setting_is_refused():
    s = study(arms=(Arm("rope", "rope", overrides={"model.heads": 2}),))
    with pytest.raises(ValueError, match=r"'model.heads' is not a setting"):
        s.fill("rope-s0", base())


@pytest.mark.parametrize("module", [cpu, gpu, quickstart, rivals, screening])
def test_every_run_of_a_committed_study_is_a_valid_configuration(module):
    s, names = module.STUDY, []
    for cell in s.tuning_grid() + s.grid(
        {a.name: s.tuning.rates[0] if s.tuning else None for a in s.arms}
    ):
        c = from_sections(module.get_config(cell.setting).to_dict())
        assert (c.arm, c.train.seed, c.train.tier) == (cell.arm.name, cell.seed, s.tier)
        names.append(cell.name)
    assert len(set(names)) == len(names)
