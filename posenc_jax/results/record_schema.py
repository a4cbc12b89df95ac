"""Schema of the JSON records beside rows (run.json, study.json, tuning.json ...), and its check."""

import datetime
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from posenc_jax.results.schema import SPLITS


class FieldKind(NamedTuple):
    """The kind of a field: in words, and as a test of its value."""

    words: str
    holds: Callable[[object], bool]


def _list_of(words: str, kind: type) -> FieldKind:
    # The exact type: a bool is no seed.
    return FieldKind(words, lambda v: isinstance(v, list) and all(type(one) is kind for one in v))


def _is_time(value: object) -> bool:
    if value is None:
        return True
    try:
        return datetime.datetime.fromisoformat(value).tzinfo is not None
    except (TypeError, ValueError):
        return False


def _is_choices(value: object) -> bool:
    return isinstance(value, Mapping) and all(map(_is_choice, value.values()))


def _is_choice(value: object) -> bool:
    return isinstance(value, Mapping) and {"rate", "edge"} <= value.keys() and _is_curve(value)


def _is_curve(choice: Mapping) -> bool:
    points = choice.get("curve")
    return isinstance(points, list) and all(
        isinstance(p, Mapping) and {"rate", "bpb_ctx"} <= p.keys()
        and _is_number(p["rate"]) and (p["bpb_ctx"] is None or _is_number(p["bpb_ctx"]))
        for p in points
    )  # fmt: skip


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_roles(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(v, str) or (role not in ("rope", "oracle") and NAMES.holds(v))
        for role, v in value.items()
    )


TEXT = FieldKind("a string", lambda v: isinstance(v, str))
COUNT = FieldKind("a whole number, not negative", lambda v: type(v) is int and v >= 0)
TRUTH = FieldKind("true or false", lambda v: isinstance(v, bool))
TIME = FieldKind("a time with its zone (ISO 8601), or null", _is_time)
OBJECT = FieldKind("an object", lambda v: isinstance(v, Mapping))
NAMES = _list_of("a list of names", str)
SEEDS = _list_of("a list of whole numbers", int)
OBJECTS = _list_of("a list of objects", dict)
LEVELS = FieldKind("an object of objects", lambda v: isinstance(v, Mapping) and all(map(OBJECT.holds, v.values())))  # fmt: skip
ROLES = FieldKind("an arm by role, or a list of arms (rope and oracle: one)", _is_roles)
SPLIT = FieldKind(" or ".join(SPLITS), lambda v: v in SPLITS)

# run.json, and an entry of runs.json.
RUN = {
    "arm": TEXT, "seed": COUNT, "tier": TEXT, "train_length": COUNT, "steps": COUNT, "finished": TRUTH,
    "steps_done": COUNT, "tokens": COUNT, "scheme": TEXT, "corpus": TEXT, "corpus_fingerprint": TEXT,
    "tokenizer_fingerprint": TEXT, "versions": OBJECT, "hardware": TEXT, "began": TIME,
    "name": TEXT, "config": OBJECT, "settings": TEXT, "why": TEXT,
}  # fmt: skip
STUDY = {
    "name": TEXT, "tier": TEXT, "arms": NAMES, "seeds": SEEDS, "factors": LEVELS, "roles": ROLES, "split": SPLIT,
    "deviations": NAMES, "skipped": OBJECT,
}  # fmt: skip
EVALUATION = {"step": COUNT, "settings": TEXT}
TEXTS = {"texts": OBJECTS}
CHOICES = FieldKind(
    "a rate, an edge and a curve of points (rate, bpb_ctx) for every arm", _is_choices
)
TUNED = {"arms": CHOICES, "steps": COUNT, "seed": COUNT}


def check(
    record: Mapping, kinds: Mapping[str, FieldKind], where: str, required: Collection[str] = ()
) -> None:
    """Raises ValueError, beginning with `where`, for a field that is missing or of another kind."""
    for name in required:
        if name not in record:
            raise ValueError(f"{where} does not say {name!r}")
    for name, kind in kinds.items():
        if name in record and not kind.holds(record[name]):
            raise ValueError(f"{where}: {name} must be {kind.words}, not {record[name]!r:.60}")
