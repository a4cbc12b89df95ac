"""A trained run as a model of lm-evaluation-harness (Gao et al. 2021; package lm-eval).

It is registered as `posenc_jax`. Rows are scored as in our evaluation: by
`posenc_jax.evaluation.scorer`, at a few compiled lengths, in float32, from the last checkpoint.

- Every text is a document: BOS, then its tokens. Nothing is truncated.
- The whole text is tokenized. The continuation begins at the first token that has a byte of it,
  which is exact for byte tokens. (Models of the harness move spaces from the end of a context into
  the continuation; this one does not.)
- Documents of our retrieval tasks have token ids (`AnswerDoc`), which are scored as they are.
"""

import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs

from posenc_jax.evaluation.load_run import load_run
from posenc_jax.evaluation.scorer import Scorer
from posenc_jax.model.generate import Sampling, generate
from posenc_jax.results.files import read_json

_SHORTEST_PROMPT = (
    32  # prompts are padded to this times a power of two, so that few programs are compiled
)

END_TRAINED = "the end of a document is a target of training"
END_NOT_TRAINED = (
    "the end of a document is no target of training (data.end_targets), so generation hardly ever "
    "ends by itself: it ends at a stop string or after max_gen_toks"
)
END_OF_IMPORT = "the model is imported: it ends a text as it was trained to"


class AnswerDoc(dict):
    """A document in token ids: `tokens` of an instance; the answer is [`start`, `stop`)."""


class Span(NamedTuple):
    """The tokens [start, stop) of a row, which are scored given all tokens before them."""

    tokens: np.ndarray
    start: int
    stop: int


class Generation(NamedTuple):
    """Settings of a generation request."""

    sampling: Sampling
    new_tokens: int
    until: tuple[str, ...]


