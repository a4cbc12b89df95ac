"""The one HTML page of a study, and the figures beside it."""

import csv
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from posenc_jax.report import other_lengths, style, summary, tables, verdict_section
from posenc_jax.report.definitions import DEFINITIONS
from posenc_jax.report.figures import pictures
from posenc_jax.report.study_view import RunView, StudyView, times
from posenc_jax.report.template import PAGE
from posenc_jax.results.files import replace_bytes
from posenc_jax.results.schema import BPB
from posenc_jax.results.study_data import StudyData

QUESTION = (
    "Can one model keep its perplexity on texts longer than it was trained on, as ALiBi does, and "
    "still retrieve what stands far back, as rotary attention does within its training length?"
)


def write_report(data: StudyData, out: Path) -> Path:
    """Writes report.html and figures/ into the folder out and returns the page's path.

    Raises ValueError, in one line and before anything is written, if the verdict beside the study is none.
    """
    study = StudyView(data)
    drawn = pictures(study)
    files = {"numbers.csv": _csv(tables.table(study), tables.FIELDS).encode()}
    if study.elsewhere:
        elsewhere = _csv(other_lengths.records(study), other_lengths.FIELDS)
        files["other_lengths.csv"] = elsewhere.encode()
    for picture in drawn:
        if picture.draw is not None:
            files[f"{picture.name}.png"] = picture.png()
            files[f"{picture.name}.csv"] = picture.csv().encode()
    page = render(study, drawn)
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    ours = [f"{picture.name}.{kind}" for picture in drawn for kind in ("png", "csv")]
    for name in (*ours, "other_lengths.csv"):
        if name not in files:  # left from an earlier report that still had these rows
            (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        replace_bytes(folder / name, content)
    replace_bytes(out / "report.html", page.encode())
    return out / "report.html"


def render(study: StudyView, drawn: list[style.Picture]) -> str:
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
        verdict=verdict_section.section(verdict_section.read_verdict(study.data)),
        arms="".join(_arm(study, arm) for arm in study.arms),
        figures="\n".join(_figure(p) for p in drawn if p.draw is not None) + _not_drawn(drawn),
        other_lengths=other_lengths.section(study),
        numbers=tables.section(study),
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


def _eyebrow(study: StudyView) -> str:
    infos = [run.data.info for run in study.runs]
    corpora = sorted({str(info["corpus"]) for info in infos if "corpus" in info})
    low, high = study.seeds_per_arm
    seeds = f"{high} seed{'s' if high > 1 else ''}" if low == high else f"{low}–{high} seeds"
    arms = f"{len(study.arms)} arm{'s' if len(study.arms) > 1 else ''}"
    parts = [
        "posenc_jax",
        f"tier {', '.join(study.tiers)}",
        f"split {study.data.split}",
        arms,
        seeds + " per arm",
    ]
    return " · ".join([*parts, f"L = {study.train_length}", *corpora])


def _banner(study: StudyView) -> str:
    judged = verdict_section.read_verdict(study.data)
    said = summary.banner(
        study, None if judged is None else verdict_section.banner_lines(study, judged)
    )
    lines = [f"<p>{_text(line)}</p>" for line in said]
    for title, found in (
        ("Unfinished or failed", study.unfinished),
        ("Not in these results", study.data.notes),
    ):
        if found:
            items = "".join(f"<li>{_text(line)}</li>" for line in found)
            lines.append(f"<p>{title}:</p><ul>{items}</ul>")
    return "".join(lines)


def _arm(study: StudyView, arm: str) -> str:
    name, schemes = (
        study.names[arm],
        {run.data.info.get("scheme") for run in study.of(arm)} - {None},
    )
    code = "".join(f" <code>{_text(scheme)}</code>" for scheme in sorted(map(str, schemes)))
    return f"<li>{tables.dot(study, arm)}<span>{_text(name)}{code}</span></li>"


def _figure(picture: style.Picture) -> str:
    missing = "".join(f"<li>{_text(line)}</li>" for line in picture.missing)
    missing = f'<ul class="missing">{missing}</ul>' if missing else ""
    title = f'<section id="{picture.name}"><h2>{_text(picture.title)}</h2>'
    source = f"figures/{picture.name}.csv</code>, as PNG <code>figures/{picture.name}.png"
    return (
        f'{title}<p class="caption">{_text(picture.caption)}</p><figure>'
        f"{picture.svg(style.WIDE)}{picture.svg(style.NARROW)}</figure>"
        f'{missing}<p class="source">Drawn from <code>{source}</code></p></section>'
    )


def _not_drawn(drawn: list[style.Picture]) -> str:
    """One line for every figure that nothing was measured for."""
    lines = [
        f"<li>{_text(picture.title)}: {_text(_reasons(picture.missing))}</li>"
        for picture in drawn
        if picture.draw is None
    ]
    if not lines:
        return ""
    return f'<section id="not_drawn"><h2>Not drawn</h2><ul class="missing">{"".join(lines)}</ul></section>'


def _reasons(missing: Sequence[str]) -> str:
    """Each reason once, whatever arm and seed it is of."""
    found = list(dict.fromkeys(line.rpartition(": ")[2] for line in missing))
    return "; ".join(found[:3]) + (" …" if len(found) > 3 else "") or "nothing was measured"


def _definitions() -> str:
    items = "".join(f"<dt>{_text(a)}</dt><dd>{_text(b)}</dd>" for a, b in DEFINITIONS)
    return f'<dl class="definitions">{items}</dl>'


def _run(study: StudyView, run: RunView) -> str:
    info, config, unknown = run.data.info, run.data.config, "not recorded"
    versions, environment = info.get("versions", {}), info.get("environment", {})
    facts = {
        "command": f"<code>{_text(info['command'])}</code>" if "command" in info else unknown,
        "scheme": f"<code>{_text(info['scheme'])}</code>" if "scheme" in info else unknown,
        "steps": _steps(info),
        "tokens": _number(info.get("tokens")),
        "parameters": _number(info.get("parameters")),
        "wall time": _number(info.get("wall_seconds"), " s"),
        "tokens per second": _number(info.get("tokens_per_second")),
        "hardware": _text(info.get("hardware", unknown)),
        "corpus": _text(info.get("corpus", unknown)),
        "fingerprint": f"<code>{_text(info.get('corpus_fingerprint', unknown))}</code>",
        "unigram": _number(study.unigram_of(run), f" bits per byte ({study.data.split})"),
        "versions": _text(", ".join(f"{k} {v}" for k, v in sorted(versions.items())) or unknown),
        "environment": _text(
            ", ".join(f"{k}={v}" for k, v in sorted(environment.items())) or unknown
        ),
        "folder": f"<code>{_text(run.data.name)}</code>",
    }
    items = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())
    shown = json.dumps(config, indent=2, sort_keys=True) if config else "no config.json"
    short = f"{facts['steps']} steps, {facts['tokens']} tokens, {facts['wall time']}"
    return (
        f"<details><summary>{_text(study.names[run.arm])}, seed {_text(run.seed)} <span>{short}</span>"
        f"</summary><dl>{items}</dl><pre>{_text(shown)}</pre></details>"
    )


def _steps(info: Mapping) -> str:
    """Returns the steps taken, and those asked for where they are more; older records say the latter alone."""
    asked = info.get("steps")
    done = info.get("steps_done", asked)
    return _number(done) if done == asked else f"{_number(done)} of {_number(asked)}"


def _number(value: object, unit: str = "") -> str:
    if not isinstance(value, int | float):
        return "not recorded"
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}") + unit


def _not_measured(study: StudyView) -> str:
    lines = study.not_measured
    if not lines:
        return ""
    items = "".join(f"<li>{_text(line)}</li>" for line in lines)
    ks = ", ".join(times(k) for k in study.multiples(BPB))
    return (
        f"<details><summary>Not measured <span>{len(lines)} rows skipped or without a finite "
        f"number; bpb_ctx exists at {_text(ks or 'no length')}</span></summary>"
        f'<ul class="missing">{items}</ul></details>'
    )
