"""What a bench hands back: rows, a table in words, and what its picture shows."""

import dataclasses
from collections.abc import Mapping, Sequence

Mark = tuple[str, float, float, float]  # label, first quartile, median, third quartile


@dataclasses.dataclass(frozen=True)
class Panel:
    """One panel of ratios: marks by series; a line at 1, and at `limit` where there is a target."""

    title: str
    series: Mapping[str, Sequence[Mark]]
    limit: float | None = None


@dataclasses.dataclass(frozen=True)
class BenchResult:
    """A finished bench.

    Attributes:
      name: of its files. title, caption: of its picture.
      settings: everything that was chosen, defaults too.
      rows: one dict per measured thing, all with the same keys; slow ones are kept.
      table: the rows as text. panels: what is drawn, first label on top.
    """

    name: str
    title: str
    caption: str
    settings: Mapping[str, object]
    rows: tuple[dict, ...]
    table: str
    panels: tuple[Panel, ...]


def aligned(names: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a text table: first column to the left, the others to the right."""
    lines = [names, *lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def with_quartiles(row: Mapping[str, float]) -> str:
    """Returns a ratio and its quartiles as text, e.g. "1.25 [1.20, 1.31]"."""
    return f"{row['ratio']:.2f} [{row['ratio_q1']:.2f}, {row['ratio_q3']:.2f}]"


def ms(milliseconds: float) -> str:
    """Returns a time as text: a GPU's are thousandths of what a CPU's are."""
    return f"{milliseconds:.1f}" if milliseconds >= 10 else f"{milliseconds:.3f}"


def failure(error: Exception) -> str:
    """Returns the first line of an error, as the reason why a row is missing."""
    said = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {said[0][:120]}"
