"""Chance: accuracy of the best policy that sees every token but binds no value to its key.

The exact chance of an answer is computed with its instance (`tasks.instances.Answer.chance`), since
it may depend on the context; a row has the mean over its answers. The table here is for text and
for rows of definitions 1: means over all answers of tasks whose chance does not depend on the
length.
"""

import math

from posenc_jax.results.schema import SUMMARY_TASKS


def pairs_chance(pairs: int) -> float:
    """Returns the mean chance over the answers of recall of P pairs: H(P) / P.

    All values differ and all are asked, so the i-th answer is one of P - i values.
    """
    return math.fsum(1 / i for i in range(1, pairs + 1)) / pairs


CHANCE = {
    "passkey": 1e-5,  # five digits
    "passkey_sentences": 1e-5,
    "needles_4": 1 / 4,  # one of the four values
    "needles_16": 1 / 16,
    **{f"mqar_{pairs}": pairs_chance(pairs) for pairs in (8, 16, 32)},
    "variables_1": 1 / 2,  # one of two chains
    "variables_2": 1 / 2,
    "variables_4": 1 / 2,
    "latest_first": 1 / 2,  # the first or the last of the values
    "synonym": 1 / 4,
}


def corrected(accuracy: float, chance: float) -> float:
    """Returns the accuracy, rescaled so that chance is 0 and a perfect score is 1."""
    return (accuracy - chance) / (1 - chance)


def passkey_only() -> float:
    """Returns Y_R of a model that solves every passkey and is at chance on the other tasks."""
    return sum(task.startswith("passkey") for task in SUMMARY_TASKS) / len(SUMMARY_TASKS)
