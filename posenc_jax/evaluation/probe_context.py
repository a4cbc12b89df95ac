"""A checkpoint under probes: what suites P and M both need of it."""

import functools
from collections.abc import Iterator

import numpy as np

from posenc_jax.encodings.scheme_arrays import layer_parameters
from posenc_jax.evaluation import head_statistics
from posenc_jax.evaluation.context import SEED, EvaluationContext
from posenc_jax.evaluation.interventions import Intervention, ParameterizedModel
from posenc_jax.evaluation.perplexity import bits_per_byte, fixed_targets, held_out_stretches
from posenc_jax.evaluation.retrieval import score_instances
from posenc_jax.evaluation.scorer import Scorer
from posenc_jax.model.config import ModelConfig
from posenc_jax.results.schema import BPB, Row
from posenc_jax.tasks.filler import Filler
from posenc_jax.tasks.instances import Instance
from posenc_jax.tasks.passkey_mqar import mqar, passkey, shortest_length

ROWS = 32  # sequences, and instances, of every probe
LINEAR = "linear attention has no softmax weights"


class ProbeContext:
    """A checkpoint under probes: its text, its retrieval instances, and sums that several items read."""

    def __init__(self, ctx: EvaluationContext):
        self.ctx, self.config, self.params = ctx, ctx.model_config, ctx.params
        self.L, self.budget = ctx.L, ctx.config.evaluation.batch_tokens
        self.placed = self.config.placed
        self.learned = layer_parameters(self.placed, ctx.params)
        self.heads = [(i, n) for i in range(self.config.num_layers) for n in range(self.config.num_heads)]  # fmt: skip
        self.observed = functools.cache(self._observed)
        self.instances = functools.cache(self._instances)
        self.scorer = functools.cache(self._scorer)
        self.row = ctx.row
        self.axes_before = functools.cache(self._axes_before)

    @functools.cached_property
    def stretches_RT(self) -> np.ndarray:
        """Held-out text, at most `ROWS` stretches; the first ones of the measures of suite E."""
        w = self.ctx
        return held_out_stretches(w.inputs.stream(w.split), w.top * self.L + self.L // 2, ROWS)

    def text(self, length: int) -> np.ndarray:
        """Returns the last `length` + 1 tokens of every stretch; the last one is a target only."""
        return self.stretches_RT[:, -(length + 1) :]

    def _observed(self, k: int) -> list[head_statistics.HeadSums | None]:
        rows_RT = self.text(k * self.L)[:, :-1]
        first = rows_RT.shape[1] // 2
        return head_statistics.head_sums(self.config, self.params, rows_RT, self.budget, first)

    def _instances(self, task: str, k: int) -> list[Instance]:
        w, e, tokenizer = self.ctx, self.ctx.config.evaluation, self.ctx.inputs.tokenizer
        make, extra = {"passkey": (passkey, {}), "mqar": (mqar, {"pairs": e.pairs})}[task]
        settings = {"split": w.split, "seed": SEED, "length": k * self.L, **extra}
        return [make(tokenizer, self.filler, index=i, **settings) for i in range(ROWS)]

    @functools.cached_property
    def filler(self) -> Filler:
        """Text between needles, of the split."""
        return Filler(self.ctx.inputs.stream(self.ctx.split), self.ctx.inputs.tokenizer)

    def tasks(self, k: int) -> list[str]:
        """Returns the retrieval tasks that a context of kL holds."""
        pairs = {"passkey": 1, "mqar": self.ctx.config.evaluation.pairs}
        return [t for t, p in pairs.items() if k * self.L >= shortest_length(t, self.filler, p)]

    def target_multiple(self) -> int:
        """Returns 4, the primary multiple, or the next one below it that was asked for and fits."""
        below = [k for k in self.ctx.multiples if k <= 4]
        return max(below) if below else min(self.ctx.multiples)

    def of_heads(self, suite, metric, length, values_LN, n, extra="") -> Iterator[Row]:
        """Yields one row a head; a layer that is None is skipped with the reason."""
        for layer, values_N in enumerate(values_LN):
            if values_N is None:
                yield from self.ctx.skipped(suite, metric, length, LINEAR, f"layer:{layer}{extra}")
                continue
            for head, value in enumerate(values_N):
                yield self.row(suite, metric, length, f"head:{layer}.{head}{extra}", value, n)

    def save(self, name: str, **arrays: np.ndarray) -> None:
        """Writes arrays/<name>.npz."""
        np.savez(self.ctx.folder / "arrays" / f"{name}.npz", **arrays)

    def _scorer(self, config: ModelConfig, k: int) -> Scorer:
        longest, length = self.placed.longest(), k * self.L + self.L // 2
        length = length if longest is None else min(length, longest)
        return Scorer({length: config}, self.params, self.budget)

    def axes(self, model: ParameterizedModel, k: int) -> dict[str, tuple[float, int, int]]:
        """Returns {axis: (value, n, length)} of a model: bpb_ctx at kL, and the accuracy of each task there.

        At L text is read in distribution, after a context of L/2. Models of one configuration share
        their programs. The text is left out where a context of kL and its targets do not fit the scheme.
        """
        scorer = self.scorer(model.config, k).with_params(model.params)
        longest, found = self.placed.longest(), {}
        context = self.L // 2 if k == 1 else k * self.L
        if longest is None or context + self.L // 2 <= longest:
            nll, targets = fixed_targets(scorer, self.stretches_RT, self.L, context)
            lengths_V = self.ctx.inputs.tokenizer.byte_lengths_V
            found[BPB] = (bits_per_byte(nll, targets, lengths_V), targets.size, context)
        for task in self.tasks(k):
            correct = score_instances(scorer, self.instances(task, k)).correct
            found[f"{task}_accuracy"] = (float(correct.mean()), correct.size, k * self.L)
        return found

    def _axes_before(self, k: int) -> dict[str, tuple[float, int, int]]:
        return self.axes(ParameterizedModel(self.config, self.params), k)

    def change(self, suite: str, metric: str, name: str, change: Intervention, k: int) -> list[Row]:
        """Returns `<metric>_<axis>_change` at kL: each axis after an intervention, less before.

        One row with the reason where the intervention finds nothing to change.
        """
        length = k * self.L
        try:
            model = change(ParameterizedModel(self.config, self.params))
        except ValueError as reason:
            return self.ctx.skipped(suite, f"{metric}_change", length, str(reason), name)
        before = self.axes_before(k)
        return [
            self.row(suite, f"{metric}_{axis}_change", at, name, value - before[axis][0], n)
            for axis, (value, n, at) in self.axes(model, k).items()
        ]
