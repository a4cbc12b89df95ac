"""R: retrieval accuracy over context length, needle distance and depth (EVALUATION.md, sec. 2)."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from posenc_jax.evaluation.scorer import Scorer
from posenc_jax.results.schema import DISTANCES
from posenc_jax.tasks.instances import Instance


@dataclasses.dataclass(frozen=True)
class Answers:
    """One entry per answer that is not given away.

    correct: the argmax is right on all its tokens. nll: their mean. rank: the worst of theirs, 0 being
    the argmax. distance, depth, chance, kind: see `tasks.instances.Answer`. instance: its number in the list.
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

    Equal to greedy decoding as far as `correct` goes: an answer is right when every one of its tokens
    is the most likely one after the right tokens before it. window: tokens that attention sees.
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
    """Yields (name, selection): all, the distance bins in units of L, depth deciles, kinds of question."""
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
