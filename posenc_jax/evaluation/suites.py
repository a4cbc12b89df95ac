"""Every suite by its letter: what can be asked for by name, and the items that answer it.

A new suite is one entry here: a function (work, chosen measures) -> {item: function that returns rows}.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Iterable, Mapping

from posenc_jax.evaluation import extrapolation, retrieval
from posenc_jax.evaluation.classification import Classifier, ClassScores
from posenc_jax.evaluation.probe_context import ProbeContext
from posenc_jax.evaluation.probes import probe_items
from posenc_jax.evaluation.properties import property_items
from posenc_jax.tasks.task_registry import SCORED


@dataclasses.dataclass(frozen=True)
class Suite:
    """One suite.

    about: a few words. measures: names that can be asked for one by one. ids: names that stand for
    several of them. needs: measures that another is computed from, and that come with it. items: makes
    the work.
    """

    about: str
    measures: tuple[str, ...]
    ids: Mapping[str, tuple[str, ...]]
    needs: Mapping[str, tuple[str, ...]]
    items: Callable[..., dict[str, Callable]]


_TASKS = {
    task.id: tuple(other.name for other in SCORED.values() if other.id == task.id)
    for task in SCORED.values()
}


def _classification_items(ctx, chosen: frozenset[str]) -> dict[str, Callable]:
    tokenizer, budget = ctx.inputs.tokenizer, ctx.config.evaluation.batch_tokens
    classifier = Classifier(ctx.model_configs, ctx.params, budget, tokenizer.labels_C)
    return ClassScores(ctx, classifier, ctx.inputs.corpus, tokenizer, ctx.every).items()


_subject = functools.lru_cache(maxsize=1)(ProbeContext)  # both suites read the same sums


def _of_subject(make: Callable, ctx, chosen: frozenset[str]) -> dict[str, Callable]:
    """Returns the items of suite P or M that belong to what was chosen."""
    items = make(_subject(ctx))
    return {
        name: run for name, run in items.items() if name.removeprefix("M/").split("/")[0] in chosen
    }


SUITES = {
    "E": Suite(
        "extrapolation",
        extrapolation.MEASURES,
        {},
        extrapolation.NEEDS,
        extrapolation.extrapolation_items,
    ),
    "R": Suite(
        "retrieval",
        retrieval.MEASURES,
        _TASKS,
        retrieval.NEEDS,
        retrieval.retrieval_items,
    ),
    "P": Suite(
        "is the relative structure kept",
        ("P1", "P2", "P3", "P4", "P5"),
        {},
        {},
        functools.partial(_of_subject, property_items),
    ),
    "C": Suite("classification of long text", ("classes",), {}, {}, _classification_items),
    "M": Suite(
        "what every head does",
        ("observed", "M3", "M9", "M12"),
        dict.fromkeys(("M1", "M2", "M4", "M5", "M6", "M7", "M11"), ("observed",))
        | {"M10": ("M9",)},
        {},
        functools.partial(_of_subject, probe_items),
    ),
}


def chosen_measures(names: Iterable[str]) -> dict[str, frozenset[str]]:
    """Returns the measures asked for, by suite: a suite's letter, an id or a measure's own name.

    Raises:
      ValueError: no name, or one that nothing goes by.
    """
    found: dict[str, set[str]] = {}
    for name in names:
        for letter, suite in SUITES.items():
            if name == letter:
                found.setdefault(letter, set()).update(suite.measures)
            elif name in suite.ids or name in suite.measures:
                found.setdefault(letter, set()).update(suite.ids.get(name, (name,)))
            else:
                continue
            break
        else:
            known = [n for letter, s in SUITES.items() for n in (letter, *s.ids, *s.measures)]
            near = difflib.get_close_matches(name, known, n=2)
            hint = f"; near names: {', '.join(near)}" if near else ""
            letters = ", ".join(SUITES)
            raise ValueError(
                f"--suite must name some of {letters}, or what is in them; not {name!r}{hint}"
            )
    if not found:
        raise ValueError(f"--suite must name some of {', '.join(SUITES)}")
    full = {
        letter: frozenset(measures) | {n for m in measures for n in SUITES[letter].needs.get(m, ())}
        for letter, measures in found.items()
    }
    if "E8" in full.get("E", ()):  # on retrieval too, where its tasks are measured
        full["R"] = full.get("R", frozenset()) | {retrieval.WINDOW}
    return full
