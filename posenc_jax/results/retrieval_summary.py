"""Summaries of retrieval from corrected accuracies: scores of the tasks of Y_R, and EL."""

import math
from collections.abc import Callable, Mapping

from posenc_jax.results.schema import FAR_BUCKETS, LEARNT, SUMMARY_TASKS, Row

# (metric, length, bucket) -> its row, or None where it was not measured.
FindRow = Callable[[str, int, str], Row | None]


def summary_scores(find: FindRow, length: int, far: bool) -> tuple[dict[str, float], int]:
    """Returns the corrected accuracy of each task of Y_R that was measured, and the number of
    answers.

    Args:
      find: looks a row up. length: of the context. far: only over answers further away than L.

    The weight of a bucket is n (1 - chance), which gives the corrected accuracy of all answers
    together.
    """
    buckets = FAR_BUCKETS if far else ("all",)
    scores, answers = {}, 0
    for task in SUMMARY_TASKS:
        rows = [
            row
            for row in (find(f"{task}_corrected", length, b) for b in buckets)
            if row is not None
        ]
        weights = [_weight(row) for row in rows]
        if rows:
            scores[task] = math.fsum(
                w * r.number for w, r in zip(weights, rows, strict=True)
            ) / math.fsum(weights)
            answers += sum(row.n for row in rows)
    return scores, answers


def _weight(row: Row) -> float:
    if row.chance is None:
        raise ValueError(f"{row.run}: {row.metric} at {row.length} has no chance")
    return row.n * (1 - row.chance)


def longest_passing(scores: Mapping[int, float], share: float) -> int | None:
    """Returns EL: the longest length with at least `share` of the shortest one's score, all shorter
    ones passing too; None where the task is not learnt at the shortest (below LEARNT).

    Args:
      scores: corrected accuracy by length.
    """
    shortest = min(scores)
    if scores[shortest] < LEARNT:
        return None
    passed = None
    for length in sorted(scores):
        if scores[length] < share * scores[shortest]:
            break
        passed = length
    return passed
