"""Slurm array jobs of a study: one task a run; tasks are safe to repeat and requeued when
preempted.
"""

import dataclasses
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from posenc_jax.results.files import read_json, write_json
from posenc_jax.results.schema import STOPPED

WARNING_SECONDS = 120  # between SIGTERM and the end: enough to finish a step and save


JOBS = "jobs.json"  # ids of the jobs of a study, by stage


@dataclasses.dataclass(frozen=True)
class Resources:
    """Resources of a task; empty or 0 means the default of the cluster.

    Attributes:
      partition, account, qos, constraint, gres, time: arguments of sbatch. report_partition: of the
        report, which gets no GPU and none of partition, constraint and gres. nodes: of a run, with
        one process on each. gpus, cpus: per process. memory: of a node, such as 32G.
      modules: environment modules to load. prelude: lines of bash that run before the modules.
      venv: folder of a virtual environment to activate. container: an image for srun's
        --container-image (pyxis). Only one of these two may be set. at_once: largest number of
        tasks at a time.

    Raises:
      ValueError: a word with a space in it, a wrong time, no venv in the folder, or venv and
        container.
    """

    partition: str = ""
    report_partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    gres: str = ""
    time: str = ""
    nodes: int = 1
    gpus: int = 0
    cpus: int = 0
    memory: str = ""
    modules: Sequence[str] = ()
    prelude: Sequence[str] = ()
    venv: str = ""
    container: str = ""
    at_once: int = 0

    def __post_init__(self):
        words = (
            "partition",
            "report_partition",
            "account",
            "qos",
            "constraint",
            "gres",
            "time",
            "memory",
        )
        for name in words:
            if re.search(r"\s", getattr(self, name)):
                raise ValueError(f"--{name}={getattr(self, name)!r} must be one word")
        if self.time and not re.fullmatch(r"(\d+-)?\d+(:\d{1,2}){0,2}", self.time):
            raise ValueError(f"--time={self.time} must look like 90, 4:00:00 or 1-12:00:00")
        if self.venv and self.container:
            raise ValueError("--venv and --container exclude each other: the container has its own")
        if self.venv and not _activate(self.venv).is_file():
            raise ValueError(
                f"--venv={self.venv} is no virtual environment: it has no bin/activate"
            )


@dataclasses.dataclass(frozen=True)
class SlurmStage:
    """An array job: the commands of its tasks, and the stage it waits for.

    Attributes:
      name: of the job and of its files. tasks: one command each. after: name of an earlier stage
        that must end first, with or without failed tasks; "" for none. computes: whether its tasks
        get the nodes, GPUs and partition of runs; False for the report.
    """

    name: str
    tasks: tuple[tuple[str, ...], ...]
    after: str = ""
    computes: bool = True


def script(stage: SlurmStage, resources: Resources, *, root: Path, folder: Path) -> str:
    """Returns the batch script of a stage.

    Slurm sends SIGTERM when the job is preempted and WARNING_SECONDS before its time ends. The run
    then saves and exits with STOPPED, and the task requeues itself.

    Args:
      root: the repository, in which the commands run. folder: of the task lists and the logs.
    """
    if re.search(r"\s", str(folder)):
        raise ValueError(
            f"{folder}: sbatch reads no path with a space in it; choose another --workdir"
        )
    head = [
        f"#SBATCH --{key}={value}" for key, value in _options(stage, resources, folder) if value
    ]
    before = [
        *resources.prelude,
        *(f"module load {shlex.quote(m)} || exit 2" for m in resources.modules),
    ]
    activate = ""
    if resources.venv:
        entry = shlex.quote(str(_activate(resources.venv)))
        activate = f"# shellcheck disable=SC1091\nsource {entry}\n"
    return f"""#!/usr/bin/env bash
{chr(10).join(head)}
#SBATCH --requeue
# Line SLURM_ARRAY_TASK_ID of {stage.name}.tasks is this task's command. It is safe to repeat.
{"".join(f"{line}{chr(10)}" for line in before)}set -euo pipefail
cd {shlex.quote(str(root))}
{activate}task="$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" {shlex.quote(str(folder / stage.name))}.tasks)"

trap : TERM # this shell stays, to requeue
code=0
{shlex.join(_srun(stage, resources, root, folder))} bash -c "exec $task" || code=$?
# A task that scancel ended is not RUNNING any more, and must not come back.
if [ "$code" -eq {STOPPED} ] && [ "$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")" = RUNNING ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$code"
"""  # noqa: E501


def _activate(venv: str) -> Path:
    return Path(venv).absolute() / "bin" / "activate"


