"""HTML of a report: escaped text, lists, folded parts, and the one frame of its tables."""

import html
from collections.abc import Iterable, Mapping, Sequence


def text(value: object) -> str:
    """Returns a value as escaped text."""
    return html.escape(str(value))


def items(lines: Iterable[object], kind: str = "") -> str:
    """Returns lines of plain text as a list."""
    listed = "".join(f"<li>{text(line)}</li>" for line in lines)
    return f'<ul class="{kind}">{listed}</ul>' if kind else f"<ul>{listed}</ul>"


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
        f"<div class='scroll'><table class='{kind}'><thead><tr>{titles}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )
