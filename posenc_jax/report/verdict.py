"""The verdict on the page: its banner, every clause with interval and detectable effect, the forest plot."""

import html
import json
import pathlib
import re
from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from posenc_jax.report import style
from posenc_jax.report.labels import wrap
from posenc_jax.report.rows import Study, short_name
from posenc_jax.report.style import INK, MUTED, SURFACE, Layout, Picture
from posenc_jax.study.statements import p_words
from posenc_jax.study.verdict import banner, fingerprint

LISTS = (("why", "Not confirmed because"), ("deviations", "Deviations"), ("unused", "Missing runs"),
         ("unplanned", "Not read"), ("gaps", "Missing outcomes"))  # fmt: skip
COLUMNS = ("hybrid", "clause", "statement", "unit", "n", "estimate", "low", "high", "threshold", "p",
           "sign_flip", "detectable", "iqm", "ahead", "state")  # fmt: skip
UNITS = ("bits per byte", "accuracy")


def read_verdict(workdir: pathlib.Path) -> dict | None:
    """Returns verdict.json of a study folder, None where no verdict was asked for.

    Raises:
      ValueError: the file is no verdict.
    """
    path = pathlib.Path(workdir) / "verdict.json"
    if not path.exists():
        return None
    try:
        verdict = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(verdict, dict) or "verdicts" not in verdict:
        raise ValueError(f"{path} is no verdict; write it again with scripts/verdict.py")
    return verdict


def banner_lines(study: Study, verdict: Mapping) -> list[str]:
    """What stands above everything: status, tier, seeds, and whether rows changed after the verdict."""
    lines = [f"{banner(verdict)}."]
    lines += [f"{_name(v['hybrid'])}: {v['verdict']}, {verdict['status']}." for v in verdict["verdicts"]]  # fmt: skip
    rows = {str(run.folder.relative_to(study.workdir)): run.rows for run in study.runs}
    stale = [run for run, stored in verdict["runs"].items() if run not in rows or fingerprint(rows[run]) != stored]  # fmt: skip
    if stale:
        lines.append(
            f"The verdict is older than these rows: {', '.join(stale)} changed since. Run "
            "scripts/verdict.py again."
        )
    return lines


def section(verdict: Mapping | None) -> str:
    """The HTML section: by hybrid its verdict, clauses, reasons and attribution; then what is not there."""
    if verdict is None:
        return (
            '<section id="verdict"><h2>Verdict</h2><p class="nothing">None was asked for: '
            "scripts/verdict.py writes one.</p></section>"
        )
    parts = [f'<section id="verdict"><h2>Verdict</h2><p class="caption">{_text(banner(verdict))}. '
             "A clause holds when each of its statements does, by a one-sided t test over seeds; the "
             "interval is 90 %, so one of its ends is the one-sided limit. Detectable: how far past the "
             "threshold a true mean must lie to be found in 80 % of studies of this size and spread.</p>"]  # fmt: skip
    for v in verdict["verdicts"]:
        parts.append(f"<h3>{_text(_name(v['hybrid']))}: {v['verdict']} ({verdict['status']})</h3>")
        parts += [f"<ul>{_items(v['reasons'])}</ul>"] if v["reasons"] else []
        parts.append(_table(v))
        found = [a["words"] for a in v["attribution"]] or ["No ablation was named: which part does the work is open."]  # fmt: skip
        parts.append(f"<ul>{_items(found)}</ul>")
    for key, title in LISTS:
        if verdict[key]:
            parts.append(f'<p>{title}:</p><ul class="missing">{_items(verdict[key])}</ul>')
    return "".join(parts) + '<p class="source">From <code>verdict.json</code>, in words <code>verdict.txt</code></p></section>'  # fmt: skip


def forest(study: Study, verdict: Mapping) -> Picture:
    """Every tested statement's estimate and interval, as distance past its threshold."""
    records = tuple(
        {"hybrid": v["hybrid"], "clause": s["clause"], "statement": s["words"] + (f" ({s['note']})" if s["note"] else "")}
        | {name: s[name] for name in COLUMNS[3:]}
        for v in verdict["verdicts"]
        for s in v["statements"]
        if s["estimate"] is not None
    )  # fmt: skip
    missing = tuple(
        f"{_name(v['hybrid'])}: {s['sentence']}"
        for v in verdict["verdicts"]
        for s in v["statements"]
        if s["estimate"] is None
    )
    hybrids = [v["hybrid"] for v in verdict["verdicts"]]
    # A hybrid whose runs are gone since has no colour on the page any more; the banner names them.
    colours = {h: style.colour(study.colours[h] if h in study.colours else len(study.colours) + i) for i, h in enumerate(hybrids)}  # fmt: skip
    scale = {UNITS[0]: verdict["margins"]["bpb"], UNITS[1]: verdict["margins"]["accuracy"]}

    def draw(layout: Layout) -> Figure:
        rows = {unit: _rows(records, unit) for unit in UNITS}
        rows = {unit: found for unit, found in rows.items() if found}
        tall = [len(found) * (0.2 + 0.16 * len(hybrids)) + 0.9 for found in rows.values()]
        if layout.narrow:
            tall = [1.5 * height for height in tall]
        figure, grid = style.panels(layout, len(rows), 1, sum(tall) / len(rows), height_ratios=tall)
        if len(hybrids) > 1:
            names = [wrap(_name(h), 24) if layout.narrow else _name(h) for h in hybrids]
            marks = [Line2D([], [], color=colours[h], marker="o", linestyle="none") for h in hybrids]  # fmt: skip
            figure.legend(marks, names, loc="outside upper left", frameon=False, ncols=1 if layout.narrow else 3)  # fmt: skip
        for axes, (unit, found) in zip(grid, rows.items(), strict=True):
            _panel(axes, found, colours, scale[unit], layout)
            note = "" if layout.narrow else f" (logarithmic beyond ±{scale[unit]:g})"
            axes.set_xlabel(f"{unit} past the threshold{note}")
        return figure

    caption = (
        f"{banner(verdict)}. Each statement of the rule as its estimate less its "
        "threshold, with the 90 % interval over seeds: right of the line by its whole interval it holds "
        "(filled), left of it it is against the statement (cross where refuted after Holm), else open "
        "(hollow). Grey tick: the smallest true distance that so many seeds of this spread would find in 80 % of studies."
    )
    return Picture("verdict", "Clauses of the decision rule", caption, COLUMNS, records, draw if records else None, missing)  # fmt: skip


