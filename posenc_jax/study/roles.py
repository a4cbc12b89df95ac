"""Choice of the parent arms: the better candidate on dev, by axis; all candidates without dev
rows.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from posenc_jax.study.statements import Outcomes

TEXT, RETRIEVAL = "text", "retrieval"
BETTER = {TEXT: ("Y_E", min), RETRIEVAL: ("Y_R", max)}  # metric on dev, and which value is better


@dataclasses.dataclass(frozen=True)
class Roles:
    """The parents of a verdict.

    Attributes:
      rope: tuned RoPE. stretched, alibi: the judged candidates, by axis. Dev chooses one; where it
        cannot, all are judged and each clause must hold against every one. candidates: all of them,
        by role; those that are not judged are reported. oracle: RoPE trained at 4L, or "".
    """

    rope: str
    stretched: Mapping[str, tuple[str, ...]]
    alibi: Mapping[str, tuple[str, ...]]
    candidates: Mapping[str, tuple[str, ...]]
    oracle: str

    def judged(self) -> dict[str, list[str]]:
        """Returns the arms that are judged, by role and axis, for the record."""
        named = {"R+": self.stretched, "A": self.alibi}
        return {f"{r} on {axis}": list(by[axis]) for r, by in named.items() for axis in by}


def choose_parents(
    rope: str, stretched: Sequence[str], alibi: Sequence[str], oracle: str, dev: Outcomes | None
) -> tuple[Roles, list[str]]:
    """Returns the parents and a sentence about every choice.

    Args:
      stretched: candidates of R+, alibi: of A. dev: outcomes on dev, None where there are none.
    """
    names = {"R+": tuple(stretched), "A": tuple(alibi)}
    judged: dict[str, dict[str, tuple[str, ...]]] = {role: {} for role in names}
    notes = []
    for role, candidates in names.items():
        if len(candidates) < 2:
            notes.append(
                f"{role} is {candidates[0]}, the only candidate"
                if candidates
                else f"{role}: no candidate was named"
            )
        for axis in BETTER:
            judged[role][axis], why = _better(candidates, axis, dev)
            if len(candidates) > 1:
                notes.append(f"{role} on {axis} {why}")
    return Roles(rope, judged["R+"], judged["A"], names, oracle), notes


def _better(
    candidates: tuple[str, ...], axis: str, dev: Outcomes | None
) -> tuple[tuple[str, ...], str]:
    if len(candidates) < 2:
        return candidates, ""
    metric, best = BETTER[axis]
    values = [(dev or {}).get((arm, metric), {}) for arm in candidates]
    seeds = [s for s in values[0] if all(v.get(s) is not None for v in values)]
    if not seeds:
        return (
            candidates,
            f"could not be chosen, since dev rows of {metric} are not there for all candidates: "
            f"each clause must hold against {' and '.join(candidates)}",
        )
    means = {
        arm: math.fsum(x for s in seeds if (x := v[s]) is not None) / len(seeds)
        for arm, v in zip(candidates, values, strict=True)
    }
    chosen = best(candidates, key=means.__getitem__)
    listed = ", ".join(f"{arm} {mean:.4f}" for arm, mean in means.items())
    return (chosen,), f"is {chosen}, by mean {metric} on dev over {len(seeds)} seeds ({listed})"
