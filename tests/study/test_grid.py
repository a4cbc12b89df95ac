"""Studies as lists of runs, and the script that carries them out, stopped at any moment."""

import dataclasses
import json
import pathlib
import random
import re
import signal
import time
import types

import pytest
from support import toy_study

from configs.studies import cpu, gpu, quickstart, rivals, screening
from posenc_jax.results.load import load
from posenc_jax.study import local_executor, preregistration, tuning
from posenc_jax.study.auxiliary_runs import rows_of
from posenc_jax.study.grid import Arm, GridCell, Study, Tuning, unique
from posenc_jax.study.outcomes import read_outcomes
from posenc_jax.study.roles import choose_parents
from posenc_jax.study.runner import KEY, sorted_rows, study_runner
from posenc_jax.study.status import table
from posenc_jax.training.config import RunConfig, from_sections

ROPE, SUM = Arm("rope", "rope"), Arm("sum", "rope+alibi")
TUNING = Tuning(rates=(0.001, 0.01), seed=9, steps=5)


def study(**changes) -> Study:
    return Study(**({"tier": "smoke", "arms": (ROPE, SUM), "seeds": (0, 1)} | changes))


def base() -> dict:
    return dataclasses.asdict(RunConfig())


def test_a_grid_is_arms_by_rates_by_seeds_each_once():
    tuned = study(tuning=TUNING)
    assert [c.setting for c in tuned.tuning_grid()] == [
        "rope-s9-lr0.001", "sum-s9-lr0.001", "rope-s9-lr0.01", "sum-s9-lr0.01",
    ]  # fmt: skip
    cells = tuned.grid({"rope": 0.01, "sum": 0.001})
    assert [c.setting for c in cells] == ["rope-s0-lr0.01", "sum-s0-lr0.001", "rope-s1-lr0.01", "sum-s1-lr0.001"]  # fmt: skip
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
    assert (c.model.scheme, c.model.num_heads, c.train.seed, c.arm) == ("rope(base=match)", 2, 1, "rope")  # fmt: skip
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
    tuned = study(tuning=TUNING, skip=lambda c: "known to diverge" if c.rate == 0.01 and c.arm == SUM else None)  # fmt: skip
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


@pytest.mark.parametrize(
    ("curve", "rate", "edge"),
    [
        ({0.001: 3.0, 0.003: 2.0, 0.01: 2.5}, 0.003, False),
        ({0.01: 2.5, 0.001: 2.0, 0.003: 2.1}, 0.001, True),
        ({0.001: 3.0, 0.003: 2.0, 0.01: 1.9}, 0.01, True),
        ({0.001: 3.0, 0.003: 2.0, 0.01: None}, 0.003, False),
        ({0.001: 3.0, 0.003: 2.0, 0.01: float("nan")}, 0.003, False),
        ({0.001: 2.0, 0.003: 2.0, 0.01: 3.0}, 0.001, True),
        ({0.001: None, 0.003: None}, None, False),
    ],
)
def test_the_lowest_dev_loss_chooses_and_an_edge_is_flagged(curve, rate, edge):
    choice = tuning.choose("rope", curve)
    assert (choice.rate, choice.edge) == (rate, edge)


ROW = {"run": "x", "arm": "rope", "seed": 0, "tier": "smoke", "suite": "E", "metric": "bpb_ctx", "length": 32,
       "train_length": 64, "bucket": "all", "value": 2.0, "n": 4, "split": "dev", "definitions": 2}  # fmt: skip


def test_the_choice_reads_dev_rows_within_the_training_length_alone(tmp_path):
    past, far = ROW | {"length": 64, "value": 1.5}, ROW | {"length": 256, "value": 1.0}

    def write(folder, *rows):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    write("evaluation", ROW | {"split": "test", "value": 0.5})
    assert tuning.dev_loss(tmp_path) is None
    write("evaluation_dev", far, past, ROW)
    assert tuning.dev_loss(tmp_path) == 2.0
    write("evaluation_dev", far, past)
    assert tuning.dev_loss(tmp_path) is None
    write("evaluation_dev", ROW | {"split": "test"})
    with pytest.raises(ValueError, match="of the dev split"):
        tuning.dev_loss(tmp_path)
    assert tuning.record([], seed=9, steps=5)["k"] == 0.5


@pytest.mark.parametrize("module", [cpu, gpu, quickstart, rivals, screening])
def test_every_run_of_a_committed_study_is_a_valid_configuration(module):
    s, names = module.STUDY, []
    for cell in s.tuning_grid() + s.grid({a.name: s.tuning.rates[0] if s.tuning else None for a in s.arms}):  # fmt: skip
        c = from_sections(module.get_config(cell.setting).to_dict())
        assert (c.arm, c.train.seed, c.train.tier) == (cell.arm.name, cell.seed, s.tier)
        names.append(cell.name)
    assert len(set(names)) == len(names)


