"""The verdict on the page: status, every clause with its interval, forest plots."""

import re
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from posenc_jax.report import marks, style
from posenc_jax.report.figure import Figure, Table, panels_of
from posenc_jax.report.marks import legend, minus
from posenc_jax.report.markup import captioned, fold, items, table, text, text_of
from posenc_jax.report.study_view import StudyView, short_name
from posenc_jax.report.style import INK, MUTED, SURFACE
from posenc_jax.results.files import read_json
from posenc_jax.results.record_schema import JUDGED, STATEMENT, TEXT, VERDICT, check
from posenc_jax.results.study_data import StudyData
from posenc_jax.study.statements import p_words
from posenc_jax.study.verdict import banner, fingerprint

LISTS = {
    "deviations": "Deviations",
    "notes": "Notes",
    "why": "Not confirmed because",
    "unused": "Missing runs",
    "unplanned": "Not read",
    "gaps": "Missing outcomes",
}
HEAD = (
    "clause",
    "statement",
    "state",
    "estimate",
    "90 % interval",
    "threshold",
    "p",
    "sign flip",
    "n",
    "detectable",
)
COLUMNS = ("unit", "n", "estimate", "low", "high", "threshold", "p", "sign_flip", "detectable",
    "iqm", "ahead", "state")  # fmt: skip
UNITS = ("bits per byte", "accuracy")


def read_verdict(study: StudyData) -> dict | None:
    """Returns verdict.json beside a study's rows, or None; ValueError if it is no verdict."""
    path = Path(study.folder) / "verdict.json"
    if not path.exists():
        return None
    verdict = read_json(path)
    try:
        for judged in rules(verdict) or [verdict]:
            _check(judged, len(verdict["verdicts"]))
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path} is no verdict ({error}); write it again with scripts/verdict.py"
        ) from None
    return verdict


def _check(judged: Mapping, hybrids: int) -> None:
    """Raises ValueError unless the verdict of a rule has every field that the page shows."""
    check(judged, VERDICT, "a rule", VERDICT)
    if len(judged["verdicts"]) != hybrids:
        raise ValueError("the rules judge different hybrids")
    for v in judged["verdicts"]:
        check(v, JUDGED, "a hybrid", JUDGED)
        for one in v["attribution"]:
            check(one, {"words": TEXT}, "an attribution", ("words",))
        for statement in v["statements"]:
            check(statement, STATEMENT, "a statement", STATEMENT)


def rules(verdict: Mapping | None) -> list[Mapping]:
    """The verdict of every rule that judged, the newest first."""
    return [rule for rule in (verdict, (verdict or {}).get("rule_1")) if rule]


def status_lines(study: StudyView, verdict: Mapping) -> list[str]:
    """Returns the verdict's banner, its deviations, and the runs whose rows changed after it."""
    lines = [f"{banner(verdict)}.", *(f"Deviation: {line}." for line in verdict["deviations"])]
    now = {run.name: fingerprint(run.rows) for run in study.runs}
    stale = ", ".join(run for run, stored in verdict["runs"].items() if now.get(run) != stored)
    if stale:
        lines.append(f"The verdict is older than these rows: {stale} changed since.")
        lines.append("Run scripts/verdict.py again.")
    return lines


def section(verdict: Mapping | None) -> str:
    """Returns HTML: the rules side by side, then per rule its hybrids and remarks, folded."""
    if verdict is None:
        return '<p class="nothing">None was asked for: scripts/verdict.py writes one.</p>'
    by_hybrid = zip(*(rule["verdicts"] for rule in rules(verdict)), strict=True)
    judged = [(r["rule"], v) for of in by_hybrid for r, v in zip(rules(verdict), of, strict=True)]
    names = list(dict.fromkeys(clause for _, v in judged for clause in v["clauses"]))
    lines = [
        [text(x) for x in (short_name(v["hybrid"]), rule, v["verdict"])]
        + [text(v["clauses"].get(clause, "")) for clause in names]
        for rule, v in judged
    ]
    parts = [
        table(("hybrid", "rule", "verdict", *names), lines, "sides"),
        f'<p class="caption">{text(text_of("page", "clauses"))}</p>',
    ]
    for rule in rules(verdict):
        said = text(banner(rule))
        parts.append(f'<h3>Rule {text(rule["rule"])}</h3><p class="caption">{said}.</p>')
        parts += [_hybrid(v, rule["status"]) for v in rule["verdicts"]]
        found = {title: rule[key] for key, title in LISTS.items() if rule.get(key)}
        parts += [fold(title, items(said), str(len(said))) for title, said in found.items()]
    sources = "From <code>verdict.json</code>, in words <code>verdict.txt</code>"
    return "".join(parts) + f'<p class="source">{sources}</p>'


def _hybrid(v: Mapping, status: str) -> str:
    nothing = ["No ablation was named: which part does the work is open."]
    said = [*v["reasons"], *([a["words"] for a in v["attribution"]] or nothing)]
    title = f"{short_name(v['hybrid'])}: {v['verdict']} ({status})"
    statements = table(HEAD, [_cells(s) for s in v["statements"]], "clauses")
    return fold(title, statements + items(said), f"{len(v['statements'])} statements")


