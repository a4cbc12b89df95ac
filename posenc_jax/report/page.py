"""The one HTML page of a study, and the figures beside it."""

import csv
import html
import io
import json
import os
import pathlib

from posenc_jax.report import style, summary, verdict
from posenc_jax.report.figures import pictures
from posenc_jax.report.reading import read_study
from posenc_jax.report.rows import Run, Study, times
from posenc_jax.report.template import PAGE

QUESTION = (
    "Can one model keep its perplexity on texts longer than it was trained on, as ALiBi does, and "
    "still retrieve what stands far back, as rotary attention does within its training length?"
)
DEFINITIONS = (
    ("L, k, d", "Training length, evaluation length as a multiple of it, and distance in tokens "
                "from the question back to the needle; far means d > L."),
    ("bpb", "Bits per byte: summed negative log-likelihood in bits over the bytes that the scored "
            "tokens stand for."),
    ("E1", "bpb_nonoverlap(k): held-out text cut into disjoint segments of kL tokens, every token "
           "scored; comparable with the ALiBi paper's tables, early tokens have little context."),
    ("E3", "bpb_ctx(c), the primary one: the same targets (the last L/2 tokens of each held-out "
           "document of at least 8L), scored with c tokens of context right before them."),
    ("E4", "nll_pos(i): negative log-likelihood in nats by position in a window of 8L."),
    ("R1", "Passkey: five digits hidden in filler and asked for at the end; right if all five "
           "digits are the most likely ones under teacher forcing; chance 1 in 100,000."),
    ("R3", "MQAR: key-value pairs spread over filler, then each key asked once; right if the value "
           "is the most likely token; chance 1 in 64."),
    ("above chance", "(accuracy - chance) / (1 - chance): guessing is 0 %, perfect is 100 %."),
)  # fmt: skip


