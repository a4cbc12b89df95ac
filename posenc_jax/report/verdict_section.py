"""The verdict on the page: its banner, every clause with interval and detectable effect, the forest plot."""

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from posenc_jax.report import style
from posenc_jax.report.labels import wrap
from posenc_jax.report.study_view import StudyView, short_name
from posenc_jax.report.style import INK, MUTED, SURFACE, Layout, Picture
from posenc_jax.results.study_data import StudyData
from posenc_jax.study.statements import p_words
from posenc_jax.study.verdict import banner, fingerprint

LISTS = (("deviations", "Deviations"), ("notes", "Notes"), ("why", "Not confirmed because"),
         ("unused", "Missing runs"), ("unplanned", "Not read"), ("gaps", "Missing outcomes"))  # fmt: skip
COLUMNS = ("hybrid", "clause", "statement", "unit", "n", "estimate", "low", "high", "threshold", "p",
           "sign_flip", "detectable", "iqm", "ahead", "state")  # fmt: skip
UNITS = ("bits per byte", "accuracy")


def read_verdict(study: StudyData) -> dict | None:
    """Returns verdict.json beside a study's rows, None where no verdict was asked for.

    Raises:
      ValueError: the file is no verdict.
    """
    path = Path(study.folder) / "verdict.json"
    if not path.exists():
        return None
    try:
        verdict = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(verdict, dict) or "verdicts" not in verdict:
        raise ValueError(f"{path} is no verdict; write it again with scripts/verdict.py")
    return verdict


def rules(verdict: Mapping) -> list[Mapping]:
    """The verdict of every rule that judged, the newest first."""
    return [verdict, verdict["rule_1"]] if "rule_1" in verdict else [verdict]


def banner_lines(study: StudyView, verdict: Mapping) -> list[str]:
    """What stands above everything: status, tier, seeds, deviations, and whether rows changed after the verdict."""
    lines = [f"{banner(verdict)}.", *(f"Deviation: {line}." for line in verdict["deviations"])]
    for i, v in enumerate(verdict["verdicts"]):
        said = [
            f"{r['verdicts'][i]['verdict']} under rule {r['rule']} ({r['status']})"
            for r in rules(verdict)
        ]
        lines.append(f"{short_name(v['hybrid'])}: {', '.join(said)}.")
    rows = {run.data.name: run.rows for run in study.runs}
    stale = [run for run, stored in verdict["runs"].items() if run not in rows or fingerprint(rows[run]) != stored]  # fmt: skip
    if stale:
        lines.append(
            f"The verdict is older than these rows: {', '.join(stale)} changed since. Run "
            "scripts/verdict.py again."
        )
    return lines


def section(verdict: Mapping | None) -> str:
    """The HTML section: both rules side by side, then each with its clauses, reasons and attribution."""
    if verdict is None:
        return (
            '<section id="verdict"><h2>Verdict</h2><p class="nothing">None was asked for: '
            "scripts/verdict.py writes one.</p></section>"
        )
    parts = ['<section id="verdict"><h2>Verdict</h2>', _side_by_side(verdict),
             '<p class="caption">A clause holds when each of its statements does, by a one-sided test over seeds; '
             "the interval is 90 %, so one of its ends is the one-sided limit. Detectable: how far past the "
             "threshold a true mean must lie to be found in 80 % of studies of this size and spread.</p>"]  # fmt: skip
    for judged in rules(verdict):
        parts.append(
            f'<h3>Rule {_text(judged["rule"])}</h3><p class="caption">{_text(banner(judged))}.</p>'
        )
        shown = " open" if judged is verdict else ""
        parts += [_hybrid(v, judged["status"], shown) for v in judged["verdicts"]]
        for key, title in LISTS:
            if judged.get(key):
                parts.append(f'<p>{title}:</p><ul class="missing">{_items(judged[key])}</ul>')
    return "".join(parts) + '<p class="source">From <code>verdict.json</code>, in words <code>verdict.txt</code></p></section>'  # fmt: skip


def _side_by_side(verdict: Mapping) -> str:
    """A row per hybrid and rule: its verdict, and the state of every clause."""
    names = list(
        dict.fromkeys(c for r in rules(verdict) for v in r["verdicts"] for c in v["clauses"])
    )
    head = "".join(
        f"<th scope='col'>{_text(name)}</th>" for name in ("hybrid", "rule", "verdict", *names)
    )
    body = "".join(
        f"<tr><td>{_text(short_name(v['hybrid']))}</td><td>{_text(r['rule'])}</td><td>{_text(v['verdict'])}</td>"
        + "".join(f"<td>{_text(v['clauses'].get(c, ''))}</td>" for c in names)
        + "</tr>"
        for i in range(len(verdict["verdicts"]))
        for r in rules(verdict)
        for v in (r["verdicts"][i],)
    )
    return f"<div class='scroll'><table class='sides'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _hybrid(v: Mapping, status: str, shown: str) -> str:
    attributed = [a["words"] for a in v["attribution"]] or ["No ablation was named: which part does the work is open."]  # fmt: skip
    reasons = f"<ul>{_items(v['reasons'])}</ul>" if v["reasons"] else ""
    title = f"{short_name(v['hybrid'])}: {v['verdict']} ({status})"
    return (
        f"<details{shown}><summary>{_text(title)}</summary>{_table(v)}{reasons}"
        f"<ul>{_items(attributed)}</ul></details>"
    )


