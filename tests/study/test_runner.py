"""The runner of a study with a trainer of stand-ins: stages, stops, failures, fine-tuned arms."""

import dataclasses
import json
import random
import re
import signal
import time
import types
from pathlib import Path

import pytest
from posenc_jax.results.load import load
from posenc_jax.study import preregistration
from posenc_jax.study.auxiliary_runs import rows_of
from posenc_jax.study.grid import Arm, Tuning
from posenc_jax.study.outcomes import read_outcomes
from posenc_jax.study.roles import choose_parents
from posenc_jax.study.runner import KEY, sorted_rows, study_runner
from posenc_jax.training.config import from_sections

from support import toy_study
from support.result_rows import STORED_ROW as ROW
from support.study_of_arms import base, study
from support.toy_study import results

ROPE, SUM = Arm("rope", "rope"), Arm("sum", "rope+alibi")


TUNING = Tuning(rates=(0.001, 0.01), seed=9, steps=5)


def test_rows_come_in_one_order_and_a_measurement_that_stands_twice_is_refused(tmp_path):
    row = ROW | {"item": "E3/64", "stamp": "s"}
    folders = [tmp_path / "runs" / name / "evaluation" for name in ("rope-s0", "rope-s1")]
    for seed, folder in enumerate(folders):
        folder.mkdir(parents=True)
        rows = [row | {"seed": seed, "length": length} for length in (128, 64)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = sorted_rows(folders, tmp_path, KEY)
    assert text == sorted_rows(folders[::-1], tmp_path, KEY)
    rows = [json.loads(line) for line in text.splitlines()]
    assert [(r["run"], r["length"]) for r in rows] == [
        ("runs/rope-s0", 64),
        ("runs/rope-s0", 128),
        ("runs/rope-s1", 64),
        ("runs/rope-s1", 128),
    ]
    with pytest.raises(ValueError, match="twice"):
        sorted_rows([folders[0], folders[0]], tmp_path, KEY)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The toy study carried out without interruption."""
    folder = tmp_path_factory.mktemp("toy")
    toy_study.make(folder)
    done = toy_study.run(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


@pytest.mark.thorough
def test_a_study_tunes_first_then_trains_at_the_chosen_rate_and_ends_in_sorted_rows(whole):
    folder, said = whole
    assert len(toy_study.trained(folder)) == 6 + 5
    assert said.splitlines()[-1] == "out/report.html"
    assert "sum-s2 is left out: too slow" in said
    assert "[6/6 done" in said
    assert "[5/5 done" in said
    for name in ("rope-s0", "sum-s1"):
        config = json.loads((folder / "out/runs" / name / "config.json").read_text())
        assert config["optimizer"]["learning_rate"] == 0.003
    rows = [json.loads(r) for r in (folder / "out/rows.jsonl").read_text().splitlines()]
    keys = [(r["arm"], r["seed"], r["suite"], r["metric"], r["length"]) for r in rows]
    assert keys == sorted(set(keys))
    assert {r["arm"] for r in rows} == {"rope", "rope yarn:4", "sum"}
    assert {r["split"] for r in rows} == {"dev"}
    assert len(rows) == (5 + 3) * 12
    assert said.splitlines()[0] == "rows are of dev: exploration"
    record = json.loads((folder / "out/study.json").read_text())
    assert (record["split"], record["deviations"]) == ("dev", [])


@pytest.mark.thorough
def test_a_study_of_rates_alone_ends_in_its_choice(tmp_path):
    toy_study.make(tmp_path)
    path = tmp_path / "study_file.py"
    path.write_text(
        path.read_text().replace(
            'if cell.name == "sum-s2" else None', "if not cell.tuning else None"
        )
    )
    done = toy_study.run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.splitlines()[-1]
        == "the study has no runs that count: the chosen rates are its result"
    )
    choice = json.loads((tmp_path / "out/tuning.json").read_text())["arms"]
    assert {arm: one["rate"] for arm, one in choice.items()} == {"rope": 0.003, "sum": 0.003}


def planned(folder, **changes):
    """The course of a small study whose rows are of test."""
    s = study(split="test", **changes)
    return study_runner(
        s,
        lambda run: types.SimpleNamespace(to_dict=lambda: s.fill(run, base())),
        "f.py",
        folder,
        folder,
    )


def test_a_study_that_reads_test_without_a_plan_says_so_for_ever(tmp_path):
    plan = planned(tmp_path / "out")
    cell = plan.study.grid({"rope": None, "sum": None})[0]
    assert "--split=test" in plan.run(cell).commands[1]
    assert plan.run(cell).products == (tmp_path / "out/runs/rope-s0/evaluation/evaluation.json",)
    plan.begin()
    explored = dataclasses.replace(plan, study=study())
    assert "--split=dev" in explored.run(cell).commands[1]
    explored.begin()
    record = json.loads((tmp_path / "out/study.json").read_text())
    assert record["split"] == "dev"
    assert record["deviations"] == ["test was read without a frozen plan"]


def test_a_study_of_test_carries_its_frozen_plan(tmp_path):
    path = tmp_path / "plan.json"
    plan = planned(tmp_path / "out", prereg=str(path))
    with pytest.raises(ValueError, match="is no file"):
        plan.check()
    preregistration.freeze(
        path, preregistration.AnalysisPlan(("sum",), "rope", ("alibi",), tuple(range(100, 112)), {})
    )
    plan.check()
    plan.begin()
    assert json.loads((tmp_path / "out/study.json").read_text())["deviations"] == []
    assert (tmp_path / "out/prereg.json").read_bytes() == path.read_bytes()
    path.write_text(path.read_text().replace('"sum"', '"nope"'))
    with pytest.raises(ValueError, match="was changed after it was frozen"):
        plan.check()


@pytest.mark.thorough
def test_running_a_study_again_starts_nothing_and_gives_the_same_bytes(whole):
    folder, _ = whole
    before, journal = results(folder), toy_study.trained(folder)
    again = toy_study.run(folder)
    assert again.returncode == 0, again.stderr
    assert results(folder) == before
    assert toy_study.trained(folder) == journal


@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=pytest.mark.slow)])
@pytest.mark.thorough
def test_a_study_killed_at_any_moment_ends_in_the_same_rows(whole, tmp_path, kills):
    toy_study.make(tmp_path)
    moments = random.Random(kills)
    for _ in range(kills):
        process = toy_study.start(tmp_path, TOY_SECONDS="0.3")
        before = len(toy_study.trained(tmp_path)) if (tmp_path / "journal").exists() else 0
        deadline = time.time() + 60
        while time.time() < deadline and process.poll() is None:
            time.sleep(0.05)
            if (tmp_path / "journal").exists() and len(toy_study.trained(tmp_path)) > before:
                break  # something was done: now at any moment
        time.sleep(moments.uniform(0, 3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = toy_study.run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(tmp_path) == results(whole[0])


@pytest.mark.thorough
def test_a_tuning_run_that_fails_is_named_and_the_others_choose(whole, tmp_path):
    toy_study.make(tmp_path)
    done = toy_study.run(tmp_path, "--run=sum-s9-lr0.003", TOY_DIVERGES="lr0.003")
    assert done.returncode == 1
    early = toy_study.run(tmp_path, "--run=sum-s0")
    assert early.returncode == 2
    assert "rope-s9-lr0.001 has not ended" in early.stderr
    for name in (
        "rope-s9-lr0.001",
        "rope-s9-lr0.003",
        "rope-s9-lr0.01",
        "sum-s9-lr0.001",
        "sum-s9-lr0.01",
    ):
        source = whole[0] / "out" / "tuning" / name / "evaluation_dev"
        target = tmp_path / "out" / "tuning" / name / "evaluation_dev"
        target.mkdir(parents=True)
        (target / "rows.jsonl").write_bytes((source / "rows.jsonl").read_bytes())
    done = toy_study.run(tmp_path, "--run=sum-s0")
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "out/runs/sum-s0/config.json").read_text())
    assert (
        config["optimizer"]["learning_rate"] == 0.001
    )  # 0.003 would be the lowest, but has no value
    assert not (tmp_path / "out/tuning.json").exists()  # tasks of an array write nothing they share


TUNED = Arm(
    "sum-yarn",
    "rope(stretch=yarn)+alibi(factor=4.0)",
    parent="sum",
    length=256,
    overrides={"train.steps": 7, "optimizer.warmup_steps": 2},
)


def test_a_fine_tuned_arm_begins_as_the_run_of_its_parent_with_the_same_seed(tmp_path):
    s = study(arms=(ROPE, TUNED, SUM), tuning=TUNING, together=True)
    assert "sum-yarn" not in {cell.arm.name for cell in s.tuning_grid()}
    cells = s.grid({"rope": 0.01, "sum": 0.001})
    first, then = s.waves(cells)
    assert [c.setting for c in then] == ["sum-yarn-s0-lr0.001", "sum-yarn-s1-lr0.001"]
    assert sorted(c.name for c in first) == ["rope-s0", "rope-s1", "sum-s0", "sum-s1"]
    assert [s.parent(c).name for c in then] == ["sum-s0", "sum-s1"]
    assert s.grid({"rope": 0.01}) == [c for c in cells if c.arm == ROPE]
    assert [len(group) for group in s.groups(then)] == [1, 1]  # each has a parent of its own
    assert s.waves(s.tuning_grid()) == [s.tuning_grid()]

    config = from_sections(s.fill("sum-yarn-s1-lr0.001", base()))
    t = config.train
    assert (t.length, t.original_length, t.seed, t.steps) == (256, base()["train"]["length"], 1, 7)
    assert t.batch_size * t.length == base()["train"]["batch_size"] * base()["train"]["length"]
    assert config.model.scheme == TUNED.scheme
    assert config.optimizer.learning_rate == pytest.approx(1e-4)
    share = 0.001 / base()["optimizer"]["learning_rate"] / 10
    assert config.optimizer.muon_learning_rate == pytest.approx(
        base()["optimizer"]["muon_learning_rate"] * share
    )
    plan = study_runner(
        s,
        lambda run: types.SimpleNamespace(to_dict=lambda: s.fill(run, base())),
        "f.py",
        tmp_path,
        tmp_path,
    )
    plan.check()
    assert f"--config.train.init_from={tmp_path}/runs/sum-s1" in plan.run(then[1]).commands[0]
    assert (
        then[1].folder(tmp_path) == tmp_path / "runs" / "sum-yarn-s1"
    )  # it is read in the study's L


def test_a_dropped_arm_goes_on_at_the_length_and_the_rates_of_its_parent():
    dropped = Arm("drope", "nope", parent="rope", peak=1.0, overrides={"train.steps": 3})
    s = study(arms=(ROPE, dropped), tuning=TUNING)
    rope, drope = (
        from_sections(s.fill(f"{name}-s1-lr0.001", base())) for name in ("rope", "drope")
    )
    assert drope.train.length == drope.train.original_length == rope.train.length
    assert drope.train.batch_size == rope.train.batch_size
    for name in ("learning_rate", "muon_learning_rate"):
        assert getattr(drope.optimizer, name) == getattr(rope.optimizer, name)
    for wrong in (
        dataclasses.replace(dropped, peak=0.0),
        dataclasses.replace(dropped, peak=2.0),
        dataclasses.replace(SUM, peak=0.5),
    ):
        with pytest.raises(
            ValueError, match=r"peak=.* is a share, up to 1, of the rates of its parent"
        ):
            study(arms=(ROPE, wrong))


@pytest.mark.thorough
def test_both_readings_of_the_stretched_parent_are_rows_and_the_better_one_on_dev_is_judged(
    tmp_path,
):
    toy_study.make(tmp_path)
    tuned = 'Arm("rope-yarn", "rope(stretch=yarn)", parent="rope", length=128),'
    text = toy_study.STUDY.replace("seeds=(0, 1, 2)", "seeds=(0, 1)")
    text = text.replace('Arm("sum", "rope+alibi"),', f'Arm("sum", "rope+alibi"), {tuned}')
    text = re.sub(
        "    tuning=.*\n    skip=.*\n",
        '    roles={"rope": "rope", "stretched": ["rope yarn:4", "rope-yarn"]},\n',
        text,
    )
    assert text.count("rope-yarn") == 2
    assert "tuning" not in text.split("STUDY")[1]
    (tmp_path / "study_file.py").write_text(text)
    done = toy_study.run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(toy_study.trained(tmp_path)[-2:]) == ["rope-yarn-s0", "rope-yarn-s1"]
    log = (tmp_path / "out/logs/rope-yarn-s1.log").read_text()
    assert "--config.train.init_from=out/runs/rope-s1" in log
    data = load(tmp_path / "out")
    assert data.elsewhere == ()
    outcomes = read_outcomes(rows_of(data.runs)).values
    candidates = data.record["roles"]["stretched"]
    found = {arm: sum(outcomes[arm, "Y_E"].values()) for arm in candidates}
    judged, notes = choose_parents("rope", candidates, ["sum"], "", outcomes)
    assert judged.stretched["text"] == (min(found, key=found.get),)
    assert judged.stretched["retrieval"] == tuple(candidates)  # the toy has no recall to choose by
    assert any("by mean Y_E on dev over 2 seeds" in note for note in notes)


def test_a_fine_tuned_arm_needs_a_parent_that_is_there_and_shares_its_fate():
    for parent in ("rpoe", "sum-yarn", "long"):
        arms = (
            ROPE,
            SUM,
            Arm("long", "rope", length=128),
            dataclasses.replace(TUNED, parent=parent),
        )
        with pytest.raises(ValueError, match=f"parent '{parent}' must be an arm of the study"):
            study(arms=arms)
    s = study(arms=(SUM, TUNED), skip=lambda c: "no" if c.name == "sum-s1" else None)
    assert s.skipped() == {
        "sum-s1": "no",
        "sum-yarn-s1": "sum-s1, which it would fine-tune, is left out",
    }
    assert s.slots() == ["sum-s0", "sum-yarn-s0"]
    tuned = study(arms=(SUM, TUNED), tuning=TUNING)
    with pytest.raises(ValueError, match="takes the rate of its parent"):
        tuned.cell("sum-yarn-s9-lr0.001")


def test_a_run_is_the_same_however_its_paths_are_written():
    tuned = Arm("tuned", "rope", length=128, parent="rope")
    s = study(arms=(ROPE, SUM, tuned))

    def stamps(file, workdir, scripts):
        def config(run):
            return types.SimpleNamespace(to_dict=lambda: s.fill(run, base()))

        plan = study_runner(s, config, file, Path(workdir), Path(scripts))
        return [plan.run(cell).stamp for cell in s.grid({arm.name: None for arm in s.arms})]

    relative = stamps("mine.py", "studies/x", ".")
    assert relative == stamps("/a/mine.py", "/a/studies/x", "/a")
    assert len(set(relative)) == len(relative) == 6
