"""The one HTML page of a study or of a single run, and the figures beside it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from posenc_jax.report import (
    markup,
    pareto_figures,
    probe_figures,
    retrieval_figures,
    scheme_figures,
    structure_figures,
    style,
    summary,
    tables,
    text_figures,
    verdict_section,
)
from posenc_jax.report.figure import Figure
from posenc_jax.report.markup import PAGE, TEXTS, fold, items, text, text_of
from posenc_jax.report.study_view import StudyView, times
from posenc_jax.results.files import replace_bytes
from posenc_jax.results.schema import BPB
from posenc_jax.results.study_data import RunData, StudyData

UNKNOWN = "not recorded"
FACTS = ("tokens", "parameters", "wall_seconds", "tokens_per_second")
SHARED = ("hardware", "versions", "environment", "corpus", "corpus_fingerprint")


def sections(study: StudyView) -> dict[str, list[Figure]]:
    """Returns every figure by the title of its section; one without panels was not measured."""
    verdict = verdict_section.read_verdict(study.data)
    return {
        "Verdict": [verdict_section.forest(study, rule) for rule in verdict_section.rules(verdict)],
        "Trade-off": [
            pareto_figures.pareto(study),
            *pareto_figures.hypervolumes(study),
            *pareto_figures.factorial_effects(study),
        ],
        "Text": text_figures.text_figures(study),
        "Retrieval": retrieval_figures.retrieval_figures(study),
        "Structure and classification": [
            structure_figures.structure(study),
            structure_figures.classification(study),
        ],
        "Encodings": [scheme_figures.bias_maps(study), scheme_figures.rotation_rings(study)],
        "Probes": probe_figures.probe_figures(study),
        "Training": text_figures.training_figures(study),
    }


def write_report(data: StudyData, out: Path) -> Path:
    """Writes report.html and figures/ below `out`, returns the page; ValueError before writing."""
    study = StudyView(data)
    found = sections(study)
    figures = [figure for shown in found.values() for figure in shown]
    files = {"numbers.csv": tables.records(study).csv(tables.FIELDS).encode()}
    if study.elsewhere:
        files["other_lengths.csv"] = tables.elsewhere_records(study).csv().encode()
    for figure in figures:
        if figure.panels:
            files[f"{figure.name}.png"] = figure.png()
            files[f"{figure.name}.csv"] = figure.csv().encode()
    page = render(study, found)
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    ours = [f"{figure.name}.{kind}" for figure in figures for kind in ("png", "csv")]
    for name in {*ours, "other_lengths.csv"} - files.keys():
        (folder / name).unlink(missing_ok=True)  # left from an earlier report that had these rows
    for name, content in files.items():
        replace_bytes(folder / name, content)
    replace_bytes(out / "report.html", page.encode())
    return out / "report.html"


def render(study: StudyView, found: Mapping[str, Sequence[Figure]]) -> str:
    """Returns the page as one string; all that it shows is inside it."""
    verdict = verdict_section.read_verdict(study.data)
    figures = [figure for shown in found.values() for figure in shown]
    parts = [*_figure_parts(found, verdict), *_table_parts(study, figures)]
    return PAGE.substitute(
        title=text(f"{study.data.name}: reading beyond the training length"),
        light_variables=style.LIGHT_CSS,
        dark_variables=style.DARK_CSS,
        eyebrow=text(summary.scope(study)),
        question=text(text_of("page", "question")),
        answer="".join(f"<li>{text(line)}</li>" for line in summary.answer(study, verdict)),
        status=_status(study, verdict),
        arms="".join(f"<li>{_arm(study, arm)}</li>" for arm in study.arms),
        pareto="".join(_figure(one) for one in figures if one.name == "pareto" and one.panels),
        overview=tables.overview(study),
        contents="".join(_link(title, title, shown) for title, _, shown in parts),
        sections="\n".join(
            f'<section id="{_id(title)}"><h2>{text(title)}</h2>{body}</section>'
            for title, body, _ in parts
        ),
    )


def _figure_parts(found: Mapping, verdict: Mapping | None) -> Iterable[tuple[str, str, Sequence]]:
    for title, figures in found.items():
        shown = [figure for figure in figures if figure.panels and figure.name != "pareto"]
        body = verdict_section.section(verdict) if title == "Verdict" else ""
        if body or shown:
            yield title, body + "".join(map(_figure, shown)), shown


def _table_parts(study: StudyView, figures: Sequence[Figure]) -> Iterable[tuple]:
    if study.elsewhere:
        caption = f'<p class="caption">{text(text_of("page", "elsewhere"))}</p>'
        body = caption + tables.elsewhere_section(study) + _files("other_lengths", "csv")
        yield "Trained at another length", body, ()
    yield "All numbers", tables.section(study) + _files("numbers", "csv"), ()
    lost = [f"{one.title}: {_reasons(one.missing)}" for one in figures if not one.panels]
    if lost:
        yield "Not drawn", items(lost, "missing"), ()
    if study.not_measured:
        ks = ", ".join(map(times, study.multiples(BPB))) or "no length"
        note = f"{len(study.not_measured)} rows; bpb_ctx exists at {ks}"
        title = "Skipped rows, and rows without a finite number"
        yield "Not measured", fold(title, items(study.not_measured), note), ()
    terms = markup.terms({term: text(text_of("terms", term)) for term in TEXTS["terms"]})
    yield "Definitions", fold("Terms and measures", terms), ()
    yield "How this page was made", _made(study), ()


def _id(name: str) -> str:
    return name.lower().replace(" ", "_")


def _link(name: str, title: str, figures: Sequence[Figure] = ()) -> str:
    inner = "".join(_link(f"figure_{figure.name}", figure.title) for figure in figures)
    inner = f"<ul>{inner}</ul>" if inner else ""
    return f'<li><a href="#{_id(name)}">{text(title)}</a>{inner}</li>'


def _files(name: str, *kinds: str) -> str:
    links = [f'<a href="figures/{name}.{kind}">{kind.upper()}</a>' for kind in kinds]
    return f'<p class="source">{" ".join(links)}</p>'


def _status(study: StudyView, verdict: Mapping | None) -> str:
    said = "".join(f"<p>{text(line)}</p>" for line in summary.status(study, verdict))
    lists = {"Unfinished or failed": study.unfinished, "Not in these results": study.data.notes}
    return said + "".join(
        fold(title, items(found), str(len(found)), shown=len(found) <= 3)
        for title, found in lists.items()
        if found
    )


def _arm(study: StudyView, arm: str) -> str:
    schemes = {text(run.info["scheme"]) for run in study.of(arm) if "scheme" in run.info}
    return tables.dot(study, arm) + "".join(f"<code>{scheme}</code>" for scheme in sorted(schemes))


def _figure(figure: Figure) -> str:
    svgs, missing = figure.svgs(), items(figure.missing, "missing") if figure.missing else ""
    if figure.legend:
        svgs[0] = svgs[0].replace("<svg ", '<svg class="key" ', 1)
    if len(figure.missing) > 3:
        missing = fold("Not in this figure", missing, str(len(figure.missing)))
    axes = " · ".join(f"{a} {label}" for a, label in zip("→↑", figure.labels, strict=True) if label)
    columns = min(figure.columns, len(figure.panels)) if figure.columns < 3 else figure.columns
    return (
        f'<section id="figure_{figure.name}"><h3>{text(figure.title)}</h3>'
        f'<p class="caption">{text(figure.caption)}</p><p class="axes">{text(axes)}</p>'
        f'<figure class="across-{columns}">{"".join(svgs)}</figure>'
        f"{missing}{_files(figure.name, 'csv', 'png')}</section>"
    )


def _reasons(missing: Sequence[str]) -> str:
    found = list(dict.fromkeys(line.rpartition(": ")[2] for line in missing))
    return "; ".join(found[:3]) + (" …" if len(found) > 3 else "") or "nothing was measured"


def _made(study: StudyView) -> str:
    shared = {"page": "<code>scripts/report.py</code>, from the rows of these runs alone"}
    for name in SHARED:
        values = dict.fromkeys(_words(run.info.get(name)) for run in study.runs)
        shared[name.replace("_", " ")] = "<br>".join(values)
    return markup.terms(shared) + "".join(_run(study, run) for run in study.runs)


def _run(study: StudyView, run: RunData) -> str:
    known = {name: _words(run.info.get(name)) for name in ("steps", "command", "scheme", *FACTS)}
    done = _words(run.info.get("steps_done", run.info.get("steps")))  # older records: asked alone
    steps = done if done == known["steps"] else f"{done} of {known['steps']}"
    facts = {name: f"<code>{known[name]}</code>" for name in ("command", "scheme")}
    facts |= {"folder": f"<code>{text(run.name)}</code>", "steps": steps}
    facts |= {name.replace("_", " "): known[name] for name in FACTS}
    unigram = _words(study.unigram_of(run))
    facts["unigram"] = f"{unigram} bits per byte ({text(study.data.split)})"
    config = json.dumps(run.config, indent=2, sort_keys=True) if run.config else "no config.json"
    note = f"{steps} steps, {known['tokens']} tokens, {known['wall_seconds']} s"
    return fold(study.label(run), f"{markup.terms(facts)}<pre>{text(config)}</pre>", note)


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        value = ", ".join(f"{name} {found}" for name, found in sorted(value.items())) or None
    if isinstance(value, int | float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return text(UNKNOWN if value is None else value)
