"""Checks of single settings: a field's metadata holds its range or its known words."""

import dataclasses
from typing import Any

COUNT = (1, 2**20)
STEPS = (1, 10**9)
SHARE = (0, 1)
RATE = (1e-12, 100)
# Of a token's loss; outside of it a run would train on one kind of token alone.
WEIGHT = (1e-6, 1e6)
BETA = (0, 0.999999)  # Adam divides by 1 - beta, which must not round to 0 in float32


def between(default, bounds: tuple[float, float]):
    """Returns a field of numbers that lie in `bounds`, both ends included."""
    return dataclasses.field(default=default, metadata={"bounds": bounds})


def one_of(default: str, *words: str):
    """Returns a field that holds one of `words`."""
    return dataclasses.field(default=default, metadata={"words": words})


def check_settings(name: str, section: Any) -> None:
    """Raises ValueError, naming the setting, for a number or a word that its field does not allow.

    Args:
      name: of the section. section: a dataclass whose fields `between` and `one_of` made.
    """
    for field in dataclasses.fields(section):
        value, allowed = getattr(section, field.name), field.metadata
        if "words" in allowed and value not in allowed["words"]:
            known = ", ".join(allowed["words"])
            raise ValueError(f"config.{name}.{field.name} must be one of {known}, not {value!r}")
        if "bounds" not in allowed:
            continue
        least, most = allowed["bounds"]
        for number in value if isinstance(value, tuple) else (value,):
            if not least <= number <= most:
                raise ValueError(
                    f"config.{name}.{field.name} must lie in [{least}, {most}], not {number}"
                )
