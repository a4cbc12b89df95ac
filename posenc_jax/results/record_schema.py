"""Schema of the JSON records beside rows (run.json, study.json, tuning.json ...), and its check."""

import datetime
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from posenc_jax.results.schema import LARGEST, SPLITS


class FieldKind(NamedTuple):
    """The kind of a field: in words, and as a test of its value."""

    words: str
    holds: Callable[[object], bool]


def _list_of(words: str, kind: type) -> FieldKind:
    # The exact type: a bool is no seed.
    return FieldKind(words, lambda v: isinstance(v, list) and all(type(one) is kind for one in v))


def _is_time(value: Any) -> bool:
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
        isinstance(p, Mapping)
        and {"rate", "bpb_ctx"} <= p.keys()
        and _is_number(p["rate"])
        and (p["bpb_ctx"] is None or _is_number(p["bpb_ctx"]))
        for p in points
    )


def _is_number(value: object) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < LARGEST)


def _is_roles(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(v, str) or (role not in ("rope", "oracle") and NAMES.holds(v))
        for role, v in value.items()
    )


def _is_links(value: object) -> bool:
    if value is None:
        return True
    names = {"chain", "data_chain"}
    return (
        isinstance(value, Mapping)
        and value.keys() == names
        and all(
            isinstance(link, str) and re.fullmatch("[0-9a-f]{64}", link) for link in value.values()
        )
    )


TEXT = FieldKind("a string", lambda v: isinstance(v, str))
COUNT = FieldKind("a whole number, not negative", lambda v: type(v) is int and 0 <= v < LARGEST)
TRUTH = FieldKind("true or false", lambda v: isinstance(v, bool))
TIME = FieldKind("a time with its zone (ISO 8601), or null", _is_time)
OBJECT = FieldKind("an object", lambda v: isinstance(v, Mapping))
NAMES = _list_of("a list of names", str)
SEEDS = _list_of("a list of whole numbers", int)
OBJECTS = _list_of("a list of objects", dict)
LEVELS = FieldKind(
    "an object of objects", lambda v: isinstance(v, Mapping) and all(map(OBJECT.holds, v.values()))
)
ROLES = FieldKind("an arm by role, or a list of arms (rope and oracle: one)", _is_roles)
TOKEN_TYPE = FieldKind("uint16 or uint32", lambda v: v in ("uint16", "uint32"))
SPLIT = FieldKind(" or ".join(SPLITS), lambda v: v in SPLITS)

STRINGS = FieldKind(
    "an object of strings", lambda v: isinstance(v, Mapping) and all(map(TEXT.holds, v.values()))
)
STATUS = FieldKind(
    "smoke, exploratory or confirmed", lambda v: v in ("smoke", "exploratory", "confirmed")
)
PLAN = FieldKind(
    "null or a plan",
    lambda v: (
        v is None
        or (
            isinstance(v, Mapping)
            and {"sha256", "frozen", "rule"} <= v.keys()
            and TEXT.holds(v["sha256"])
        )
    ),
)
LIST = FieldKind("a list of numbers", lambda v: isinstance(v, list) and all(map(_is_number, v)))
NUMBERS = FieldKind(
    "an object of numbers", lambda v: isinstance(v, Mapping) and all(map(_is_number, v.values()))
)
LINKS = FieldKind("null or the two links of a chain", _is_links)
SECONDS = FieldKind("a number of seconds", _is_number)
NUMBER = FieldKind("a number or null", lambda v: v is None or _is_number(v))

# manifest.json of a checkpoint; in it the record of its run, and of that the owner.
CHECKPOINT = {"step": COUNT, "leaves": STRINGS, "sums": STRINGS, "record": OBJECT}
SAVED = {"owner": OBJECT, "links": LINKS}
OWNER = {"config": LEVELS, "corpus_fingerprint": TEXT, "tokenizer_fingerprint": TEXT}
# manifest.json of a token stream.
STREAM = {"dtype": TOKEN_TYPE, "bos": COUNT, "pad": COUNT, "fingerprint": TEXT}
# A line of metrics.jsonl, beside numbers.
_LOGGED = {"step": COUNT, "chain": TEXT, "data_chain": TEXT}

# run.json, and an entry of runs.json.
RUN = {
    "arm": TEXT,
    "seed": COUNT,
    "tier": TEXT,
    "train_length": COUNT,
    "steps": COUNT,
    "finished": TRUTH,
    "steps_done": COUNT,
    "tokens": COUNT,
    "scheme": TEXT,
    "corpus": TEXT,
    "corpus_fingerprint": TEXT,
    "tokenizer_fingerprint": TEXT,
    "versions": OBJECT,
    "hardware": TEXT,
    "began": TIME,
    "wall_seconds": SECONDS,
    "name": TEXT,
    "config": OBJECT,
    "settings": TEXT,
    "why": TEXT,
}
STUDY = {
    "name": TEXT,
    "tier": TEXT,
    "arms": NAMES,
    "seeds": SEEDS,
    "factors": LEVELS,
    "roles": ROLES,
    "split": SPLIT,
    "deviations": NAMES,
    "skipped": OBJECT,
}
EVALUATION = {"step": COUNT, "settings": TEXT}
TEXTS = {"texts": OBJECTS}
CHOICES = FieldKind(
    "a rate, an edge and a curve of points (rate, bpb_ctx) for every arm", _is_choices
)
TUNED = {"arms": CHOICES, "steps": COUNT, "seed": COUNT}
# verdict.json: of every rule that judged, of a hybrid, and of a statement.
VERDICT = {
    "status": STATUS,
    "tier": TEXT,
    "split": TEXT,
    "seeds": SEEDS,
    "train_length": COUNT,
    "rule": COUNT,
    "prereg": PLAN,
    "verdicts": OBJECTS,
    "deviations": NAMES,
    "runs": STRINGS,
    "margins": NUMBERS,
} | dict.fromkeys(("why", "unused", "unplanned", "notes", "gaps"), NAMES)
JUDGED = {
    "hybrid": TEXT,
    "verdict": TEXT,
    "clauses": STRINGS,
    "statements": OBJECTS,
    "reasons": NAMES,
    "attribution": OBJECTS,
}
STATEMENT = {
    "clause": TEXT,
    "words": TEXT,
    "note": TEXT,
    "unit": TEXT,
    "state": TEXT,
    "sentence": TEXT,
    "problems": NAMES,
    "n": COUNT,
    "values": LIST,
} | dict.fromkeys(
    ("estimate", "low", "high", "threshold", "p", "sign_flip", "detectable", "iqm", "ahead"), NUMBER
)


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


def check_logged(row: Mapping, where: str) -> None:
    """Raises ValueError for a line of metrics.jsonl without a step or with nested values."""
    check(row, dict.fromkeys(row, NUMBER) | _LOGGED, where, ("step",))
