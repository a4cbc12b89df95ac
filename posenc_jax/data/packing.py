"""Examples from documents: what a position, a segment and a loss weight are.

An example is a dict of arrays of one length: tokens_T and targets_T (ids; PAD where a token has no
successor in its own document), positions_T (place inside the document), segments_T (1, 2, 3 ... for
each document of the window, 0 for padding) and weights_T (what each target counts in the loss).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from posenc_jax.data.token_stream import TokenStream

Example = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Document:
    """Ids of one whole document, and how much the prediction of each counts.

    The first weight is unused, as nothing predicts a document's first token.
    """

    tokens: np.ndarray
    weights: np.ndarray


def text_window(stream: TokenStream, index: int, length: int) -> Example:
    """The tokens index*length ... (index+1)*length of a stream, each with its successor as target.

    Documents inside the window become segments; one that began before it starts at position 0 here.
    A document's last token has no target: weight 0.
    """
    piece = stream.tokens[index * length : (index + 1) * length + 1].astype(np.int32)
    tokens, targets = piece[:-1], piece[1:].copy()
    ends = targets == stream.bos
    targets[ends] = stream.pad
    opens = tokens == stream.bos
    opens[0] = True
    place = np.arange(length, dtype=np.int32)
    return {
        "tokens_T": tokens,
        "targets_T": targets,
        "positions_T": place - np.maximum.accumulate(np.where(opens, place, 0)),
        "segments_T": np.cumsum(opens, dtype=np.int32),
        "weights_T": 1.0 - ends.astype(np.float32),
    }


def pack(documents: Sequence[Document], length: int, pad: int) -> Example:
    """Whole documents one after another, a segment each, then padding to `length`.

    Raises ValueError if they do not fit, as nothing is ever cut off.
    """
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
