"""Registry of suites: names that --suite understands, and the items of each suite.

A new suite is one entry: a function (context, chosen measures) -> {item: function that returns
rows}.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping

from posenc_jax.evaluation import extrapolation, retrieval
from posenc_jax.evaluation.classification import Classifier, ClassScores
from posenc_jax.evaluation.probe_context import ProbeContext
from posenc_jax.evaluation.probes import probe_items
from posenc_jax.evaluation.properties import property_items
from posenc_jax.results.near_names import near_names
from posenc_jax.tasks.task_registry import SCORED


@dataclasses.dataclass(frozen=True)
class Suite:
    """One suite.

    about: a short description. measures: their names. ids: names for several measures. needs: for a
    measure, those that it is computed from. items: returns the items of chosen measures.
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
    classifier = Classifier(ctx.model.by_length, ctx.model.params, budget, tokenizer.labels_C)
    return ClassScores(ctx, classifier, ctx.inputs.corpus, tokenizer, ctx.lengths.study).items()


_probe_context = functools.lru_cache(maxsize=1)(ProbeContext)  # suites P and M share its sums


def _probed(make: Callable, ctx, chosen: frozenset[str]) -> dict[str, Callable]:
    """Returns the items of suite P or M for the chosen measures."""
    items = make(_probe_context(ctx))
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
    "R": Suite("retrieval", retrieval.MEASURES, _TASKS, retrieval.NEEDS, retrieval.retrieval_items),
    "P": Suite(
        "relative structure of the logits",
        ("P1", "P2", "P3", "P4", "P5"),
        {},
        {},
        functools.partial(_probed, property_items),
    ),
    "C": Suite("classification of long text", ("classes",), {}, {}, _classification_items),
    "M": Suite(
        "attention heads",
        ("observed", "M3", "M9", "M12", "M13"),
        dict.fromkeys(("M1", "M2", "M4", "M5", "M6", "M7", "M11"), ("observed",))
        | {"M10": ("M9",)},
        {},
        functools.partial(_probed, probe_items),
    ),
}


def chosen_measures(names: Iterable[str]) -> dict[str, frozenset[str]]:
    """Returns measures by suite, from letters, ids and names; ValueError for unknown ones."""
    chosen: dict[str, set[str]] = {}
    for name in names:
        for letter, suite in SUITES.items():
            if name == letter:
                chosen.setdefault(letter, set()).update(suite.measures)
            elif name in suite.ids or name in suite.measures:
                chosen.setdefault(letter, set()).update(suite.ids.get(name, (name,)))
            else:
                continue
            break
        else:
            known = [n for letter, s in SUITES.items() for n in (letter, *s.ids, *s.measures)]
            raise ValueError(
                f"--suite must name some of {', '.join(SUITES)}, or what is in them; not "
                f"{name!r}{near_names(name, known)}"
            )
    if not chosen:
        raise ValueError(f"--suite must name some of {', '.join(SUITES)}")
    full = {
        letter: frozenset(measures) | {n for m in measures for n in SUITES[letter].needs.get(m, ())}
        for letter, measures in chosen.items()
    }
    if "E8" in full.get("E", ()):  # E8 covers retrieval too
        full["R"] = full.get("R", frozenset()) | {retrieval.WINDOW}
    return full
