"""Chance: what the best policy scores that sees every token but binds no value to its key.

The exact chance of an answer is made with the instance (`tasks.instances.Answer.chance`), since it may
depend on what is in sight; a row carries the mean over its answers. The table here is the mean over all
answers of a task whose chance does not depend on the length: for words, and for rows of version 1.
"""

import math

from posenc_jax.results.schema import SUMMARY_TASKS


def pairs_chance(pairs: int) -> float:
    """Returns the mean chance over all answers of recall of so many pairs.

    Values differ and all are asked: the i-th answer is one of P - i values; the mean is H(P) / P.
    """
    return math.fsum(1 / i for i in range(1, pairs + 1)) / pairs


CHANCE = {
    "passkey": 1e-5,  # five digits
    "passkey_sentences": 1e-5,
    "needles_4": 1 / 4,  # one of the values in sight
    "needles_16": 1 / 16,
    **{f"mqar_{pairs}": pairs_chance(pairs) for pairs in (8, 16, 32)},
    "variables_1": 1 / 2,  # one of two chains
    "variables_2": 1 / 2,
    "variables_4": 1 / 2,
    "latest_first": 1 / 2,  # the first or the last of the values
    "synonym": 1 / 4,
}


def corrected(accuracy: float, chance: float) -> float:
    """Returns the accuracy rescaled so that the best policy without binding is 0 and perfect is 1."""
    return (accuracy - chance) / (1 - chance)


def passkey_only() -> float:
    """Returns Y_R of a model that finds every passkey and otherwise binds nothing."""
    return sum(task.startswith("passkey") for task in SUMMARY_TASKS) / len(SUMMARY_TASKS)