def _panel(axes, found: Mapping, colours: Mapping[str, str], margin: float, layout: Layout) -> None:  # fmt: skip
    axes.set_xscale("symlog", linthresh=margin)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_title("← against the statement   |   for it →", color=MUTED, weight="normal")
    names = list(found)
    for y, name in enumerate(names):
        for record in found[name]:
            index = list(colours).index(record["hybrid"])
            at = y + 0.28 * (index - (len(colours) - 1) / 2)
            hex_ = colours[record["hybrid"]]
            low, mean, high = (record[k] - record["threshold"] for k in ("low", "estimate", "high"))
            axes.plot([low, high], [at, at], color=hex_, linewidth=1.6, solid_capstyle="butt")
            holds, refuted = record["state"] == "holds", record["state"] == "refuted"
            axes.plot(
                mean, at, marker="X" if refuted else "o", color=hex_, markersize=6.5, zorder=4,
                markerfacecolor=hex_ if holds or refuted else SURFACE, markeredgecolor=hex_, linestyle="none",
            )  # fmt: skip
            if record["detectable"]:  # none without a spread between seeds
                axes.plot(record["detectable"], at, marker="|", color=MUTED, markersize=8, linestyle="none")  # fmt: skip
    axes.set_yticks(range(len(names)), [wrap(name, 24 if layout.narrow else 60) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    marks = [
        sign * margin * 10**power
        for power in ((0, 2) if layout.narrow else (0, 1, 2, 3))
        for sign in (-1, 1)
    ]
    low, high = axes.get_xlim()
    axes.set_xticks([0, *marks], ["0", *(f"{x:g}".replace("-", "−") for x in marks)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(min(low, -2 * margin), max(high, 2 * margin))


def _rows(records: tuple[dict, ...], unit: str) -> dict[str, list[dict]]:
    """Records by row label, in the order of the rule."""
    found: dict[str, list[dict]] = {}
    for record in records:
        if record["unit"] == unit:
            found.setdefault(f"{record['clause']}  {_short(record['statement'])}", []).append(record)  # fmt: skip
    return found


def _short(words: str) -> str:
    """Y_E of RoPE less Y_E of the hybrid -> Y_E, RoPE less hybrid; a note in brackets is left to the table."""
    words = re.sub(r" \(here .*\)$", "", words)
    match = re.fullmatch(r"(.+?) of (the )?(\w+) less .+ of (the )?(\w+)", words)
    return f"{match[1]}, {match[3]} less {match[5]}" if match else words


def _table(v: Mapping) -> str:
    head = ("clause", "statement", "state", "estimate", "90 % interval", "threshold", "p", "sign flip", "n", "detectable")  # fmt: skip
    body = []
    for s in v["statements"]:
        note = f"<small>{_text(s['note'])}</small>" if s["note"] else ""
        left = f"<small>left out: {_text('; '.join(s['problems']))}</small>" if s["problems"] else ""  # fmt: skip
        cells = [_text(s["clause"]), f"{_text(s['words'])}{note}{left}", s["state"]]
        if s["estimate"] is None:
            seen = "checked in every seed" if s["check"] and s["n"] else "not tested"
            values = f", {min(s['values']):.3g} to {max(s['values']):.3g}" if s["values"] else ""
            cells += [seen + values, "", f"{s['threshold']:g}", "", "", str(s["n"]), ""]
        else:
            cells += [f"{s['estimate']:+.4f}", f"{s['low']:+.4f} to {s['high']:+.4f}", f"{s['threshold']:+g}",
                      p_words(s["p"]).replace("below ", "< "), p_words(s["sign_flip"]), str(s["n"]), f"{s['detectable']:.4f}"]  # fmt: skip
        body.append("<tr>" + "".join(f"<td>{cell.replace('-', '−') if i > 2 else cell}</td>" for i, cell in enumerate(cells)) + "</tr>")  # fmt: skip
    heads = "".join(f"<th scope='col'>{name}</th>" for name in head)
    return f"<div class='scroll'><table class='clauses'><thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"  # fmt: skip


def _name(arm: str) -> str:
    return short_name(arm)


def _items(lines) -> str:
    return "".join(f"<li>{_text(line)}</li>" for line in lines)


def _text(value: object) -> str:
    return html.escape(str(value))
