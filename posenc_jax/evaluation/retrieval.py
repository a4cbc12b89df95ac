"""Suite R: retrieval accuracy by context length, needle distance and depth (docs/evaluation.md)."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from posenc_jax.evaluation.context import SEED, EvaluationContext
from posenc_jax.evaluation.lengths import Multiple
from posenc_jax.evaluation.scorer import Scorer
from posenc_jax.results.chance import corrected
from posenc_jax.results.retrieval_summary import longest_passing, summary_scores
from posenc_jax.results.schema import DISTANCES, FAR, LEARNT, PASSING, SUMMARY_TASKS, Row
from posenc_jax.tasks.filler import Filler
from posenc_jax.tasks.instances import Instance
from posenc_jax.tasks.task_registry import SCORED, Task, find

WINDOW = "Y_R_window"  # E8 on retrieval
MEASURES = (*SCORED, "Y_R", WINDOW, "EL")
NEEDS = {"Y_R": SUMMARY_TASKS, WINDOW: SUMMARY_TASKS}


@dataclasses.dataclass(frozen=True)
class Answers:
    """Scores with one entry per answer, without answers of chance 1.

    correct: whether each token of the answer is the argmax. nll: mean over its tokens. rank: the
    largest of its tokens; 0 is the argmax. distance, depth, chance, kind: see
    `tasks.instances.Answer`. instance: index of the instance.
    """

    correct: np.ndarray
    nll: np.ndarray
    rank: np.ndarray
    distance: np.ndarray
    depth: np.ndarray
    chance: np.ndarray
    kind: np.ndarray
    instance: np.ndarray


def score_instances(
    scorer: Scorer, instances: list[Instance], window: int | None = None
) -> Answers:
    """Returns the answers of instances of one length, scored by teacher-forced argmax.

    `correct` equals that of greedy decoding: an answer is right if each of its tokens is the most
    likely one after the right tokens before it. window: tokens that attention sees.
    """
    nll_RT, rank_RT = scorer.score(np.stack([i.tokens for i in instances]), window)
    rows = []
    for row, instance in enumerate(instances):
        for a in instance.scored:
            nll = nll_RT[row, a.start - 1 : a.stop - 1].mean()
            rank = rank_RT[row, a.start - 1 : a.stop - 1].max()
            rows.append((rank == 0, nll, rank, a.distance, a.depth, a.chance, a.kind, row))
    columns = zip(*rows, strict=True) if rows else [()] * len(dataclasses.fields(Answers))
    return Answers(*map(np.array, columns))


def buckets(answers: Answers, train_length: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, mask) of the buckets: all, distances in units of L, depths, kinds."""
    yield "all", np.ones(len(answers.correct), bool)
    share = answers.distance / train_length
    tops = [edge for edge, _ in DISTANCES[1:]] + [np.inf]
    for (low, name), high in zip(DISTANCES, tops, strict=True):
        yield name, (share > low if low else share >= 0) & (share <= high)
    decile = np.minimum((answers.depth * 10).astype(int), 9)
    for d in range(10):
        yield f"depth:{d}", decile == d
    for kind in sorted(set(answers.kind.tolist()) - {""}):
        yield f"kind:{kind}", answers.kind == kind


def retrieval_items(ctx: EvaluationContext, chosen: frozenset[str]) -> dict[str, Callable]:
    """Returns an item per chosen task and multiple, then the summaries."""
    instances = Instances(ctx)
    items: dict[str, Callable] = {}
    tasks = [find(name, ctx.config.evaluation.pairs) for name in SCORED if name in chosen]
    for task in tasks:
        for k in ctx.multiples:
            items[f"{task.name}/{k}"] = functools.partial(_scored, ctx, instances, task, k)
    if "Y_R" in chosen:
        items |= {f"Y_R/{k}": functools.partial(_summary, ctx, k) for k in ctx.multiples}
    if WINDOW in chosen:
        items[WINDOW] = functools.partial(_windowed, ctx, instances)
    if "EL" in chosen:
        items |= {f"EL/{task.name}": functools.partial(_reach, ctx, task) for task in tasks}
    return items


class Instances:
    """Instances and their answers; filler text is prepared at its first use."""

    def __init__(self, ctx: EvaluationContext):
        self._ctx, tokenizer = ctx, ctx.inputs.tokenizer
        self._text = functools.cache(lambda: Filler(ctx.inputs.stream(ctx.split), tokenizer))
        self._sentences = functools.cache(lambda: Filler(None, tokenizer, corpus=False))
        self._scored = functools.cache(self.score)

    def filler(self, task: Task) -> Filler:
        return self._sentences() if task.sentences else self._text()

    def answers(self, task: Task, length: int) -> Answers:
        """Returns the answers at a length; "mqar" and an equal mqar_<pairs> are scored once."""
        twin = f"mqar_{self._ctx.config.evaluation.pairs}"
        return self._scored(find(twin) if task.name == "mqar" and twin in SCORED else task, length)

    def score(self, task: Task, length: int, window: int | None = None) -> Answers:
        """Returns the answers at a length, with attention to the last `window` tokens only."""
        instances = [
            task.instance(
                self.filler(task), split=self._ctx.split, seed=SEED, index=i, length=length
            )
            for i in range(self._ctx.config.evaluation.instances)
        ]
        return score_instances(self._ctx.scorer, instances, window)


