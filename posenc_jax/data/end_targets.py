"""End targets: the last token of a document predicts the token that ends a text."""

import dataclasses

import numpy as np

from posenc_jax.data.packing import Example

WEIGHT = 1.0  # loss weight of an end target, equal to a text token's


@dataclasses.dataclass(frozen=True)
class EndTargets:
    """Sets the target to `end` at the last token of each document that ends in the example.

    A model trained with these targets learns to generate the end token, like language models
    trained on documents that are joined by such a token (GPT-2's <|endoftext|>).

    Attributes:
      end, pad: ids of the tokenizer.
    """

    end: int
    pad: int

    def __call__(self, example: Example) -> Example:
        """Returns the example with end targets and their weights.

        A document that continues after the window keeps its next token as the target, and padding
        keeps weight 0.
        """
        segments_T, targets_T, weights_T = (
            example[name] for name in ("segments_T", "targets_T", "weights_T")
        )
        last_T = np.append(segments_T[1:] != segments_T[:-1], True) & (segments_T != 0)
        ends_T = last_T & (targets_T == self.pad) & (weights_T == 0)
        return example | {
            "targets_T": np.where(ends_T, np.int32(self.end), targets_T),
            "weights_T": np.where(ends_T, np.float32(WEIGHT), weights_T),
        }
