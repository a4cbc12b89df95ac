"""Suite C: long-text classification by document length (docs/evaluation.md).

The model reads a whole document, up to the longest multiple of L, and predicts its class at SEP;
the softmax is over the classes only. Every score is a mean over classes of the mean over their
documents. A constant answer therefore has accuracy 1/C, and a uniform one a loss of ln C, for any
sizes of the classes.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.evaluation.context import EvaluationContext
from posenc_jax.evaluation.lengths import Multiple
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder
from posenc_jax.results.schema import Row
from posenc_jax.tasks.longtext import LabelledCorpus, LabelTokenizer, inputs_of
from posenc_jax.training.config import RunConfig


def check_suites(config: RunConfig, suites: Sequence[str]) -> None:
    """Raises ValueError for suite C of a run without classes, and for E or R of a classifier."""
    classifier = config.data.task == "classification"
    if "C" in suites and not classifier:
        raise ValueError(
            "--suite=C needs classes and this run was trained on text alone; "
            "--config=configs/longtext.py trains a classifier"
        )
    if classifier and set(suites) != {"C"}:
        raise ValueError(
            "--suite=E, R, P and M score language models and this run is a classifier; use "
            "--suite=C"
        )


class Classifier:
    """Logits of the classes at the last token of whole documents, in float32.

    Documents are padded on the right with segment 0 to one of a few lengths; padding changes no
    result.

    Args:
      configs: the model for each input length to compile for, in tokens. params: parameters, the
        same for all lengths. batch_tokens: tokens per batch. labels_C: ids of the classes.
    """

    def __init__(
        self, configs: Mapping[int, ModelConfig], params, batch_tokens: int, labels_C: np.ndarray
    ):
        self._configs = {n: c.measured for n, c in configs.items()}
        self._params, self._batch_tokens, self._labels_C = params, batch_tokens, labels_C
        self._score = jax.jit(_last_logits, static_argnums=0)

    def logits(self, documents: Sequence[np.ndarray]) -> np.ndarray:
        """Returns logits_RC of documents (ids, SEP last); ValueError for one that is too long."""
        lengths_R = np.array([len(ids) for ids in documents], int)
        edges = np.array(sorted(self._configs))
        if len(documents) and lengths_R.max() > edges[-1]:
            raise ValueError(
                f"a document of {lengths_R.max()} inputs exceeds the longest length {edges[-1]}"
            )
        logits_RC = np.zeros((len(documents), len(self._labels_C)), np.float32)
        program_R = np.searchsorted(edges, lengths_R)
        for program, T in enumerate(edges.tolist()):
            chosen = np.flatnonzero(program_R == program)
            B = max(1, self._batch_tokens // T)
            for start in range(0, len(chosen), B):
                rows = chosen[start : start + B]
                tokens_BT, seg_BT = np.zeros((2, B, T), np.int32)
                for row, number in enumerate(rows):
                    tokens_BT[row, : lengths_R[number]] = documents[number]
                    seg_BT[row, : lengths_R[number]] = 1
                last_B = np.zeros(B, np.int32)
                last_B[: len(rows)] = lengths_R[rows] - 1
                out_BV = self._score(self._configs[T], self._params, tokens_BT, seg_BT, last_B)
                logits_RC[rows] = np.asarray(out_BV)[: len(rows), self._labels_C]
        return logits_RC


def _last_logits(config: ModelConfig, params, tokens_BT, seg_BT, last_B):
    pos_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    logits_BTV, _ = Decoder(config).apply({"params": params}, tokens_BT, pos_BT, seg_BT)
    return jnp.take_along_axis(logits_BTV, last_B[:, None, None], axis=1)[:, 0]


def balanced(values_R: np.ndarray, class_R: np.ndarray, classes: int) -> float:
    """Returns the mean over classes of the mean over their documents; each class needs one."""
    return float(np.mean([values_R[class_R == c].mean() for c in range(classes)]))


def chance_corrected(accuracy: float, classes: int) -> float:
    """Returns (accuracy - 1/C) / (1 - 1/C): 1 for all right, 0 for every constant answer."""
    return (classes * accuracy - 1) / (classes - 1)


def class_losses(logits_RC: np.ndarray, class_R: np.ndarray) -> np.ndarray:
    """Returns nll_R in nats of the right class, float64, with the softmax over the classes only."""
    wide_RC = logits_RC.astype(np.float64)
    wide_RC = wide_RC - wide_RC.max(axis=1, keepdims=True)
    return np.log(np.exp(wide_RC).sum(axis=1)) - wide_RC[np.arange(len(class_R)), class_R]


def length_buckets(
    lengths_R: np.ndarray, train_length: int, multiples: Sequence[int]
) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yields (name, upper multiple, mask_R) of the buckets: up to L, L to 2L, ..., above the last
    edge.

    lengths_R counts all inputs of a document, with BOS and SEP; a bucket contains its upper edge.
    """
    low = 0
    for k in sorted({1, *multiples}):
        name = f"{_times(low)}-{_times(k)}" if low else f"<={_times(k)}"
        yield name, k, (lengths_R > low * train_length) & (lengths_R <= k * train_length)
        low = k
    yield f">{_times(low)}", low, lengths_R > low * train_length


def _times(k: Multiple) -> str:
    return "L" if k == 1 else f"{k}L"


