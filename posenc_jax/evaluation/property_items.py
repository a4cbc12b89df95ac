"""The items of suite P: is RoPE's relative structure kept, and is the bias monotone?"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from posenc_jax.encodings import GatedBias
from posenc_jax.evaluation import probes
from posenc_jax.evaluation.interventions import rotation_off
from posenc_jax.evaluation.measures import SEED
from posenc_jax.evaluation.properties import (
    keeps_count,
    largest_gate_rise,
    largest_rise,
    shift_errors,
)
from posenc_jax.evaluation.retrieval import score_instances
from posenc_jax.evaluation.retrieval_items import answer_rows
from posenc_jax.evaluation.subject import ROWS, Subject
from posenc_jax.results.schema import Row
from posenc_jax.tasks.offset import asked_offsets, offset_lookup

MONOTONE_TO = 16  # P5, in units of L


def property_items(subject: Subject) -> dict[str, Callable]:
    """Returns the items P1, P2 per multiple, P3 per multiple, P4 and P5."""
    multiples = subject.work.multiples
    ends = sorted({1, subject.target_multiple(), max(multiples)} & set(multiples))
    items = {"P1": lambda: _shift_errors(subject)}
    items |= {f"P2/{k}": lambda k=k: _relative_structure(subject, k) for k in ends}
    items |= {f"P3/{k}": lambda k=k: _offset_lookup(subject, k) for k in multiples}
    items["P4"] = functools.partial(
        subject.change, "P", "P4", "rotation off", rotation_off, min(multiples)
    )
    return items | {"P5": lambda: _monotone(subject)}


def _shift_errors(subject: Subject) -> list[Row]:
    L, limit = subject.L, subject.placed.longest()
    wanted = sorted({1, 7, L, 8 * L})
    length = min(L, limit) if limit is not None else L
    fitting = tuple(d for d in wanted if limit is None or length + d <= limit)
    rows, rows_RT = [], subject.text(length)[:, :-1]
    if fitting:
        errors = shift_errors(subject.config, subject.params, rows_RT, fitting, subject.budget)
        for shift, error_LN in errors.items():
            of_shift = f" shift:{shift}"
            rows += subject.of_heads(
                "P", "P1_shift_error", length, error_LN, len(rows_RT), of_shift
            )
            rows.append(subject.row("P", "P1_shift_error", length, f"all{of_shift}", error_LN.max(), len(rows_RT)))  # fmt: skip
    if fitting and keeps_count(subject.placed):
        moved = shift_errors(
            subject.config, subject.params, rows_RT, fitting, subject.budget, counted=False
        )
        rows += [
            subject.row("P", "P1_counter_error", length, f"all shift:{shift}", error_LN.max(), len(rows_RT))
            for shift, error_LN in moved.items()
        ]  # fmt: skip
    for shift in set(wanted) - set(fitting):
        reason = f"{length} tokens moved by {shift} exceed the {limit} positions of {subject.config.scheme}"
        rows += subject.work.skipped("P", "P1_shift_error", length, reason, f"all shift:{shift}")
    return rows


def _relative_structure(subject: Subject, k: int) -> list[Row]:
    layers = subject.observed(k)
    n = next((int(sums.pairs_D.sum()) for sums in layers if sums is not None), 0)
    scores = [None if sums is None else probes.relative_structure(sums) for sums in layers]
    return list(subject.of_heads("P", "P2_relative_structure", k * subject.L, scores, n))


def _offset_lookup(subject: Subject, k: int) -> list[Row]:
    length = k * subject.L
    offsets = asked_offsets(subject.L)
    instances = [
        offset_lookup(
            subject.filler,
            split=subject.work.split,
            seed=SEED,
            index=i,
            length=length,
            offsets=offsets,
        )
        for i in range(ROWS)
    ]
    answers = score_instances(subject.scorer(subject.config, k), instances)
    subject.save(f"P3_{k}", **dataclasses.asdict(answers))
    chosen = {"all": np.ones(len(answers.correct), bool)}
    chosen |= {f"distance:{t}": answers.distance == t for t in offsets}
    return answer_rows(subject.work, "P", "P3_offset", length, answers, chosen)


def _monotone(subject: Subject) -> list[Row]:
    L, limit = subject.L, subject.placed.longest()
    farthest = MONOTONE_TO * L + 1 if limit is None else min(MONOTONE_TO * L + 1, limit)
    lengths = tuple(sorted({min(k * L + 1, farthest) for k in (1, 4, MONOTONE_TO)}))
    layers = list(zip(subject.placed.layers, subject.learned, strict=True))
    rises_LN = [largest_rise(layer, learned, lengths) for layer, learned in layers]
    read = max(subject.work.multiples) * L
    measured = {}
    if any(layer.gated for layer, _ in layers):
        rows_RT = subject.text(read)[:, :-1]
        measured = largest_gate_rise(subject.config, subject.params, rows_RT, subject.budget)
    rows = []
    for i, (layer, _) in enumerate(layers):
        for group in layer.groups:
            gated = isinstance(group.heads.bias, GatedBias)
            for n in range(group.first, group.stop):
                rise, length = (measured[i][n], read) if gated else (rises_LN[i][n], farthest - 1)
                rows.append(subject.row("P", "P5_largest_rise", length, f"head:{i}.{n}", rise, length))  # fmt: skip
    share = np.mean([row.value == 0 for row in rows])
    return [*rows, subject.row("P", "P5_monotone_share", farthest - 1, "all", share, len(rows))]
