"""A study as array jobs: what the scripts say, and what they do under a Slurm that is only pretended."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
from posenc_jax.study import local_executor, slurm

from support import toy_study
from support.toy_study import stand_in

STAGE = slurm.SlurmStage("x-runs", (("echo", "one"), ("echo", "two words")), "x-tuning")


def text(stage=STAGE, folder=pathlib.Path("/study/slurm"), **resources):
    return slurm.script(
        stage, slurm.Resources(**resources), root=pathlib.Path("/repo"), folder=folder
    )


# What srun does: runs its tasks, ends with the highest code, and when it is itself told to end, kills them
# (-9).
SRUN = r"""
tasks=() kill=0 code=0
while [[ "$1" == --* ]]; do [[ "$1" == --kill-on-bad-exit=1 ]] && kill=1; shift; done
for ((i = 0; i < ${SLURM_NTASKS:-1}; i++)); do SLURM_PROCID=$i "$@" & tasks+=($!); done
trap 'kill -KILL "${tasks[@]}"' TERM
for task in "${tasks[@]}"; do
  wait "$task" || { ended=$?; ((ended > code)) && code=$ended; ((kill)) && kill -KILL "${tasks[@]}" 2>/dev/null; }
done
exit "$code"
"""  # noqa: E501


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A PATH with sbatch, srun, squeue, scontrol and scancel that write down how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    said = tmp_path / "said"
    stand_in(folder, "sbatch", f'echo "sbatch $*" >>{said}; echo $((100 + $(wc -l <{said})))')
    stand_in(folder, "srun", SRUN)
    stand_in(folder, "squeue", 'echo "${STATE:-RUNNING}"')
    for name in ("scontrol", "scancel"):
        stand_in(folder, name, f'echo "{name} $*" >>{said}')
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    return said


def test_one_task_a_run_is_requeued_and_told_in_time():
    lines = text(
        partition="gpu", time="4:00:00", gpus=1, account="lab", cpus=8, memory="32G", at_once=4
    ).splitlines()
    for wanted in (
        "array=1-2%4",
        "requeue",
        "signal=TERM@120",
        "partition=gpu",
        "time=4:00:00",
        "gpus-per-task=1",
        "account=lab",
        "cpus-per-task=8",
        "mem=32G",
        "open-mode=append",
    ):
        assert f"#SBATCH --{wanted}" in lines
    assert lines[0] == "#!/usr/bin/env bash"


def test_what_is_not_asked_for_is_left_to_the_cluster():
    assert not [w for w in ("partition", "time=", "gpus", "account", "mem=") if f"--{w}" in text()]
    report = slurm.SlurmStage("x-report", (("true",),), "x-runs", computes=False)
    assert "--gpus" not in text(report, gpus=1)
    assert "--gpus-per-task=1" in text(gpus=1)


def test_a_container_or_an_environment_is_entered(tmp_path):
    inside = text(container="/images/jax.sqsh")
    assert (
        "srun --container-image=/images/jax.sqsh --container-mounts=/repo:/repo,/study:/study"
        in inside
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "activate").touch()
    assert f"source {tmp_path}/bin/activate" in text(venv=str(tmp_path))
    with pytest.raises(ValueError, match="exclude each other"):
        slurm.Resources(venv=".venv", container="x")


@pytest.mark.parametrize("wrong", [{"time": "soon"}, {"partition": "a b"}])
def test_what_sbatch_would_misread_is_refused(wrong):
    with pytest.raises(ValueError, match=f"--{next(iter(wrong))}"):
        slurm.Resources(**wrong)


@pytest.mark.parametrize("resources", [{}, {"venv": "a b"}, {"container": "docker://x"}])
def test_the_script_passes_shellcheck(tmp_path, resources):
    if "venv" in resources:
        resources = {"venv": str(tmp_path / resources["venv"])}
        (tmp_path / "a b" / "bin").mkdir(parents=True)
        (tmp_path / "a b" / "bin" / "activate").touch()
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck on the PATH")
    path = tmp_path / "x.sh"
    path.write_text(text(**resources))
    run = subprocess.run(["shellcheck", path], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_a_path_that_sbatch_cannot_read_is_refused():
    with pytest.raises(ValueError, match="space"):
        text(folder=pathlib.Path("/my study/slurm"))


def task(tmp_path, *command, number=1):
    """Starts a task of a stage as Slurm would."""
    stage = slurm.SlurmStage("x-runs", (command, command))
    (path,) = slurm.write([stage], slurm.Resources(), root=tmp_path, folder=tmp_path / "slurm")
    numbers = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_JOB_ID": "77"}
    return subprocess.Popen(
        ["bash", path], env={**os.environ, **numbers}, stdout=subprocess.PIPE, text=True
    )


def test_a_task_runs_its_own_line_with_its_words_whole(cluster, tmp_path):
    (path,) = slurm.write([STAGE], slurm.Resources(), root=tmp_path, folder=tmp_path / "slurm")
    numbers = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_JOB_ID": "77"}
    run = subprocess.run(
        ["bash", path], env={**os.environ, **numbers}, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (0, "two words\n")
    assert not cluster.exists()


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (2, False), (75, True)])
def test_only_a_run_that_was_stopped_goes_back_into_the_queue(cluster, tmp_path, code, requeued):
    process = task(tmp_path, "bash", "-c", f"exit {code}", number=2)
    process.communicate()
    assert process.returncode == code
    assert cluster.exists() == requeued
    if requeued:
        assert cluster.read_text() == "scontrol requeue 77_2\n"


SAVES = "trap 'sleep 0.5; echo saved; exit 75' TERM; echo $$; while :; do sleep 0.05; done"


@pytest.mark.parametrize("state", ["RUNNING", "COMPLETING"])
def test_a_warned_run_saves_and_goes_back_into_the_queue_unless_it_was_cancelled(
    cluster, tmp_path, monkeypatch, state
):
    monkeypatch.setenv("STATE", state)
    process = task(tmp_path, "bash", "-c", SAVES)
    os.kill(
        int(process.stdout.readline()), signal.SIGTERM
    )  # Slurm's own, to every task of the step
    process.send_signal(signal.SIGTERM)  # and on some clusters to the script as well
    assert process.communicate(timeout=20)[0] == "saved\n"
    assert process.returncode == 75
    assert cluster.exists() == (state == "RUNNING")
    if cluster.exists():
        assert cluster.read_text() == "scontrol requeue 77_1\n"


def submitted(folder, trainer, *arguments, **environment):
    """Starts scripts/slurm/train.sbatch as Slurm would, with two tasks of a trainer that is made up."""
    (folder / "train.py").write_text(trainer)
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").symlink_to(sys.executable)
    set_by_slurm = {"SLURM_SUBMIT_DIR": str(folder), "SLURM_NTASKS": "2"}
    return subprocess.Popen(
        ["bash", pathlib.Path(__file__).parents[2] / "scripts/slurm/train.sbatch", *arguments],
        env={**os.environ, **set_by_slurm, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


TRAINER = """
import os, pathlib, signal, sys, time
def save(*_):
    time.sleep(0.4 * int(os.environ["SLURM_PROCID"]))  # one is done before the other
    pathlib.Path("saved" + os.environ["SLURM_PROCID"]).touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
