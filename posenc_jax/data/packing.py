"""Training examples: windows of text and packed documents, with positions, segments and weights.

An example is a dict of arrays of one length: tokens_T and targets_T (ids; PAD where a token has no
successor in its own document), positions_T (index in the document), segments_T (1, 2, 3 ... for the
documents of the window, 0 for padding) and weights_T (loss weight of each target).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from posenc_jax.data.token_stream import TokenStream

Example = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Document:
    """Ids of one whole document, and the loss weight of each.

    The first weight is unused, as nothing predicts a document's first token.
    """

    tokens: np.ndarray
    weights: np.ndarray


def text_window(stream: TokenStream, index: int, length: int) -> Example:
    """Returns the tokens index*length ... (index+1)*length of a stream, with their successors as
    targets.

    Documents inside the window become segments. If a document began before the window, its
    positions restart at 0 at the window's start. A document's last token has no target: weight 0.
    """
    piece = stream.tokens[index * length : (index + 1) * length + 1].astype(np.int32)
    tokens, targets = piece[:-1], piece[1:].copy()
    ends = targets == stream.bos
    targets[ends] = stream.pad
    opens = tokens == stream.bos
    opens[0] = True
    index_T = np.arange(length, dtype=np.int32)
    return {
        "tokens_T": tokens,
        "targets_T": targets,
        "positions_T": index_T - np.maximum.accumulate(np.where(opens, index_T, 0)),
        "segments_T": np.cumsum(opens, dtype=np.int32),
        "weights_T": 1.0 - ends.astype(np.float32),
    }


def pack(documents: Sequence[Document], length: int, pad: int) -> Example:
    """Returns whole documents, a segment each, padded to `length`; ValueError if too long."""
    total = sum(len(document.tokens) for document in documents)
    if total > length:
        raise ValueError(f"{total} tokens do not fit into a window of {length}")
    example = {
        "tokens_T": np.full(length, pad, np.int32),
        "targets_T": np.full(length, pad, np.int32),
        "positions_T": np.zeros(length, np.int32),
        "segments_T": np.zeros(length, np.int32),
        "weights_T": np.zeros(length, np.float32),
    }
    start = 0
    for number, document in enumerate(documents, 1):
        stop = start + len(document.tokens)
        example["tokens_T"][start:stop] = document.tokens
        example["targets_T"][start : stop - 1] = document.tokens[1:]
        example["positions_T"][start:stop] = np.arange(stop - start)
        example["segments_T"][start:stop] = number
        example["weights_T"][start : stop - 1] = document.weights[1:]
        start = stop
    return example
