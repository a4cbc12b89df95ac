"""Progress of a running study: a table, redrawn on a terminal; in a log one line a minute."""

import json
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

STATES = ("done", "running", "waiting", "failed", "stopped")
_TAIL = 2000  # bytes at the end of a log that hold its last line


class Status:
    """The progress of a study's runs.

    Args:
      arms: the arm of every run, by name. every: seconds between two lines without a terminal.
    """

    def __init__(self, arms: Mapping[str, str], every: float):
        self._arms, self._every = arms, every
        self._begun = time.monotonic()
        self._last, self._lines = self._begun, 0

    def show(
        self,
        states: Mapping[str, str],
        working: Sequence[str],
        left: float | None,
        last: bool = False,
    ) -> None:
        """Prints the table, or without a terminal a line, if the interval has passed.

        Args:
          states: one of STATES for every run. working: a line for each active run. left: seconds to
            the end, None if unknown. last: prints the table in any case.
        """
        terminal, now = sys.stdout.isatty(), time.monotonic()
        if not last and now - self._last < (1.0 if terminal else self._every):
            return
        self._last = now
        head = summary(states, now - self._begun, left)
        if not terminal and not last:
            print("; ".join([head, *working]), flush=True)
            return
        lines = table(self._arms, states, working, head)
        if terminal and self._lines:
            print(f"\033[{self._lines}F\033[J", end="")  # up to the table's first line, clear below
        print("\n".join(lines), flush=True)
        self._lines = 0 if last else len(lines)

    def say(self, line: str) -> None:
        """Prints a line above the next table."""
        print(line, flush=True)
        self._lines = 0


def summary(states: Mapping[str, str], seconds: float, left: float | None) -> str:
    """Returns the counts of the states, the time since the start and the time left."""
    count = {state: list(states.values()).count(state) for state in STATES}
    clock = f"{_clock(seconds)} elapsed" + (f", about {_clock(left)} left" if left else "")
    return (
        f"[{count['done']}/{len(states)} done, {count['waiting']} waiting, {count['failed']} "
        f"failed]  {clock}"
    )


def table(
    arms: Mapping[str, str], states: Mapping[str, str], working: Sequence[str], head: str
) -> list[str]:
    """Returns the lines: the summary `head`, a row per arm, a line per active run."""
    found = set(states.values())
    shown = [state for state in STATES if state in found or state in ("done", "waiting")]
    names = list(dict.fromkeys(arms.values()))
    width = max(map(len, ("arm", *names)))
    lines = [head, "  " + "arm".ljust(width) + "".join(state.rjust(9) for state in shown)]
    for name in names:
        of = [states[run] for run, arm in arms.items() if arm == name]
        lines.append("  " + name.ljust(width) + "".join(str(of.count(s)).rjust(9) for s in shown))
    return lines + [f"  {line}" for line in working]


def time_left(
    durations: Sequence[float], elapsed: Sequence[float], waiting: int, workers: int
) -> float | None:
    """Returns the seconds to the end of all runs; None before the first run has ended.

    Args:
      durations: seconds of the runs that ended. elapsed: seconds of each active run so far.
        waiting: number of runs that have not begun. workers: number of runs at a time.
    """
    if not durations:
        return None
    usual = statistics.fmean(durations)
    return (sum(max(usual - one, 0) for one in elapsed) + waiting * usual) / workers


def training_progress(folder: Path) -> str:
    """Returns the share of steps done and the loss, from the log of a run."""
    try:
        last = _last_row(folder)
        steps = json.loads((folder / "config.json").read_text())["train"]["steps"]
        return f"{100 * last['step'] // steps}% loss {last['loss']:.2f}"
    except (OSError, LookupError, TypeError, ValueError, ArithmeticError):
        # Not written yet, or torn.
        return "starting"


def steps_seconds(folder: Path) -> float | None:
    """Returns the seconds of a run's steps, without compilation and saving, or None."""
    return _last_row(folder).get("productive_seconds")


def evaluation_progress(log: Path) -> str:
    """Returns the number of measured items, from the log of an evaluation."""
    counts = re.findall(
        r"^evaluate .*  (\d+/\d+)  ", _tail(log).rpartition("\n$ ")[2], re.MULTILINE
    )
    return f"evaluating {counts[-1]}" if counts else "evaluating"


def _last_row(folder: Path) -> dict:
    """Returns the last row of a training log, {} if there is none."""
    try:
        row = json.loads(_tail(folder / "metrics.jsonl").splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        return {}
    return row if isinstance(row, dict) else {}


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _clock(seconds: float) -> str:
    minutes = int(seconds) // 60
    return f"{minutes // 60}:{minutes % 60:02d}:{int(seconds) % 60:02d}"
