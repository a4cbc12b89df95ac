"""What a harness asks of a model, from its logits in float64 NumPy, token by token."""

import math

import numpy as np


def log_likelihood(logits_of, tokens, start):
    """(sum of ln p(token | all before), whether every token is the most likely) from `start` on.

    logits_of(tokens) gives the logits after the last of the tokens, of a model that is read afresh.
    """
    total, greedy = 0.0, True
    for place in range(start, len(tokens)):
        logits = np.asarray(logits_of(tokens[:place]), np.float64)
        shifted = logits - logits.max()
        total += shifted[tokens[place]] - math.log(np.exp(shifted).sum())
        greedy &= int(logits.argmax()) == int(tokens[place])
    return total, greedy


def greedy_continuation(logits_of, tokens, count):
    """The `count` tokens that are the most likely ones, one after another."""
    tokens = list(tokens)
    for _ in range(count):
        tokens.append(int(np.asarray(logits_of(tokens)).argmax()))
    return tokens[-count:]
