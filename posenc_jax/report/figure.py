"""A figure: its data as a table, its panels, and their rendering as PNG and SVG.

The HTML page shows the panels in a grid that adapts to narrow and wide screens; the PNG shows the
same panels.
"""

import csv
import dataclasses
import functools
import io
from collections.abc import Callable, Iterable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as MatplotlibFigure

from posenc_jax.report import style

WIDTHS = {1: 5.0, 2: 5.0, 3: 3.3, 4: 2.45, 6: 1.65}  # inches per panel, by panels per row


class Table(list):
    """Rows as dicts; the keys of the first row are the names of the columns."""

    @classmethod
    def from_arrays(
        cls, constant_columns: Mapping, axes: Mapping[str, Iterable], **values: np.ndarray
    ) -> "Table":
        """Returns one row per array element, except where the first array is NaN or infinite.

        Args:
          constant_columns: added to every row. axes: the values along each axis of the arrays.
          values: arrays over these axes, one column each.
        """
        axis_values = [np.asarray(list(at)).tolist() for at in axes.values()]
        return cls(
            {
                **constant_columns,
                **{name: at[i] for name, at, i in zip(axes, axis_values, cell, strict=True)},
            }
            | {name: float(array[tuple(cell)]) for name, array in values.items()}
            for cell in np.argwhere(np.isfinite(next(iter(values.values()))))
        )

    def where(self, **wanted) -> "Table":
        """Returns the rows whose columns have these values."""
        return Table(row for row in self if all(row[name] == v for name, v in wanted.items()))

    def column(self, name: str) -> list:
        """Returns the values of one column."""
        return [row[name] for row in self]

    def distinct(self, name: str) -> list:
        """Returns the different values of one column, ascending."""
        return sorted(set(self.column(name)))

    def grouped(self, x: str, y: str) -> dict:
        """Returns the values of column y by the values of column x, ascending."""
        return {at: self.where(**{x: at}).column(y) for at in self.distinct(x)}

    def means(self, x: str, y: str) -> dict:
        """Returns the mean of column y by the values of column x, ascending."""
        return {at: float(np.mean(values)) for at, values in self.grouped(x, y).items()}

    def matrix(
        self,
        row_name: str,
        row_values: Sequence,
        column_name: str,
        column_values: Sequence,
        value: str,
    ) -> np.ndarray:
        """Returns means of `value` by the values of two columns, nan where there is no row."""
        cells: dict[tuple, list[float]] = {}
        for row in self:
            number = np.nan if row[value] is None else row[value]
            cells.setdefault((row[row_name], row[column_name]), []).append(number)
        means = [[np.mean(cells.get((a, b), [np.nan])) for b in column_values] for a in row_values]
        return np.array(means).reshape(len(row_values), len(column_values))

    def csv(self, names: Sequence[str] = ()) -> str:
        """Returns the rows as CSV; floats in full precision."""
        out = io.StringIO()
        writer = csv.DictWriter(out, names or list(*self[:1]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self)
        return out.getvalue()


@dataclasses.dataclass(frozen=True)
class FigurePanel:
    """A panel: the function that draws on its axes, and its height in inches, labels included."""

    draw: Callable[[Axes], None]
    height: float = 2.4


def panels_of(
    draw: Callable[..., None], items: Iterable[Sequence], height: float
) -> list[FigurePanel]:
    """Returns a panel for each item, on which `draw(axes, *item)` draws."""
    return [FigurePanel(functools.partial(_draw_item, draw, item), height) for item in items]


def _draw_item(draw: Callable[..., None], item: Sequence, axes: Axes) -> None:
    draw(axes, *item)


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure of a report.

    Attributes:
      panels: empty where nothing was measured. columns: panels per row on a wide page, one of the
        keys of WIDTHS. legend: panel above the others with the legend or the colour bar.
      missing: one text per item that was not measured, listed below the figure.
      labels: labels of the horizontal and the vertical axes of all panels; "" where each panel has
        its own labels.
    """

    name: str
    title: str
    caption: str
    rows: Sequence[Mapping]
    panels: Sequence[FigurePanel]
    columns: int = 1
    legend: FigurePanel | None = None
    labels: tuple[str, str] = ("", "")
    missing: Sequence[str] = ()

    def csv(self) -> str:
        """Returns the table as CSV."""
        return Table(self.rows).csv()

    def png(self) -> bytes:
        """Returns all panels in the light palette, 200 dpi."""
        with matplotlib.rc_context(style.settings()):
            drawing = self.matplotlib_figure()
            return _saved(drawing, format="png", dpi=200, facecolor=style.SURFACE)

    def matplotlib_figure(self) -> MatplotlibFigure:
        """Returns all panels, and the legend above them, as one matplotlib figure."""
        width, columns = WIDTHS[self.columns], min(self.columns, len(self.panels))
        rows = [self.panels[i : i + columns] for i in range(0, len(self.panels), columns)]
        heights = [max(panel.height for panel in row) for row in rows]
        above = [self.legend.height] if self.legend else []
        drawing = _empty_figure(columns * width, sum(above + heights))
        grid = drawing.add_gridspec(len(above) + len(rows), columns, height_ratios=above + heights)
        if self.legend:
            self.legend.draw(drawing.add_subplot(grid[0, : min(columns, round(5 / width))]))
        for number, row in enumerate(rows, len(above)):
            for column, panel in enumerate(row):
                panel.draw(drawing.add_subplot(grid[number, column]))
        for label, write in zip(self.labels, (drawing.supxlabel, drawing.supylabel), strict=True):
            if label:
                write(label, color=style.MUTED, fontsize=style.FONT)
        return drawing

    def svgs(self) -> list[str]:
        """Returns the legend, if there is one, and every panel as inline SVG elements.

        They lack `labels`, which the page prints as text.
        """
        look = {"format": "svg", "transparent": True, "dpi": 150, "metadata": {"Date": None}}
        sized = [(self.legend, 5.0)] if self.legend else []
        drawn = []
        for panel, width in [*sized, *((panel, WIDTHS[self.columns]) for panel in self.panels)]:
            with matplotlib.rc_context(style.settings()):
                drawing = _empty_figure(width, panel.height)
                panel.draw(drawing.subplots())
                svg = _saved(drawing, **look).decode()
            drawn.append(style.themed(svg, f"{self.name}-{len(drawn)}", self.title))
        return drawn


def _saved(drawing: MatplotlibFigure, **look) -> bytes:
    out = io.BytesIO()
    drawing.savefig(out, **look)
    return out.getvalue()


def _empty_figure(width: float, height: float) -> MatplotlibFigure:
    drawing = MatplotlibFigure(figsize=(width, height), layout="constrained")
    drawing.get_layout_engine().set(w_pad=0.05, h_pad=0.05, wspace=0.03, hspace=0.03)
    FigureCanvasAgg(drawing)
    return drawing
