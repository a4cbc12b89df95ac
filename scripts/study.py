"""Runs a study: python scripts/study.py --study=configs/studies/quickstart.py
--workdir=studies/quickstart.

Trains and evaluates every run, several at a time: first the learning-rate search, if the study has
one, then the runs that count. Rows are of dev unless the study has split="test". Then it writes
rows.jsonl, the verdict if the study names hybrids, and report.html. The same command resumes a
stopped study.

--launch=slurm submits the study as array jobs, one task a run; with --dry_run, or without Slurm, it
prints them. Finished runs are left out. A second submission is refused while the first is at work.
--run=NAME runs one run of the study; --collect writes rows, verdict and report from the runs that
exist.

Exit codes: 0 all runs done, 1 some failed (they are named), 2 wrong input, 75 stopped, can be
resumed.
"""

import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path

import installed  # noqa: F401
from absl import flags

from posenc_jax import cli
from posenc_jax.results.schema import DONE, FAILED, STOPPED

_STUDY = flags.DEFINE_string(
    "study", None, "Study file, e.g. configs/studies/quickstart.py", required=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study", required=True)
_WORKERS = flags.DEFINE_integer(
    "workers",
    0,
    "Runs at a time; 0: one per core on CPU, one on accelerators, as many as Slurm starts",
    lower_bound=0,
)
_LAUNCH = flags.DEFINE_enum("launch", "local", ["local", "slurm"], "Where the runs are started")
_RUN = flags.DEFINE_string("run", None, "One run by its name, e.g. rope-s0 or rope-s90-lr0.01")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Slurm: print the jobs, write and submit nothing")
_COLLECT = flags.DEFINE_bool(
    "collect", False, "Only write rows, verdict and report, from the runs that exist"
)
_SLURM = {
    "partition": flags.DEFINE_string("partition", "", "Slurm: partition of the runs"),
    "report_partition": flags.DEFINE_string(
        "report_partition", "", "Slurm: partition of the report, which needs no GPU"
    ),
    "account": flags.DEFINE_string("account", "", "Slurm: account"),
    "qos": flags.DEFINE_string("qos", "", "Slurm: quality of service"),
    "constraint": flags.DEFINE_string("constraint", "", "Slurm: features that a node must have"),
    "gres": flags.DEFINE_string("gres", "", "Slurm: generic resources of a run, e.g. gpu:a100:4"),
    "nodes": flags.DEFINE_integer(
        "nodes", 1, "Slurm: nodes of a run, one process on each", lower_bound=1
    ),
    "modules": flags.DEFINE_list("modules", [], "Slurm: environment modules that the tasks load"),
    "prelude": flags.DEFINE_multi_string(
        "prelude", [], "Slurm: a line of bash at the start of every task; may be repeated"
    ),
    "time": flags.DEFINE_string("time", "", "Slurm: time limit of a run, e.g. 4:00:00"),
    "gpus": flags.DEFINE_integer("gpus", 0, "Slurm: GPUs of a process", lower_bound=0),
    "cpus": flags.DEFINE_integer("cpus", 0, "Slurm: CPU cores of a run", lower_bound=0),
    "memory": flags.DEFINE_string("memory", "", "Slurm: memory of a run, e.g. 32G"),
    "venv": flags.DEFINE_string("venv", "", "Slurm: virtual environment that the tasks activate"),
    "container": flags.DEFINE_string(
        "container", "", "Slurm: container image of the tasks (pyxis)"
    ),
}
_ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Runs a study, one of its runs, or its last step."""
    from posenc_jax.study.runner import study_runner
    from posenc_jax.training.workdir import lock_workdir

    module, workdir = _load(_STUDY.value), Path(_WORKDIR.value)
    given = [f"--{f.name}" for f in (*_SLURM.values(), _DRY_RUN) if f.present]
    if given and _LAUNCH.value != "slurm":
        raise ValueError(f"{', '.join(given)} belong to --launch=slurm")
    if sum((_LAUNCH.value == "slurm", _RUN.value is not None, _COLLECT.value)) > 1:
        raise ValueError("--launch=slurm, --run and --collect exclude each other")
    plan = study_runner(
        module.STUDY, module.get_config, _STUDY.value, workdir, Path(os.path.relpath(_ROOT))
    )
    plan.check()
    if _LAUNCH.value == "slurm":
        return _slurm(plan)
    try:
        if _RUN.value is not None:
            return _run_one(plan)
        with lock_workdir(workdir):
            plan.begin()
            return _collect(plan, []) if _COLLECT.value else _run_study(plan)
    except KeyboardInterrupt:
        print("stopped; run the same command to go on", file=sys.stderr)
        return STOPPED


def _run_study(plan) -> int:
    study = plan.study
    print(_about_split(study))
    for name, reason in study.skipped().items():
        print(f"{name} is left out: {reason}")
    failed, stopped = _run_all(plan, plan.runs(study.tuning_grid()), "tuning runs")
    if stopped:
        return _stopped(stopped)
    rates, remarks = plan.rates()
    plan.write_tuning()
    for line in remarks:
        print(line)
    for wave in study.waves(study.grid(rates)):
        for what, runs in (("programs of several seeds", plan.programs), ("runs", plan.runs)):
            lost, stopped = _run_all(plan, runs(wave), what)
            if stopped:
                return _stopped(stopped)
            failed = (*failed, *lost)
    return _collect(plan, failed)


def _run_all(plan, runs, what: str):
    from posenc_jax.study.local_executor import run_all, usable_cores

    if not runs:
        return (), ()
    cores, cpu = usable_cores(), _on_cpu()
    workers = _WORKERS.value or (len(cores) if cpu else 1)
    pinned = [
        cores[i % len(cores)] if cpu and workers <= len(cores) else None for i in range(workers)
    ]
    print(f"{len(runs)} {what}, {workers} at a time; logs in {plan.logs}", flush=True)
    outcome = run_all(runs, plan.logs, cores=pinned)
    return outcome.failed, outcome.stopped


def _run_one(plan) -> int:
    """Runs one run on all cores and devices of this process, as a task of an array does.

    Of several processes of a task the first also evaluates.
    """
    from posenc_jax.study.local_executor import finished, run_all

    study = plan.study
    groups = {cell.name: (cell,) for cell in study.tuning_grid()}
    if _RUN.value not in groups:
        planned = _groups(study, {arm.name: None for arm in study.arms})
        if _RUN.value not in planned:
            study.cell(_RUN.value)  # raises for an unknown name
            raise ValueError(
                f"--run={_RUN.value} is not the name of a run: "
                f"{', '.join([*groups, *planned][:6])} ..."
            )
        groups = _groups(study, plan.rates()[0])
        if _RUN.value not in groups:
            print(f"{_RUN.value}: no learning rate could be chosen for it", file=sys.stderr)
            return FAILED
    codes, process = [], _slurm_process()
    for commands_of in (
        plan.programs,
        plan.runs,
    ):  # the second depends on what the first has trained
        runs = commands_of(groups[_RUN.value])
        if process:
            runs = [r.of_process(process, plan.logs) for r in runs if not finished(r, plan.logs)]
        if not runs:
            continue
        outcome = run_all(runs, plan.logs, cores=[None])
        if outcome.stopped:
            return STOPPED
        codes.append(FAILED if outcome.failed else DONE)
    return max(codes, default=DONE)


def _slurm_process() -> int:
    """Returns the index of this process in a task of several nodes, else 0."""
    from posenc_jax.training.hosts import launcher

    return int(os.environ["SLURM_PROCID"]) if launcher(os.environ) == "slurm" else 0


def _groups(study, rates) -> dict:
    """Returns the runs that count by the name of a task: one run, or all seeds of an arm."""
    from posenc_jax.study.grid import group_name

    return {group_name(group): group for group in study.groups(study.grid(rates))}


def _collect(plan, failed) -> int:
    """Writes rows, verdict and report from the runs that exist; names the others."""
    from posenc_jax.report.page import write_report
    from posenc_jax.results.load import load

    rates, _ = plan.rates()
    plan.write_tuning()
    cells = plan.study.grid(rates)
    print(plan.collect(cells))
    if not plan.study.slots():
        print("the study has no runs that count: the chosen rates are its result")
        return FAILED if failed else DONE
    _verdict(plan)
    print(write_report(load(plan.workdir, plan.study.split), plan.workdir))
    missing = [name for name in plan.study.slots() if name not in {c.name for c in cells}]
    missing += [c.name for c in cells if not (plan.evaluation(c) / "evaluation.json").exists()]
    named = list(dict.fromkeys([*failed, *missing]))
    if named:
        print(f"{len(named)} runs failed or have not ended: {', '.join(named)}", file=sys.stderr)
    return FAILED if named else DONE


def _verdict(plan) -> None:
    """Calls scripts/verdict.py if the study has hybrids."""
    if not plan.study.roles.get("hybrids"):
        return
    command = [sys.executable, _ROOT / "scripts" / "verdict.py", f"--workdir={plan.workdir}"]
    command += [f"--prereg={plan.study.prereg}"] if plan.study.prereg else []
    done = subprocess.run(command, capture_output=True, text=True)
    print((done.stdout if done.returncode == 0 else f"no verdict: {done.stderr}").strip())


def _about_split(study) -> str:
    """Returns a line about the split of the rows of the runs that count."""
    if study.split == "dev":
        return "rows are of dev: exploration"
    return (
        "rows are of test, "
        f"{f'by the plan {study.prereg}' if study.prereg else study.record()['deviations'][0]}"
    )


def _slurm(plan) -> int:
    from posenc_jax.study import slurm

    study = plan.study
    options = {name: flag.value for name, flag in _SLURM.items()}
    resources = slurm.Resources(**options, at_once=_WORKERS.value)
    command = (
        "python",
        "scripts/study.py",
        f"--study={Path(_STUDY.value).resolve()}",
        f"--workdir={plan.workdir.resolve()}",
    )
    command += (
        (f"--import={','.join(flags.FLAGS['import'].value)}",)
        if flags.FLAGS["import"].value
        else ()
    )
    if resources.nodes > 1 and study.together:
        raise ValueError(
            "--nodes is for runs that train alone; seeds in one program have one device"
        )
    name, folder = plan.workdir.resolve().name, plan.workdir.resolve() / "slurm"
    stages, after = [], ""
    for what, runs in _queued(plan):
        if runs:
            tasks = tuple((*command, f"--run={run}") for run in runs)
            stages.append(slurm.SlurmStage(f"{name}-{what}", tasks, after))
            after = stages[-1].name
    collect = ((*command, "--collect"),)
    stages.append(slurm.SlurmStage(f"{name}-report", collect, after, computes=False))
    if _DRY_RUN.value or not slurm.available():
        for stage in stages:
            submission = slurm.submission(
                stage, folder / f"{stage.name}.sh", {s.name: f"<{s.name}>" for s in stages}
            )
            print(f"# {shlex.join(submission)}")
            print(slurm.script(stage, resources, root=_ROOT, folder=folder))
            print("\n".join(f"#   {shlex.join(task)}" for task in stage.tasks), end="\n\n")
        why = "--dry_run" if _DRY_RUN.value else "no sbatch on the PATH"
        print(f"# {why}: nothing was written or submitted")
        return DONE
    slurm.refuse_second_submission(folder)
    plan.begin()
    paths = slurm.write(stages, resources, root=_ROOT, folder=folder)
    for stage, job in slurm.submit(stages, paths).items():
        print(f"{stage}: job {job}")
    return DONE


def _queued(plan) -> list[tuple[str, list[str]]]:
    """Returns the names of the tasks of each stage, without runs that are finished."""
    study = plan.study
    tuning = [c.name for c in study.tuning_grid() if not plan.finished((c,))]
    known = {arm.name: None for arm in study.arms} if tuning else plan.rates()[0]
    groups = _groups(study, known)
    left = [run for run, group in groups.items() if tuning or not plan.finished(group)]
    tuned = [run for run in left if groups[run][0].arm.parent]
    return [
        ("tuning", tuning),
        ("runs", [run for run in left if run not in tuned]),
        ("finetuning", tuned),
    ]


def _stopped(names) -> int:
    print(f"{', '.join(names)} stopped; run the same command to go on", file=sys.stderr)
    return STOPPED


def _load(path: str):
    """Returns the study file as a module with STUDY and get_config(setting)."""
    if not Path(path).is_file() or Path(path).suffix != ".py":
        raise ValueError(f"--study={path} is no file of Python; studies lie in configs/studies/")
    sys.path.insert(0, str(_ROOT))
    spec = importlib.util.spec_from_file_location("study", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"--study={path}: {cli.fault_of_file(error, path)}") from error
    missing = [n for n in ("STUDY", "get_config") if not hasattr(module, n)]
    if missing:
        raise ValueError(f"--study={path} is no study file: it has no {', '.join(missing)}")
    return module


def _on_cpu() -> bool:
    import jax

    return jax.default_backend() == "cpu"


if __name__ == "__main__":
    cli.run_main(main)
