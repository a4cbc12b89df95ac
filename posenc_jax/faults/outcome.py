"""What one injected fault did, and the table of many."""

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Trial:
    """One injected fault.

    Attributes:
      fault: its name in the table. detail: where exactly, e.g. the file and the bit.
      wrong: leaves, or links of the hash chain, that differ from those of the undisturbed run.
      undetected: the fault should have been refused, or named in one line, and was not.
      lost_steps: steps that were taken again. said: the line in which it was refused.
      skipped: why it could not be tried here; empty where it was.
    """

    fault: str
    detail: str = ""
    wrong: int = 0
    undetected: bool = False
    lost_steps: int = 0
    said: str = ""
    skipped: str = ""


def table(trials: Iterable[Trial]) -> str:
    """Returns a table with a row for each fault, in the order in which they came."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.fault, []).append(trial)
    rows = [("fault", "trials", "wrong", "undetected", "lost steps, at most", "verdict")]
    for fault, group in groups.items():
        done = [trial for trial in group if not trial.skipped]
        if not done:
            rows.append((fault, "0", "-", "-", "-", f"skipped: {group[0].skipped}"))
            continue
        numbers = sum(t.wrong > 0 for t in done), sum(t.undetected for t in done)
        most = max(t.lost_steps for t in done)
        held = "FAILED" if any(numbers) else "held"
        rows.append((fault, str(len(done)), *map(str, numbers), str(most), held))
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], ("---",) * 6, *rows[1:]))


def failed(trials: Iterable[Trial]) -> list[Trial]:
    """Returns the trials that were not survived."""
    return [trial for trial in trials if trial.wrong or trial.undetected]
