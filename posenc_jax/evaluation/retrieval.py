"""R: retrieval accuracy over context length, needle distance and depth (EVALUATION.md, sec. 2)."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from posenc_jax.evaluation.scorer import Scorer
from posenc_jax.tasks.instances import Instance

DISTANCE_EDGES = (
    (0, "<=L/4"),
    (0.25, "L/4-L"),
    (1, "L-2L"),
    (2, "2L-4L"),
    (4, "4L-8L"),
    (8, ">8L"),
)


@dataclasses.dataclass(frozen=True)
class Answers:
    """One entry per asked answer.

    correct: the argmax is right on all its tokens. nll: their mean. rank: the worst of theirs, 0 being
    the argmax. distance, depth, kind: see `tasks.instances.Answer`. instance: its number in the list.
    """

    correct: np.ndarray
    nll: np.ndarray
    rank: np.ndarray
    distance: np.ndarray
    depth: np.ndarray
    kind: np.ndarray
    instance: np.ndarray


def score_instances(scorer: Scorer, instances: list[Instance]) -> Answers:
    """Returns the answers of instances of one length, scored by teacher-forced argmax.

    Equal to greedy decoding as far as `correct` goes: an answer is right when every one of its tokens
    is the most likely one after the right tokens before it.
    """
    nll_RT, rank_RT = scorer.score(np.stack([i.tokens for i in instances]))
    rows = []
    for row, instance in enumerate(instances):
        for a in instance.answers:
            nll = nll_RT[row, a.start - 1 : a.stop - 1].mean()
            rank = rank_RT[row, a.start - 1 : a.stop - 1].max()
            rows.append((rank == 0, nll, rank, a.distance, a.depth, a.kind, row))
    return Answers(*(np.array(column) for column in zip(*rows, strict=True)))


def above_chance(accuracy: float, chance: float) -> float:
    """Returns the accuracy rescaled so that guessing is 0 and perfect is 1."""
    return (accuracy - chance) / (1 - chance)


def longest_passing(scores: Mapping[int, float], share: float) -> int | None:
    """Returns EL: the longest length with at least `share` of the shortest one's score, all shorter
    ones passing too; None when nothing is known above chance at the shortest."""
    shortest = min(scores)
    if not scores[shortest] > 0:
        return None
    passed = None
    for length in sorted(scores):
        if scores[length] < share * scores[shortest]:
            break
        passed = length
    return passed


def buckets(answers: Answers, train_length: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, selection): all, the distance bins in units of L, depth deciles, kinds of question."""
    yield "all", np.ones(len(answers.correct), bool)
    share = answers.distance / train_length
    tops = [edge for edge, _ in DISTANCE_EDGES[1:]] + [np.inf]
    for (low, name), high in zip(DISTANCE_EDGES, tops, strict=True):
        yield f"distance:{name}", (share > low if low else share >= 0) & (share <= high)
    decile = np.minimum((answers.depth * 10).astype(int), 9)
    for d in range(10):
        yield f"depth:{d}", decile == d
    for kind in sorted(set(answers.kind.tolist()) - {""}):
        yield f"kind:{kind}", answers.kind == kind
