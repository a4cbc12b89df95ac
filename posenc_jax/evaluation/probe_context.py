"""Context of the probes: text, instances and sums that suites P and M share."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.encodings.scheme_arrays import layer_parameters
from posenc_jax.evaluation import head_statistics
from posenc_jax.evaluation.context import SEED, EvaluationContext
from posenc_jax.evaluation.interventions import Intervention, ParameterizedModel
from posenc_jax.evaluation.lengths import Multiple
from posenc_jax.evaluation.perplexity import bits_per_byte, fixed_targets, held_out_stretches
from posenc_jax.evaluation.retrieval import score_instances
from posenc_jax.evaluation.scorer import Scorer
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder
from posenc_jax.results.schema import BPB, Row
from posenc_jax.tasks.filler import Filler
from posenc_jax.tasks.instances import Instance
from posenc_jax.tasks.passkey_mqar import mqar, passkey, shortest_length

ROWS = 32  # sequences, and instances, of every probe
LINEAR = "linear attention has no softmax weights"


class ProbeContext:
    """Text, retrieval instances, sums and scorers of one evaluated model, computed once each."""

    def __init__(self, ctx: EvaluationContext):
        self.ctx, self.config, self.params = ctx, ctx.model.config, ctx.model.params
        self.L, self.budget = ctx.L, ctx.config.evaluation.batch_tokens
        self.placed = self.config.placed
        self.learned = layer_parameters(self.placed, ctx.model.params)
        self.heads = [
            (i, n) for i in range(self.config.num_layers) for n in range(self.config.num_heads)
        ]
        self.observed = functools.cache(self._observed)
        self.instances = functools.cache(self._instances)
        self.scorer = functools.cache(self._scorer)
        self.row = ctx.row
        self.axes_before = functools.cache(self._axes_before)

    @functools.cached_property
    def stretches_RT(self) -> np.ndarray:
        """Held-out text, at most `ROWS` stretches; the first ones of the measures of suite E."""
        stream = self.ctx.inputs.stream(self.ctx.split)
        return held_out_stretches(stream, self.ctx.tokens(self.ctx.lengths.top) + self.L // 2, ROWS)

    def text(self, length: int) -> np.ndarray:
        """Returns the last `length` + 1 tokens of each stretch; the last one is only a target."""
        return self.stretches_RT[:, -(length + 1) :]

    def _observed(self, k: Multiple, trained: bool = True) -> list[head_statistics.HeadSums | None]:
        rows_RT = self.text(self.ctx.tokens(k))[:, :-1]
        first = rows_RT.shape[1] // 2
        params = self.params if trained else self.untrained
        return head_statistics.head_sums(self.config, params, rows_RT, self.budget, first)

    def _instances(self, task: str, k: Multiple) -> list[Instance]:
        ctx, tokenizer = self.ctx, self.ctx.inputs.tokenizer
        recall = functools.partial(mqar, pairs=ctx.config.evaluation.pairs)
        makers: dict[str, Callable[..., Instance]] = {"passkey": passkey, "mqar": recall}
        settings: dict = {"split": ctx.split, "seed": SEED, "length": ctx.tokens(k)}
        return [makers[task](tokenizer, self.filler, index=i, **settings) for i in range(ROWS)]

    @functools.cached_property
    def untrained(self) -> dict:
        """Parameters with which a run of this seed begins, unless it fine-tunes another."""
        dummy_BT = jnp.ones((1, 8), jnp.int32)
        key = jax.random.key(self.ctx.config.train.seed)
        return jax.jit(Decoder(self.config).init)(key, dummy_BT, dummy_BT, dummy_BT)["params"]

    @functools.cached_property
    def filler(self) -> Filler:
        """Filler text of the split."""
        return Filler(self.ctx.inputs.stream(self.ctx.split), self.ctx.inputs.tokenizer)

    def tasks(self, k: Multiple) -> list[str]:
        """Returns the retrieval tasks that fit into a context of kL."""
        pairs = {"passkey": 1, "mqar": self.ctx.config.evaluation.pairs}
        return [
            t for t, p in pairs.items() if self.ctx.tokens(k) >= shortest_length(t, self.filler, p)
        ]

    def target_multiple(self) -> Multiple:
        """Returns the largest measured multiple up to 4, the primary one; else the smallest."""
        below = [k for k in self.ctx.multiples if k <= 4]
        return max(below) if below else min(self.ctx.multiples)

    def of_heads(self, suite, metric, length, values_LN, n, extra="") -> Iterator[Row]:
        """Yields one row per head; for a layer that is None a skipped row with the reason."""
        for layer, values_N in enumerate(values_LN):
            if values_N is None:
                yield from self.ctx.skipped(suite, metric, length, LINEAR, f"layer:{layer}{extra}")
                continue
            for head, value in enumerate(values_N):
                yield self.row(suite, metric, length, f"head:{layer}.{head}{extra}", value, n)

    def save(self, name: str, **arrays: np.ndarray) -> None:
        """Writes arrays/<name>.npz."""
        self.ctx.save(name, arrays)

    def _scorer(self, config: ModelConfig, k: Multiple) -> Scorer:
        longest, length = self.placed.longest(), self.ctx.tokens(k) + self.L // 2
        length = length if longest is None else min(length, longest)
        return Scorer({length: config}, self.params, self.budget)

    def axes(self, model: ParameterizedModel, k: Multiple) -> dict[str, tuple[float, int, int]]:
        """Returns {axis: (value, n, length)} of a model: bpb_ctx at kL, and the accuracy of each
        task at kL.

        k = 1 uses a context of L/2, so that all targets are within L. Models of one configuration
        share compiled programs. bpb_ctx is left out where kL and its targets do not fit the scheme.
        """
        scorer = self.scorer(model.config, k).with_params(model.params)
        longest, scores = self.placed.longest(), {}
        context = self.L // 2 if k == 1 else self.ctx.tokens(k)
        if longest is None or context + self.L // 2 <= longest:
            nll, targets = fixed_targets(scorer, self.stretches_RT, self.L, context)
            lengths_V = self.ctx.inputs.tokenizer.byte_lengths_V
            scores[BPB] = (bits_per_byte(nll, targets, lengths_V), targets.size, context)
        for task in self.tasks(k):
            correct = score_instances(scorer, self.instances(task, k)).correct
            scores[f"{task}_accuracy"] = (float(correct.mean()), correct.size, self.ctx.tokens(k))
        return scores

    def _axes_before(self, k: Multiple) -> dict[str, tuple[float, int, int]]:
        return self.axes(ParameterizedModel(self.config, self.params), k)

    def change(
        self, suite: str, metric: str, name: str, change: Intervention, k: Multiple
    ) -> list[Row]:
        """Returns rows `<metric>_<axis>_change` at kL: each axis with an intervention minus
        without.

        Returns one skipped row where the intervention does not apply.
        """
        length = self.ctx.tokens(k)
        try:
            model = change(ParameterizedModel(self.config, self.params))
        except ValueError as reason:
            return self.ctx.skipped(suite, f"{metric}_change", length, str(reason), name)
        before = self.axes_before(k)
        return [
            self.row(suite, f"{metric}_{axis}_change", at, name, value - before[axis][0], n)
            for axis, (value, n, at) in self.axes(model, k).items()
        ]
