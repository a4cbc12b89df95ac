"""The start of a study: what would fail hours later, or belongs to another study, is refused at once."""

import json

import pytest
from configs import smoke
from posenc_jax import cli
from posenc_jax.study import local_executor
from posenc_jax.study.grid import Arm, Study, Tuning
from posenc_jax.study.local_executor import RunCommands, exit_code, finished
from posenc_jax.study.runner import sorted_rows, study_runner
from posenc_jax.study.status import training_progress

ROPE, SUM = Arm("rope", "rope"), Arm("sum", "rope+alibi")


def study(**changes):
    return Study(**({"tier": "smoke", "arms": (ROPE, SUM), "seeds": (0, 1)} | changes))


def runner(workdir, **changes):
    made = study(**changes)
    return study_runner(
        made, lambda run: made.fill(run, smoke.get_config()), "x.py", workdir, workdir
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"suite": "E,Q"}, "suite='E,Q' of the study: .*not 'Q'"),
        ({"suite": "C"}, "suite='C' of the study: .*needs classes"),
        ({"tuning": Tuning((0.1, 0.2), 9), "tuning_suite": "R"}, "tuning_suite='R' must include E3"),
        ({"tuning": Tuning((0.1, 0.2), 9), "tuning_suite": "E3,x"}, "tuning_suite='E3,x' of the study"),
        ({"arms": (Arm("rope", "rope", readings=("yarm:4",)), SUM)}, "arm 'rope', reading 'yarm:4'"),
        ({"arms": (Arm("rope", "rope", readings=("yarn:0",)), SUM)}, "arm 'rope', reading 'yarn:0'"),
        ({"arms": (Arm("nope", "nope", readings=("yarn:4",)), SUM)}, "arm 'nope', reading 'yarn:4'"),
    ],
)  # fmt: skip
def test_a_measure_or_a_stretch_that_no_evaluation_knows_is_refused_before_training(
    tmp_path, changes, words
):
    with pytest.raises(ValueError, match=words) as refused:
        runner(tmp_path, **changes).check()
    assert "\n" not in str(refused.value)
    runner(tmp_path, arms=(Arm("rope", "rope", readings=("yarn:4",)), SUM), suite="E,R3").check()


@pytest.mark.parametrize("name", ["train.seed", "train.arm", "model.scheme", "train.length"])
def test_an_override_of_what_the_study_sets_is_refused(name):
    with pytest.raises(ValueError, match=f"the study itself sets {name}"):
        study(arms=(Arm("rope", "rope", overrides={name: 3}), SUM))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": (SUM,)}, "arms rope there"),
        ({"seeds": (1, 2)}, "seeds 0 there"),
        ({"tier": "cpu"}, "tier smoke there, cpu here"),
    ],
)
def test_the_folder_of_another_study_is_refused_before_a_run_starts(tmp_path, changes, words):
    runner(tmp_path).begin()
    with pytest.raises(ValueError, match=f"holds another study .*{words}"):
        runner(tmp_path, **changes).check()
    runner(tmp_path).check()
    wider = {"arms": (ROPE, SUM, Arm("alibi", "alibi")), "seeds": (0, 1, 2)}
    runner(tmp_path, **wider).check()


@pytest.mark.parametrize("name", ["config.json", "runs.json"])
def test_the_folder_of_a_run_or_of_published_results_is_no_folder_for_a_study(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match="choose another --workdir"):
        runner(tmp_path).check()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"tier": 3}', '{"tier": "smoke"}', "\0\0"])
def test_a_damaged_study_json_is_named_and_not_replaced(tmp_path, text):
    """It alone knows that test was read without a plan, so nothing else can bring it back."""
    (tmp_path / "study.json").write_text(text)
    for call in (runner(tmp_path).check, runner(tmp_path).begin):
        with pytest.raises(ValueError, match=r"study\.json"):
            call()
    assert (tmp_path / "study.json").read_text() == text


@pytest.mark.parametrize("setting", ["rope-s01", "rope-s١", "rope-s-1", "rope-s1 ", "rope-s٠"])
def test_a_seed_has_one_spelling(setting):
    with pytest.raises(ValueError, match="has no run"):
        study().cell(setting)


@pytest.mark.parametrize(
    "values", [["1", "01"], ["١"], ["1", "1"], ["-1"], ["+1"], ["1.0"], [""], ["9" * 25], []]
)
def test_numbers_of_a_flag_have_one_spelling_and_stand_once(values):
    with pytest.raises(ValueError, match="--seeds must be whole numbers, each once"):
        cli.whole_numbers("seeds", values)
    assert cli.whole_numbers("seeds", ["0", "12"]) == (0, 12)


def commands(folder):
    return RunCommands("rope-s0", "rope", folder, (), "stamp", (folder / "evaluation.json",))


@pytest.mark.parametrize("text", ["", "{", "\0\0\0", "[]", "7", '{"exit_code": "0"}'])
def test_a_torn_record_of_a_run_is_that_of_a_run_to_repeat(tmp_path, text):
    whole = '{"exit_code": 0, "stamp": "stamp"}'
    for torn in ("rope-s0.json", "evaluation.json"):
        (tmp_path / "rope-s0.json").write_text(whole)
        (tmp_path / "evaluation.json").write_text('{"step": 3}')
        assert finished(commands(tmp_path), tmp_path)
        if (torn, text) != ("evaluation.json", '{"exit_code": "0"}'):  # an object like any other
            (tmp_path / torn).write_text(text)
            assert not finished(commands(tmp_path), tmp_path)
    (tmp_path / "rope-s0.json").write_text(text)
    assert exit_code("rope-s0", tmp_path) is None


@pytest.mark.parametrize(
    "line", ["", "{}", "[1]", '{"step": "x", "loss": 1}', '{"step": 1, "loss": null}', "\udcff"]
)
def test_the_table_of_a_study_shows_a_run_whose_log_is_torn(tmp_path, line):
    (tmp_path / "config.json").write_text(json.dumps({"train": {"steps": 10}}))
    (tmp_path / "metrics.jsonl").write_bytes(line.encode(errors="surrogateescape") + b"\n")
    assert training_progress(tmp_path) == "starting"
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "loss": 2}\n')
    assert training_progress(tmp_path) == "50% loss 2.00"


def test_a_clock_set_back_does_not_end_the_wait_for_a_trainer(tmp_path, monkeypatch):
    monkeypatch.setattr(local_executor.time, "time", lambda: -1e9)
    monkeypatch.setattr(local_executor, "is_locked", lambda folder: True)
    begun = local_executor.time.monotonic()
    assert not local_executor._startable(commands(tmp_path), begun)
    assert local_executor._startable(commands(tmp_path), begun - 2 * local_executor.ORPHANS)


def test_a_row_that_cannot_be_collected_is_named_by_file_and_line(tmp_path):
    folder = tmp_path / "runs/rope-s0/evaluation_dev"
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text('{"run": "rope-s0"}\n')
    with pytest.raises(ValueError, match=r"evaluation_dev/rows\.jsonl, line 1: row has no field"):
        sorted_rows([folder], tmp_path, ("arm", "seed"))
