"""Progress table of a running study: redrawn on a terminal, printed at intervals in a log."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

STATES = ("done", "running", "waiting", "failed", "stopped")


class Status:
    """The table of a study's runs.

    Args:
      arms: the arm of every run, by name. every: seconds between two tables without a terminal.
    """

    def __init__(self, arms: Mapping[str, str], every: float):
        self._arms, self._every = arms, every
        self._begun, self._last, self._lines = time.time(), 0.0, 0

    def show(
        self, states: Mapping[str, str], working: Sequence[str], fresh: int, last: bool = False
    ) -> None:
        """Prints the table if the interval has passed, or if it is the last one.

        Args:
          states: one of STATES for every run. working: a line for each active run. fresh: number of
            runs that ended since this command began.
        """
        terminal = sys.stdout.isatty()
        if not last and time.time() - self._last < (1.0 if terminal else self._every):
            return
        self._last = time.time()
        lines = table(self._arms, states, working, time.time() - self._begun, fresh)
        if terminal and self._lines:
            print(f"\033[{self._lines}F\033[J", end="")  # up to the table's first line, clear below
        print("\n".join(lines), flush=True)
        self._lines = 0 if last else len(lines)

    def say(self, line: str) -> None:
        """Prints a line above the next table."""
        print(line, flush=True)
        self._lines = 0


def table(
    arms: Mapping[str, str],
    states: Mapping[str, str],
    working: Sequence[str],
    seconds: float,
    fresh: int,
) -> list[str]:
    """Returns the lines: a summary with the time left, a row per arm, a line per active run."""
    count = {state: list(states.values()).count(state) for state in STATES}
    ahead = count["running"] + count["waiting"]
    elapsed = f"{_clock(seconds)} gone"
    if fresh and ahead:
        elapsed += f", about {_clock(seconds / fresh * ahead)} left"
    shown = [state for state in STATES if count[state] or state in ("done", "waiting")]
    lines = [f"[{count['done']}/{len(states)} done, {count['waiting']} waiting, {count['failed']} failed]  {elapsed}"]  # fmt: skip
    names = list(dict.fromkeys(arms.values()))
    width = max(map(len, ("arm", *names)))
    lines.append("  " + "arm".ljust(width) + "".join(state.rjust(9) for state in shown))
    for name in names:
        of = [states[run] for run, arm in arms.items() if arm == name]
        lines.append("  " + name.ljust(width) + "".join(str(of.count(s)).rjust(9) for s in shown))
    return lines + [f"  {line}" for line in working]


def training_progress(folder: Path) -> str:
    """Returns the share of steps done and the loss, from the log of a run."""
    try:
        last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        steps = json.loads((folder / "config.json").read_text())["train"]["steps"]
    except (OSError, IndexError, json.JSONDecodeError):
        return "starting"
    return f"{100 * last['step'] // steps}% loss {last['loss']:.2f}"


def _clock(seconds: float) -> str:
    minutes = int(seconds) // 60
    return f"{minutes // 60}:{minutes % 60:02d}:{int(seconds) % 60:02d}"
