"""Training windows of packed retrieval documents, with a curriculum."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from posenc_jax.data.packing import Document, Example, pack
from posenc_jax.data.pipeline import ENDLESS
from posenc_jax.data.tokenizers import Tokenizer
from posenc_jax.tasks.filler import Filler
from posenc_jax.tasks.instances import key_of
from posenc_jax.tasks.passkey_mqar import check_pairs
from posenc_jax.tasks.task_registry import Task, find


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Schedule of lengths and pairs of retrieval documents over a training run (Bengio et al.
    2009).

    Attributes:
      pairs: minimum and maximum number of key-value pairs of an mqar document. askings: questions
        per pair.
      windows: retrieval windows of the whole run; 0: every schedule has its final value.
      pairs_warmup: share of the windows over which the maximum rises linearly from the minimum.
      divisors: the longest document of stage i of the run is L / divisors[i]; stages are equally
        long.
    """

    pairs: tuple[int, int]
    askings: int = 1
    windows: int = 0
    pairs_warmup: float = 0.0
    divisors: tuple[int, ...] = (1,)

    def __post_init__(self):
        low, high = self.pairs
        check_pairs(low)
        check_pairs(high)
        if low > high:
            raise ValueError(f"mqar pairs must be (fewest, most), not {self.pairs}")

    def progress(self, index: int) -> float:
        """Returns the share of the run that precedes a window, in [0, 1); 1 without schedules."""
        return index / self.windows if self.windows else 1.0

    def stage_index(self, progress: float) -> int:
        """Returns the index of the stage that contains this share of the run."""
        return min(int(progress * len(self.divisors)), len(self.divisors) - 1)

    def most_pairs(self, progress: float, stage: "Stage") -> int:
        """Returns the maximum number of pairs of an mqar document at this share of the run."""
        low, high = self.pairs
        grown = progress / self.pairs_warmup if self.pairs_warmup else 1.0
        return min(low + int(min(grown, 1.0) * (high - low)), stage.most_pairs)


@dataclasses.dataclass(frozen=True)
class Stage:
    """Documents of one stage of the run.

    Attributes:
      longest: tokens of its longest document. tasks: (name, share) of the tasks that fit.
      most_pairs: the largest number of pairs with which an mqar document fits.
    """

    longest: int
    tasks: tuple[tuple[str, float], ...]
    most_pairs: int

    @functools.cached_property
    def shares(self) -> np.ndarray:
        """The shares of the tasks; they sum to 1."""
        shares = np.array([share for _, share in self.tasks], float)
        return shares / shares.sum()

    @functools.cached_property
    def edges(self) -> np.ndarray:
        """Upper ends of the intervals of [0, 1) that belong to the tasks, but for the last one."""
        return np.cumsum(self.shares)[:-1]


def stages(
    tasks: Sequence[tuple[str, float]], filler: Filler, curriculum: Curriculum, length: int
) -> tuple[Stage, ...]:
    """Returns the stages of the run, in windows of `length` tokens.

    No document exceeds the maximum length of its stage. A task that does not fit is left out, and
    its share goes to the others in proportion. mqar has as many pairs as fit.

    Raises:
      ValueError: no task fits a stage; the message names the stage and the length of the shortest
        task.
    """
    low, high = curriculum.pairs
    found = []
    for number, divisor in enumerate(curriculum.divisors, 1):
        longest = length // divisor
        least = {name: _fewest(name, curriculum).shortest(filler) for name, share in tasks if share}
        if min(least.values()) > longest:
            first = min(least, key=least.__getitem__)
            shortest = _fewest(first, curriculum)
            raise ValueError(
                f"length_warmup: part {number} of {len(curriculum.divisors)} has documents of at "
                f"most {longest} tokens ({length} / {divisor}), and its shortest task, "
                f"{shortest.wording or shortest.name}, needs {least[first]}; take a smaller "
                f"divisor than {divisor}, or a longer context"
            )
        fitting = tuple((name, share) for name, share in tasks if least.get(name, 0) <= longest)
        pairs = [
            n
            for n in range(low, high + 1)
            if find("mqar", n, curriculum.askings).shortest(filler) <= longest
        ]
        found.append(Stage(longest, fitting, max(pairs, default=low)))
    return tuple(found)


def _fewest(name: str, curriculum: Curriculum) -> Task:
    return find(name, curriculum.pairs[0], curriculum.askings)


class RetrievalWindows:
    """Endless training windows of packed retrieval documents, functions of (seed, split, index).

    The length of a document is uniform in [longest/4, longest] tokens, where `longest` is set by
    the stage, and at least what the task needs. The last document of a window has the tokens that
    are left; the rest is padding.

    Args:
      tasks: (name, share) pairs. answer_weight: loss weight of an answer token; a text token has 1.

    Raises:
      ValueError: a task that does not fit the length, or a stage that no task fits.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        filler: Filler,
        *,
        tasks: Sequence[tuple[str, float]],
        length: int,
        seed: int,
        split: str,
        curriculum: Curriculum,
        answer_weight: float,
    ):
        if tokenizer.fingerprint != filler.fingerprint:
            raise ValueError("the filler was made with another tokenizer than the task's")
        for task, _ in tasks:
            find(task, curriculum.pairs[1], curriculum.askings).check(filler, length)
        shares = np.array([share for _, share in tasks], float)
        if not len(shares) or (shares < 0).any() or not shares.sum():
            raise ValueError(
                f"retrieval tasks need shares that are at least 0 and not all 0: {tasks}"
            )
        if not curriculum.windows:  # only the last stage is used
            curriculum = dataclasses.replace(curriculum, divisors=curriculum.divisors[-1:])
        self._stages = stages(tasks, filler, curriculum, length)
        self._filler, self._pad, self._answer_weight = filler, tokenizer.pad, answer_weight
        self._length, self._curriculum, self._split = length, curriculum, split
        self._key = key_of("windows", split, seed)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Example:
        generator = np.random.Generator(np.random.Philox(key=self._key, counter=index << 64))
        documents, left, progress = [], self._length, self._curriculum.progress(index)
        while document := self._document(generator, left, progress):
            documents.append(document)
            left -= len(document.tokens)
        return pack(documents, self._length, self._pad)

    def _document(
        self, generator: np.random.Generator, left: int, progress: float
    ) -> Document | None:
        which, how_many, how_long = generator.random(3)
        grows, low = self._curriculum, self._curriculum.pairs[0]
        stage = self._stages[grows.stage_index(progress)]
        name, _ = stage.tasks[np.searchsorted(stage.edges, which, side="right")]
        # Drawn for every task, so that another mixture does not change the other documents.
        pairs = low + int(how_many * (grows.most_pairs(progress, stage) - low + 1))
        task = find(name, pairs, grows.askings)
        shortest = task.shortest(self._filler)
        if shortest > left:
            return None
        least = max(shortest, stage.longest // 4)
        length = min(left, least + int(how_long * max(stage.longest - least + 1, 1)))
        instance = task.make(self._filler, generator, self._split, length, None)
        return instance.document(self._answer_weight)
