"""Slurm array jobs of a study: one task a run; tasks are safe to repeat and requeued when preempted."""

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
    """Resources of a task; empty or 0 means the default of the cluster.

    Attributes:
      partition, account, time: arguments of sbatch. gpus, cpus: per task. memory: such as 32G.
      venv: folder of a virtual environment to activate. container: an image for srun's --container-image
        (pyxis). Only one of these two may be set. at_once: largest number of tasks at a time.
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
class SlurmStage:
    """An array job: the commands of its tasks, and the stage it waits for.

    Attributes:
      name: of the job and of its files. tasks: one command each. after: name of an earlier stage that must
        end first, with or without failed tasks; "" for none. gpus: whether its tasks get GPUs.
    """

    name: str
    tasks: tuple[tuple[str, ...], ...]
    after: str = ""
    gpus: bool = True


def script(stage: SlurmStage, resources: Resources, *, root: Path, folder: Path) -> str:
    """Returns the batch script of a stage.

    Slurm sends SIGTERM when the job is preempted and WARNING_SECONDS before its time ends. The run then
    saves and exits with STOPPED, and the task requeues itself.

    Args:
      root: the repository, in which the commands run. folder: of the task lists and the logs.
    """
    options = {
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
        "signal": f"TERM@{WARNING_SECONDS}",  # to the task; srun would kill it with SIGKILL
        "open-mode": "append",
        "output": f"{folder / stage.name}-%a.log",
    }
    head = [f"#SBATCH --{key}={value}" for key, value in options.items() if value]
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


def write(
    stages: Sequence[SlurmStage], resources: Resources, *, root: Path, folder: Path
) -> list[Path]:
    """Writes the script and the task list of every stage; returns the paths of the scripts in order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for stage in stages:
        (folder / f"{stage.name}.tasks").write_text("".join(shlex.join(t) + "\n" for t in stage.tasks))  # fmt: skip
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
    """Submits every stage and returns the job ids by stage.

    Raises:
      FileNotFoundError: there is no sbatch. ValueError: sbatch refused a stage; earlier stages are cancelled.
    """
    if not available():
        raise FileNotFoundError("there is no sbatch on the PATH")
    jobs: dict[str, str] = {}
    for stage, path in zip(stages, paths, strict=True):
        reply = subprocess.run(submission(stage, path, jobs), capture_output=True, text=True)
        job = reply.stdout.strip().partition(";")[0]  # id;cluster
        if reply.returncode or not job.isdigit():
            if jobs:
                subprocess.run(["scancel", *jobs.values()], check=False)
            raise ValueError(
                f"sbatch refused {path}: {' '.join((reply.stderr or reply.stdout).split())}"
            )
        jobs[stage.name] = job
    return jobs


def available() -> bool:
    """Whether this machine can submit to Slurm."""
    return shutil.which("sbatch") is not None
