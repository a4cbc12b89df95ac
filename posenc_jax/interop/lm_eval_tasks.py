"""Our retrieval tasks as tasks and groups of lm-evaluation-harness.

A document is one answer: the token ids of its instance, the position of the answer, its distance,
depth, chance and kind. The harness gets text from which the ids can be read back
(`posenc_jax.interop.token_text`), but `RunModel` scores the ids, once for all answers of an
instance. Decoding and encoding again would change keys, separators and, with SentencePiece, the
needle.

========================= =============================================================
name                      what it is
========================= =============================================================
posenc_retrieval          every scored task at every length, one task each
posenc_distance           the same, by distance of the needle
posenc_passkey            one task at every length
posenc_passkey_distance   the same, by distance of the needle
posenc_passkey@1024       at 1024 tokens
posenc_passkey@1024@L-2L  at 1024 tokens, needles more than L and at most 2 L back
========================= =============================================================
"""

import difflib
import functools

import numpy as np
from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task as HarnessTask
from lm_eval.config.group import AggMetricConfig
from lm_eval.config.task import TaskConfig
from lm_eval.filters import build_filter_ensemble

from posenc_jax.evaluation.context import SEED
from posenc_jax.evaluation.lengths import Multiple, tokens_of
from posenc_jax.evaluation.load_run import LoadedRun
from posenc_jax.interop.lm_eval import AnswerDoc
from posenc_jax.interop.token_text import TokenText
from posenc_jax.results.chance import corrected
from posenc_jax.results.schema import DISTANCE_BUCKETS, DISTANCES
from posenc_jax.tasks.filler import Filler
from posenc_jax.tasks.task_registry import SCORED, Task, find

PREFIX = "posenc_"
METRICS = {"accuracy": True, "corrected": True, "nll": False}  # higher is better
# Distance buckets, by their name in the name of a task, which becomes that of a file.
BUCKETS = {
    name.removeprefix("distance:")
    .replace("<=L/4", "0-Lquarter")
    .replace("L/4", "Lquarter")
    .replace(">", "beyond"): name
    for name in DISTANCE_BUCKETS
}


class RetrievalTask(HarnessTask):
    """One of our tasks at one length, with all answers or those in one distance bucket.

    Metrics of an answer: accuracy (all its tokens are the argmax), corrected (chance is 0, perfect
    is 1), nll (nats, mean over its tokens). Standard errors assume independent answers. chance:
    mean over the documents.
    """

    VERSION = 1
    OUTPUT_TYPE = "loglikelihood"

    def __init__(
        self, name: str, task: Task, length: int, bucket: str, docs: list, text: TokenText
    ):
        # Without super().__init__, which needs a configuration; a subclass in the harness does the
        # same.
        self.task, self.length, self.bucket = task, length, bucket
        self._docs, self._text = docs, text
        self.chance = float(np.mean([doc["chance"] for doc in docs]))
        self._config = TaskConfig(task=name, output_type=self.OUTPUT_TYPE, num_fewshot=0)
        self._filters = [build_filter_ensemble("none", [["take_first", None]])]
        self._training_docs = self._fewshot_docs = self._instances = self.fewshot_rnd = None

    def download(self, *_, **__) -> None:
        """Does nothing: the documents exist."""

    def has_training_docs(self) -> bool:
        return False

    def has_validation_docs(self) -> bool:
        return False

    def has_test_docs(self) -> bool:
        return True

    def test_docs(self) -> list:
        return self._docs

    def fewshot_context(self, doc, num_fewshot, **options) -> str:
        """Returns the context of a document; ValueError for few-shot examples or a chat
        template.
        """
        if num_fewshot or options.get("apply_chat_template") or options.get("system_instruction"):
            raise ValueError(
                f"{self.task_name} is asked in token ids: few-shot examples, chat templates and "
                "system instructions do not apply"
            )
        return self.doc_to_text(doc)

    def doc_to_text(self, doc) -> str:
        return self._text.write(doc["tokens"][: doc["start"]])

    def doc_to_target(self, doc) -> str:
        return self._text.write(doc["tokens"][doc["start"] : doc["stop"]])

    def construct_requests(self, doc, ctx, *, metadata, **_) -> Instance:
        return Instance(
            request_type=self.OUTPUT_TYPE,
            doc=doc,
            arguments=(ctx, self.doc_to_target(doc)),
            idx=0,
            metadata=metadata,
        )

    def process_results(self, doc, results) -> dict:
        ((log_probability, greedy),) = results
        return {
            "accuracy": float(greedy),
            "corrected": corrected(float(greedy), self.chance),
            "nll": -log_probability / (doc["stop"] - doc["start"]),
        }

    def aggregation(self) -> dict:
        return dict.fromkeys(METRICS, mean)

    def higher_is_better(self) -> dict:
        return dict(METRICS)


