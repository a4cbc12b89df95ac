"""Task registry: every retrieval task by name, with its instances and its shortest length.

A new task is one function and one entry. `make(filler, generator, split, length, decile)` returns
an `Instance` of exactly `length` tokens that depends on the generator only; a longer one has the
same needles with more tokens around them.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from posenc_jax.results.near_names import near_names
from posenc_jax.tasks import needles, symbol_tasks
from posenc_jax.tasks.filler import Filler
from posenc_jax.tasks.instances import Instance, generator_of
from posenc_jax.tasks.passkey_mqar import hidden_passkey, recalled_pairs, shortest_length

PAIRS = (8, 16, 32)
RECALL = "R3"  # associative recall; training may increase its pairs and ask them again


@dataclasses.dataclass(frozen=True)
class Task:
    """One task.

    id: R1 ... R10. name: in rows. shortest: tokens of an instance without filler. make: see above.
    draws: name of its randomness; variants of one task share it. sentences: filler is repeated
    sentences, not text. wording: a longer name for errors.
    """

    id: str
    name: str
    shortest: Callable[[Filler], int]
    make: Callable[[Filler, np.random.Generator, str, int, int | None], Instance]
    draws: str
    sentences: bool = False
    wording: str = ""

    def check(self, filler: Filler, length: int) -> None:
        """Raises ValueError for a length below the shortest instance."""
        shortest = self.shortest(filler)
        if length < shortest:
            raise ValueError(
                f"{self.wording or self.name} needs a length of at least {shortest} tokens; "
                f"{length} is too short"
            )

    def instance(
        self, filler: Filler, *, split: str, seed: int, index: int, length: int
    ) -> Instance:
        """Returns the instance of (split, seed, index), with the needle in the depth decile index %
        10.

        Raises ValueError for an unknown split or a length below the shortest.
        """
        generator = generator_of(self.draws, split, seed, index)
        self.check(filler, length)
        return self.make(filler, generator, split, length, index % 10)


def find(name: str, pairs: int = 8, askings: int = 1) -> Task:
    """Returns the task of that name; "mqar" is recall of `pairs` pairs. ValueError for an unknown
    one.

    askings: times that recall asks every pair, in training.
    """
    if name == "mqar":
        return _recall("mqar", pairs, askings)
    if name not in TASKS:
        raise ValueError(f"no retrieval task {name!r}{near_names(name, TASKS)}")
    if TASKS[name].id == RECALL and askings > 1:
        return _recall(name, int(name.removeprefix("mqar_")), askings)
    return TASKS[name]


def _recall(name: str, pairs: int, askings: int = 1) -> Task:
    times = f", each asked {askings} times" if askings > 1 else ""
    return Task(
        RECALL,
        name,
        lambda filler: shortest_length("mqar", filler, pairs, askings),
        lambda filler, generator, split, length, decile: recalled_pairs(
            filler, generator, length, pairs, askings
        ),
        "mqar",
        wording=f"mqar with {pairs} pairs{times}",
    )


def _passkey(name: str, sentences: bool) -> Task:
    shortest = functools.partial(shortest_length, "passkey")
    return Task("R1", name, shortest, hidden_passkey, "passkey", sentences)


def _symbol(id: str, name: str, length: int, make: Callable, draws: str = "") -> Task:
    return Task(id, name, lambda filler: length, make, draws or name)


_ALL = (
    _passkey("passkey", False),
    _passkey("passkey_sentences", True),
    *(
        _symbol(
            "R2",
            f"needles_{n}",
            needles.needles_length(n),
            functools.partial(needles.asked_needle, keys=n),
            "needles",
        )
        for n in (1, 4, 16)
    ),
    _recall("mqar", 8),
    *(_recall(f"mqar_{pairs}", pairs) for pairs in PAIRS),
    _symbol("R4", "ngram", symbol_tasks.ngram_length(), symbol_tasks.ngram_lookup),
    _symbol("R5", "copy", symbol_tasks.copy_length(), symbol_tasks.copied_string),
    *(
        _symbol(
            "R6",
            f"variables_{n}",
            needles.variables_length(n),
            functools.partial(needles.tracked_variable, hops=n),
        )
        for n in (1, 2, 4)
    ),
    _symbol("R7", "phonebook", symbol_tasks.phonebook_length(), symbol_tasks.phone_book),
    Task(
        "R8", "latest_first", needles.latest_first_length, needles.latest_or_first, "latest_first"
    ),
    _symbol("R9", "nback", symbol_tasks.nback_length(), symbol_tasks.symbol_back),
    _symbol("R9", "flipflop", symbol_tasks.flipflop_length(), symbol_tasks.flip_flop),
    _symbol("R10", "synonym", needles.synonyms_length(), needles.latent_match),
)
# Training documents of R10's synonyms; they are not scored, as the context does not contain the
# answer.
_TAUGHT = (_symbol("R10", "association", 4, needles.associations),)
SCORED = {task.name: task for task in _ALL}
TASKS = SCORED | {task.name: task for task in _TAUGHT}