def _options(stage: SlurmStage, resources: Resources, folder: Path) -> list[tuple[str, object]]:
    """Returns the options of sbatch; a false value stands for the cluster's default."""
    runs, limit = stage.computes, f"%{resources.at_once}" if resources.at_once else ""
    return [
        ("job-name", stage.name),
        ("array", f"1-{len(stage.tasks)}{limit}"),
        ("nodes", resources.nodes if runs else 1),
        ("ntasks-per-node", 1),
        ("partition", resources.partition if runs else resources.report_partition),
        ("account", resources.account),
        ("qos", resources.qos),
        ("constraint", resources.constraint if runs else ""),
        ("gres", resources.gres if runs else ""),
        ("time", resources.time),
        ("gpus-per-task", resources.gpus if runs else 0),
        ("cpus-per-task", resources.cpus),
        ("mem", resources.memory),
        ("signal", f"TERM@{WARNING_SECONDS}"),  # to the task; srun would kill it with SIGKILL
        ("open-mode", "append"),
        ("output", f"{folder / stage.name}-%a.log"),
    ]


def _srun(stage: SlurmStage, resources: Resources, root: Path, folder: Path) -> list[str]:
    """Returns the srun that starts a task, with one process on each node."""
    srun = ["srun"]
    if stage.computes and resources.nodes > 1:
        # A process that has saved and ended must not end those that still save.
        srun += ["--kill-on-bad-exit=0", "--wait=60"]
    if resources.container:
        places = f"{root}:{root},{folder.parent}:{folder.parent}"
        srun += [
            f"--container-image={resources.container}",
            f"--container-mounts={places}",
            f"--container-workdir={root}",
        ]
    return srun


def write(
    stages: Sequence[SlurmStage], resources: Resources, *, root: Path, folder: Path
) -> list[Path]:
    """Writes script and task list of every stage; returns the scripts in order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for stage in stages:
        (folder / f"{stage.name}.tasks").write_text(
            "".join(shlex.join(t) + "\n" for t in stage.tasks)
        )
        path = folder / f"{stage.name}.sh"
        path.write_text(script(stage, resources, root=root, folder=folder))
        paths.append(path)
    return paths


def submission(stage: SlurmStage, path: Path, jobs: Mapping[str, str]) -> list[str]:
    """Returns the sbatch command of a stage; jobs: ids of the stages submitted before, by name."""
    # afterany: a failed run is named at the end; it does not stop the other runs.
    wait = [f"--dependency=afterany:{jobs[stage.after]}"] if stage.after else []
    return ["sbatch", "--parsable", *wait, str(path)]


def submit(stages: Sequence[SlurmStage], paths: Sequence[Path]) -> dict[str, str]:
    """Submits every stage and returns the job ids by stage, which JOBS beside the scripts keeps.

    Raises:
      FileNotFoundError: there is no sbatch. ValueError: sbatch refused a stage; earlier stages are
        cancelled.
    """
    if not available():
        raise FileNotFoundError("there is no sbatch on the PATH")
    jobs: dict[str, str] = {}
    kept = paths[0].with_name(JOBS)
    for stage, path in zip(stages, paths, strict=True):
        reply = subprocess.run(submission(stage, path, jobs), capture_output=True, text=True)
        job = reply.stdout.strip().partition(";")[0]  # id;cluster
        if reply.returncode or not job.isdigit():
            if jobs:
                subprocess.run(["scancel", *jobs.values()], check=False)
                kept.unlink()
            raise ValueError(
                f"sbatch refused {path}: {' '.join((reply.stderr or reply.stdout).split())}"
            )
        jobs[stage.name] = job
        write_json(kept, jobs)
    return jobs


def refuse_second_submission(folder: Path) -> None:
    """Raises ValueError while jobs of the submission in `folder` are queued or at work."""
    path = folder / JOBS
    if not path.exists() or not (jobs := read_json(path)):
        return
    ids = ",".join(map(str, jobs.values()))
    reply = subprocess.run(
        ["squeue", "--noheader", "--format=%A", f"--jobs={ids}"], capture_output=True, text=True
    )
    if reply.returncode and "Invalid job id" not in reply.stderr:  # Slurm has forgotten ended jobs
        raise ValueError(
            f"squeue does not say whether jobs {ids} of {path} have ended: "
            f"{' '.join(reply.stderr.split())}"
        )
    alive = list(dict.fromkeys(reply.stdout.split())) if not reply.returncode else []
    if alive:
        raise ValueError(
            f"jobs {', '.join(alive)} of this study are queued or at work ({path}); wait for them, "
            f"or scancel {' '.join(map(str, jobs.values()))} and submit again"
        )


def available() -> bool:
    """Whether this machine can submit to Slurm."""
    return shutil.which("sbatch") is not None
