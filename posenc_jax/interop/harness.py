"""One call of lm-evaluation-harness on a run; writes its results and our rows."""

import dataclasses
import difflib
import json
import os
from pathlib import Path

# Otherwise the harness forks this process, which has threads of JAX, to bootstrap its errors.
os.environ.setdefault("LMEVAL_DISABLE_MULTIPROC", "1")

import lm_eval
from lm_eval.api.group import Group
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable, make_table

from posenc_jax.evaluation.lengths import Multiple, tokens_of
from posenc_jax.interop.lm_eval import RunModel
from posenc_jax.interop.lm_eval_tasks import METRICS, PREFIX, RetrievalTask, RetrievalTasks
from posenc_jax.results.files import json_lines, replace_text


@dataclasses.dataclass(frozen=True)
class HarnessRequest:
    """The tasks of one call of the harness, and how they are scored.

    Attributes:
      tasks: names of ours (`posenc_jax.interop.lm_eval_tasks`) and of the harness, or paths of YAML
        files.
      multiples, stretch, split: as in `posenc_jax.evaluation.evaluate.evaluate`. instances: of each
        task of ours. include_path: folder of further YAML tasks. limit: largest number of documents
        of a task.
      window: see `RunModel`. samples: whether to write every document with its answer. seed: of
        sampled generation and few-shot examples. out: folder of the results; None: lm_eval/ in the
        run's folder.
    """

    tasks: tuple[str, ...]
    multiples: tuple[Multiple, ...] | None = None
    stretch: str | None = None
    split: str = "dev"
    instances: int | None = None
    include_path: str | None = None
    limit: int | None = None
    window: int | None = None
    samples: bool = False
    seed: int = 0
    out: Path | None = None


def run_harness(workdir: Path, request: HarnessRequest) -> Path:
    """Scores the last checkpoint of a run on tasks of the harness and returns the folder of the
    results.

    results.json is that of the harness; rows.jsonl has a row for every task, metric and group;
    samples/<task>.jsonl has the documents and answers. A second call replaces them.

    Raises:
      ValueError: no trained run, or an unknown task, length, split or setting.
    """
    model = RunModel(workdir, stretch=request.stretch, window=request.window, seed=request.seed)
    lengths = model.run.multiples(request.multiples)
    ours = RetrievalTasks(
        model.run, multiples=lengths, split=request.split, instances=request.instances
    )
    manager, wanted = _resolved(request.tasks, ours, request.include_path)
    results = simple_evaluate(
        model=model,
        tasks=wanted,
        task_manager=manager,
        limit=request.limit,
        log_samples=request.samples,
        bootstrap_iters=1000,
        fewshot_random_seed=request.seed,
    )
    folder = (
        request.out
        or model.run.folder(tokens_of(max(lengths), model.run.config.placed_length)) / "lm_eval"
    )
    folder.mkdir(parents=True, exist_ok=True)
    for task, samples in results.pop("samples", {}).items():
        (folder / "samples").mkdir(exist_ok=True)
        lines = [json.dumps(sample, default=handle_non_serializable) + "\n" for sample in samples]
        replace_text(folder / "samples" / f"{task}.jsonl", "".join(lines))
    text = json.dumps(results, indent=2, default=handle_non_serializable)
    replace_text(folder / "results.json", text + "\n")
    rows = _rows(results, model, ours, _leaves(wanted))
    replace_text(folder / "rows.jsonl", json_lines(rows))
    print(make_table(results))
    if "groups" in results:
        print(make_table(results, "groups"))
    return folder


def _resolved(names: tuple[str, ...], ours: RetrievalTasks, include_path: str | None):
    """Returns the task manager of the harness, and the tasks: ours as objects, others by name."""
    if include_path is not None and not Path(include_path).is_dir():
        raise ValueError(f"--include_path={include_path} is no folder")
    if not names or not all(names):
        raise ValueError("--tasks must name at least one task")
    of_harness = [
        name for name in names if not name.startswith(PREFIX) and not Path(name).is_file()
    ]
    manager = TaskManager(include_path=include_path, include_defaults=False)
    if set(of_harness) - set(manager.all_tasks):
        # Reading the thousands of task files of the harness takes seconds, so only for one of these
        # tasks.
        manager = TaskManager(include_path=include_path)
    for name in of_harness:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=1)
            raise ValueError(
                f"no task {name!r} in lm-eval {lm_eval.__version__}, nor a file of that name"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
    wanted = [ours.named(name) if name.startswith(PREFIX) else name for name in names]
    for name, task in zip(names, wanted, strict=True):
        if isinstance(task, Group) and not task.get_all_tasks():
            reasons = "; ".join(reason for _, _, reason in ours.skipped)
            raise ValueError(f"{name} has no task at these lengths: {reasons}")
    return manager, wanted


def _leaves(wanted: list) -> dict[str, RetrievalTask]:
    leaves = {}
    for entry in wanted:
        if not isinstance(entry, str):
            members = entry.get_all_tasks() if isinstance(entry, Group) else [entry]
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
    for name, scores in results["results"].items():
        task = leaves.get(name)
        for key, value in scores.items():
            metric, _, chain = key.partition(",")
            if not chain or metric.endswith("_stderr"):
                continue
            error = scores.get(f"{metric}_stderr,{chain}")
            measured = {
                "value": value,
                "stderr": error if isinstance(error, float) else None,
                "n": scores["sample_len"],
            }
            if task is not None:
                measured |= {"chance": task.chance} if metric != "nll" else {}
                metric = f"{task.task.name}_{metric}"
                key_fields = _key_fields("R", metric, task.length, L, task.bucket, ours.split)
            else:
                named = f"{name}/{metric}" if chain == "none" else f"{name}/{metric},{chain}"
                split = ours.split if name.startswith(PREFIX) else None
                key_fields = _key_fields("lm_eval", named, None, L, "all", split)
            rows.append(same | key_fields | measured)
    for task, length, reason in ours.skipped:
        key_fields = _key_fields("R", f"{task}_{next(iter(METRICS))}", length, L, "all", ours.split)
        rows.append(same | key_fields | {"value": None, "stderr": None, "n": 0, "skipped": reason})
    return rows


def _key_fields(suite, metric, length, train_length, bucket, split) -> dict:
    k = None if length is None else length / train_length
    return {
        "suite": suite,
        "metric": metric,
        "length": length,
        "k": k,
        "bucket": bucket,
        "split": split,
    }
