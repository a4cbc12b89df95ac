"""Colours, fonts and settings of every figure, and SVG that follows the page's theme.

A figure is drawn once, in the light palette. In its SVG a CSS variable replaces every palette
colour, so that the same drawing serves the light and the dark theme.
"""

import functools
import html
import re

from matplotlib import font_manager

INK, MUTED, RULE, SURFACE, EMPTY = "#1d1d1f", "#6b6b73", "#d8d8de", "#ffffff", "#ebebf0"
BACKDROP = "#c3c3cb"  # lines of arms that are not the one shown
AT_L = "#e0245e"  # the line where a distance or a length equals L
MAP, FONT = "cividis", 9.0  # colour map, points
# (light, dark) per arm; after Okabe and Ito 2008, darkened so that labels can be read on white.
ARM_COLOURS = (
    ("#0072b2", "#56b4e9"), ("#d55e00", "#ff9452"), ("#00866a", "#35cfa6"), ("#a83279", "#e78cc3"),
    ("#ad7f00", "#f0c24a"), ("#3d8fb8", "#9edcf7"), ("#7a5230", "#cfa883"), ("#5b6472", "#b4bcc8"),
    ("#5a48b5", "#b0a4f5"), ("#b3203f", "#ff8a9a"), ("#5f7d00", "#b9d65a"), ("#007f91", "#63d3e3"),
)  # fmt: skip
NEUTRALS = {  # light: name, dark
    INK: ("ink", "#f0f0f3"), MUTED: ("muted", "#a0a0a8"), RULE: ("rule", "#3a3a40"),
    SURFACE: ("surface", "#161618"), EMPTY: ("empty", "#2a2a2e"), BACKDROP: ("backdrop", "#55555e"),
}  # fmt: skip
PALETTE = [(name, light, dark) for light, (name, dark) in NEUTRALS.items()]
PALETTE += [(f"arm-{index}", *pair) for index, pair in enumerate(ARM_COLOURS)]
LIGHT_CSS, DARK_CSS = ("; ".join(f"--{c[0]}: {c[i]}" for c in PALETTE) for i in (1, 2))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h", "p", "<", ">", "d")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
SETTINGS = {
    "font.size": FONT, "axes.titlesize": FONT, "axes.labelsize": FONT, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.titlecolor": INK, "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none", "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False,
    "axes.spines.right": False, "grid.color": RULE, "grid.linewidth": 0.5, "text.color": INK,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.major.size": 0, "xtick.minor.size": 0,
    "ytick.major.size": 0, "ytick.minor.size": 0, "lines.linewidth": 1.6, "lines.markersize": 4,
    "legend.frameon": False, "hatch.linewidth": 0.7, "svg.fonttype": "none",
    "svg.hashsalt": "posenc_jax",
}  # fmt: skip


def colour(index: int) -> str:
    """Returns the light-palette colour of arm number `index`; colours repeat after the last one."""
    return ARM_COLOURS[index % len(ARM_COLOURS)][0]


def line_style(index: int) -> dict:
    """Returns the colour, marker and dash of arm number `index` as keyword arguments."""
    cycle = index // len(ARM_COLOURS)
    marker, dash = MARKERS[(index + cycle) % len(MARKERS)], DASHES[cycle % len(DASHES)]
    return {"color": colour(index), "marker": marker, "linestyle": dash}


@functools.cache
def settings() -> dict:
    """Returns the rcParams of every figure; DejaVu comes with matplotlib and has every glyph."""
    installed = set(font_manager.get_font_names())
    calm = [name for name in ("Helvetica Neue", "Arial", "Liberation Sans") if name in installed]
    return SETTINGS | {"font.family": [*calm[:1], "DejaVu Sans"]}


def themed(svg: str, prefix: str, label: str) -> str:
    """Returns an SVG file as an element: palette colours as CSS variables, ids prefixed."""
    head, body = svg[svg.index("<svg") :].split(">", 1)
    found = re.search(r'viewBox="([^"]+)"', head)
    if found is None:
        raise ValueError(f"{label}: an SVG file without a viewBox")
    box = found[1]
    for gone in (r"<metadata>.*?</metadata>", r"<defs>\s*<style.*?</style>\s*</defs>"):
        body = re.sub(gone, "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|xlink:href=")#([^)"]+)', body))
    unused = re.compile(r' id="(?!(?:' + "|".join(map(re.escape, used)) + r')")[^"]+"')
    body = unused.sub("", body).replace(' id="', f' id="{prefix}-')
    body = body.replace("url(#", f"url(#{prefix}-")
    body = body.replace('xlink:href="#', f'href="#{prefix}-').replace("xlink:href", "href")
    body = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", body)
    body = re.sub(r"\n\s*", " ", body)
    # In tags, not in text: a hundredth of a point is finer than a pixel.
    body = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), body)
    for name, light, _ in PALETTE:
        body = body.replace(light, f"var(--{name})")
    return f'<svg role="img" aria-label="{html.escape(label)}" viewBox="{box}">{body}'
