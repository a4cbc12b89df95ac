"""Data pipeline: sources of examples, shuffled, mixed by share and divided among processes.

Row r of step s is global example s*batch_size + r for any number of threads and processes; the step
number is the only state.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import grain
import numpy as np

from posenc_jax.data.packing import Example, text_window
from posenc_jax.data.token_stream import TokenStream

# Sources of this length draw random examples, so they are not shuffled (grain shuffles with 32-bit
# indices).
ENDLESS = 2**40


class Source(Protocol):
    """Random access to examples of one length."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class TextWindows:
    """Consecutive windows of a stream; a rest too short for a window and its targets is left out.

    Raises ValueError for a stream too short for one window.
    """

    def __init__(self, stream: TokenStream, length: int):
        self._stream = stream
        self._length = length
        self._count = (len(stream) - 1) // length
        if self._count < 1:
            raise ValueError(
                f"a text of {len(stream)} tokens has no window of length {length}; take a larger "
                "corpus or a smaller length"
            )

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return text_window(self._stream, index, self._length)


def mixture(sources: Sequence[tuple[Source, float]], seed: int) -> grain.MapDataset:
    """Returns the endless rows of a run, examples of the sources in proportion to their shares.

    Args:
      sources: (source, share) pairs; sources of ENDLESS examples are read in order, the others are
        shuffled in every epoch.

    Raises:
      ValueError: a negative share, or no positive one.
    """
    parts, shares = [], []
    for number, (source, share) in enumerate(sources):
        if share < 0:
            raise ValueError(f"a source's share is {share}; shares are at least 0")
        if share == 0:
            continue
        part = grain.MapDataset.source(source)
        if len(source) < ENDLESS:
            part = part.seed(_shuffle_seed(seed, number)).shuffle().repeat()
        parts.append(part)
        shares.append(share)
    if not parts:
        raise ValueError("no source has a share above 0")
    return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, shares)


def batches(
    rows: grain.MapDataset,
    *,
    batch_size: int,
    first_step: int,
    last_step: int,
    process_index: int,
    process_count: int,
    num_threads: int,
    prefetch: int,
) -> Iterator[dict[str, np.ndarray]]:
    """Returns this process's rows of the batches first_step ... last_step-1: tokens_BT, targets_BT,
    ...

    Args:
      rows: from `mixture`. batch_size: rows over all processes; process p has the rows
        [p*n, (p+1)*n) of a batch, n = batch_size / process_count. prefetch: batches kept ready.

    Raises:
      ValueError: a batch that does not divide among the processes.
    """
    if batch_size % process_count:
        raise ValueError(f"a batch of {batch_size} does not divide among {process_count} processes")
    own = rows.batch(batch_size // process_count, drop_remainder=True, batch_fn=_stack)
    mine = own[process_index::process_count][first_step:last_step]
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
    return iter(mine.to_iter_dataset(options))


def _shuffle_seed(seed: int, number: int) -> int:
    # With seed + number, run 0's second source would have the shuffle of run 1's first.
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "little")


def _stack(examples: Sequence[Example]) -> dict[str, np.ndarray]:
    return {
        key.removesuffix("_T") + "_BT": np.stack([example[key] for example in examples])
        for key in examples[0]
    }
