"""Texts and HTML of the page: texts.toml, page.html, lists, folded parts, the frame of tables."""

import html
import importlib.resources
import string
import tomllib
from collections.abc import Iterable, Mapping, Sequence

from posenc_jax.results import schema

_FOLDER = importlib.resources.files(__package__)
PAGE = string.Template((_FOLDER / "page.html").read_text(encoding="utf-8"))
TEXTS = tomllib.loads((_FOLDER / "texts.toml").read_text(encoding="utf-8"))


def text(value: object) -> str:
    """Returns a value as escaped text."""
    return html.escape(str(value))


def items(lines: Iterable[object], kind: str = "") -> str:
    """Returns lines of plain text as a list."""
    return f'<ul class="{kind}">{"".join(f"<li>{text(line)}</li>" for line in lines)}</ul>'


def fold(title: str, body: str, note: str = "", shown: bool = False) -> str:
    """Returns HTML that is folded under a title of plain text, with a note beside the title."""
    note = f" <span>{text(note)}</span>" if note else ""
    opened = " open" if shown else ""
    return f"<details{opened}><summary>{text(title)}{note}</summary>{body}</details>"


def terms(pairs: Mapping[str, str]) -> str:
    """Returns terms of plain text and their HTML as a definition list."""
    return f"<dl>{''.join(f'<dt>{text(a)}</dt><dd>{b}</dd>' for a, b in pairs.items())}</dl>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Returns a table that scrolls sideways: plain titles, cells of HTML, a name first per row."""
    titles = "".join(f"<th scope='col'>{text(title)}</th>" for title in head)
    body = "".join(
        f"<tr><th scope='row'>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return (
        "<div class='scroll'><table "
        f"class='{kind}'><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def text_of(section: str, key: str, **values: object) -> str:
    """Returns a text on one line, with values in place of {name}."""
    return TEXTS[section][key].replace("\n", " ").format(**vars(schema) | values)


def captioned(name: str, *more: str | None, **values: object) -> dict:
    """Returns name, title, caption and axis labels of a figure; more: further sentences' keys."""
    keys = ("caption", *(key for key in more if key))
    caption = " ".join(text_of(name, key, **values) for key in keys)
    labels = tuple(text_of(name, key, **values) if key in TEXTS[name] else "" for key in "xy")
    return {
        "name": name,
        "title": text_of(name, "title", **values),
        "caption": caption,
        "labels": labels,
    }
