"""Hint for a misspelt name, at the end of an error message."""

import difflib
from collections.abc import Collection

NEAR = 0.65  # similarity of names, as difflib measures it, from which one is a suggestion


def near_names(name: str, known: Collection[str], *, listed: Collection[str] | None = None) -> str:
    """Returns "; did you mean 'x'?", or the known names; listed: shorter list to show instead."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=NEAR)
    if near:
        return "; did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "; known: " + ", ".join(sorted(known if listed is None else listed))
