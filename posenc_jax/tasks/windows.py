"""Training windows of packed retrieval documents."""

from collections.abc import Sequence

import numpy as np

from posenc_jax.data.packing import Document, Example, pack
from posenc_jax.data.pipeline import ENDLESS
from posenc_jax.data.tokens import Tokenizer
from posenc_jax.tasks.filler import Filler
from posenc_jax.tasks.instances import key_of
from posenc_jax.tasks.retrieval import check_pairs
from posenc_jax.tasks.table import find


class RetrievalWindows:
    """Endless training windows of packed retrieval documents, functions of (seed, split, index).

    tasks: (name, share) pairs. answer_weight: loss weight of an answer token, a text token having 1.
    Documents are uniform in [max(shortest, length/4), length] tokens;
    the last of a window takes what is left, and what no document fits into is padding. pairs:
    fewest and most key-value pairs of an mqar document. Raises ValueError if a task does not fit
    into the length.
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
        pairs: tuple[int, int],
        answer_weight: float,
    ):
        low, high = pairs
        check_pairs(low)
        check_pairs(high)
        if low > high:
            raise ValueError(f"mqar pairs run from fewest to most; not {pairs}")
        if tokenizer.fingerprint != filler.fingerprint:
            raise ValueError("the filler was made with another tokenizer than the task's")
        for task, _ in tasks:
            find(task, high).check(filler, length)
        shares = np.array([share for _, share in tasks], float)
        if not len(shares) or (shares < 0).any() or not shares.sum():
            raise ValueError(
                f"retrieval tasks need shares that are at least 0 and not all 0: {tasks}"
            )
        self._names = [task for task, _ in tasks]
        self._edges = np.cumsum(shares / shares.sum())[:-1]
        self._filler, self._pad, self._answer_weight = filler, tokenizer.pad, answer_weight
        self._length, self._pairs, self._split = length, (low, high), split
        self._key = key_of("windows", split, seed)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Example:
        generator = np.random.Generator(np.random.Philox(key=self._key, counter=index << 64))
        documents, left = [], self._length
        while document := self._document(generator, left):
            documents.append(document)
            left -= len(document.tokens)
        return pack(documents, self._length, self._pad)

    def _document(self, generator: np.random.Generator, left: int) -> Document | None:
        which, how_many, how_long = generator.random(3)
        name = self._names[np.searchsorted(self._edges, which, side="right")]
        low, high = self._pairs
        # Drawn for every task, so that a change of the mixture leaves the other documents alone.
        task = find(name, low + int(how_many * (high - low + 1)))
        shortest = task.shortest(self._filler)
        if shortest > left:
            return None
        least = max(shortest, self._length // 4)
        length = min(left, least + int(how_long * (self._length - least + 1)))
        instance = task.make(self._filler, generator, self._split, length, None)
        return instance.document(self._answer_weight)
