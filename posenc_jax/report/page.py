"""The one HTML page of a study or of a single run, and the figures beside it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from posenc_jax.report import contents, markup, style, summary, tables, verdict_section
from posenc_jax.report.definitions import DEFINITIONS
from posenc_jax.report.figure import Figure
from posenc_jax.report.markup import fold, items, text
from posenc_jax.report.study_view import StudyView, times
from posenc_jax.report.template import PAGE
from posenc_jax.results.files import replace_bytes
from posenc_jax.results.schema import BPB
from posenc_jax.results.study_data import RunData, StudyData

QUESTION = (
    "Can one model keep its perplexity on texts longer than its training length, as ALiBi does, "
    "and still retrieve from far back, as rotary attention does within that length?"
)
ELSEWHERE = (
    "No figure shows these arms, because every figure counts in units of one L. Their own L is "
    "the unit here: E3's targets are the last L/2 tokens of their own L, and d > L means further "
    "than they were trained. Their numbers are not to be subtracted from those of the other arms. "
    "Mean over seeds, with the smallest and the largest."
)
UNKNOWN = "not recorded"


def write_report(data: StudyData, out: Path) -> Path:
    """Writes report.html and figures/ into the folder `out` and returns the page's path.

    Raises:
      ValueError: verdict.json is no verdict; raised before anything is written.
    """
    study = StudyView(data)
    sections = contents.sections(study)
    figures = [figure for found in sections.values() for figure in found]
    files = {"numbers.csv": tables.records(study).csv(tables.FIELDS).encode()}
    if study.elsewhere:
        files["other_lengths.csv"] = tables.elsewhere_records(study).csv().encode()
    for figure in figures:
        if figure.panels:
            files[f"{figure.name}.png"] = figure.png()
            files[f"{figure.name}.csv"] = figure.csv().encode()
    page = render(study, sections)
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    ours = [f"{figure.name}.{kind}" for figure in figures for kind in ("png", "csv")]
    for name in {*ours, "other_lengths.csv"} - files.keys():
        (folder / name).unlink(missing_ok=True)  # left from an earlier report that had these rows
    for name, content in files.items():
        replace_bytes(folder / name, content)
    replace_bytes(out / "report.html", page.encode())
    return out / "report.html"


def render(study: StudyView, sections: Mapping[str, Sequence[Figure]]) -> str:
    """Returns the page as one string; all that it shows is inside it."""
    light, dark = style.css_variables()
    verdict = verdict_section.read_verdict(study.data)
    figures = [figure for found in sections.values() for figure in found]
    parts = [*_figure_parts(sections, verdict), *_table_parts(study, figures)]
    return PAGE.substitute(
        title=text(f"{study.data.name}: reading beyond the training length"),
        light_variables=light,
        dark_variables=dark,
        eyebrow=text(_eyebrow(study)),
        question=text(QUESTION),
        answer="".join(f"<li>{text(line)}</li>" for line in summary.answer(study, verdict)),
        status=_status(study, verdict),
        arms="".join(f"<li>{_arm(study, arm)}</li>" for arm in study.arms),
        pareto="".join(_figure(one) for one in figures if one.name == "pareto" and one.panels),
        overview=tables.overview(study),
        contents="".join(_link(name, title, shown) for name, title, _, shown in parts),
        sections="\n".join(
            f'<section id="{name}"><h2>{text(title)}</h2>{body}</section>'
            for name, title, body, _ in parts
        ),
    )


def _figure_parts(sections, verdict: Mapping | None) -> Iterable[tuple[str, str, str, Sequence]]:
    """Id, title, HTML and drawn figures of the sections with figures."""
    for title, found in sections.items():
        shown = [figure for figure in found if figure.panels and figure.name != "pareto"]
        body = "".join(map(_figure, shown))
        if title == "Verdict":
            body = verdict_section.section(verdict) + body
        if body:
            yield title.lower().replace(" ", "_"), title, body, shown


def _table_parts(study: StudyView, figures: Sequence[Figure]) -> Iterable[tuple]:
    """The same of the sections with tables and words."""
    if study.elsewhere:
        caption = f'<p class="caption">{text(ELSEWHERE)}</p>'
        body = caption + tables.elsewhere_section(study) + _links("other_lengths", "csv")
        yield "other_lengths", "Trained at another length", body, ()
    yield "numbers", "All numbers", tables.section(study) + _links("numbers", "csv"), ()
    lost = [f"{one.title}: {_reasons(one.missing)}" for one in figures if not one.panels]
    if lost:
        yield "not_drawn", "Not drawn", items(lost, "missing"), ()
    if study.not_measured:
        ks = ", ".join(map(times, study.multiples(BPB))) or "no length"
        note = f"{len(study.not_measured)} rows; bpb_ctx exists at {ks}"
        title = "Skipped rows, and rows without a finite number"
        yield "not_measured", "Not measured", fold(title, items(study.not_measured), note), ()
    terms = markup.terms({term: text(meaning) for term, meaning in DEFINITIONS.items()})
    yield "definitions", "Definitions", fold("Terms and measures", terms), ()
    yield "made", "How this page was made", _made(study), ()


def _link(name: str, title: str, figures: Sequence[Figure]) -> str:
    inner = "".join(_link(figure.name, figure.title, ()) for figure in figures)
    return f'<li><a href="#{name}">{text(title)}</a>{f"<ul>{inner}</ul>" if inner else ""}</li>'


def _links(name: str, *kinds: str) -> str:
    links = [f'<a href="figures/{name}.{kind}">{kind.upper()}</a>' for kind in kinds]
    return f'<p class="source">{" ".join(links)}</p>'


def _eyebrow(study: StudyView) -> str:
    corpora = sorted({str(run.info["corpus"]) for run in study.runs if "corpus" in run.info})
    arms = f"{len(study.arms)} arm{'s' if len(study.arms) > 1 else ''}"
    parts = ["posenc_jax", f"tier {', '.join(study.tiers)}", f"split {study.data.split}", arms]
    parts += [summary.seeds_words(study), f"L = {study.train_length}", *corpora]
    return " · ".join(parts)


def _status(study: StudyView, verdict: Mapping | None) -> str:
    said = "".join(f"<p>{text(line)}</p>" for line in summary.status(study, verdict))
    lists = {"Unfinished or failed": study.unfinished, "Not in these results": study.data.notes}
    return said + "".join(
        fold(title, items(found), str(len(found)), shown=len(found) <= 3)
        for title, found in lists.items()
        if found
    )


def _arm(study: StudyView, arm: str) -> str:
    schemes = {str(run.info["scheme"]) for run in study.of(arm) if "scheme" in run.info}
    return tables.dot(study, arm) + "".join(f"<code>{text(s)}</code>" for s in sorted(schemes))


def _figure(figure: Figure) -> str:
    svgs, missing = figure.svgs(), items(figure.missing, "missing") if figure.missing else ""
    if figure.key:
        svgs[0] = svgs[0].replace("<svg ", '<svg class="key" ', 1)
    if len(figure.missing) > 3:
        missing = fold("Not in this figure", missing, str(len(figure.missing)))
    axes = " · ".join(f"{a} {label}" for a, label in zip("→↑", figure.labels, strict=True) if label)
    across = (
        min(figure.across, 2 if len(figure.panels) > 1 else 1)
        if figure.across < 3
        else figure.across
    )
    return (
        f'<section id="{figure.name}"><h3>{text(figure.title)}</h3>'
        f'<p class="caption">{text(figure.caption)}</p><p class="axes">{text(axes)}</p>'
        f'<figure class="across-{across}">{"".join(svgs)}</figure>'
        f"{missing}{_links(figure.name, 'csv', 'png')}</section>"
    )


def _reasons(missing: Sequence[str]) -> str:
    """Each reason once, whatever arm and seed it is of."""
    found = list(dict.fromkeys(line.rpartition(": ")[2] for line in missing))
    return "; ".join(found[:3]) + (" …" if len(found) > 3 else "") or "nothing was measured"


def _made(study: StudyView) -> str:
    """What runs share, then every run with its command and settings, folded."""
    shared = {"page": "<code>scripts/report.py</code>, from the rows of these runs alone"}
    for name in ("hardware", "versions", "environment", "corpus", "corpus_fingerprint"):
        values = dict.fromkeys(_words(run.info.get(name, UNKNOWN)) for run in study.runs)
        shared[name.replace("_", " ")] = "<br>".join(values)
    return markup.terms(shared) + "".join(_run(study, run) for run in study.runs)


def _run(study: StudyView, run: RunData) -> str:
    info = run.info
    asked, unigram = info.get("steps"), study.unigram_of(run)
    done = info.get("steps_done", asked)  # older records have the steps asked for alone
    steps = _words(done) if done == asked else f"{_words(done)} of {_words(asked)}"
    note = (
        f"{steps} steps, {_words(info.get('tokens'))} tokens, {_words(info.get('wall_seconds'))} s"
    )
    facts = {
        name: f"<code>{text(info.get(name, UNKNOWN))}</code>" for name in ("command", "scheme")
    }
    facts |= {"folder": f"<code>{text(run.name)}</code>", "steps": steps}
    for name in ("tokens", "parameters", "wall_seconds", "tokens_per_second"):
        facts[name.replace("_", " ")] = _words(info.get(name))
    facts["unigram"] = f"{_words(unigram)} bits per byte ({text(study.data.split)})"
    config = json.dumps(run.config, indent=2, sort_keys=True) if run.config else "no config.json"
    return fold(study.label(run), f"{markup.terms(facts)}<pre>{text(config)}</pre>", note)


def _words(value: object) -> str:
    """A recorded fact as escaped text: numbers rounded, pairs of a mapping in a row."""
    if isinstance(value, Mapping):
        value = ", ".join(f"{name} {found}" for name, found in sorted(value.items())) or UNKNOWN
    if isinstance(value, int | float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return text(UNKNOWN if value is None else value)
