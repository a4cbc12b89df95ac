"""Result of a bench: rows, a text table, and the panels of a figure."""

import dataclasses
from collections.abc import Mapping, Sequence

Mark = tuple[str, float, float, float]  # label, first quartile, median, third quartile


@dataclasses.dataclass(frozen=True)
class Panel:
    """One panel of ratios: marks by series, a line at 1, and one at `limit`, a target."""

    title: str
    series: Mapping[str, Sequence[Mark]]
    limit: float | None = None


@dataclasses.dataclass(frozen=True)
class BenchResult:
    """The result of a bench.

    Attributes:
      name: of its files. title, caption: of its figure. settings: all arguments, with defaults.
      rows: one dict per measurement, all with the same keys. table: the rows as text. panels: of
        the figure.
    """

    name: str
    title: str
    caption: str
    settings: Mapping[str, object]
    rows: tuple[dict, ...]
    table: str
    panels: tuple[Panel, ...]


def aligned(names: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a text table: the first column is left-aligned, the others right-aligned."""
    lines = [names, *lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def mark(label: str, row: Mapping[str, float]) -> Mark:
    """Returns the ratio of a row as a mark."""
    return label, row["ratio_q1"], row["ratio"], row["ratio_q3"]


def with_quartiles(row: Mapping[str, float]) -> str:
    """Returns a ratio and its quartiles as text, e.g. "1.25 [1.20, 1.31]"."""
    return f"{row['ratio']:.2f} [{row['ratio_q1']:.2f}, {row['ratio_q3']:.2f}]"


def ms(milliseconds: float) -> str:
    """Returns a time as text; short times, as on a GPU, have three decimals."""
    return f"{milliseconds:.1f}" if milliseconds >= 10 else f"{milliseconds:.3f}"


def failure(error: Exception) -> str:
    """Returns the first line of an error, as the reason for a missing row."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:120]}"
