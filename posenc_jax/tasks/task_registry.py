"""Every task by name: how to make an instance, and how short it can be.

A new task is one function and one entry. `make(filler, generator, split, length, decile)` returns an
`Instance` of exactly `length` tokens that depends on the generator alone, and that at a greater length
has the same needles with more around them.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable

import numpy as np

from posenc_jax.tasks import needles, symbol_tasks
from posenc_jax.tasks.filler import Filler
from posenc_jax.tasks.instances import Instance, generator_of
from posenc_jax.tasks.passkey_mqar import hidden_passkey, recalled_pairs, shortest_length

PAIRS = (8, 16, 32)
RECALL = "R3"  # associative recall, whose pairs training may make grow and ask again


@dataclasses.dataclass(frozen=True)
class Task:
    """One task.

    id: R1 ... R10. name: of its rows. shortest: tokens of an instance without any filler. make: see
    above. draws: name of its randomness, which variants of one task share. sentences: lies in repeated
    sentences, not in text. wording: the name in errors, where it says more.
    """

    id: str
    name: str
    shortest: Callable[[Filler], int]
    make: Callable[[Filler, np.random.Generator, str, int, int | None], Instance]
    draws: str
    sentences: bool = False
    wording: str = ""

    def check(self, filler: Filler, length: int) -> None:
        """Raises ValueError if no instance is that short."""
        shortest = self.shortest(filler)
        if length < shortest:
            raise ValueError(
                f"{self.wording or self.name} needs a length of at least {shortest} tokens; {length} is too short"
            )

    def instance(
        self, filler: Filler, *, split: str, seed: int, index: int, length: int
    ) -> Instance:
        """The instance of (split, seed, index); where the task has a depth, it lies in decile index % 10.

        Raises ValueError for an unknown split or too short a length.
        """
        generator = generator_of(self.draws, split, seed, index)
        self.check(filler, length)
        return self.make(filler, generator, split, length, index % 10)


def find(name: str, pairs: int = 8, askings: int = 1) -> Task:
    """The task of that name; "mqar" is recall of `pairs` pairs. ValueError names the nearest.

    askings: times that recall asks every pair, in training.
    """
    if name == "mqar":
        return _recall("mqar", pairs, askings)
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"near name: {near[0]}" if near else f"there are {', '.join(TASKS)}"
        raise ValueError(f"no retrieval task {name!r}; {hint}")
    if TASKS[name].id == RECALL and askings > 1:
        return _recall(name, int(name.removeprefix("mqar_")), askings)
    return TASKS[name]


def _recall(name: str, pairs: int, askings: int = 1) -> Task:
    times = f", each asked {askings} times" if askings > 1 else ""
    return Task(
        RECALL, name, lambda filler: shortest_length("mqar", filler, pairs, askings),
        lambda filler, generator, split, length, decile: recalled_pairs(filler, generator, length, pairs, askings),
        "mqar", wording=f"mqar with {pairs} pairs{times}",
    )  # fmt: skip


def _passkey(name: str, sentences: bool) -> Task:
    shortest = functools.partial(shortest_length, "passkey")
    return Task("R1", name, shortest, hidden_passkey, "passkey", sentences)


def _symbol(id: str, name: str, length: int, make: Callable, draws: str = "") -> Task:
    return Task(id, name, lambda filler: length, make, draws or name)


_ALL = (
    _passkey("passkey", False),
    _passkey("passkey_sentences", True),
    *(
        _symbol("R2", f"needles_{n}", needles.needles_length(n), functools.partial(needles.asked_needle, keys=n), "needles")
        for n in (1, 4, 16)
    ),
    _recall("mqar", 8),
    *(_recall(f"mqar_{pairs}", pairs) for pairs in PAIRS),
    _symbol("R4", "ngram", symbol_tasks.ngram_length(), symbol_tasks.ngram_lookup),
    _symbol("R5", "copy", symbol_tasks.copy_length(), symbol_tasks.copied_string),
    *(
        _symbol("R6", f"variables_{n}", needles.variables_length(n), functools.partial(needles.tracked_variable, hops=n))
        for n in (1, 2, 4)
    ),
    _symbol("R7", "phonebook", symbol_tasks.phonebook_length(), symbol_tasks.phone_book),
    Task("R8", "latest_first", needles.latest_first_length, needles.latest_or_first, "latest_first"),
    _symbol("R9", "nback", symbol_tasks.nback_length(), symbol_tasks.symbol_back),
    _symbol("R9", "flipflop", symbol_tasks.flipflop_length(), symbol_tasks.flip_flop),
    _symbol("R10", "synonym", needles.synonyms_length(), needles.latent_match),
)  # fmt: skip
# What R10 presupposes is trained on and never scored: a context tells nothing about its answer.
_TAUGHT = (_symbol("R10", "association", 4, needles.associations),)
SCORED = {task.name: task for task in _ALL}
TASKS = SCORED | {task.name: task for task in _TAUGHT}
