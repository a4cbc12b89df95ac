"""How figures look: one palette, two layouts, PNG for files and theme-aware SVG for the page.

A figure is drawn once per layout in the light palette. In the SVG every palette colour is then
replaced by a CSS variable, so that one inline picture follows the page's light or dark theme.
"""

import csv
import dataclasses
import functools
import io
import re
from collections.abc import Callable

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, MUTED, RULE, SURFACE, EMPTY = "#1d1d1f", "#6b6b73", "#d8d8de", "#ffffff", "#ebebf0"
BACKDROP = "#c3c3cb"  # lines of arms that are not the one shown
# (light, dark) per arm; after Okabe and Ito 2008, darkened so that labels can be read on white.
ARM_COLOURS = (
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#ff9452"),
    ("#00866a", "#35cfa6"),
    ("#a83279", "#e78cc3"),
    ("#ad7f00", "#f0c24a"),
    ("#3d8fb8", "#9edcf7"),
    ("#7a5230", "#cfa883"),
    ("#5b6472", "#b4bcc8"),
    ("#5a48b5", "#b0a4f5"),
    ("#b3203f", "#ff8a9a"),
    ("#5f7d00", "#b9d65a"),
    ("#007f91", "#63d3e3"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h", "p", "<", ">", "d")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
NEUTRALS = {
    INK: ("ink", "#f0f0f3"),
    MUTED: ("muted", "#a0a0a8"),
    RULE: ("rule", "#3a3a40"),
    SURFACE: ("surface", "#161618"),
    EMPTY: ("empty", "#2a2a2e"),
    BACKDROP: ("backdrop", "#55555e"),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Width in inches (1 pt is about 1 px on a phone, 1.4 px on a desktop) and font size."""

    name: str
    width: float
    font: float

    @property
    def narrow(self) -> bool:
        return self.name == "narrow"


WIDE, NARROW = Layout("wide", 10.0, 8.6), Layout("narrow", 4.9, 10.0)


@dataclasses.dataclass(frozen=True)
class Picture:
    """One figure: the table it is drawn from, how to draw it, and what is not in it, in words."""

    name: str
    title: str
    caption: str
    columns: tuple[str, ...]
    records: tuple[dict, ...]
    draw: Callable[[Layout], Figure] | None  # None: nothing was measured
    missing: tuple[str, ...] = ()

    def csv(self) -> str:
        """The table as CSV; floats in full precision."""
        out = io.StringIO()
        writer = csv.DictWriter(out, self.columns, lineterminator="\n", extrasaction="raise")
        writer.writeheader()
        writer.writerows(self.records)
        return out.getvalue()

    def png(self) -> bytes:
        """The wide layout in the light palette, 200 dpi."""
        out = io.BytesIO()
        with matplotlib.rc_context(_rc(WIDE)):
            figure = self.draw(WIDE)
            FigureCanvasAgg(figure)
            figure.savefig(out, format="png", dpi=200, facecolor=SURFACE)
        return out.getvalue()

    def svg(self, layout: Layout) -> str:
        """An inline SVG element whose colours are the page's CSS variables."""
        out = io.StringIO()
        with matplotlib.rc_context(_rc(layout)):
            figure = self.draw(layout)
            figure.savefig(out, format="svg", transparent=True, dpi=150, metadata={"Date": None})
        return _themed(out.getvalue(), f"{self.name}-{layout.name}", self.title)


def colour(index: int) -> str:
    """The light-palette colour of arm number `index`; they repeat after the last one."""
    return ARM_COLOURS[index % len(ARM_COLOURS)][0]


def line_style(index: int) -> dict:
    """Keyword arguments that tell arm number `index` apart by colour, marker and dash."""
    cycle = index // len(ARM_COLOURS)
    return {
        "color": colour(index),
        "marker": MARKERS[(index + cycle) % len(MARKERS)],
        "linestyle": DASHES[cycle % len(DASHES)],
    }


def css_variables() -> tuple[str, str]:
    """Declarations of every figure colour for the light and for the dark theme."""
    light = [f"--{name}: {hex_}" for hex_, (name, _) in NEUTRALS.items()]
    dark = [f"--{name}: {hex_}" for name, hex_ in NEUTRALS.values()]
    for index, (on_white, on_black) in enumerate(ARM_COLOURS):
        light.append(f"--arm-{index}: {on_white}")
        dark.append(f"--arm-{index}: {on_black}")
    return "; ".join(light), "; ".join(dark)


def panels(
    layout: Layout, rows: int, columns: int, height: float, width: float | None = None, **kwargs
) -> tuple[Figure, list[Axes]]:
    """A figure of rows x columns axes, each row `height` inches, and its axes row by row."""
    figure = Figure(figsize=(width or layout.width, rows * height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06, wspace=0.03, hspace=0.04)
    axes = figure.subplots(rows, columns, squeeze=False, **kwargs)
    return figure, list(axes.flat)


def blank(axes: Axes) -> None:
    """No frame and no ticks: for maps and unused panels."""
    axes.set_axis_off()


@functools.cache
def _families() -> list[str]:
    """Fonts to measure and draw with; DejaVu comes with matplotlib and has every glyph."""
    installed = set(font_manager.get_font_names())
    calm = [name for name in ("Helvetica Neue", "Arial", "Liberation Sans") if name in installed]
    return [*calm[:1], "DejaVu Sans"]


def _rc(layout: Layout) -> dict:
    size = layout.font
    return {
        "font.family": _families(),
        "font.size": size,
        "axes.titlesize": size + 0.6,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlecolor": INK,
        "axes.labelsize": size,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": RULE,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": RULE,
        "grid.linewidth": 0.5,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.major.size": 0,
        "ytick.minor.size": 0,
        "lines.linewidth": 1.6,
        "lines.markersize": 4,
        "hatch.linewidth": 0.7,
        "svg.fonttype": "none",
        "svg.hashsalt": "posenc_jax",
    }


def _themed(svg: str, prefix: str, title: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="([^"]+)"', head)[1]
    used = set(re.findall(r'(?:url\(|xlink:href=")#([^)"]+)', body))
    body = re.sub(
        r' id="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", body
    )
    body = re.sub(r"url\(#", f"url(#{prefix}-", body)
    body = re.sub(r'xlink:href="#', f'href="#{prefix}-', body)
    body = body.replace("xlink:href", "href")
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", body)
    body = re.sub(r"\n\s*", " ", body)
    names = {hex_: name for hex_, (name, _) in NEUTRALS.items()}
    names |= {light: f"arm-{index}" for index, (light, _) in enumerate(ARM_COLOURS)}
    for hex_, name in names.items():
        body = body.replace(hex_, f"var(--{name})")
    label = title.replace("&", "and").replace('"', "'").replace("<", "").replace(">", "")
    layout = prefix.rsplit("-", 1)[1]
    # The same scale for every wide figure: a narrow one must not be blown up to the page's width.
    widest = "none" if layout == "narrow" else f"{1.38 * float(box.split()[2]):.0f}px"
    return (
        f'<svg class="{layout}" style="max-width: {widest}" role="img" aria-label="{label}" '
        f'viewBox="{box}">{body}'
    )