COMPILED = pathlib.Path("study/compiled")


def test_children_share_what_they_compile_unless_the_user_says_where(monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    assert local_executor.environment(0, COMPILED)["JAX_COMPILATION_CACHE_DIR"] == str(
        COMPILED.resolve()
    )
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    assert local_executor.environment(0, COMPILED)["JAX_COMPILATION_CACHE_DIR"] == "mine"


def test_children_on_one_core_use_huge_pages_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert local_executor.environment(0, COMPILED)["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert "GLIBC_TUNABLES" not in local_executor.environment(None, COMPILED)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=1")
    assert local_executor.environment(0, COMPILED)["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=1"
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setattr("sys.platform", "darwin")
    assert "GLIBC_TUNABLES" not in local_executor.environment(0, COMPILED)


def test_children_on_one_core_keep_the_flags_of_the_user(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert (
        local_executor.environment(0, COMPILED)["XLA_FLAGS"] == local_executor.ONE_CORE["XLA_FLAGS"]
    )
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=dump")
    assert (
        local_executor.environment(0, COMPILED)["XLA_FLAGS"]
        == f"{local_executor.ONE_CORE['XLA_FLAGS']} --xla_dump_to=dump"
    )
    assert local_executor.environment(None, COMPILED)["XLA_FLAGS"] == "--xla_dump_to=dump"


def test_the_status_counts_runs_by_arm_and_estimates_what_is_left():
    arms = {"a-s0": "a", "a-s1": "a", "b-s0": "b", "b-s1": "b"}
    states = {"a-s0": "done", "a-s1": "running", "b-s0": "failed", "b-s1": "waiting"}
    lines = table(arms, states, ["a-s1  45% loss 2.00"], 60.0, fresh=2)
    assert lines[0] == "[1/4 done, 1 waiting, 1 failed]  0:01:00 gone, about 0:01:00 left"
    assert [line.split() for line in lines[1:]] == [
        ["arm", "done", "running", "waiting", "failed"],
        ["a", "1", "1", "0", "0"],
        ["b", "0", "0", "1", "1"],
        ["a-s1", "45%", "loss", "2.00"],
    ]


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
    assert [(r["run"], r["length"]) for r in rows] == [("runs/rope-s0", 64), ("runs/rope-s0", 128), ("runs/rope-s1", 64), ("runs/rope-s1", 128)]  # fmt: skip
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


RESULTS = ("rows.jsonl", "tuning.jsonl", "tuning.json", "study.json")


def results(folder: pathlib.Path, names=RESULTS) -> dict[str, bytes]:
    return {name: (folder / "out" / name).read_bytes() for name in names}


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
    return study_runner(s, lambda run: types.SimpleNamespace(to_dict=lambda: s.fill(run, base())), "f.py", folder, folder)  # fmt: skip


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
    for name in ("rope-s9-lr0.001", "rope-s9-lr0.003", "rope-s9-lr0.01", "sum-s9-lr0.001", "sum-s9-lr0.01"):  # fmt: skip
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
    "sum-yarn", "rope(stretch=yarn)+alibi(factor=4.0)", parent="sum", length=256,
    overrides={"train.steps": 7, "optimizer.warmup_steps": 2},
)  # fmt: skip


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
    assert config.optimizer.muon_learning_rate == pytest.approx(base()["optimizer"]["muon_learning_rate"] * share)  # fmt: skip
    plan = study_runner(s, lambda run: types.SimpleNamespace(to_dict=lambda: s.fill(run, base())), "f.py", tmp_path, tmp_path)  # fmt: skip
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
    text = re.sub("    tuning=.*\n    skip=.*\n", '    roles={"rope": "rope", "stretched": ["rope yarn:4", "rope-yarn"]},\n', text)  # fmt: skip
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
        arms = (ROPE, SUM, Arm("long", "rope", length=128), dataclasses.replace(TUNED, parent=parent))  # fmt: skip
        with pytest.raises(ValueError, match=f"parent '{parent}' must be an arm of the study"):
            study(arms=arms)
    s = study(arms=(SUM, TUNED), skip=lambda c: "no" if c.name == "sum-s1" else None)
    assert s.skipped() == {"sum-s1": "no", "sum-yarn-s1": "sum-s1, which it would fine-tune, is left out"}  # fmt: skip
    assert s.slots() == ["sum-s0", "sum-yarn-s0"]
    tuned = study(arms=(SUM, TUNED), tuning=TUNING)
    with pytest.raises(ValueError, match="takes the rate of its parent"):
        tuned.cell("sum-yarn-s9-lr0.001")