def forests(study: StudyView, verdict: Mapping) -> list[Picture]:
    """A forest plot per rule."""
    return [forest(study, judged) for judged in rules(verdict)]


def forest(study: StudyView, verdict: Mapping) -> Picture:
    """Every tested statement's estimate and interval, as distance past its threshold."""
    records = tuple(
        {"hybrid": v["hybrid"], "clause": s["clause"], "statement": s["words"] + (f" ({s['note']})" if s["note"] else "")}
        | {name: s[name] for name in COLUMNS[3:]}
        for v in verdict["verdicts"]
        for s in v["statements"]
        if _drawn(s)
    )  # fmt: skip
    missing = tuple(
        f"{short_name(v['hybrid'])}: {s['sentence']}"
        for v in verdict["verdicts"]
        for s in v["statements"]
        if not _drawn(s)
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
            names = [wrap(short_name(h), 24) if layout.narrow else short_name(h) for h in hybrids]
            marks = [Line2D([], [], color=colours[h], marker="o", linestyle="none") for h in hybrids]  # fmt: skip
            figure.legend(marks, names, loc="outside upper left", frameon=False, ncols=1 if layout.narrow else 3)  # fmt: skip
        for axes, (unit, found) in zip(grid, rows.items(), strict=True):
            _panel(axes, found, colours, scale[unit], layout)
            note = "" if layout.narrow else f" (logarithmic beyond ±{scale[unit]:g})"
            axes.set_xlabel(f"{unit} past the threshold{note}")
        return figure

    rule = verdict["rule"]
    caption = (
        f"{banner(verdict)}. Each statement of the rule as its estimate less its "
        "threshold, with the 90 % interval over seeds: right of the line by its whole interval it holds "
        "(filled), left of it it is against the statement (cross where refuted after Holm), else open "
        "(hollow; hollow diamond: reported alone). Grey tick: the smallest true distance that so many seeds of this spread would find in 80 % of studies."
    )
    name = "verdict" if rule == 2 else f"verdict_rule_{rule}"
    return Picture(name, f"Clauses of rule {rule}", caption, COLUMNS, records, draw if records else None, missing)  # fmt: skip


def _drawn(statement: Mapping) -> bool:
    return None not in (statement["estimate"], statement["low"], statement["threshold"])


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
            marker = "X" if refuted else "D" if record["state"] == "reported" else "o"
            axes.plot(
                mean, at, marker=marker, color=hex_, markersize=6.5, zorder=4,
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
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in _cells(s)) + "</tr>" for s in v["statements"])  # fmt: skip
    heads = "".join(f"<th scope='col'>{name}</th>" for name in head)
    return f"<div class='scroll'><table class='clauses'><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"  # fmt: skip


def _cells(s: Mapping) -> list[str]:
    """The cells of one statement as HTML."""
    found, seen = [""] * 6, ""
    if s["estimate"] is not None:
        found = [_number(s["estimate"], "+.4f"), f"{_number(s['low'], '+.4f')} to {_number(s['high'], '+.4f')}", f"{s['threshold']:+g}",
                 *("" if s[p] is None else p_words(s[p]).replace("below ", "< ") for p in ("p", "sign_flip")),
                 _number(s["detectable"], ".4f")]  # fmt: skip
    elif s.get("said"):  # counts of rule 2
        seen = s["said"]
    elif s["values"]:
        seen = f"checked in every seed: {min(s['values']):.3g} to {max(s['values']):.3g}"
    else:
        seen = "not tested"
    left_out = f"left out: {'; '.join(s['problems'])}" if s["problems"] else ""
    notes = (s["note"], seen, s.get("contradiction", ""), left_out)  # rule 1 knows no contradiction
    small = "".join(f"<small>{_text(note)}</small>" for note in notes if note)
    cells = [_text(s["clause"]), f"{_text(s['words'])}{small}", _text(s["state"])]
    return cells + [_text(cell).replace("-", "−") for cell in (*found[:-1], s["n"], found[-1])]


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _items(lines) -> str:
    return "".join(f"<li>{_text(line)}</li>" for line in lines)


def _text(value: object) -> str:
    return html.escape(str(value))