def write_report(workdir: pathlib.Path) -> pathlib.Path:
    """Writes report.html and figures/ below workdir and returns the page's path.

    Raises ValueError, in one line and before anything is written, if no run can be read.
    """
    workdir = pathlib.Path(workdir)
    study = read_study(workdir)
    drawn = pictures(study)
    records, names = summary.table(study)
    files = {"numbers.csv": _csv(records, names).encode()}
    for picture in drawn:
        if picture.draw is not None:
            files[f"{picture.name}.png"] = picture.png()
            files[f"{picture.name}.csv"] = picture.csv().encode()
    page = render(study, drawn)
    folder = workdir / "figures"
    folder.mkdir(exist_ok=True)
    for picture in drawn:
        for name in (f"{picture.name}.png", f"{picture.name}.csv"):
            if name not in files:  # left from an earlier report that still had these rows
                (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        _replace(folder / name, content)
    _replace(workdir / "report.html", page.encode())
    return workdir / "report.html"


def render(study: Study, drawn: list[style.Picture]) -> str:
    """The page as one string that refers to nothing outside itself."""
    light, dark = style.css_variables()
    return PAGE.substitute(
        title=_text(f"{study.name}: reading beyond the training length"),
        light_variables=light,
        dark_variables=dark,
        eyebrow=_text(_eyebrow(study)),
        question=_text(QUESTION),
        banner=_banner(study),
        reading="".join(f"<p>{_text(s)}</p>" for s in summary.headline(study)),
        verdict=verdict.section(verdict.read_verdict(study.workdir)),
        arms="".join(_arm(study, arm) for arm in study.arms),
        figures="\n".join(_figure(picture) for picture in drawn),
        numbers=_numbers(study),
        definitions=_definitions(),
        runs="\n".join(_run(study, run) for run in study.runs),
        not_measured=_not_measured(study),
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _csv(records: list[dict], names: tuple[str, ...]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def _replace(path: pathlib.Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _eyebrow(study: Study) -> str:
    corpora = sorted({run.info["corpus"] for run in study.runs if "corpus" in run.info})
    low, high = study.seeds_per_arm
    seeds = f"{high} seed{'s' if high > 1 else ''}" if low == high else f"{low}–{high} seeds"
    arms = f"{len(study.arms)} arm{'s' if len(study.arms) > 1 else ''}"
    parts = ["posenc_jax", f"tier {', '.join(study.tiers)}", arms, seeds + " per arm"]
    return " · ".join([*parts, f"L = {study.train_length}", *corpora])


def _banner(study: Study) -> str:
    judged = verdict.read_verdict(study.workdir)
    said = summary.banner(study, None if judged is None else verdict.banner_lines(study, judged))
    lines = [f"<p>{_text(line)}</p>" for line in said]
    if study.unfinished:
        items = "".join(f"<li>{_text(line)}</li>" for line in study.unfinished)
        lines.append(f"<p>Unfinished or failed:</p><ul>{items}</ul>")
    return "".join(lines)


def _dot(study: Study, arm: str) -> str:
    cycle, index = divmod(study.colours[arm], len(style.ARM_COLOURS))
    kind = "dot hollow" if cycle else "dot"
    return f'<span class="{kind}" style="--dot: var(--arm-{index})"></span>'


def _arm(study: Study, arm: str) -> str:
    name, schemes = study.names[arm], {run.info.get("scheme") for run in study.of(arm)} - {None}
    code = "".join(f" <code>{_text(scheme)}</code>" for scheme in sorted(schemes))
    return f"<li>{_dot(study, arm)}<span>{_text(name)}{code}</span></li>"


def _figure(picture: style.Picture) -> str:
    missing = "".join(f"<li>{_text(line)}</li>" for line in picture.missing)
    missing = f'<ul class="missing">{missing}</ul>' if missing else ""
    title = f'<section id="{picture.name}"><h2>{_text(picture.title)}</h2>'
    if picture.draw is None:
        return f'{title}<p class="nothing">Nothing was measured for this figure.</p>{missing}</section>'
    source = f"figures/{picture.name}.csv</code>, as PNG <code>figures/{picture.name}.png"
    return (
        f'{title}<p class="caption">{_text(picture.caption)}</p><figure>'
        f"{picture.svg(style.WIDE)}{picture.svg(style.NARROW)}</figure>"
        f'{missing}<p class="source">Drawn from <code>{source}</code></p></section>'
    )


def _numbers(study: Study) -> str:
    columns = summary.columns(study)
    records, _ = summary.table(study)
    cells = {(r["arm"], r["metric"]): r for r in records}
    head = "".join(f"<th scope='col'>{_text(column.title)}</th>" for column in columns)
    body = []
    for arm in study.arms:
        row = [f"<th scope='row'>{_dot(study, arm)} {_text(study.names[arm])}</th>"]
        for column in columns:
            row.append(_cell(cells[arm, column.title], column))
        seeds = ", ".join(str(run.seed) for run in study.of(arm))
        body.append(f"<tr>{''.join(row)}<td>{_text(seeds)}</td>{_cost(study, arm)}</tr>")
    return (
        "<p class='caption'>Mean over seeds; below it the smallest and largest seed where there "
        "is more than one, and n, the number of scored tokens or answers per seed. d > L: only "
        "needles further back than L, above chance. A dash: not measured. Scrolls sideways. <code>figures/numbers.csv</code></p>"
        f"<div class='scroll'><table><thead><tr><th scope='col'>arm</th>{head}"
        "<th scope='col'>seeds</th><th scope='col'>parameters</th><th scope='col'>minutes</th>"
        f"</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(record: dict, column: summary.Column) -> str:
    if record["mean"] is None:
        return "<td>–</td>"
    notes = []
    if record["seeds"] > 1:
        low = column.show(record["min"]).rstrip("\u00a0%×")
        notes.append(f"{low}–{column.show(record['max'])}")
    if record["n_per_seed"]:
        notes.append(f"n {record['n_per_seed']}")
    small = "".join(f"<small>{_text(note)}</small>" for note in notes)
    return f"<td>{_text(column.show(record['mean']))}{small}</td>"


def _cost(study: Study, arm: str) -> str:
    cells = []
    for field, show in (
        ("parameters", lambda x: f"{x:,.0f}"),
        ("wall_seconds", lambda x: f"{x / 60:.1f}"),
    ):
        values = [run.info[field] for run in study.of(arm) if field in run.info]
        cells.append(f"<td>{show(sum(values) / len(values)) if values else '–'}</td>")
    return "".join(cells)


def _definitions() -> str:
    items = "".join(f"<dt>{_text(a)}</dt><dd>{_text(b)}</dd>" for a, b in DEFINITIONS)
    return f'<dl class="definitions">{items}</dl>'


def _run(study: Study, run: Run) -> str:
    info, unknown = run.info, "not recorded"
    versions = info.get("versions", {})
    facts = {
        "command": f"<code>{_text(info['command'])}</code>" if "command" in info else unknown,
        "scheme": f"<code>{_text(info['scheme'])}</code>" if "scheme" in info else unknown,
        "steps": _number(run.config.get("train", {}).get("steps")),
        "tokens": _number(info.get("tokens")),
        "parameters": _number(info.get("parameters")),
        "wall time": _number(info.get("wall_seconds"), " s"),
        "tokens per second": _number(info.get("tokens_per_second")),
        "hardware": _text(info.get("hardware", unknown)),
        "corpus": _text(info.get("corpus", unknown)),
        "fingerprint": f"<code>{_text(info.get('corpus_fingerprint', unknown))}</code>",
        "unigram": _number(info.get("unigram_bpb"), " bits per byte"),
        "versions": _text(", ".join(f"{k} {v}" for k, v in sorted(versions.items())) or unknown),
        "folder": f"<code>{_text(_folder(study, run))}</code>",
    }
    items = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())
    config = json.dumps(run.config, indent=2, sort_keys=True) if run.config else "no config.json"
    short = f"{facts['steps']} steps, {facts['tokens']} tokens, {facts['wall time']}"
    return (
        f"<details><summary>{_text(study.names[run.arm])}, seed {run.seed} <span>{short}</span>"
        f"</summary><dl>{items}</dl><pre>{_text(config)}</pre></details>"
    )


def _number(value: object, unit: str = "") -> str:
    if not isinstance(value, int | float):
        return "not recorded"
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}") + unit


def _folder(study: Study, run: Run) -> str:
    return str(run.folder.relative_to(study.workdir)) if run.folder != study.workdir else "."


def _not_measured(study: Study) -> str:
    lines = study.not_measured
    if not lines:
        return ""
    items = "".join(f"<li>{_text(line)}</li>" for line in lines)
    ks = ", ".join(times(k) for k in study.multiples("bpb_ctx"))
    return (
        f"<details><summary>Not measured <span>{len(lines)} rows skipped or without a finite "
        f"number; bpb_ctx exists at {_text(ks or 'no length')}</span></summary>"
        f'<ul class="missing">{items}</ul></details>'
    )
