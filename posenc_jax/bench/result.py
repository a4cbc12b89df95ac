"""Result of a bench: rows, a text table, and the panels of a figure."""

import dataclasses
from collections.abc import Mapping, Sequence

RatioPoint = tuple[str, float, float, float]  # label, first quartile, median, third quartile


@dataclasses.dataclass(frozen=True)
class Panel:
    """One panel: ratios with quartiles by series; lines at 1 and, if given, at `limit`."""

    title: str
    series: Mapping[str, Sequence[RatioPoint]]
    limit: float | None = None


@dataclasses.dataclass(frozen=True)
class BenchResult:
    """The result of a bench.

    Attributes:
      name: stem of the output files. title, caption, panels: parts of the figure.
      settings: all arguments, with defaults. table: the rows as text.
      rows: one dict per measurement, all with the same keys.
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


def ratio_point(label: str, row: Mapping[str, float]) -> RatioPoint:
    """Returns the ratio of a row with its quartiles, as a point of a panel."""
    return label, row["ratio_q1"], row["ratio"], row["ratio_q3"]


def with_quartiles(row: Mapping[str, float]) -> str:
    """Returns a ratio and its quartiles as text, e.g. "1.25 [1.20, 1.31]"."""
    return f"{row['ratio']:.2f} [{row['ratio_q1']:.2f}, {row['ratio_q3']:.2f}]"


def ms(milliseconds: float) -> str:
    """Returns a time as text; short times, as on a GPU, have three decimals."""
    return f"{milliseconds:.1f}" if milliseconds >= 10 else f"{milliseconds:.3f}"


def failure_text(error: Exception) -> str:
    """Returns the first line of an error, as the reason for a missing row."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:120]}"
