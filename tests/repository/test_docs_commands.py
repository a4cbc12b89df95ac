"""The commands that the documents print can be pasted, and the pages of the benches say what their JSON
says.
"""

import ast
import dataclasses
import functools
import importlib.util
import inspect
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from posenc_jax.bench import (
    attention_cost,
    decoding_cost,
    encoding_cost,
    evaluation_cost,
    loop_cost,
    rotation_cost,
    step_cost,
)

from faults import trial

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("results/**/README.md")]
SCRIPTS = [ROOT / "train.py", *sorted((ROOT / "scripts").glob("*.py"))]
SCRIPTS.remove(ROOT / "scripts" / "installed.py")  # what the others import
CONFIGS = sorted(ROOT.glob("configs/**/*.py"))
BENCHES = {
    "attention": attention_cost,
    "decoding": decoding_cost,
    "encodings": encoding_cost,
    "evaluation": evaluation_cost,
    "loop": loop_cost,
    "rotation": rotation_cost,
    "step": step_cost,
}
BENCH_PAGES = sorted((ROOT / "results" / "bench").glob("*/README.md"))
SCRIPT = re.compile(r"(?:train\.py|scripts/\w+\.(?:py|sh)|scripts/slurm/\w+\.sbatch)$")
PLACEHOLDER = re.compile(r"\.\.\.|<|\[-|=[A-Z][A-Z_]+(?=\s|$)")


def blocks(text):
    """The blocks of commands: fenced as bash, or indented by four spaces; lines joined at a backslash."""
    fenced = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"(?:(?<=\n\n)|\A)((?: {4}\S.*\n| {5,}\S.*\n)+)", rest)
    for block in (*fenced, *indented):
        lines = [line.strip() for line in re.sub(r"\\\n\s*", "", block).splitlines()]
        if any(named(line) for line in lines):
            yield [line for line in lines if line]


def named(line):
    """The words of a command from the script of this repository on; none where it calls no such script."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a quote that is not closed: prose
        return []
    return next((words[i:] for i, word in enumerate(words) if i and SCRIPT.match(word)), [])


@functools.cache
def flags(script):
    """The names that a script's --help prints; of a shell script None, as it hands its words on."""
    if script.endswith(".sbatch"):
        script = "train.py"
    if script.endswith(".sh"):
        return None
    out = subprocess.run(
        [sys.executable, script, "--help"], capture_output=True, text=True, cwd=ROOT
    )
    return re.findall(r"^ +--(?:\[no\])?(\w+):", out.stdout, re.MULTILINE)


@functools.cache
def configuration(name):
    """The configuration that --config=name is; of a fine-tuning, whose run is not here, that of any run."""
    path, _, argument = name.partition(":")
    spec = importlib.util.spec_from_file_location("config_of_a_page", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return module.get_config(*([argument] if argument else []))
    except ValueError as error:
        if "holds no run" not in str(error):
            raise
        return configuration("configs/lm.py")


def copied(page):
    """Files of the repository that a page makes by `cp`: its later commands may name them."""
    pairs = re.findall(r"^cp (\S+) (\S+)$", page, re.MULTILINE)
    return {to for source, to in pairs if (ROOT / source).is_file()}


def faults(line, made=()):
    """What keeps a line from being typed as it stands, in words; `made` are files made before it."""
    if line.startswith("."):
        return ["it begins with dots"]
    script, *words = named(line) or [None]
    if script is None:
        return []
    if PLACEHOLDER.search(" ".join(shlex.split(line, comments=True))):
        return ["it holds a placeholder"]
    return unknown(script, words, made)


def unknown(script, words, made=()):
    """What the script does not know of the words after it."""
    if not (ROOT / script).exists():
        return [f"{script} is not there"]
    if flags(script) is None:
        return []
    found = []
    taken = flags(script)
    if script == "scripts/bench.py":
        bench, words = words[0], words[1:]
        if bench not in BENCHES:
            return [f"there is no bench {bench}"]
        settings = inspect.signature(BENCHES[bench].measure).parameters["settings"].annotation
        taken = [*(field.name for field in dataclasses.fields(settings)), "out"]
    config = next((w.partition("=")[2] for w in words if w.startswith("--config=")), "")
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            found.append(f"{word!r} trails, without --")
        elif name.startswith("config.") and config:
            section, _, field = name.removeprefix("config.").partition(".")
            if field not in configuration(config).get(section, {}):
                found.append(f"{name} is no setting")
        elif not {name, name.removeprefix("no")} & {*taken, "help"}:
            found.append(f"--{name} is no flag of {script}")
        elif name in ("config", "study"):
            path = value.partition(":")[0]
            if not ((ROOT / path).is_file() or path in made):
                found.append(f"{value} is not there")
    if config and not found:
        configuration(config)
    return found


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("python scripts/evaluate.py --workdir=runs/x --suite=E,R          everything", "trails"),
        ("... --lengths=4096 --batch=2 --directions=forward", "dots"),
        (
            'python scripts/bench.py encodings "--schemes=<30 of the 32 default ones>"',
            "placeholder",
        ),
        ("python scripts/faults.py --trials=10 [--cheap=1000]", "placeholder"),
        ("python scripts/verdict.py --workdir=studies/x --hybrid=ARM --seeds=0-4", "placeholder"),
        ("python scripts/faults.py --tirals=10", "--tirals is no flag"),
        ("python scripts/bench.py rotation --batch=2", "--batch is no flag"),
        ("python scripts/bench.py rotations", "no bench"),
        ("python scripts/judge.py --workdir=studies/x", "scripts/judge.py is not there"),
        (
            "python train.py --config=configs/lm.py:rope --config.train.lenght=256",
            "lenght is no set",
        ),
        ("X=1 python train.py --config=configs/ml.py:rope --workdir=runs/x", "ml.py:rope is not"),
        ("python scripts/study.py --study=configs/studies/none.py --workdir=x", "none.py is not"),
    ],
)
def test_a_line_that_cannot_be_typed_is_seen(line, said):
    (fault,) = faults(line)
    assert said in fault


