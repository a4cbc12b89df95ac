"""README and docs: short lines and cells, a glossary without doubles, citations that exist."""

import collections
import re
from pathlib import Path

import pytest
from test_package_layers import FILES, LAYERS, PACKAGE, imports, package_of

ROOT = Path(__file__).parents[2]
SHORT = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
PAGES = [*SHORT, *sorted(ROOT.glob("results/**/README.md"))]
FOLDERS = ("configs", "docs", "posenc_jax", "results", "scripts", "tests")
SUFFIXES = {".md", ".py", ".sh", ".sbatch", ".yaml", ".toml", ".txt"}
TERMS = """softmax state, lse, delta, early stop, bias folding, remat names, log-forget,
    cumulative log-forget, head context, token side, gather, RoPE scaling, length extension,
    scheme arrays, grammar, run record, hash chain, preemption, watchdog, validation, reading,
    arm, run, study, row, stretch, multiple"""


def citing():
    """Every text file of the repository that may cite a document."""
    files = [*ROOT.glob("*"), *(path for name in FOLDERS for path in ROOT.glob(f"{name}/**/*"))]
    for path in files:
        invents = path.name in (
            "test_docs.py",
            "test_corpora.py",
        )  # names of files that need not be
        if (
            path.is_file()
            and (path.suffix in SUFFIXES or path.name == "Dockerfile")
            and not invents
        ):
            yield path


def relative(path):
    return str(path.relative_to(ROOT))


def prose(text):
    """(Number, line) of every line outside of code, tables and pictures."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        fenced ^= line.startswith("```")
        if not fenced and not line.startswith(("|", "![", "    ", "```")):
            yield number, line


def tables(text):
    """Every row of every table, as its cells."""
    for line in text.splitlines():
        if line.startswith("|") and not set(line) <= set("|-: "):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def section(text, heading):
    """The text below one heading, up to the next of its level or above."""
    level = heading.split()[0]
    below = text.split(f"\n{heading}\n")[1]
    return re.split(rf"^#{{1,{len(level)}}} ", below, flags=re.MULTILINE)[0]


def architecture():
    return (ROOT / "docs" / "architecture.md").read_text()


def test_the_readme_has_at_most_120_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_lines_of_prose_have_at_most_100_columns(page):
    long = [number for number, line in prose(page.read_text()) if len(line) > 100]
    assert [n for n in long if "](http" not in page.read_text().splitlines()[n - 1]] == []


@pytest.mark.parametrize("page", SHORT, ids=relative)
def test_cells_of_tables_have_at_most_20_words(page):
    cells = [cell for row in tables(page.read_text()) for cell in row]
    assert [cell for cell in cells if len(cell.split()) > 20] == []


def test_every_document_that_is_cited_exists():
    names = {path.name for path in ROOT.glob("**/*.md")}
    for path in citing():
        for cited in set(re.findall(r"(?<![\w*}])[\w./-]+\.md\b", path.read_text())):
            if "/" not in cited:
                assert cited in names, f"{relative(path)} cites {cited}"
            else:
                there = (ROOT / cited).is_file() or (path.parent / cited).is_file()
                assert there, f"{relative(path)} cites {cited}"


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_program_that_a_page_names_is_there(page):
    own = {"posenc_jax/encodings/gauss.py", "configs/studies/mine.py"}  # the reader writes these
    named = re.findall(
        r"\b(?:posenc_jax|configs|scripts|tests)/[\w/]+\.(?:py|sh)\b", page.read_text()
    )
    assert [path for path in named if path not in own and not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_link_of_a_page_leads_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
        if "://" in target:
            continue
        path = page.parent / target if target else page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, f"{target}#{anchor}"


def test_every_term_stands_once_in_the_glossary():
    terms = [row[0] for row in tables(section(architecture(), "## Glossary")) if row[0] != "term"]
    assert [term for term, count in collections.Counter(terms).items() if count > 1] == []
    assert {term.strip() for term in TERMS.split(",")} <= set(terms)


def test_every_module_stands_once_in_the_list_of_files():
    files = section(architecture(), "## Files")
    for name in LAYERS:
        if (PACKAGE / name).is_dir():
            listed = [row[0].strip("`") for row in tables(section(files, f"### {name}"))][1:]
            there = (p.relative_to(PACKAGE / name) for p in FILES if package_of(p) == name)
            assert sorted(listed) == sorted(str(p) for p in there if p.stem != "__init__"), name


def test_the_package_layers_are_drawn_as_they_are_built():
    layers = re.findall(
        r"^ +(\d+) +(\w+(?: +\w+(?!/))*)", section(architecture(), "## Package layers"), re.M
    )
    drawn = {
        name: int(layer) for layer, names in layers for name in names.split() if name in LAYERS
    }
    assert drawn == LAYERS
    said = {
        row[0].strip("`"): row[1] for row in tables(section(architecture(), "## Package layers"))
    }
    for name in LAYERS:
        modules = {m for path in FILES if package_of(path) == name for m in imports(path)}
        packages = {m.split(".")[1] for m in modules if m.startswith("posenc_jax.")} - {name}
        assert {part.strip() for part in said[name].split(",") if part.strip()} == packages, name


def test_the_readme_names_every_package():
    below = section((ROOT / "README.md").read_text(), "## Package layers")
    packages = re.findall(r"^    (\w+)/", below, re.MULTILINE)
    assert sorted(packages) == sorted(name for name in LAYERS if (PACKAGE / name).is_dir())


def test_the_checks_see_what_is_wrong():
    assert list(prose("a\n```\nb\n```\n| c |\n    d\n")) == [(1, "a")]
    assert list(tables("| a | b \\| c |\n|---|---|\n")) == [["a", "b \\| c"]]
    assert section("# x\n## A\none\n### B\ntwo\n## C\n", "## A") == "one\n### B\ntwo\n"
