"""The one HTML page of a study, and the figures beside it."""

import csv
import html
import io
import json
import os
import pathlib

from posenc_jax.report import numbers, other_lengths, style, summary, verdict
from posenc_jax.report.definitions import DEFINITIONS
from posenc_jax.report.figures import pictures
from posenc_jax.report.reading import read_study
from posenc_jax.report.rows import Run, Study, times
from posenc_jax.report.template import PAGE

QUESTION = (
    "Can one model keep its perplexity on texts longer than it was trained on, as ALiBi does, and "
    "still retrieve what stands far back, as rotary attention does within its training length?"
)


def write_report(workdir: pathlib.Path) -> pathlib.Path:
    """Writes report.html and figures/ below workdir and returns the page's path.

    Raises ValueError, in one line and before anything is written, if no run can be read.
    """
    workdir = pathlib.Path(workdir)
    study = read_study(workdir)
    drawn = pictures(study)
    files = {"numbers.csv": _csv(numbers.table(study), numbers.FIELDS).encode()}
    if study.elsewhere:
        elsewhere = _csv(other_lengths.records(study), other_lengths.FIELDS)
        files["other_lengths.csv"] = elsewhere.encode()
    for picture in drawn:
        if picture.draw is not None:
            files[f"{picture.name}.png"] = picture.png()
            files[f"{picture.name}.csv"] = picture.csv().encode()
    page = render(study, drawn)
    folder = workdir / "figures"
    folder.mkdir(exist_ok=True)
    ours = [f"{picture.name}.{kind}" for picture in drawn for kind in ("png", "csv")]
    for name in (*ours, "other_lengths.csv"):
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
        figures="\n".join(_figure(p) for p in drawn if p.draw is not None) + _not_drawn(drawn),
        other_lengths=other_lengths.section(study),
        numbers=numbers.section(study),
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


def _arm(study: Study, arm: str) -> str:
    name, schemes = study.names[arm], {run.info.get("scheme") for run in study.of(arm)} - {None}
    code = "".join(f" <code>{_text(scheme)}</code>" for scheme in sorted(schemes))
    return f"<li>{numbers.dot(study, arm)}<span>{_text(name)}{code}</span></li>"


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
        f"<li>{_text(picture.title)}: {_text('; '.join(picture.missing[:3]) or 'nothing was measured')}"
        f"{' …' if len(picture.missing) > 3 else ''}</li>"
        for picture in drawn
        if picture.draw is None
    ]
    if not lines:
        return ""
    return f'<section id="not_drawn"><h2>Not measured</h2><ul class="missing">{"".join(lines)}</ul></section>'


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
