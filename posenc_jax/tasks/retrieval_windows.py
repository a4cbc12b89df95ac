"""Training windows of packed retrieval documents."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from posenc_jax.data.packing import Document, Example, pack
from posenc_jax.data.pipeline import ENDLESS
from posenc_jax.data.tokenizers import Tokenizer
from posenc_jax.tasks.filler import Filler
from posenc_jax.tasks.instances import key_of
from posenc_jax.tasks.passkey_mqar import check_pairs
from posenc_jax.tasks.task_registry import find


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """How retrieval documents grow while a run is trained (Bengio et al. 2009), and how often recall asks.

    Attributes:
      pairs: fewest and most key-value pairs of an mqar document. askings: times that recall asks each pair.
      windows: retrieval windows that the whole run reads; 0: everything stands at its end.
      pairs_warmup: share of them in which the most pairs grow from the fewest, linearly.
      divisors: the longest document is L divided by these, one after another in equal parts of the windows.
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
            raise ValueError(f"mqar pairs run from fewest to most; not {self.pairs}")

    def progress(self, index: int) -> float:
        """Returns the share of the training that is done at a window, below 1 up to its end."""
        return index / self.windows if self.windows else 1.0

    def most_pairs(self, progress: float) -> int:
        """Returns the most pairs of a document at that share of the training."""
        low, high = self.pairs
        grown = progress / self.pairs_warmup if self.pairs_warmup else 1.0
        return low + int(min(grown, 1.0) * (high - low))

    def longest(self, progress: float, length: int) -> int:
        """Returns the tokens of the longest document at that share of the training."""
        part = min(int(progress * len(self.divisors)), len(self.divisors) - 1)
        return length // self.divisors[part]


class RetrievalWindows:
    """Endless training windows of packed retrieval documents, functions of (seed, split, index).

    tasks: (name, share) pairs. answer_weight: loss weight of an answer token, a text token having 1.
    Documents are uniform in [longest/4, longest] tokens, longest being `length` unless the curriculum says
    otherwise, and never shorter than their task allows;
    the last of a window takes what is left, and what no document fits into is padding. Raises ValueError
    if a task does not fit into the length.
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
        self._names = [task for task, _ in tasks]
        self._edges = np.cumsum(shares / shares.sum())[:-1]
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
        name = self._names[np.searchsorted(self._edges, which, side="right")]
        grows, low = self._curriculum, self._curriculum.pairs[0]
        # Drawn for every task, so that a change of the mixture leaves the other documents alone.
        pairs = low + int(how_many * (grows.most_pairs(progress) - low + 1))
        task = find(name, pairs, grows.askings)
        shortest = task.shortest(self._filler)
        if shortest > left:
            return None
        longest = grows.longest(progress, self._length)
        least = max(shortest, longest // 4)
        length = min(left, least + int(how_long * max(longest - least + 1, 1)))
        instance = task.make(self._filler, generator, self._split, length, None)
        return instance.document(self._answer_weight)