class RetrievalTasks:
    """Makes the tasks of a run by name.

    Args:
      run: gives tokenizer and text. multiples: lengths of groups, in units of L. split: "test" or
        "dev".
        instances: of every task and length; None: as in the configuration of the run.

    Attributes:
      skipped: (task, length in tokens, reason) of tasks that do not fit a length.
    """

    def __init__(
        self, run: LoadedRun, *, multiples: tuple[Multiple, ...], split: str, instances: int | None
    ):
        if split not in ("test", "dev"):
            raise ValueError(
                f"--split must be test or dev, not {split!r}: scores on training text mean nothing"
            )
        self._run, self._multiples, self.split = run, multiples, split
        self._instances = run.config.evaluation.instances if instances is None else instances
        if self._instances < 1:
            raise ValueError(f"--instances must be at least 1, not {self._instances}")
        tokenizer = run.inputs.tokenizer
        self._text = TokenText(tokenizer)
        self._corpus = functools.cache(lambda: Filler(run.inputs.stream(split), tokenizer))
        self._sentences = functools.cache(lambda: Filler(None, tokenizer, corpus=False))
        self._docs = functools.cache(self._made)
        self.skipped = []

    def named(self, name: str) -> RetrievalTask | Group:
        """Returns the task or group of a name in the table above.

        Raises:
          ValueError: an unknown name, or a length that is too short or too long.
        """
        stem = name.removeprefix(PREFIX)
        if stem in ("retrieval", "distance"):
            return _group(name, [self._every_length(task, stem == "distance") for task in SCORED])
        if stem in SCORED:
            return self._every_length(stem, by_distance=False)
        if stem.removesuffix("_distance") in SCORED:
            return self._every_length(stem.removesuffix("_distance"), by_distance=True)
        task, _, rest = stem.partition("@")
        length, _, bucket = rest.partition("@")
        if task not in SCORED or not length.isdigit() or bucket not in ("", *BUCKETS):
            known = [PREFIX + n for n in ("retrieval", "distance", *SCORED)]
            near = difflib.get_close_matches(PREFIX + task, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
            raise ValueError(
                f"no task {name!r}; {hint} A length in tokens may follow (@1024), and a distance "
                f"bucket (@{', @'.join(BUCKETS)})"
            )
        reason = self._refusal(task, int(length))
        one = None if reason else self._task(task, int(length), BUCKETS.get(bucket, "all"))
        if one is None:
            raise ValueError(reason or f"no answer of {task} at {length} tokens is {bucket} back")
        return one

    def _every_length(self, task: str, by_distance: bool) -> Group:
        members = []
        for k in self._multiples:
            length = tokens_of(k, self._run.config.placed_length)
            reason = self._refusal(task, length)
            if reason is None:
                bins = BUCKETS.values() if by_distance else ("all",)
                members += [self._task(task, length, bucket) for bucket in bins]
            elif (task, length, reason) not in self.skipped:
                self.skipped.append((task, length, reason))
        name = PREFIX + task + ("_distance" if by_distance else "")
        return _group(name, [member for member in members if member is not None])

    def _refusal(self, name: str, length: int) -> str | None:
        """Returns the reason why a task does not fit a length, or None."""
        task = find(name, self._run.config.evaluation.pairs)
        shortest, longest = task.shortest(self._filler(task)), self._run.longest
        if length < shortest:
            return f"{name} needs {shortest} tokens; {length} is too short"
        if longest is not None and length - 1 > longest:
            return (
                f"{length} tokens exceed the {longest} positions of "
                f"{self._run.config.model.scheme!r}"
            )
        return None

    def _task(self, name: str, length: int, bucket: str) -> RetrievalTask | None:
        docs, suffix = self._docs(name, length), ""
        if bucket != "all":
            docs = [doc for doc in docs if doc["bucket"] == bucket]
            suffix = "@" + next(short for short, full in BUCKETS.items() if full == bucket)
        if not docs:
            return None
        task = find(name, self._run.config.evaluation.pairs)
        return RetrievalTask(
            f"{PREFIX}{name}@{length}{suffix}", task, length, bucket, docs, self._text
        )

    def _filler(self, task: Task) -> Filler:
        return self._sentences() if task.sentences else self._corpus()

    def _made(self, name: str, length: int) -> list[AnswerDoc]:
        task = find(name, self._run.config.evaluation.pairs)
        docs = []
        for index in range(self._instances):
            instance = task.instance(
                self._filler(task), split=self.split, seed=SEED, index=index, length=length
            )
            tokens = instance.tokens.tolist()  # one list for all answers of the instance
            docs += [
                AnswerDoc(
                    tokens=tokens,
                    start=int(answer.start),
                    stop=int(answer.stop),
                    instance=index,
                    distance=int(answer.distance),
                    depth=float(answer.depth),
                    chance=float(answer.chance),
                    kind=answer.kind,
                    bucket=_bucket(int(answer.distance) / self._run.config.placed_length),
                )
                for answer in instance.scored
            ]
        return docs


def _group(name: str, members: list[RetrievalTask | Group]) -> Group:
    # Tasks have equal weights, whatever their number of answers.
    means = [AggMetricConfig(metric, ["none"], "mean", False) for metric in METRICS]
    group = Group(name, aggregate_metric_list=means)
    for member in members:
        if not isinstance(member, Group) or len(member):
            group.add(member)
    return group


def _bucket(share: float) -> str:
    """Returns the bucket of a distance of `share` times L; buckets include their upper end."""
    lows = np.array([low for low, _ in DISTANCES])
    return DISTANCES[max(int(np.searchsorted(lows, share, side="left")) - 1, 0)][1]