def _scored(ctx: EvaluationContext, instances: Instances, task: Task, k: Multiple) -> list[Row]:
    length = ctx.tokens(k)
    shortest = task.shortest(instances.filler(task))
    if length < shortest:
        reason = f"{task.name} needs {shortest} tokens; a context of {k}L has {length}"
        return ctx.skipped("R", f"{task.name}_accuracy", length, reason)
    answers = instances.answers(task, length)
    if not len(answers.correct):
        reason = f"every answer of {task.name} is given away at {length} tokens"
        return ctx.skipped("R", f"{task.name}_accuracy", length, reason)
    ctx.save(f"{task.name}_{k}", dataclasses.asdict(answers))
    return answer_rows(ctx, "R", task.name, length, answers, dict(buckets(answers, ctx.L)))


def answer_rows(
    ctx: EvaluationContext,
    suite: str,
    name: str,
    length: int,
    answers: Answers,
    chosen: Mapping[str, np.ndarray],
) -> list[Row]:
    """Returns `_accuracy`, `_corrected` and `_nll` of every bucket that has answers.

    Args:
      name: prefix of the metrics. chosen: the answers of each bucket, as a mask.
    """
    rows = []
    for bucket, selected in chosen.items():
        n = int(selected.sum())
        if not n:
            continue
        accuracy, chance, nll = (
            float(values[selected].mean())
            for values in (answers.correct, answers.chance, answers.nll)
        )
        above = corrected(accuracy, chance)
        rows += [
            ctx.row(suite, f"{name}_accuracy", length, bucket, accuracy, n, chance),
            ctx.row(suite, f"{name}_corrected", length, bucket, above, n, chance),
            ctx.row(suite, f"{name}_nll", length, bucket, nll, n),
        ]
    return rows


def _summary(ctx: EvaluationContext, k: Multiple) -> list[Row]:
    """Y_R and Y_R_far at a multiple above 1; at L Y_R_id and the least of its tasks."""
    metrics = ("Y_R_id", "least_id") if k == 1 else ("Y_R", "Y_R_far")
    return [row for metric in metrics for row in _over_tasks(ctx, metric, k)]


def _over_tasks(ctx: EvaluationContext, metric: str, k: Multiple) -> list[Row]:
    far, length = metric == "Y_R_far", ctx.tokens(k)
    scores, n = summary_scores(ctx.rows.row, length, far)
    for task in SUMMARY_TASKS:
        if task not in scores:
            reason = f"{task} was not measured at {k}L" + (" beyond L" if far else "")
            return ctx.skipped("R", metric, length, reason)
    values = scores.values()
    value = min(values) if metric == "least_id" else sum(values) / len(values)
    return [ctx.row("R", metric, length, "all", value, n)]


def _windowed(ctx: EvaluationContext, instances: Instances) -> list[Row]:
    """Returns E8 on retrieval: Y_R at 4L with attention to the last L tokens only."""
    length, scores, n = FAR * ctx.L, [], 0
    for task in map(find, SUMMARY_TASKS):
        measured = FAR in ctx.multiples and ctx.rows.row(f"{task.name}_accuracy", length)
        if not measured:
            reason = f"{task.name} was not measured at {FAR}L"
            return ctx.skipped("R", WINDOW, length, reason)
        answers = instances.score(task, length, ctx.L)
        path = ctx.folder / "arrays" / f"{task.name}_{FAR}_window.npz"
        np.savez(path, **dataclasses.asdict(answers))
        scores.append(corrected(float(answers.correct.mean()), float(answers.chance.mean())))
        n += len(answers.correct)
    return [ctx.row("R", WINDOW, length, "all", sum(scores) / len(scores), n)]


def _reach(ctx: EvaluationContext, task: Task) -> list[Row]:
    """Returns EL_0.85 of a task, in tokens, over the measured lengths."""
    lengths = [ctx.tokens(k) for k in ctx.multiples]
    measured = {n: ctx.rows.value(f"{task.name}_corrected", n) for n in lengths}
    scores = {length: pair[0] for length, pair in measured.items() if pair is not None}
    metric, longest = f"EL_{PASSING}", max(lengths)
    if not scores:
        return ctx.skipped(
            "R", metric, longest, f"{task.name} was measured at no length", task.name
        )
    reach = longest_passing(scores, PASSING)
    if reach is None:
        shortest = min(scores)
        reason = (
            f"{task.name} is not learnt at its shortest length, {shortest}: corrected accuracy "
            f"{scores[shortest]:.2f} of at least {LEARNT}"
        )
        return ctx.skipped("R", metric, longest, reason, task.name)
    return [ctx.row("R", metric, longest, task.name, float(reach), len(scores))]
