"""The page of a published study: its order, what is folded, its texts, and the ids of its parts.

Thorough: a whole study is published and drawn; test_page.py draws a page by default.
"""

import dataclasses
import pathlib
import re

import pytest
from posenc_jax.report import StudyView
from posenc_jax.report.figure import FigurePanel
from posenc_jax.report.markup import TEXTS, captioned, text_of
from posenc_jax.report.page import render, sections
from posenc_jax.results.load import load
from posenc_jax.results.schema import OTHER_PLACE

pytestmark = pytest.mark.thorough

ROOT = pathlib.Path(__file__).parents[2]
SOURCE = "".join(path.read_text() for path in (ROOT / "posenc_jax/report").glob("*.py"))


@pytest.fixture(scope="module")
def published():
    """The figures of a published study that has a verdict, each with one empty panel, and its page."""
    study = StudyView(load(ROOT / "results/cpu"))
    empty = [FigurePanel(lambda axes: None, 1.0)]
    found = {
        title: [
            dataclasses.replace(figure, panels=empty, legend=None) if figure.panels else figure
            for figure in figures
        ]
        for title, figures in sections(study).items()
    }
    return [figure for figures in found.values() for figure in figures], render(study, found)


def test_the_answer_comes_first_and_what_made_the_page_last(published):
    _, page = published
    order = (
        "<h1>",
        '<ul class="answer">',
        '<div class="status">',
        'id="figure_pareto"',
        'id="overview"',
        "<nav",
        'id="verdict"',
        'id="text"',
        'id="all_numbers"',
        'id="definitions"',
        'id="how_this_page_was_made"',
    )
    places = [page.index(part) for part in order]
    assert places == sorted(places)
    assert "<section" not in page[places[-1] + 1 :].partition("<h2>")[2]
    assert page[: page.index("<nav")].count("<table") == 1


def test_the_answer_is_three_sentences_with_seeds_and_status(published):
    _, page = published
    answer = re.search(r'<ul class="answer">(.*?)</ul>', page, re.DOTALL)[1]
    said = re.findall("<li>(.*?)</li>", answer)
    assert len(said) == 3
    assert re.search(r"rule 2 \(.*\d+ seeds?\) finds", said[0], re.IGNORECASE)


def test_clauses_and_long_tables_are_folded(published):
    _, page = published
    below = page[page.index("<nav") :]
    open_tables = re.sub(r"<details>.*?</details>", "", below, flags=re.DOTALL).count("<table")
    assert below.count("<table") > 6
    assert open_tables == 1  # the rules side by side
    assert "<details open" not in below


def test_every_drawn_figure_has_its_title_its_caption_and_both_files(published):
    figures, page = published
    for figure in figures:
        if figure.panels:
            part = page[page.index(f'<section id="figure_{figure.name}">') :]
            part = part.partition("</section>")[0]
            assert f"<h3>{figure.title}</h3>" in part
            for kind in ("csv", "png"):
                assert f'href="figures/{figure.name}.{kind}"' in part
            assert figure.caption


def test_no_two_parts_of_the_page_share_an_id(published):
    ids = re.findall(r'\bid="([^"]+)"', published[1])
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', published[1])) <= set(ids)


def test_every_text_is_used_and_every_figure_has_its_own():
    free = {"seeds", "page", "answer", "tier", "split", "terms"}
    for section, texts in TEXTS.items():
        if section not in ("tier", "split", "terms"):
            assert section in {*free, OTHER_PLACE} or f'"{section}"' in SOURCE, section
            asked = set(texts) - {"title", "x", "y", "caption"}
            assert [key for key in asked if f'"{key}"' not in SOURCE] == [], section
        if section not in free:
            assert {"title", "caption"} <= set(texts), section
    names = set(re.findall(r'captioned\(\s*"(\w+)"', SOURCE))
    assert names <= set(TEXTS)
    assert len(names) > 15


def test_a_caption_is_one_line_of_its_sentences_with_its_values():
    made = captioned("pareto", "one_seed", None, text="4L", retrieval="8L", tasks="passkey")
    assert made["title"] == "Extrapolation against retrieval"
    assert made["labels"][0].startswith("bits per byte with 4L of context")
    assert made["caption"].endswith(TEXTS["pareto"]["one_seed"])
    assert "contexts of 8L (passkey)" in made["caption"]
    assert "\n" not in made["caption"]
    assert text_of("terms", "E7").startswith("context_gain: bpb_ctx at L/2 less that at 4L.")
    with pytest.raises(KeyError):
        captioned("pareto")  # a value is missing