def _cells(s: Mapping) -> list[str]:
    found, seen = [""] * 6, ""
    if s["estimate"] is not None:
        forms = {"estimate": "+.4f", "low": "+.4f", "high": "+.4f", "detectable": ".4f"}
        said = {k: "–" if s[k] is None else format(s[k], form) for k, form in forms.items()}
        tests = ["" if s[p] is None else p_words(s[p]) for p in ("p", "sign_flip")]
        span, limit = f"{said['low']} to {said['high']}", f"{s['threshold']:+g}"
        found = [said["estimate"], span, limit, *tests, said["detectable"]]
    elif s.get("said"):  # counts of rule 2
        seen = s["said"]
    else:
        ends = [f"{end(s['values']):.3g}" for end in (min, max)] if s["values"] else []
        seen = f"checked in every seed: {' to '.join(ends)}" if ends else "not tested"
    left_out = f"left out: {'; '.join(s['problems'])}" if s["problems"] else ""
    notes = (s["note"], seen, s.get("contradiction", ""), left_out)  # rule 1 has no contradiction
    small = "".join(f"<small>{text(note)}</small>" for note in notes if note)
    numbers = [minus(text(cell)) for cell in (*found[:-1], s["n"], found[-1])]
    return [text(s["clause"]), f"{text(s['words'])}{small}", text(s["state"]), *numbers]


def forest(study: StudyView, verdict: Mapping) -> Figure:
    """Returns every tested statement's estimate and interval, as distance past its threshold."""
    rows, missing = Table(), []
    for v in verdict["verdicts"]:
        for s in v["statements"]:
            if None in (s["estimate"], s["low"], s["threshold"]):
                missing.append(f"{short_name(v['hybrid'])}: {s['sentence']}")
                continue
            words = s["words"] + (f" ({s['note']})" if s["note"] else "")
            named = {"hybrid": v["hybrid"], "clause": s["clause"], "statement": words}
            rows.append(named | {name: s[name] for name in COLUMNS})
    hybrids = [v["hybrid"] for v in verdict["verdicts"]]
    # A hybrid whose runs are gone has no colour on the page any more; the status names them.
    colours = {
        hybrid: style.colour(study.colours.get(hybrid, len(study.colours) + i))
        for i, hybrid in enumerate(hybrids)
    }
    margins = zip(UNITS, (verdict["margins"]["bpb"], verdict["margins"]["accuracy"]), strict=True)
    items = [(found, colours, *unit) for unit in margins if (found := rows.where(unit=unit[0]))]
    labels = max((len(set(map(_label, found))) for found, *_ in items), default=0)
    look = {"marker": "o", "linestyle": "none"}
    lines = [Line2D([], [], color=colours[h], label=short_name(h), **look) for h in hybrids]
    panels = panels_of(_panel, items, 1.0 + labels * (0.3 + 0.16 * len(hybrids)))
    words = captioned("verdict", banner=banner(verdict), rule=verdict["rule"])
    if verdict["rule"] != 2:
        words["name"] += f"_rule_{verdict['rule']}"
    return Figure(
        rows=rows, panels=panels, columns=2, legend=legend(lines), missing=missing, **words
    )


def _panel(axes: Axes, rows: Table, colours: Mapping[str, str], unit: str, margin: float) -> None:
    labels, order = list(dict.fromkeys(map(_label, rows))), list(colours)
    for row in rows:
        at = labels.index(_label(row)) + 0.28 * (order.index(row["hybrid"]) - (len(order) - 1) / 2)
        colour = colours[row["hybrid"]]
        low, mean, high = (row[name] - row["threshold"] for name in ("low", "estimate", "high"))
        axes.plot([low, high], [at, at], color=colour, linewidth=1.6, solid_capstyle="butt")
        marker = {"refuted": "X", "reported": "D"}.get(row["state"], "o")
        inside = colour if row["state"] in ("holds", "refuted") else SURFACE
        look = {"markerfacecolor": inside, "markersize": 6.5, "zorder": 4, "linestyle": "none"}
        axes.plot(mean, at, marker=marker, color=colour, **look)
        if row["detectable"]:  # none without a spread between seeds
            axes.plot(row["detectable"], at, "|", color=MUTED, markersize=8)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_xscale("symlog", linthresh=margin)
    low, high = axes.get_xlim()
    marks.symlog_axis(axes, margin, (margin, 100 * margin))
    marks.lines(axes, labels, 26)
    axes.set_xlim(min(low, -2 * margin), max(high, 2 * margin))
    axes.set_title("← against the statement   |   for it →", color=MUTED, weight="normal")
    axes.set_xlabel(f"{unit} past the threshold")
    axes.grid(False, axis="y")


def _label(row: Mapping) -> str:
    """Y_E of RoPE less Y_E of the hybrid -> Y_E, RoPE less hybrid; notes are left out."""
    words = re.sub(r" \(here .*\)$", "", row["statement"])
    match = re.fullmatch(r"(.+?) of (the )?(\w+) less .+ of (the )?(\w+)", words)
    return f"{row['clause']}  {f'{match[1]}, {match[3]} less {match[5]}' if match else words}"
