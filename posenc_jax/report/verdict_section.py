"""The verdict on the page: status, every clause with its interval, forest plots."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from posenc_jax.report import style
from posenc_jax.report.figure import Figure, Table, panels_of
from posenc_jax.report.marks import legend, minus, wrap
from posenc_jax.report.markup import fold, items, table, text
from posenc_jax.report.study_view import StudyView, short_name
from posenc_jax.report.style import INK, MUTED, SURFACE
from posenc_jax.results.study_data import StudyData
from posenc_jax.study.statements import p_words
from posenc_jax.study.verdict import banner, fingerprint

LISTS = {
    "deviations": "Deviations", "notes": "Notes", "why": "Not confirmed because",
    "unused": "Missing runs", "unplanned": "Not read", "gaps": "Missing outcomes",
}  # fmt: skip
HEAD = (
    "clause", "statement", "state", "estimate", "90 % interval", "threshold", "p", "sign flip", "n",
    "detectable",
)  # fmt: skip
COLUMNS = (
    "unit", "n", "estimate", "low", "high", "threshold", "p", "sign_flip", "detectable", "iqm",
    "ahead", "state",
)  # fmt: skip
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
    both = [
        [(r["rule"], v) for r in rules(verdict) for v in (r["verdicts"][i],)]
        for i in range(len(verdict["verdicts"]))
    ]
    names = list(dict.fromkeys(c for pair in both for _, v in pair for c in v["clauses"]))
    side_by_side = [
        [short_name(v["hybrid"]), rule, v["verdict"], *(v["clauses"].get(c, "") for c in names)]
        for pair in both
        for rule, v in pair
    ]
    lines = [list(map(text, line)) for line in side_by_side]
    parts = [
        table(("hybrid", "rule", "verdict", *names), lines, "sides"),
        '<p class="caption">A clause holds when each of its statements holds, by a one-sided test '
        "over seeds. The interval is 90 %, so one of its ends is the one-sided limit. Detectable: "
        "the smallest true distance past the threshold that 80 % of studies of this size and "
        "spread would find.</p>",
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
    """The cells of one statement as HTML."""
    found, seen = [""] * 6, ""
    if s["estimate"] is not None:
        mean, low, high = (
            "–" if s[k] is None else f"{s[k]:+.4f}" for k in ("estimate", "low", "high")
        )
        tests = ["" if s[p] is None else p_words(s[p]) for p in ("p", "sign_flip")]
        least = "–" if s["detectable"] is None else f"{s['detectable']:.4f}"
        found = [mean, f"{low} to {high}", f"{s['threshold']:+g}", *tests, least]
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


def forests(study: StudyView, verdict: Mapping) -> list[Figure]:
    """Returns a forest plot per rule."""
    return [forest(study, rule) for rule in rules(verdict)]


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
    caption = (
        f"{banner(verdict)}. Each statement of the rule as its estimate less its threshold, with "
        "the 90 % interval over seeds. Filled: the whole interval lies right of the line and the "
        "statement holds. Cross: refuted after Holm. Hollow: open. Hollow diamond: reported "
        "alone. Grey tick: the smallest true distance that 80 % of studies with these seeds and "
        "this spread would find. Scales are logarithmic beyond one margin."
    )
    look = {"marker": "o", "linestyle": "none"}
    key = legend([Line2D([], [], color=colours[h], label=short_name(h), **look) for h in hybrids])
    panels = panels_of(_panel, items, 1.0 + labels * (0.3 + 0.16 * len(hybrids)))
    name = "verdict" if verdict["rule"] == 2 else f"verdict_rule_{verdict['rule']}"
    title = f"Clauses of rule {verdict['rule']}"
    return Figure(name, title, caption, rows, panels, 2, key, missing=missing)


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
            axes.plot(
                row["detectable"], at, marker="|", color=MUTED, markersize=8, linestyle="none"
            )
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_xscale("symlog", linthresh=margin)
    ticks = [sign * margin * 10**power for power in (0, 2) for sign in (-1, 1)]
    low, high = axes.get_xlim()
    axes.set_xticks([0, *ticks], ["0", *(minus(f"{tick:g}") for tick in ticks)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(labels)), [wrap(label, 26) for label in labels])
    axes.set(xlim=(min(low, -2 * margin), max(high, 2 * margin)), ylim=(len(labels) - 0.4, -0.6))
    axes.set_title("← against the statement   |   for it →", color=MUTED, weight="normal")
    axes.set_xlabel(f"{unit} past the threshold")
    axes.grid(False, axis="y")


def _label(row: Mapping) -> str:
    """Y_E of RoPE less Y_E of the hybrid -> Y_E, RoPE less hybrid; notes are left out."""
    words = re.sub(r" \(here .*\)$", "", row["statement"])
    match = re.fullmatch(r"(.+?) of (the )?(\w+) less .+ of (the )?(\w+)", words)
    return f"{row['clause']}  {f'{match[1]}, {match[3]} less {match[5]}' if match else words}"