def test_a_line_that_can_be_typed_is_left_alone():
    for line in (
        "python scripts/evaluate.py --workdir=runs/x --suite=E3,R2    # some of it",
        "A=1 B=2 python scripts/bench.py attention --lengths=4096,16384 --noqk_norm --out=looks/x",
        "python train.py --config=configs/finetune.py:yarn,runs/x --config.train.steps=3 --workdir=y",
        "bash scripts/test.sh -k rope",
        'pip install -e ".[plan]"',
    ):
        assert faults(line) == []


def test_a_file_that_the_page_copies_is_there_for_its_later_commands():
    line = "python scripts/study.py --study=configs/studies/mine.py --workdir=studies/mine"
    page = "cp configs/studies/quickstart.py configs/studies/mine.py\n"
    assert faults(line) == ["configs/studies/mine.py is not there"]
    assert not faults(line, copied(page))
    assert faults(line, copied(page.replace("quickstart", "none")))


def test_indented_and_fenced_commands_are_found():
    page = (
        "text\n\n    A=1 python train.py --x \\\n        --y  # why\n\n- no\n```bash\nbash scripts/a.sh\n"
        "... --z\n```\n```python\nprint(1)\n```\n\n    f(x) = 1\n"
    )
    assert list(blocks(page)) == [
        ["bash scripts/a.sh", "... --z"],
        ["A=1 python train.py --x --y  # why"],
    ]


@pytest.mark.default_cases(12)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_can_be_typed(page):
    text = page.read_text()
    lines = [line for block in blocks(text) for line in block]
    assert not {line: said for line in lines if (said := faults(line, copied(text)))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_within_a_sentence_names_what_is_there(page):
    for span in re.findall(r"`([^`\n]*(?:train\.py|scripts/\w+\.\w+) [^`\n]*)`", page.read_text()):
        script, *words = named(span) or [None]
        if script is not None:  # dots may stand for the rest: a sentence is not pasted
            assert not unknown(script, [word for word in words if "..." not in word]), span


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_that_open_a_config_file_can_be_typed(config):
    lines = re.findall(r"^(?:Command|Plan): +(.+)$", config.read_text(), re.MULTILINE)
    assert any(named(line) for line in lines)
    assert not any(faults(line) for line in lines)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_commands_that_a_script_opens_with_can_be_typed(script):
    text = ast.get_docstring(ast.parse(script.read_text())) + "\n"
    first = re.search(r"python .*", text.partition("\n")[0])[0].removesuffix(".")
    lines = [first, *(line for block in blocks(text) for line in block)]
    assert not any(faults(line) for line in lines)


def test_every_extra_that_a_page_installs_is_one():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for page in PAGES:
        assert set(re.findall(r'-e "\.\[([\w-]+)\]"', page.read_text())) <= set(extras), page


def records(page):
    """The JSON files below a bench's page."""
    return [json.loads(path.read_text()) for path in sorted(page.parent.rglob("*.json"))]


def spreads(rows):
    """Every (lower quartile, median, upper quartile) of the rows, plain and in per cent."""
    for row in rows:
        for name in row:
            if name.endswith("_q1"):
                spread = (row[name], row[name[:-3]], row[f"{name[:-3]}_q3"])
                yield spread
                yield tuple(100 * x for x in spread)


def rounds_to(text, value):
    digits = len(text.partition(".")[2])
    return abs(float(text) - value) <= 0.5 * 10.0**-digits * (1 + 1e-9)


@pytest.mark.parametrize("page", BENCH_PAGES, ids=lambda page: page.parent.name)
def test_versions_on_a_bench_page_are_those_of_its_json(page):
    measured = set()
    for record in records(page):
        named_versions = record["versions"] | record["settings"].get("peers", {})
        measured |= {
            (name.lower(), version.split("+")[0]) for name, version in named_versions.items()
        }
    said = re.findall(r"\b(Python|jax|flax|torch|transformers) (\d+\.\d+\.\d+)", page.read_text())
    assert said
    assert {(name.lower(), version) for name, version in said} <= measured


@pytest.mark.parametrize("page", BENCH_PAGES, ids=lambda page: page.parent.name)
def test_every_median_with_its_quartiles_on_a_bench_page_is_a_row(page):
    rows = [row for record in records(page) for row in record["rows"]]
    measured = set(spreads(rows))
    assert measured
    number = r"(\d+(?:\.\d+)?)"
    for said in re.finditer(rf"{number}(?: %)? \[{number}, {number}\]", page.read_text()):
        middle, low, high = said.groups()
        assert any(
            rounds_to(low, q1) and rounds_to(middle, median) and rounds_to(high, q3)
            for q1, median, q3 in measured
        ), said.group()


@pytest.mark.parametrize("page", BENCH_PAGES, ids=lambda page: page.parent.name)
def test_every_measurement_below_a_bench_page_has_its_command_there(page):
    typed = [named(line)[1:] for block in blocks(page.read_text()) for line in block]
    for record in records(page):
        assert shlex.split(record["command"])[2:] in typed, record["command"]


@pytest.mark.parametrize("rows", ["every.jsonl.gz", "later.jsonl.gz", "waited.jsonl.gz"])
def test_a_table_of_faults_is_what_its_rows_print(rows):
    trials = trial.stored(ROOT / "results" / "faults" / rows)
    assert trial.table(trials) in (ROOT / "results" / "faults" / "README.md").read_text()
