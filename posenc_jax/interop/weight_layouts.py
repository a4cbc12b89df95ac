"""Layouts of weights: how tensors of a checkpoint become parameters of our decoder, and back.

A `Rule` names tensors of the checkpoint and parameters of ours. Torch's linear layers store
[outputs, inputs]; ours store inputs first, with the heads as dims of their own.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Shapes = Sequence[tuple[int, ...]]
Arrays = list[np.ndarray]


class WeightLayout(NamedTuple):
    """A pair of functions (arrays, shapes of the parameters) -> arrays, each the other's inverse.

    theirs_to_ours: from tensors of the checkpoint. ours_to_theirs: from parameters.
    """

    theirs_to_ours: Callable[[Arrays, Shapes], Arrays]
    ours_to_theirs: Callable[[Arrays, Shapes], Arrays]


class Rule(NamedTuple):
    """Tensors of a checkpoint, the parameters that they hold, and the layout between them.

    In names, {i} stands for the layer. Parameters are paths below the layer, or below the root
    where no name holds {i}.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    layout: WeightLayout


def _flat(x: np.ndarray, inputs: int) -> np.ndarray:
    """Returns a parameter as [outputs, inputs]; a bias has no inputs and becomes [outputs]."""
    if inputs == 0:
        return x.reshape(-1)
    return x.reshape(int(np.prod(x.shape[:inputs])), -1).T


def _shaped(x: np.ndarray, shape: tuple[int, ...], inputs: int) -> np.ndarray:
    return (x if inputs == 0 else x.T).reshape(shape)


SAME = WeightLayout(lambda x, s: [x[0].reshape(s[0])], lambda x, s: [x[0]])


def conv1d(inputs: int = 1) -> WeightLayout:
    """Returns the layout of GPT-2's Conv1D: inputs first, as ours, heads joined."""

    def joined(x, _):
        return (
            [x[0].reshape(int(np.prod(x[0].shape[:inputs])), -1)] if inputs else [x[0].reshape(-1)]
        )

    return WeightLayout(lambda x, s: [x[0].reshape(s[0])], joined)


def linear(inputs: int = 1) -> WeightLayout:
    """Returns the layout of a linear layer whose parameter has `inputs` input dims; 0: a bias."""
    return WeightLayout(
        lambda x, s: [_shaped(x[0], s[0], inputs)], lambda x, s: [_flat(x[0], inputs)]
    )


def _head_counts(shapes: Shapes) -> tuple[int, int, int]:
    return shapes[0][-2], shapes[1][-2], shapes[0][-1]


def qkv_thirds(inputs: int, *, transposed: bool = False) -> WeightLayout:
    """Returns the layout of queries, keys and values one after another; transposed: as Conv1D."""

    def apart(x, shapes):
        N, K, H = _head_counts(shapes)
        rows = x[0].T if transposed else x[0]
        pieces = np.split(rows, [N * H, (N + K) * H])
        return [_shaped(piece, s, inputs) for piece, s in zip(pieces, shapes, strict=True)]

    def together(arrays, _):
        rows = np.concatenate([_flat(x, inputs) for x in arrays])
        return [rows.T if transposed else rows]

    return WeightLayout(apart, together)


def qkv_groups(inputs: int) -> WeightLayout:
    """Returns the layout of one key head after another, each [its queries, key, value].

    With a key head per query head this is [query, key, value] per head (GPT-NeoX, BLOOM); with one
    key head, all queries, the key and the value (Falcon 7B).
    """

    def apart(x, shapes):
        N, K, H = _head_counts(shapes)
        groups = x[0].reshape(K, N // K + 2, H, *x[0].shape[1:])
        pieces = groups[:, :-2], groups[:, -2], groups[:, -1]
        return [
            _shaped(piece.reshape(-1, *x[0].shape[1:]), s, inputs)
            for piece, s in zip(pieces, shapes, strict=True)
        ]

    def together(arrays, shapes):
        N, K, H = _head_counts(shapes)
        rows = [_flat(x, inputs) for x in arrays]
        tail = rows[0].shape[1:]
        groups = [x.reshape(K, n, H, *tail) for x, n in zip(rows, (N // K, 1, 1), strict=True)]
        return [np.concatenate(groups, axis=1).reshape(-1, *tail)]

    return WeightLayout(apart, together)


STACKED = WeightLayout(
    lambda x, s: [np.stack([y.T for y in x])], lambda x, s: [y.T for y in x[0]]
)  # a linear layer of every expert


# RoFormer's table of tokens, plus the row of the one token type that a language model has.
PLUS_TYPE = WeightLayout(
    lambda x, s: [x[0] + x[1][0]], lambda x, s: [x[0], np.zeros((1, s[0][1]), x[0].dtype)]
)


def expected_shapes(rule: Rule, shapes: Shapes) -> list[tuple[int, ...]]:
    """Returns the shapes of a rule's tensors, given those of its parameters; allocates nothing."""
    blank = np.zeros((), np.bool_)
    arrays = [np.broadcast_to(blank, s) for s in shapes]
    return [x.shape for x in rule.layout.ours_to_theirs(arrays, shapes)]