@register_model("posenc_jax")
class RunModel(LM):
    """The last checkpoint of a run.

    Args:
      workdir: a trained run. stretch: a rule of `posenc_jax.encodings.length_extension`, or None.
        window: window of the rolling log-likelihood in tokens; None: the training length. seed: of
        sampled generation.

    Raises:
      ValueError: no trained run, a checkpoint of another run, an unknown stretch, or a window that
        does not fit.
    """

    def __init__(
        self,
        workdir: str | Path,
        stretch: str | None = None,
        window: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.run = load_run(Path(workdir), stretch)
        self._tokenizer, self._seed = self.run.inputs.tokenizer, seed
        self._window = self.run.config.train.length if window is None else window
        if self._window < 1 or self._too_long(self._window):
            limit = self.run.longest
            raise ValueError(
                f"window={self._window} must be at least 1"
                + (f" and at most the {limit} positions of the scheme" if limit else "")
            )
        self._params = jax.device_put(self.run.params)
        self._batch_tokens = self.run.config.evaluation.batch_tokens
        self._lengths = self.run.compiled_lengths(self.run.multiples(None))
        self._scorer = self._scorer_of(self._lengths)

    @property
    def compilations(self) -> int:
        """Number of scoring programs compiled so far."""
        return self._scorer.compilations

    def get_model_info(self) -> dict:
        """Returns the description of the model that the harness writes beside its results."""
        config = self.run.config
        return {
            "run": self.run.workdir.name,
            "arm": config.arm,
            "scheme": config.model.scheme,
            "stretch": self.run.stretch,
            "train_length": config.placed_length,
            "train_seed": config.train.seed,
            "step": self.run.step,
            "unfinished": self.run.unfinished,
            "end_of_document": self._end_of_document,
            "tokenizer": config.data.tokenizer,
            "window": self._window,
        }

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Returns (ln p of the continuation, whether it is the greedy one) of every request.

        Raises:
          ValueError: a request longer than the positions of the scheme.
        """
        spans = [self._span(request) for request in requests]
        return [
            (-float(nll.sum(dtype=np.float64)), bool(hit.all())) for nll, hit in self._scored(spans)
        ]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Returns ln p of every text, in disjoint windows.

        The first window begins with BOS, each further one with the last token of the window before,
        so that every token is a target once. This is E1, with k = window / training length.
        """
        spans, owners = [], []
        for number, request in enumerate(requests):
            row = self._document(request.args[0])
            for first in range(0, len(row) - 1, self._window):
                piece = row[first : first + self._window + 1]
                spans.append(Span(piece, 1, len(piece)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (nll, _) in zip(owners, self._scored(spans), strict=True):
            totals[number] -= float(nll.sum(dtype=np.float64))
        return totals

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Returns the continuation of every context, up to the first stop string, an id that ends a
        text (BOS or EOS) or `max_gen_toks`.

        Only a run with `data.end_targets`, or an imported model, has learned to write such an id.
        Bytes that are not UTF-8 become U+FFFD. Samples are a function of the requests and their
        order.

        Raises:
          ValueError: an unknown generation setting, or more positions than the scheme has.
        """
        groups = defaultdict(list)
        for number, request in enumerate(requests):
            context, settings = request.args
            groups[_generation(settings)].append((number, self._document(context)))
        says = self._end_of_document
        if says == END_NOT_TRAINED and any(not generation.until for generation in groups):
            print(f"posenc_jax: {says}", file=sys.stderr)
        texts, batches = [""] * len(requests), 0
        for generation, prompts in groups.items():
            by_width = defaultdict(list)
            for number, prompt in prompts:
                by_width[self._prompt_width(len(prompt), generation.new_tokens)].append(
                    (number, prompt)
                )
            for width, members in sorted(by_width.items()):
                rows = max(1, self._batch_tokens // (width + generation.new_tokens) - 1)
                for start in range(0, len(members), rows):
                    batch = members[start : start + rows]
                    key = jax.random.fold_in(jax.random.key(self._seed), batches)
                    batches += 1
                    tokens = self._generated([p for _, p in batch], width, rows, generation, key)
                    for (number, _), ids in zip(batch, tokens, strict=True):
                        texts[number] = self._until(ids, generation.until)
        return texts

    @property
    def _end_of_document(self) -> str:
        """Whether the model can end a text by itself, in words."""
        if "imported_from" in read_json(self.run.workdir / "run.json"):
            return END_OF_IMPORT
        return END_TRAINED if self.run.config.data.end_targets else END_NOT_TRAINED

    def _too_long(self, length: int) -> bool:
        return self.run.longest is not None and length > self.run.longest

    def _scorer_of(self, lengths: list[int]) -> Scorer:
        configs = {length: self.run.model_config(length) for length in lengths}
        return Scorer(configs, self._params, self._batch_tokens)

    def _document(self, text: str) -> np.ndarray:
        return np.r_[self._tokenizer.bos, self._tokenizer.encode(text.encode())].astype(np.int32)

    def _span(self, request: Instance) -> Span:
        if isinstance(request.doc, AnswerDoc):
            doc = request.doc
            return Span(np.asarray(doc["tokens"], np.int32), doc["start"], doc["stop"])
        context, continuation = request.args
        row = self._document(context + continuation)
        ends = np.cumsum(self._tokenizer.byte_lengths_V[row])
        start = int(np.searchsorted(ends, len(context.encode()), side="right"))
        return Span(row, max(start, 1), len(row))

    def _scored(self, spans: list[Span]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns (nll, hit) of every span; equal rows are scored once."""
        rows, indices = {}, []
        for span in spans:
            indices.append(rows.setdefault(span.tokens.tobytes(), (len(rows), span.tokens))[0])
        scores = self._scored_rows([tokens for _, tokens in rows.values()])
        return [
            tuple(values[span.start - 1 : span.stop - 1] for values in scores[index])
            for span, index in zip(spans, indices, strict=True)
        ]

    def _scored_rows(self, rows: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        longest = max((len(row) - 1 for row in rows), default=0)
        self._extend_lengths(longest)
        scores = [(np.zeros(0, np.float32), np.zeros(0, bool))] * len(rows)
        by_length = defaultdict(list)
        for number, row in enumerate(rows):
            if len(row) > 1:
                by_length[min(n for n in self._lengths if n >= len(row) - 1)].append(number)
        for _, numbers in sorted(by_length.items()):
            # Padding on the right is after every target, and attention is causal.
            width = max(len(rows[number]) for number in numbers)
            rows_RT = np.full((len(numbers), width), self._tokenizer.pad, np.int32)
            for row_T, number in zip(rows_RT, numbers, strict=True):
                row_T[: len(rows[number])] = rows[number]
            nll_RT, rank_RT = self._scorer.score(rows_RT)
            hit_RT = rank_RT == 0
            for number, nll, hit in zip(numbers, nll_RT, hit_RT, strict=True):
                targets = len(rows[number]) - 1
                scores[number] = (nll[:targets], hit[:targets])
        return scores

    def _extend_lengths(self, longest: int) -> None:
        """Doubles the largest compiled length until `longest` inputs fit."""
        if self._too_long(longest):
            raise ValueError(
                f"a request of {longest} tokens exceeds the {self.run.longest} positions of "
                f"{self.run.config.model.scheme!r}, and nothing is cut off: ask for shorter ones"
            )
        if longest <= self._lengths[-1]:
            return
        while self._lengths[-1] < longest:
            doubled = 2 * self._lengths[-1]
            self._lengths.append(min(doubled, self.run.longest or doubled))
        self._scorer = self._scorer_of(self._lengths)

    def _prompt_width(self, length: int, new_tokens: int) -> int:
        if self._too_long(length + new_tokens):
            raise ValueError(
                f"a prompt of {length} tokens and {new_tokens} new ones exceed the "
                f"{self.run.longest} positions of {self.run.config.model.scheme!r}, and nothing is "
                "cut off: ask for a shorter context or a smaller max_gen_toks"
            )
        width = _SHORTEST_PROMPT
        while width < length:
            width *= 2
        return width if not self._too_long(width + new_tokens) else length

    def _generated(self, prompts, width: int, rows: int, generation: Generation, key) -> np.ndarray:
        # Padding rows of the full width give every batch the same shape, so that programs are
        # shared.
        padding = [np.full(width, self._tokenizer.bos, np.int32)] * (rows + 1 - len(prompts))
        config = self.run.model_config(width + generation.new_tokens).measured
        tokens = generate(
            self._params,
            config,
            [*prompts, *padding],
            new_tokens=generation.new_tokens,
            pad=self._tokenizer.pad,
            sampling=generation.sampling,
            key=key,
        )
        return tokens[: len(prompts)]

    def _until(self, ids: np.ndarray, until: tuple[str, ...]) -> str:
        ended = np.flatnonzero(np.isin(ids, self._tokenizer.ends))
        text = self._tokenizer.decode(ids[: ended[0]] if len(ended) else ids)
        shown = text.decode("utf-8", errors="replace")
        return shown[: min((at for s in until if (at := shown.find(s)) >= 0), default=None)]


_KNOWN = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p")


def _generation(settings: dict) -> Generation:
    """Returns the generation settings of the harness as ours; ValueError for unknown ones."""
    given = normalize_gen_kwargs(settings)
    unknown = sorted(set(given) - set(_KNOWN))
    if unknown:
        raise ValueError(
            f"generation_kwargs: {', '.join(unknown)} is not supported; there are "
            f"{', '.join(_KNOWN)}"
        )
    if given["max_gen_toks"] < 1:
        raise ValueError(f"max_gen_toks must be at least 1, not {given['max_gen_toks']}")
    # The default temperature of sampling is 1.
    temperature = float(given.get("temperature", 1.0)) if given["do_sample"] else 0.0
    sampling = Sampling(
        temperature,
        int(given.get("top_k") or 0) if temperature else 0,
        float(given.get("top_p", 1.0)) if temperature else 1.0,
    )
    until = tuple(stop for stop in given["until"] if stop)  # an empty one would match at once
    return Generation(sampling, given["max_gen_toks"], until)
