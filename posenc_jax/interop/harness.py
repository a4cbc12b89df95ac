"""One call of lm-evaluation-harness on a run: names of tasks in, its results and our tidy rows out."""

import difflib
import json
import os
from pathlib import Path

# The harness would otherwise fork this process, with JAX's threads in it, to bootstrap its errors.
os.environ.setdefault("LMEVAL_DISABLE_MULTIPROC", "1")

import lm_eval
from lm_eval.api.group import Group
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable, make_table

from posenc_jax.interop.lm_eval import RunModel
from posenc_jax.interop.lm_eval_tasks import METRICS, PREFIX, RetrievalTask, RetrievalTasks
from posenc_jax.results.files import json_lines, replace_text


def run_harness(
    workdir: Path,
    *,
    tasks: tuple[str, ...],
    multiples: tuple[int, ...] | None,
    stretch: str | None,
    split: str,
    instances: int | None,
    include_path: str | None,
    limit: int | None,
    window: int | None,
    samples: bool,
    seed: int,
    out: Path | None,
) -> Path:
    """Scores the last checkpoint of a run on tasks of the harness and returns the folder of the results.

    results.json is the harness's own; rows.jsonl holds a tidy row per task, metric and group;
    samples/<task>.jsonl every document with what was answered, where asked for. A second call
    replaces them.

    Args:
      tasks: names of ours (`posenc_jax.interop.lm_eval_tasks`) and of the harness, or paths of YAML
        files. multiples, stretch, split: as in `posenc_jax.evaluation.evaluate.evaluate`. instances: per
        task of ours. include_path: folder of further YAML tasks. limit: documents per task at most.
        window: see `RunModel`. seed: of sampled generation and of few-shot examples. out: folder of the
        results; None: lm_eval/ in the run's folder.

    Raises:
      ValueError: no trained run, or a task, length, split or setting that there is not.
    """
    model = RunModel(workdir, stretch=stretch, window=window, seed=seed)
    lengths = model.run.multiples(multiples)
    ours = RetrievalTasks(model.run, multiples=lengths, split=split, instances=instances)
    manager, wanted = _chosen(tasks, ours, include_path)
    results = simple_evaluate(
        model=model,
        tasks=wanted,
        task_manager=manager,
        limit=limit,
        log_samples=samples,
        bootstrap_iters=1000,
        fewshot_random_seed=seed,
    )
    folder = out or model.run.folder(max(lengths) * model.run.config.placed_length) / "lm_eval"
    folder.mkdir(parents=True, exist_ok=True)
    for task, found in results.pop("samples", {}).items():
        (folder / "samples").mkdir(exist_ok=True)
        lines = [json.dumps(sample, default=handle_non_serializable) + "\n" for sample in found]
        replace_text(folder / "samples" / f"{task}.jsonl", "".join(lines))
    text = json.dumps(results, indent=2, default=handle_non_serializable)
    replace_text(folder / "results.json", text + "\n")
    rows = _rows(results, model, ours, _leaves(wanted))
    replace_text(folder / "rows.jsonl", json_lines(rows))
    print(make_table(results))
    if "groups" in results:
        print(make_table(results, "groups"))
    return folder


def _chosen(names: tuple[str, ...], ours: RetrievalTasks, include_path: str | None):
    """Returns the harness's task manager, and the tasks by object (ours) or by name (its)."""
    if include_path is not None and not Path(include_path).is_dir():
        raise ValueError(f"--include_path={include_path} is no folder")
    if not names or not all(names):
        raise ValueError("--tasks must name at least one task")
    theirs = [name for name in names if not name.startswith(PREFIX) and not Path(name).is_file()]
    manager = TaskManager(include_path=include_path, include_defaults=False)
    if set(theirs) - set(manager.all_tasks):
        # Reading the harness's thousands of files takes seconds, so only where one of them is asked for.
        manager = TaskManager(include_path=include_path)
    for name in theirs:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=1)
            raise ValueError(
                f"no task {name!r} in lm-eval {lm_eval.__version__}, nor a file of that name"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
    wanted = [ours.named(name) if name.startswith(PREFIX) else name for name in names]
    for name, found in zip(names, wanted, strict=True):
        if isinstance(found, Group) and not found.get_all_tasks():
            reasons = "; ".join(reason for _, _, reason in ours.skipped)
            raise ValueError(f"{name} holds nothing at these lengths: {reasons}")
    return manager, wanted


def _leaves(wanted: list) -> dict[str, RetrievalTask]:
    leaves = {}
    for found in wanted:
        if not isinstance(found, str):
            members = found.get_all_tasks() if isinstance(found, Group) else [found]
            leaves |= {task.task_name: task for task in members}
    return leaves


def _rows(results: dict, model: RunModel, ours: RetrievalTasks, leaves: dict) -> list[dict]:
    config = model.run.config
    L = config.placed_length
    same = {
        "run": model.run.workdir.name,
        "arm": config.arm,
        "seed": config.train.seed,
        "tier": config.train.tier,
        "train_length": L,
        "step": model.run.step,
        "harness": f"lm-eval {lm_eval.__version__}",
    }
    same |= {"unfinished": True} if model.run.unfinished else {}
    rows = []
    for name, found in results["results"].items():
        task = leaves.get(name)
        for key, value in found.items():
            metric, _, chain = key.partition(",")
            if not chain or metric.endswith("_stderr"):
                continue
            error = found.get(f"{metric}_stderr,{chain}")
            measured = {
                "value": value,
                "stderr": error if isinstance(error, float) else None,
                "n": found["sample_len"],
            }
            if task is not None:
                measured |= {"chance": task.chance} if metric != "nll" else {}
                place = _place(
                    "R", f"{task.task.name}_{metric}", task.length, L, task.bucket, ours.split
                )
            else:
                named = f"{name}/{metric}" if chain == "none" else f"{name}/{metric},{chain}"
                split = ours.split if name.startswith(PREFIX) else None
                place = _place("lm_eval", named, None, L, "all", split)
            rows.append(same | place | measured)
    for task, length, reason in ours.skipped:
        place = _place("R", f"{task}_{next(iter(METRICS))}", length, L, "all", ours.split)
        rows.append(same | place | {"value": None, "stderr": None, "n": 0, "skipped": reason})
    return rows


def _place(suite, metric, length, train_length, bucket, split) -> dict:
    k = None if length is None else length / train_length
    return {"suite": suite, "metric": metric, "length": length, "k": k, "bucket": bucket, "split": split}  # fmt: skip
