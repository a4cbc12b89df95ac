"""Trials of injected faults: the result of each, and the table of many."""

import dataclasses
import gzip
import json
from collections.abc import Iterable
from pathlib import Path

from faults.small_run import SAVE_EVERY


@dataclasses.dataclass(frozen=True)
class Trial:
    """One injected fault.

    Attributes:
      fault: its name in the table. detail: the exact fault, e.g. the file and the bit.
      wrong: leaves, or links of the hash chain, that differ from those of the undisturbed run.
      undetected: the fault was neither refused nor named in one line, as it should be.
      lost_steps: steps that were taken again. save_cut: the fault interrupted an asynchronous save: the run
        may lose the steps of that save and those since it started. said: the error line.
      seconds: from the start to the refusal or result. peak_mb: of the process. None: not measured.
      skipped: why the fault could not be tried, or did not land; empty if it did.
      exit_codes: of the processes, in the order of their ends. output: what they printed.
    """

    fault: str
    detail: str = ""
    wrong: int = 0
    undetected: bool = False
    lost_steps: int = 0
    said: str = ""
    skipped: str = ""
    save_cut: bool = False
    seconds: float | None = None
    peak_mb: float | None = None
    exit_codes: str = ""
    output: str = ""


_KEPT = 2000  # characters of each end of an output


def codes(*processes) -> str:
    """Returns the exit codes of processes that have ended."""
    return " ".join(str(process.returncode) for process in processes)


def kept(trial: Trial) -> Trial:
    """Returns a trial as its row keeps it: a failed one with the beginning and the end of its output."""
    text = trial.output if failed([trial]) else ""
    if len(text) > 2 * _KEPT:
        text = f"{text[:_KEPT]}\n... {len(text) - 2 * _KEPT} characters ...\n{text[-_KEPT:]}"
    return dataclasses.replace(trial, output=text)


def stored(path: Path) -> list[Trial]:
    """Returns the trials in a file of rows, gzipped or not; ValueError for anything else."""
    read = gzip.open if path.suffix == ".gz" else open
    with read(path, "rt") as file:
        try:
            return [Trial(**json.loads(line)) for line in file]
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} holds no trials: {error}") from None


def table(trials: Iterable[Trial]) -> str:
    """Returns a table with a row per fault, in order of the trials, with the maxima of what was measured."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.fault, []).append(trial)
    names = (
        "fault",
        "trials",
        "wrong",
        "undetected",
        "lost steps",
        "with a save cut short",
        "seconds",
        "peak MB",
        "verdict",
    )
    rows = []
    for fault, group in groups.items():
        done = [trial for trial in group if not trial.skipped]
        if not done:
            rows.append((fault, "0", *("-" for _ in range(6)), f"skipped: {group[0].skipped}"))
            continue
        most = (
            _most([t.lost_steps for t in done if not t.save_cut]),
            _most([t.lost_steps for t in done if t.save_cut]),
            _most([t.seconds for t in done if t.seconds is not None], ".1f"),
            _most([t.peak_mb for t in done if t.peak_mb is not None], ".0f"),
        )
        numbers = len(done), sum(t.wrong > 0 for t in done), sum(t.undetected for t in done)
        rows.append((fault, *map(str, numbers), *most, "FAILED" if failed(done) else "held"))
    return "\n".join("| " + " | ".join(row) + " |" for row in (names, ("---",) * 9, *rows))


def _most(values: list, form: str = "") -> str:
    return format(max(values), form) if values else "-"


def failed(trials: Iterable[Trial]) -> list[Trial]:
    """Returns the failed trials: other bits, an undetected fault, or more steps lost than a save interval.

    For an interrupted asynchronous save, two intervals may be lost.
    """
    return [
        t for t in trials if t.wrong or t.undetected or t.lost_steps > SAVE_EVERY * (1 + t.save_cut)
    ]
