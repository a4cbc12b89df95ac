"""What a study file may not say."""

import re

from posenc_jax.results.schema import SPLITS

ROLES = {"rope", "alibi", "hybrids", "stretched", "oracle"}
ONE = ("rope", "oracle")  # roles of one arm
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~=-]*")


def check(s) -> None:
    """Raises ValueError for a `Study` with names or seeds twice, or parts that do not belong together."""
    names = [arm.name for arm in s.arms]
    for name in names:
        if not NAME.fullmatch(name) or re.search(r"-s\d+(-|$)", name):
            raise ValueError(f"arm {name!r}: a name is a folder: letters, digits and ._+~=-, no -s<number>")  # fmt: skip
    for what, values in (("arm", names), ("seed", s.seeds)):
        twice = {v for v in values if list(values).count(v) > 1}
        if twice or not values:
            raise ValueError(f"a study needs {what}s, each once; twice: {sorted(twice)}")
    trained: dict[tuple, str] = {}
    for arm in s.arms:
        what = (arm.scheme, repr(sorted(arm.overrides.items())), arm.length, arm.parent, arm.peak)
        other = trained.setdefault(what, arm.name)
        if other != arm.name:
            raise ValueError(f"arms {other!r} and {arm.name!r} train the same thing; make one a reading of the other, or drop it")  # fmt: skip
        if arm.length < 0 or len(set(arm.readings)) < len(arm.readings):
            raise ValueError(f"arm {arm.name!r}: a negative length, or a reading twice")
        if not 0 < arm.peak <= 1 or (arm.peak != type(arm).peak and not arm.parent):
            raise ValueError(
                f"arm {arm.name!r}: peak={arm.peak:g} is a share, up to 1, of the rates of its parent"
            )
        if arm.parent and not any(
            a.name == arm.parent and not (a.parent or a.length) for a in s.arms
        ):
            raise ValueError(
                f"arm {arm.name!r}: parent {arm.parent!r} must be an arm of the study's length that begins by itself"
            )
    if s.tuning:
        rates = s.tuning.rates
        if len(rates) < 2 or list(rates) != sorted(set(rates)) or rates[0] <= 0:
            raise ValueError(f"tuning.rates must be two or more, positive and ascending, not {rates}")  # fmt: skip
        if s.tuning.seed in s.seeds:
            raise ValueError(
                f"tuning.seed={s.tuning.seed} is also a seed that counts: a run that chose its own "
                "rate is no fresh evidence; tune on another seed"
            )
    known = {*names, *(f"{a.name} {rule}" for a in s.arms for rule in a.readings)}
    named = [n for arms in s.roles.values() for n in ([arms] if isinstance(arms, str) else arms)]
    lacking = sorted({*named} - known) + sorted({*s.roles} - ROLES)
    if lacking:
        raise ValueError(f"roles name what the study has not: {', '.join(lacking)}")
    for role in ONE:
        if not isinstance(s.roles.get(role, ""), str):
            raise ValueError(f"roles[{role!r}] is one arm, not a list: {s.roles[role]}")
    if s.split not in SPLITS:
        raise ValueError(f"split must be {' or '.join(SPLITS)}, not {s.split!r}")
    if s.prereg and s.split != "test":
        raise ValueError(f'prereg={s.prereg} belongs to split="test"; the study reads {s.split}')
