"""Random positions in training (Ruoss et al. 2023): sorted random draws from a longer range."""

import dataclasses

import numpy as np

from posenc_jax.data.packing import Example

FURTHEST = 2**31 - 1  # positions are int32, and the last position plus 1 must be int32 too
_STREAM = 0x706F736974696F6E  # "position": separates these draws from others of the same seed


@dataclasses.dataclass(frozen=True)
class RandomPositions:
    """Replaces the positions of an example's documents; a function of (seed, row).

    Attributes:
      span: positions are drawn from [0, span). seed: of the run.

    Raises:
      ValueError: a span below 1 or above `FURTHEST`.
    """

    span: int
    seed: int

    def __post_init__(self):
        if not 1 <= self.span <= FURTHEST:
            raise ValueError(
                f"random positions are drawn from 1 to {FURTHEST:,} positions (int32), not from "
                f"{self.span:,}"
            )

    def __call__(self, row: int, example: Example) -> Example:
        """Returns the example with the positions of that row of the run.

        A document of n tokens gets n different positions, sorted; all sets of n are equally likely
        (Ruoss et al. 2023, sec. 3). Each document of a row has its own draw. Padding stays at 0.

        Args:
          row: number of the example in the run, over all steps and processes.

        Raises:
          ValueError: a document longer than the range.
        """
        generator = np.random.Generator(
            np.random.Philox(key=[self.seed, _STREAM], counter=row << 64)
        )
        positions_T = np.zeros_like(example["positions_T"])
        counts = np.bincount(example["segments_T"])
        for segment in range(1, len(counts)):
            n = int(counts[segment])
            if n > self.span:
                raise ValueError(
                    f"a document of {n} tokens has no {n} different positions below {self.span}"
                )
            drawn = generator.choice(self.span, n, replace=False, shuffle=False)
            positions_T[example["segments_T"] == segment] = np.sort(drawn)
        return example | {"positions_T": positions_T}
