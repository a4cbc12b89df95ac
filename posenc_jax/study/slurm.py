"""A study as Slurm array jobs: one task a run, every task safe to repeat, requeued when preempted."""

import dataclasses
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from posenc_jax.results.schema import STOPPED

WARNING_SECONDS = 120  # between SIGTERM and the end: enough to finish a step and save


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a task asks for; empty or 0 leaves it to the cluster's defaults.

    Attributes:
      partition, account, time: as sbatch takes them. gpus, cpus: per task. memory: such as 32G.
      venv: folder of a virtual environment to activate. container: an image, by srun's
        --container-image (pyxis); one of the two at most. at_once: tasks of an array at a time.
    """

    partition: str = ""
    account: str = ""
    time: str = ""
    gpus: int = 0
    cpus: int = 0
    memory: str = ""
    venv: str = ""
    container: str = ""
    at_once: int = 0

    def __post_init__(self):
        for name in ("partition", "account", "time", "memory"):
            if re.search(r"\s", getattr(self, name)):
                raise ValueError(f"--{name}={getattr(self, name)!r} must be one word")
        if self.time and not re.fullmatch(r"(\d+-)?\d+(:\d{1,2}){0,2}", self.time):
            raise ValueError(f"--time={self.time} must look like 90, 4:00:00 or 1-12:00:00")
        if self.venv and self.container:
            raise ValueError("--venv and --container exclude each other: the container has its own")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One array job, or one single job: the commands of its tasks, and whom it waits for.

    Attributes:
      name: of the job and of its files. tasks: one command each. after: name of an earlier stage that
        must have ended, whether all its tasks succeeded or not; "" for none.
    """

    name: str
    tasks: tuple[tuple[str, ...], ...]
    after: str = ""
    gpus: bool = True


def script(stage: Stage, resources: Resources, *, root: Path, folder: Path) -> str:
    """Returns the batch script of a stage.

    SIGTERM arrives WARNING_SECONDS before the end of the time, or when the job is preempted; the run
    saves, exits with STOPPED, and the task puts itself back into the queue.

    Args:
      root: the repository, where the commands run. folder: for the list of tasks and the logs.
    """
    asked = {
        "job-name": stage.name,
        "array": f"1-{len(stage.tasks)}" + (f"%{resources.at_once}" if resources.at_once else ""),
        "nodes": 1,
        "ntasks": 1,
        "partition": resources.partition,
        "account": resources.account,
        "time": resources.time,
        "gpus-per-task": resources.gpus if stage.gpus else 0,
        "cpus-per-task": resources.cpus,
        "mem": resources.memory,
        "signal": f"TERM@{WARNING_SECONDS}",  # to the task: srun, told to end, kills it (-9)
        "open-mode": "append",
        "output": f"{folder / stage.name}-%a.log",
    }
    head = [f"#SBATCH --{key}={value}" for key, value in asked.items() if value]
    if re.search(r"\s", str(folder)):
        raise ValueError(f"{folder}: sbatch reads no path with a space in it; choose another --workdir")  # fmt: skip
    srun = ["srun"]
    if resources.container:
        places = f"{root}:{root},{folder.parent}:{folder.parent}"
        srun += [f"--container-image={resources.container}", f"--container-mounts={places}", f"--container-workdir={root}"]  # fmt: skip
    activate = ""
    if resources.venv:
        entry = Path(resources.venv).absolute() / "bin" / "activate"
        activate = f"# shellcheck disable=SC1091\nsource {shlex.quote(str(entry))}\n"
    return f"""#!/usr/bin/env bash
{chr(10).join(head)}
#SBATCH --requeue
# Line SLURM_ARRAY_TASK_ID of {stage.name}.tasks is this task's command. It is safe to repeat.
set -euo pipefail
cd {shlex.quote(str(root))}
{activate}task="$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" {shlex.quote(str(folder / stage.name))}.tasks)"

trap : TERM # this shell stays, to requeue
code=0
{shlex.join(srun)} bash -c "exec $task" || code=$?
# A task that scancel ended is not RUNNING any more, and must not come back.
if [ "$code" -eq {STOPPED} ] && [ "$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")" = RUNNING ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$code"
"""


def write(stages: Sequence[Stage], resources: Resources, *, root: Path, folder: Path) -> list[Path]:
    """Writes script and task list of every stage, and returns the scripts in order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for stage in stages:
        (folder / f"{stage.name}.tasks").write_text("".join(shlex.join(t) + "\n" for t in stage.tasks))  # fmt: skip
        path = folder / f"{stage.name}.sh"
        path.write_text(script(stage, resources, root=root, folder=folder))
        paths.append(path)
    return paths


def submission(stage: Stage, path: Path, jobs: Mapping[str, str]) -> list[str]:
    """Returns the sbatch command of a stage; jobs: ids of the stages submitted before, by name."""
    # afterany: a run that failed is named at the end, it does not hold up all the others.
    wait = [f"--dependency=afterany:{jobs[stage.after]}"] if stage.after else []
    return ["sbatch", "--parsable", *wait, str(path)]


def submit(stages: Sequence[Stage], paths: Sequence[Path]) -> dict[str, str]:
    """Submits every stage and returns the job ids by stage.

    Raises:
      FileNotFoundError: there is no sbatch. ValueError: it refused a stage; earlier ones are cancelled.
    """
    if not available():
        raise FileNotFoundError("there is no sbatch on the PATH")
    jobs: dict[str, str] = {}
    for stage, path in zip(stages, paths, strict=True):
        said = subprocess.run(submission(stage, path, jobs), capture_output=True, text=True)
        job = said.stdout.strip().partition(";")[0]  # id;cluster
        if said.returncode or not job.isdigit():
            if jobs:
                subprocess.run(["scancel", *jobs.values()], check=False)
            raise ValueError(
                f"sbatch refused {path}: {' '.join((said.stderr or said.stdout).split())}"
            )
        jobs[stage.name] = job
    return jobs


def available() -> bool:
    """Whether this machine can submit to Slurm."""
    return shutil.which("sbatch") is not None