class ClassScores:
    """The rows of suite C of one checkpoint.

    Args:
      ctx: of the evaluation. classifier: the run's, or any other with its `logits` method.
      corpus, tokenizer: the run's. multiples: edges of the buckets; those up to
        `ctx.lengths.deepest` fit the model.

    Raises:
      ValueError: the measured lengths, which the classifier is compiled for, do not reach the
        deepest.
    """

    def __init__(
        self,
        ctx: EvaluationContext,
        classifier: Classifier,
        corpus: LabelledCorpus,
        tokenizer: LabelTokenizer,
        multiples: Sequence[int],
    ):
        self._ctx, self._classifier, self._tokenizer = ctx, classifier, tokenizer
        self._corpus, self._classes = corpus, len(corpus.labels)
        self._class_R = corpus.classes[ctx.split]
        self._top, self._fits = max(multiples), ctx.lengths.deepest
        if max(ctx.multiples) < self._fits:
            raise ValueError(
                f"--suite=C scores documents of up to {self._fits}L; add {self._fits} to --lengths "
                "or leave it out"
            )
        self._lengths_R = np.array(
            [len(tokenizer.encode(text)) + 2 for _, text in corpus.documents(ctx.split)]
        )
        self._buckets = list(length_buckets(self._lengths_R, ctx.L, multiples))

    def items(self) -> dict[str, Callable]:
        """Returns an item for each bucket, and one for all documents, which loads their arrays."""
        items = {
            f"longtext/{name}": lambda name=name, k=k, chosen=chosen: self._bucket(name, k, chosen)
            for name, k, chosen in self._buckets
        }
        return items | {"longtext/all": self._all}

    def _bucket(self, name: str, k: Multiple, chosen_R: np.ndarray) -> list[Row]:
        if k > self._fits:
            reason = f"{k}L is more than the {self._fits}L that fit this arm"
            return self._skipped(f"length:{name}", k, reason)
        numbers = np.flatnonzero(chosen_R)
        longest = self._ctx.tokens(k)
        logits_RC = self._classifier.logits(self._inputs(numbers, longest))
        cut_RC = logits_RC
        if k > 1:  # the same documents cut to their first L tokens
            cut_RC = self._classifier.logits(self._inputs(numbers, self._ctx.L))
        scored: dict[str, Any] = {
            "document_R": numbers,
            "length_R": self._lengths_R[numbers],
            "class_R": self._class_R[numbers],
            "logits_RC": logits_RC,
            "cut_logits_RC": cut_RC,
            "bag_RC": self._bag(self._inputs(numbers, longest)),
        }
        np.savez(self._array(name), **scored)
        return self._rows(f"length:{name}", k, scored)

    def _all(self) -> list[Row]:
        if self._top > self._fits:
            reason = (
                f"documents of up to {self._top}L are more than the {self._fits}L that fit this arm"
            )
            return self._skipped("all", self._top, reason)
        parts = []
        for name, _, _ in self._buckets:
            with np.load(self._array(name)) as part:
                parts.append(dict(part))
        scored = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        return self._rows("all", self._top, scored)

    def _rows(self, bucket: str, k: Multiple, scored: dict[str, np.ndarray]) -> list[Row]:
        C, class_R = self._classes, scored["class_R"]
        missing = sorted(set(range(C)) - set(class_R.tolist()))
        if missing:
            reason = (
                f"no document of {', '.join(self._corpus.labels[c] for c in missing)} is that long"
            )
            return self._skipped(bucket, k, reason)

        def accuracy(key):
            return balanced(scored[key].argmax(axis=1) == class_R, class_R, C)

        values = {
            "longtext_accuracy": accuracy("logits_RC"),
            "longtext_corrected": chance_corrected(accuracy("logits_RC"), C),
            "longtext_nll": balanced(class_losses(scored["logits_RC"], class_R), class_R, C),
            "longtext_cut_corrected": chance_corrected(accuracy("cut_logits_RC"), C),
            "longtext_bag_corrected": chance_corrected(accuracy("bag_RC"), C),
        }
        length = self._ctx.tokens(k)
        return [
            self._ctx.row("C", metric, length, bucket, value, len(class_R))
            for metric, value in values.items()
        ]

    def _skipped(self, bucket: str, k: Multiple, reason: str) -> list[Row]:
        return self._ctx.skipped("C", "longtext_corrected", self._ctx.tokens(k), reason, bucket)

    def _array(self, name: str):
        stem = name.strip("<=>") + "+" * (name[0] == ">")
        return self._ctx.folder / "arrays" / f"longtext_{stem}.npz"

    def _inputs(self, numbers: np.ndarray, longest: int) -> list[np.ndarray]:
        documents = self._corpus.documents(self._ctx.split)
        return [inputs_of(documents[n][1], self._tokenizer, longest) for n in numbers.tolist()]

    @functools.cached_property
    def _frequency_VC(self) -> np.ndarray:
        train = self._corpus.documents("train")
        beginnings = [
            inputs_of(train[n][1], self._tokenizer, self._ctx.L)[1:-1] for n in range(len(train))
        ]
        return bag_of_ids(
            beginnings, self._corpus.classes["train"], self._tokenizer.vocab_size, self._classes
        )

    def _bag(self, documents: Sequence[np.ndarray]) -> np.ndarray:
        """Returns log-likelihoods of documents under each class's frequencies of ids."""
        rows = [self._frequency_VC[ids[1:-1]].sum(axis=0) for ids in documents]
        return np.array(rows).reshape(-1, self._classes)


def bag_of_ids(
    documents: Sequence[np.ndarray], class_R: np.ndarray, vocab_size: int, classes: int
) -> np.ndarray:
    """Returns log_frequency_VC of ids by class, add-one smoothed: naive Bayes with a uniform prior.

    This baseline ignores the order of tokens, hence positions: with byte tokens, it is a bag of
    bytes.
    """
    count_VC = np.ones((vocab_size, classes))
    for ids, c in zip(documents, class_R.tolist(), strict=True):
        count_VC[:, c] += np.bincount(ids, minlength=vocab_size)
    return np.log(count_VC / count_VC.sum(axis=0, keepdims=True))