pathlib.Path("pid" + os.environ["SLURM_PROCID"]).write_text(str(os.getpid()))
time.sleep(60)
"""


def test_a_job_of_several_tasks_saves_in_all_of_them_and_is_requeued(cluster, tmp_path):
    process = submitted(tmp_path, TRAINER, "--config=c", "--workdir=w")
    pids = [tmp_path / f"pid{i}" for i in range(2)]
    deadline = time.time() + 30
    while not all(p.exists() and p.read_text() for p in pids) and time.time() < deadline:
        time.sleep(0.05)
    for pid in pids:
        os.kill(int(pid.read_text()), signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert (tmp_path / "saved0").exists()
    assert (tmp_path / "saved1").exists()
    assert cluster.read_text() == "scontrol requeue 78\n"


@pytest.mark.parametrize("code", [0, 1, 2, 74])
def test_a_job_that_ends_otherwise_stays_out_of_the_queue(cluster, tmp_path, code):
    process = submitted(tmp_path, f"import sys; sys.exit({code})", "--config=c", "--workdir=w")
    process.communicate(timeout=30)
    assert process.returncode == code
    assert not cluster.exists()


def test_a_job_without_its_flags_is_one_line(cluster, tmp_path):
    process = submitted(tmp_path, "", "--config=c")
    _, said = process.communicate(timeout=30)
    assert process.returncode == 2
    assert len(said.splitlines()) == 1


def test_a_job_without_its_environment_is_one_line(cluster, tmp_path):
    process = submitted(tmp_path, "", "--config=c", "--workdir=w", VENV="/nothere")
    _, said = process.communicate(timeout=30)
    assert process.returncode == 2
    assert len(said.splitlines()) == 1
    assert "there is no /nothere/bin/python" in said


def test_the_job_script_passes_shellcheck():
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck on the PATH")
    script = pathlib.Path(__file__).parents[2] / "scripts/slurm/train.sbatch"
    run = subprocess.run(["shellcheck", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


@pytest.mark.thorough
def test_a_study_is_submitted_with_each_stage_behind_the_last(cluster, tmp_path):
    toy_study.make(tmp_path / "repo")
    run = toy_study.run(tmp_path / "repo", "--launch=slurm", "--partition=gpu", "--gpus=1")
    assert run.returncode == 0, run.stderr
    folder = tmp_path / "repo" / "out" / "slurm"
    assert cluster.read_text().splitlines() == [
        f"sbatch --parsable {folder}/out-tuning.sh",
        f"sbatch --parsable --dependency=afterany:101 {folder}/out-runs.sh",
        f"sbatch --parsable --dependency=afterany:102 {folder}/out-report.sh",
    ]
    tasks = (folder / "out-runs.tasks").read_text().splitlines()
    assert [t.split()[-1] for t in tasks] == [
        f"--run={n}" for n in ("rope-s0", "sum-s0", "rope-s1", "sum-s1", "rope-s2")
    ]
    assert "#SBATCH --array=1-6\n" in (folder / "out-tuning.sh").read_text()
    assert (folder / "out-report.tasks").read_text().split()[-1] == "--collect"


def test_a_stage_that_is_refused_takes_the_others_back(cluster, tmp_path):
    stand_in(
        tmp_path / "bin", "sbatch", f'echo "sbatch $*" >>{cluster}; [[ $* != *runs* ]] && echo 5'
    )
    stages = [slurm.SlurmStage("x-tuning", (("true",),)), STAGE]
    paths = slurm.write(stages, slurm.Resources(), root=tmp_path, folder=tmp_path / "slurm")
    with pytest.raises(ValueError, match="sbatch refused"):
        slurm.submit(stages, paths)
    assert cluster.read_text().splitlines()[-1] == "scancel 5"


@pytest.mark.thorough
def test_without_slurm_the_scripts_are_printed_and_nothing_is_written(tmp_path):
    toy_study.make(tmp_path)
    places = [p for p in os.environ["PATH"].split(":") if not (pathlib.Path(p) / "sbatch").exists()]
    run = toy_study.run(tmp_path, "--launch=slurm", PATH=":".join(places))
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("#!/usr/bin/env bash") == 3
    assert "--dependency=afterany:<out-tuning>" in run.stdout.replace("'", "")
    assert "--run=rope-s9-lr0.001" in run.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.default_cases(0, thorough=1)
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--gpus=1",), "--gpus belong to --launch=slurm"),
        (("--run=rope-s7",), "needs a learning rate of the study's grid"),
        (("--launch=slurm", "--time=soon"), "--time=soon must look like"),
    ],
)
def test_wrong_flags_are_one_line(tmp_path, flags, words):
    toy_study.make(tmp_path)
    run = toy_study.run(tmp_path, *flags)
    assert run.returncode == 2, run.stderr
    assert words in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


@pytest.mark.thorough
def test_a_run_told_to_stop_ends_with_75(tmp_path):
    toy_study.make(tmp_path)
    train = tmp_path / "train.py"
    train.write_text(
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *a: sys.exit(75))\nopen('up', "
        "'w').close()\ntime.sleep(60)\n"
    )
    process = toy_study.start(tmp_path, "--run=rope-s9-lr0.001")
    deadline = time.time() + 60
    while not (tmp_path / "up").exists() and time.time() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert sys.platform != "linux" or not (tmp_path / "out/logs/rope-s9-lr0.001.json").exists()


REPORT = slurm.SlurmStage("x-report", (("true",),), "x-runs", computes=False)


def test_arguments_reach_the_script_and_the_report_gets_no_gpu_and_no_gpu_partition():
    asked = {
        "partition": "gpu",
        "report_partition": "cpu",
        "account": "lab",
        "qos": "high",
        "constraint": "a100",
        "gres": "gpu:a100:4",
        "nodes": 4,
        "gpus": 2,
        "memory": "32G",
    }
    lines = text(**asked).splitlines()
    for wanted in (
        "partition=gpu",
        "account=lab",
        "qos=high",
        "constraint=a100",
        "gres=gpu:a100:4",
        "nodes=4",
        "ntasks-per-node=1",
        "gpus-per-task=2",
        "mem=32G",
    ):
        assert f"#SBATCH --{wanted}" in lines
    report = text(REPORT, **asked)
    for wanted in ("partition=cpu", "account=lab", "qos=high", "nodes=1"):
        assert f"#SBATCH --{wanted}\n" in report
    assert not [word for word in ("gpu", "a100", "kill-on-bad-exit") if word in report]


def test_modules_and_the_prelude_come_before_the_strict_mode_and_the_environment(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "activate").touch()
    said = text(
        modules=("cuda/12", "gcc 13"), prelude=("export A=1", "ulimit -c 0"), venv=str(tmp_path)
    )
    order = [
        "export A=1",
        "ulimit -c 0",
        "module load cuda/12 || exit 2",
        "module load 'gcc 13' || exit 2",
        "set -euo pipefail",
        f"source {tmp_path}/bin/activate",
    ]
    places = [said.index(f"\n{line}\n") for line in order]
    assert places == sorted(places)


def test_a_task_of_several_nodes_lets_every_process_save():
    assert "\nsrun --kill-on-bad-exit=0 --wait=60 bash -c" in text(nodes=2)
    assert "\nsrun bash -c" in text()


def test_a_folder_without_an_environment_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"--venv={tmp_path} is no virtual environment"):
        slurm.Resources(venv=str(tmp_path))


@pytest.fixture
def toy(cluster, tmp_path):
    toy_study.make(tmp_path / "repo")
    return tmp_path / "repo"


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.thorough
def test_job_ids_are_kept_and_a_second_submission_is_refused_while_the_first_is_at_work(
    toy, cluster, monkeypatch
):
    folder = toy / "out" / "slurm"
    assert toy_study.run(toy, "--launch=slurm").returncode == 0
    jobs = json.loads((folder / "jobs.json").read_text())
    assert jobs == {"out-tuning": "101", "out-runs": "102", "out-report": "103"}
    stand_in(cluster.parent / "bin", "squeue", f'echo "squeue $*" >>{cluster}; echo 102; echo 102')
    with pytest.raises(ValueError, match="jobs 102 of this study are queued or at work") as error:
        slurm.refuse_second_submission(folder)
    assert "scancel 101 102 103" in str(error.value)
    assert lines(cluster)[-1] == "squeue --noheader --format=%A --jobs=101,102,103"
    sent = len(lines(cluster))
    refused = toy_study.run(toy, "--launch=slurm")
    assert refused.returncode == 2, refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not [line for line in lines(cluster)[sent:] if line.startswith("sbatch")]


@pytest.mark.parametrize(
    ("squeue", "said"),
    [
        ("exit 0", None),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", None),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", "does not say whether"),
    ],
)
def test_what_squeue_says_of_ended_jobs(cluster, tmp_path, squeue, said):
    stand_in(tmp_path / "bin", "squeue", squeue)
    (tmp_path / "jobs.json").write_text('{"x-runs": "5"}')
    if said is None:
        slurm.refuse_second_submission(tmp_path)
        return
    with pytest.raises(ValueError, match=said):
        slurm.refuse_second_submission(tmp_path)


def test_a_refused_stage_leaves_no_ids(cluster, tmp_path):
    stand_in(tmp_path / "bin", "sbatch", "[[ $* != *runs* ]] && echo 5")
    stages = [slurm.SlurmStage("x-tuning", (("true",),)), STAGE]
    paths = slurm.write(stages, slurm.Resources(), root=tmp_path, folder=tmp_path / "slurm")
    with pytest.raises(ValueError, match="sbatch refused"):
        slurm.submit(stages, paths)
    assert not (tmp_path / "slurm" / slurm.JOBS).exists()


@pytest.mark.thorough
def test_a_dry_run_prints_and_writes_nothing(toy, cluster):
    done = toy_study.run(toy, "--launch=slurm", "--dry_run", "--qos=high")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("#SBATCH --qos=high") == 3
    assert done.stdout.splitlines()[-1] == "# --dry_run: nothing was written or submitted"
    assert not (toy / "out").exists()
    assert not cluster.exists()
    refused = toy_study.run(toy, "--dry_run")
    assert refused.returncode == 2
    assert "--dry_run belong to --launch=slurm" in refused.stderr


@pytest.mark.thorough
def test_finished_runs_are_not_queued_again(toy, cluster):
    assert toy_study.run(toy).returncode == 0
    (toy / "out" / "logs" / "sum-s1.json").unlink()
    done = toy_study.run(toy, "--launch=slurm")
    assert done.returncode == 0, done.stderr
    folder = toy / "out" / "slurm"
    assert [line.split()[-1] for line in lines(folder / "out-runs.tasks")] == ["--run=sum-s1"]
    assert not (folder / "out-tuning.tasks").exists()
    assert [line.split()[-1] for line in lines(cluster)] == [
        f"{folder}/out-runs.sh",
        f"{folder}/out-report.sh",
    ]


def test_a_further_process_of_a_run_trains_and_nothing_else(tmp_path):
    train, evaluate = ("python", "train.py"), ("python", "scripts/evaluate.py")
    run = local_executor.RunCommands("r", "a", tmp_path / "r", (train, evaluate), "s", ())
    other = run.of_process(1, tmp_path / "logs")
    assert other.commands == (train,)
    assert other.name == "r.1"
    assert not local_executor.finished(other, tmp_path / "logs")


@pytest.mark.thorough
def test_two_processes_of_a_task_train_once_each_and_one_evaluates(tmp_path):
    toy_study.make(tmp_path)
    name = "rope-s9-lr0.001"
    slurm_says = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "a,b",
        "SLURM_NTASKS": "2",
        "SLURM_LOCALID": "0",
    }
    for process in ("1", "0"):
        done = toy_study.run(tmp_path, f"--run={name}", SLURM_PROCID=process, **slurm_says)
        assert done.returncode == 0, done.stdout + done.stderr
        evaluated = (tmp_path / "out" / "tuning" / name / "evaluation_dev").exists()
        assert evaluated == (process == "0")
    assert toy_study.trained(tmp_path) == [name, name]
    logs = sorted(path.name for path in pathlib.Path(tmp_path / "out" / "logs").glob("*.log"))
    assert logs == [f"{name}.1.log", f"{name}.log"]
    assert "evaluate.py" not in (tmp_path / "out" / "logs" / f"{name}.1.log").read_text()
