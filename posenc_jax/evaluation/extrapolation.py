"""Suite E: perplexity under length extrapolation, one item per measure and length."""

import functools
from collections.abc import Callable

import numpy as np

from posenc_jax.evaluation import key_targets
from posenc_jax.evaluation.context import EvaluationContext
from posenc_jax.evaluation.lengths import Multiple
from posenc_jax.evaluation.perplexity import (
    bits_per_byte,
    disjoint_segments,
    fixed_targets,
    held_out_stretches,
    nats_and_bytes,
    octaves,
    repeat_length,
    repeated_spans,
    sliding_windows,
)
from posenc_jax.results.schema import BPB, FAR, Row

MEASURES = ("E1", "E2", "E3", "E4", "E5", "E6", "E7", "E8", "E8_longest", "E9")
# Measures that are computed from rows of another measure.
NEEDS = {"E7": ("E3",), "E8": ("E3",), "E8_longest": ("E3",), "E9": ("E2",)}


def extrapolation_items(ctx: EvaluationContext, chosen: frozenset[str]) -> dict[str, Callable]:
    """Returns the items of the chosen measures.

    All arms score the same targets: stretches have the longest length of the study, also for an arm
    with fewer positions.
    """
    L, multiples = ctx.L, ctx.multiples
    whole = [ctx.tokens(k) for k in multiples]
    rows_RT = held_out_stretches(
        ctx.inputs.stream(ctx.split),
        ctx.tokens(ctx.lengths.top) + L // 2,
        ctx.config.evaluation.stretches,
    )
    text = Text(ctx, rows_RT)
    # Shares of L that were asked for take the place of the usual ones.
    shares = [n for n in whole if n < L] or [L // 8, L // 4]
    contexts = sorted({c for c in (*shares, L // 2, *whole) if c})
    gaps = [L // 4, L // 2, *(n // 2 for n in whole if n // 2 <= FAR * L)]
    gaps = sorted({g for g in gaps if g})
    items: dict[str, dict[str, tuple[Callable, Multiple]]] = {
        "E1": {f"E1/{k}": (text.disjoint, k) for k in multiples},
        "E4": {f"E4/{ctx.lengths.deepest}": (text.by_position, ctx.lengths.deepest)}
        if ctx.lengths.deepest in multiples
        else {},
        "E3": {f"E3/{c}": (text.fixed, c) for c in contexts},
        "E2": {f"E2/{k}": (text.sliding, k) for k in multiples},
        "E5": {
            f"E5/{c}{key_targets.item_suffix(ctx.key_targets)}": (text.key, c) for c in contexts
        },
        "E6": {f"E6/{g}": (text.repeat, g) for g in gaps},
        "E7": {"E7": (text.gain, FAR)},
        "E8": {"E8": (text.window, FAR)},
        "E8_longest": {
            "E8" if ctx.lengths.deepest == FAR else "E8_longest": (text.window, ctx.lengths.deepest)
        },
        "E9": {f"E9/{k}": (text.curse, k) for k in multiples},
    }
    return {
        name: functools.partial(measure, at)
        for id, entries in items.items()
        if id in chosen
        for name, (measure, at) in entries.items()
    }


class Text:
    """Measures on one set of held-out stretches."""

    def __init__(self, ctx: EvaluationContext, rows_RT: np.ndarray):
        self._ctx, self._rows_RT = ctx, rows_RT
        self._bytes_V = ctx.inputs.tokenizer.byte_lengths_V
        # E1 and E4 use the same losses; they are computed once.
        self._segments = functools.cache(lambda k: disjoint_segments(ctx.scorer, rows_RT, ctx.L, k))

    def disjoint(self, k: Multiple) -> list[Row]:
        nll, targets = self._segments(k)
        value = bits_per_byte(nll, targets, self._bytes_V)
        return [self._row("bpb_nonoverlap", self._ctx.tokens(k), value, targets.size)]

    def by_position(self, k: Multiple) -> list[Row]:
        nll, _ = self._segments(k)
        position_T = np.arange(1, nll.shape[1] + 1)
        arrays = {"position_T": position_T, "nll_T": nll.mean(0), "count": len(nll)}
        self._ctx.save("nll_pos", arrays)
        return [
            self._ctx.row(
                "E",
                "nll_pos",
                nll.shape[1],
                f"[{a},{b})",
                float(nll[:, a:b].mean()),
                len(nll) * (b - a),
            )
            for a, b in octaves(nll.shape[1])
        ]

    def fixed(self, context: int) -> list[Row]:
        if not self._ctx.fits(context + self._ctx.L // 2):
            return self._ctx.skipped("E", BPB, context, self._misfit(context))
        nll, targets = fixed_targets(self._ctx.scorer, self._rows_RT, self._ctx.L, context)
        value = bits_per_byte(nll, targets, self._bytes_V)
        self._save(f"{BPB}_{context}", nll, targets)
        return [self._row(BPB, context, value, targets.size)]

    def _misfit(self, context: int) -> str:
        longest = self._ctx.model.config.placed.longest()
        return f"a context of {context} and {self._ctx.L // 2} targets exceed {longest} positions"

    def _sliding_rows(self) -> np.ndarray:
        return self._rows_RT[: self._ctx.config.evaluation.sliding_stretches]

    def sliding(self, k: Multiple) -> list[Row]:
        L, stride = self._ctx.L, max(self._ctx.L // 4, 1)
        nll, targets = sliding_windows(self._ctx.scorer, self._sliding_rows(), L, k, stride)
        value = bits_per_byte(nll, targets, self._bytes_V)
        return [self._row("bpb_sliding", self._ctx.tokens(k), value, targets.size)]

    def curse(self, k: Multiple) -> list[Row]:
        L, length = self._ctx.L, self._ctx.tokens(k)
        sliding = self._ctx.rows.value("bpb_sliding", length)
        if sliding is None:
            return self._ctx.skipped("E", "early_token_curse", length, "bpb_sliding has no value")
        nll, targets = disjoint_segments(self._ctx.scorer, self._sliding_rows(), L, k)
        value = bits_per_byte(nll, targets, self._bytes_V) - sliding[0]
        return [self._row("early_token_curse", length, value, targets.size)]

    def key(self, context: int) -> list[Row]:
        ctx = self._ctx
        if not ctx.fits(context + ctx.L // 2):
            return ctx.skipped("E", "bpb_key", context, self._misfit(context))
        if ctx.key_targets is None:
            reason = "no file of targets: --key_targets=FILE, made by --write_key_targets"
            return ctx.skipped("E", "bpb_key", context, reason)
        about = key_targets.about(ctx.inputs, ctx.split, ctx.L, ctx.lengths.top, self._rows_RT)
        chosen = key_targets.read(ctx.key_targets, about)
        if not chosen.any():
            return ctx.skipped("E", "bpb_key", context, "the reference model found no such target")
        nll, targets = fixed_targets(ctx.scorer, self._rows_RT, ctx.L, context)
        value = bits_per_byte(nll[chosen], targets[chosen], self._bytes_V)
        return [self._row("bpb_key", context, value, int(chosen.sum()))]

    def repeat(self, gap: int) -> list[Row]:
        ctx, L = self._ctx, self._ctx.L
        needed, longest = repeat_length(L, gap), ctx.scorer.longest
        if needed - 1 > longest:
            reason = f"a gap of {gap} needs {needed - 1} inputs; the longest scored is {longest}"
            return ctx.skipped("E", "repeat_gain", gap, reason)
        if needed > self._rows_RT.shape[1]:
            reason = (
                f"a gap of {gap} needs {needed} tokens of text; a stretch has "
                f"{self._rows_RT.shape[1]}"
            )
            return ctx.skipped("E", "repeat_gain", gap, reason)
        if len(self._rows_RT) < 2:
            return ctx.skipped(
                "E", "repeat_gain", gap, "the span comes from another stretch, and there is one"
            )
        fresh_R, repeated_R = repeated_spans(ctx.scorer, self._rows_RT, L, gap, self._bytes_V)
        arrays = {"fresh_R": fresh_R, "repeated_R": repeated_R}
        ctx.save(f"repeat_gain_{gap}", arrays)
        return [self._row("repeat_gain", gap, (fresh_R - repeated_R).mean(), len(fresh_R))]

    def gain(self, k: Multiple) -> list[Row]:
        ctx, length = self._ctx, self._ctx.tokens(k)
        near, far = ctx.rows.value(BPB, ctx.L // 2), ctx.rows.value(BPB, length)
        if near is None or far is None:
            reason = f"{BPB} at L/2 and {k}L are not both measured"
            return ctx.skipped("E", "context_gain", length, reason)
        return [self._row("context_gain", length, near[0] - far[0], far[1])]

    def window(self, k: Multiple) -> list[Row]:
        ctx, L, length = self._ctx, self._ctx.L, self._ctx.tokens(k)
        free = ctx.rows.value(BPB, length)
        if free is None:
            return ctx.skipped("E", "window_check", length, f"{BPB} at {k}L is not measured")
        if k not in ctx.multiples:
            return ctx.skipped("E", "window_check", length, f"{k}L is not among the lengths")
        nll, targets = fixed_targets(ctx.scorer, self._rows_RT, L, length, window=L)
        value = bits_per_byte(nll, targets, self._bytes_V)
        self._save(f"bpb_window_{length}", nll, targets)
        return [
            self._row("bpb_window", length, value, targets.size),
            self._row("window_check", length, value - free[0], targets.size),
        ]

    def _save(self, name: str, nll: np.ndarray, targets: np.ndarray) -> None:
        self._ctx.save(name, nats_and_bytes(nll, targets, self._bytes_V))

    def _row(self, metric: str, length: int, value: float, n: int) -> Row:
        return self._ctx.row("E", metric, length, "all", value, n)
