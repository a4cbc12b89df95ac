"""The one reader of results: what counts, what lies apart, and damaged files repaired or refused in one
line.
"""

import gzip
import json
import re

import pytest
from posenc_jax.results.load import chosen_folder, load

from support.result_folders import L, record, row, write_run

ROWS = (row("bpb_ctx", L // 2, 2.0), row("bpb_ctx", L, 2.5), row("bpb_ctx", 4 * L, 3.0))


def values(study):
    return {
        (r.info["arm"], r.info["seed"], m.metric, m.length): m.value
        for r in study.runs
        for m in r.rows
    }


def study(folder, split="dev", record_of=()):
    for seed in (0, 1):
        write_run(folder / f"runs/rope-s{seed}", ROWS, seed=seed, split=split)
    (folder / "study.json").write_text(
        json.dumps({"name": "x", "arms": ["rope"], "seeds": [0, 1]} | dict(record_of))
    )
    return folder


def test_a_run_and_a_study_are_read_alike(tmp_path):
    both = load(study(tmp_path), "dev")
    alone = load(tmp_path / "runs/rope-s1", "dev")
    assert [r.name for r in both.runs] == ["runs/rope-s0", "runs/rope-s1"]
    assert {k: v for k, v in values(both).items() if k[1] == 1} == values(alone)
    assert alone.runs[0].name == "rope-s1"
    assert {r.run for r in alone.runs[0].rows} == {"rope-s1"}
    assert [r.why for r in both.runs] == ["", ""]
    assert both.runs[0].settings == "same"


@pytest.mark.parametrize(
    ("record_of", "asked", "found"),
    [({}, None, "test"), ({"split": "dev"}, None, "dev"), ({"split": "test"}, "dev", "dev")],
)
def test_the_split_is_that_of_the_study_unless_one_is_asked_for(tmp_path, record_of, asked, found):
    study(tmp_path, "dev", record_of)
    for path in list(tmp_path.glob("runs/*/evaluation_dev")):
        rows = (path / "rows.jsonl").read_text().replace('"dev"', '"test"').replace("2.0", "9.0")
        (path.parent / "evaluation").mkdir()
        (path.parent / "evaluation" / "rows.jsonl").write_text(rows)
        (path.parent / "evaluation" / "evaluation.json").write_text(
            (path / "evaluation.json").read_text()
        )
    read = load(tmp_path, asked)
    assert read.split == found
    assert values(read)["rope", 0, "bpb_ctx", L // 2] == {"dev": 2.0, "test": 9.0}[found]


def test_the_learning_rate_search_is_not_read_and_another_length_lies_apart(tmp_path):
    study(tmp_path, split="dev")
    write_run(tmp_path / "tuning/rope-s9-lr0.01", ROWS, seed=9)
    far = [one | {"train_length": 4 * L} for one in ROWS]
    write_run(tmp_path / "other_lengths/oracle-s0", far, arm="oracle", train_length=4 * L)
    read = load(tmp_path, "dev")
    assert {r.info["seed"] for r in read.runs} == {0, 1}
    assert [r.info["arm"] for r in read.elsewhere] == ["oracle"]


def test_a_reading_under_a_stretch_is_an_arm_of_its_own(tmp_path):
    run = write_run(tmp_path / "rope-s0", ROWS)
    write_run(run / "stretched/yarn_4", ROWS, arm="rope yarn:4")
    assert [r.info["arm"] for r in load(tmp_path, "dev").runs] == ["rope", "rope yarn:4"]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (
            lambda run: edit(run / "run.json", finished=False),
            "training has not finished: step 40 of 40",
        ),
        (
            lambda run: (run / "evaluation_dev/evaluation.json").unlink(),
            "not evaluated to the end on dev",
        ),
        (
            lambda run: (run / "evaluation_dev/rows.jsonl").unlink(),
            "not evaluated to the end on dev",
        ),
        (
            lambda run: edit(run / "evaluation_dev/evaluation.json", step=20),
            "scored at step 20 of 40",
        ),
        (lambda run: append(run, '{"run": "ro'), "rows.jsonl, line 4 is cut off"),
        (lambda run: append(run, "\0\0\0"), "rows.jsonl, line 4 is cut off"),
    ],
)
def test_rows_that_may_not_count_say_why(tmp_path, damage, why):
    study(tmp_path)
    damage(tmp_path / "runs/rope-s0")
    found = load(tmp_path, "dev").runs
    assert why in found[0].why
    assert found[1].why == ""


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def append(run, text):
    path = run / "evaluation_dev/rows.jsonl"
    path.write_text(path.read_text() + text)


def corrupted(change):
    """Applies a change to the lines of rows.jsonl."""

    def damage(run):
        path = run / "evaluation_dev/rows.jsonl"
        path.write_bytes(change(path.read_bytes().splitlines(keepends=True)))

    return damage


REPAIRED = {
    "blank lines": lambda lines: b"\n" + lines[0] + b"  \n" + lines[1] + lines[2] + b"\n\n",
    "byte order mark": lambda lines: b"\xef\xbb\xbf" + b"".join(lines),
    "windows line ends": lambda lines: b"".join(line.replace(b"\n", b"\r\n") for line in lines),
    "no newline at the end": lambda lines: b"".join(lines)[:-1],
    "a row twice": lambda lines: b"".join(lines) + lines[1],
    "a row twice, measured by another item": lambda lines: (
        b"".join(lines) + lines[1].replace(b'"x"', b'"y"')
    ),
    "line separator of Unicode": lambda lines: b"".join(lines).replace(
        b'"item": "bpb_ctx"', '"item": "\u2028"'.encode()
    ),
}


@pytest.mark.parametrize("name", REPAIRED)
def test_damage_that_leaves_every_row_readable_changes_nothing(tmp_path, name):
    clean = write_run(tmp_path / "clean", ROWS)
    hurt = write_run(tmp_path / "hurt", ROWS)
    before = (hurt / "evaluation_dev/rows.jsonl").read_bytes()
    corrupted(REPAIRED[name])(hurt)
    assert (hurt / "evaluation_dev/rows.jsonl").read_bytes() != before
    assert values(load(hurt, "dev")) == values(load(clean, "dev"))
    assert load(hurt, "dev").runs[0].why == ""


def changed(number, **changes):
    def change(lines):
        lines[number] = json.dumps(json.loads(lines[number]) | changes).encode() + b"\n"
        return b"".join(lines)

    return change


REFUSED = {
    "cut in the middle": (lambda lines: lines[0][:30] + b"\n" + lines[1] + lines[2], "line 1"),
    "two rows in one line": (lambda lines: lines[0][:-1] + b"".join(lines[1:]), "line 1"),
    "a list": (lambda lines: lines[0] + b"[" + lines[1][:-1] + b"]\n" + lines[2], "line 2"),
    "a number": (lambda lines: lines[0] + b"7\n" + lines[2], "line 2"),
    "nested deeply": (lambda lines: lines[0] + b"[" * 100_000 + b"\n", "line 2"),
    "nested row": (changed(1, value={"mean": 2.0}), "line 2"),
    "not UTF-8": (
        lambda lines: lines[0] + lines[1].replace(b"rope", b"rop\xe9") + lines[2],
        "line 2",
    ),
    "another value": (
        lambda lines: b"".join(lines) + lines[1].replace(b"2.5", b"2.6"),
        "line 4 and line 2",
    ),
    "another arm": (changed(2, arm="alibi"), "line 3 is of arm 'alibi'"),
    "another seed": (changed(2, seed=7), "line 3 is of seed 7"),
    "another length": (changed(0, train_length=128), "line 1 is of train_length 128"),
    "another split": (changed(1, split="test"), "line 2 is of split test"),
    "another checkpoint": (
        changed(1, checkpoint="best"),
        "line 2 is of split dev, checkpoint best",
    ),
    "text for a number": (changed(1, value="2.5"), "line 2"),
    "truth for a number": (changed(1, seed=True), "line 2"),
    "a fraction of an answer": (changed(1, n=2.5), "line 2"),
    "an unknown field": (changed(1, chnce=0.5), "line 2: row has unknown field 'chnce'"),
    "infinite chance": (
        lambda lines: lines[0] + lines[1].replace(b'"n"', b'"chance": Infinity, "n"') + lines[2],
        "line 2",
    ),
    "nothing at all": (lambda lines: b"", "no evaluated run below"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_damage_is_refused_in_one_line_that_names_file_and_line(tmp_path, name):
    change, words = REFUSED[name]
    run = write_run(tmp_path / "rope-s0", ROWS)
    corrupted(change)(run)
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        load(run, "dev")
    said = str(refused.value)
    assert "\n" not in said
    assert name == "nothing at all" or "evaluation_dev/rows.jsonl" in said


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_value_that_is_not_finite_is_none_and_says_so(tmp_path, value):
    run = write_run(tmp_path / "rope-s0", ROWS)
    corrupted(lambda lines: b"".join(lines).replace(b"2.5", value.encode()))(run)
    found = {r.length: r for r in load(run, "dev").runs[0].rows}[L]
    assert found.value is None
    assert found.skipped.startswith("not finite")
    assert not found.measured


@pytest.mark.parametrize("name", ["run.json", "config.json", "evaluation_dev/evaluation.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff\xfe"])
def test_a_damaged_record_is_refused_by_name(tmp_path, name, text):
    run = write_run(tmp_path / "rope-s0", ROWS)
    (run / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=re.escape(name)):
        load(run, "dev")


def test_a_record_that_lacks_what_decides_is_refused(tmp_path):
    run = write_run(tmp_path / "rope-s0", ROWS)
    info = record()
    del info["finished"]
    (run / "run.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"run\.json does not say 'finished'"):
        load(run, "dev")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("run.json", {"finished": "false"}),
        ("run.json", {"steps": "400"}),
        ("run.json", {"tokens": None}),
        ("run.json", {"corpus_fingerprint": []}),
        ("run.json", {"began": "2026-01-01T00:00:00"}),  # no time zone
        ("evaluation_dev/evaluation.json", {"step": None}),
        ("study.json", {"seeds": [None]}),
        ("study.json", {"seeds": [True]}),
        ("study.json", {"roles": {"rope": []}}),
        ("study.json", {"deviations": "none"}),
        ("study.json", {"split": "train"}),
        ("texts.json", {"texts": None}),
        ("tuning.json", {"arms": [], "steps": 1, "seed": 9}),
        *(
            ("tuning.json", {"arms": {"rope": choice}, "steps": 1, "seed": 9})
            for choice in (
                {"rate": 0.1, "edge": False, "curve": {}},
                {"rate": 0.1, "edge": False},
                {"rate": 0.1, "edge": False, "curve": [{"rate": "0.1", "bpb_ctx": 1.0}]},
                {"rate": 0.1, "edge": False, "curve": [{"rate": 0.1}]},
                {"edge": False, "curve": [{"rate": 0.1, "bpb_ctx": None}]},
            )
        ),
    ],
)
def test_a_field_of_another_type_is_refused_by_file_and_name(tmp_path, name, changes):
    run = write_run(tmp_path / "rope-s0", ROWS)
    path = tmp_path / name if name.startswith(("study", "texts", "tuning")) else run / name
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | changes))
    with pytest.raises(ValueError, match=f"{re.escape(path.name)}: {next(iter(changes))} must be"):
        load(tmp_path, "dev")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{}], "entry 1 does not say 'arm'"),
        ([record(name=[])], "entry 1: name must be a string"),
        ([record(name="rope-s0"), record(name="rope-s0")], "names a run twice"),
    ],
)
def test_entries_of_runs_json_are_records_of_one_run_each(tmp_path, entries, words):
    (tmp_path / "runs.json").write_text(json.dumps(entries))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in ROWS))
    with pytest.raises(ValueError, match=words):
        load(tmp_path, "dev")


def test_a_log_line_of_no_run_is_refused(tmp_path):
    (tmp_path / "runs.json").write_text(json.dumps([record(name="rope-s0")]))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in ROWS))
    (tmp_path / "metrics.jsonl.gz").write_bytes(gzip.compress(b'{"step": 1}\n'))
    with pytest.raises(ValueError, match=r"metrics\.jsonl\.gz, line 1 does not say 'run'"):
        load(tmp_path, "dev")


@pytest.mark.parametrize(
    "text", ["", '{"step": 20, "loss": 2.0}\n', '{"step": 20, "loss": 2.0}\n{"step": 40, "lo']
)
def test_a_log_that_ends_before_its_finished_run_is_refused(tmp_path, text):
    run = write_run(tmp_path / "rope-s0", ROWS)
    (run / "metrics.jsonl").write_text(text)
    words = (
        r"metrics\.jsonl ends at step \d+ of 40, though the run has finished; restore it, or remove"
    )
    with pytest.raises(ValueError, match=words):
        load(run, "dev")
    edit(run / "run.json", finished=False)  # the log of a run that goes on, or was killed
    assert len(load(run, "dev").runs[0].metrics) == text.count("}")
    edit(run / "run.json", finished=True)
    (run / "metrics.jsonl").unlink()
    assert load(run, "dev").runs[0].metrics == ()


def test_mixtures_are_refused(tmp_path):
    study(tmp_path / "twins")
    write_run(tmp_path / "twins/more/rope-s0", ROWS)
    with pytest.raises(ValueError, match="both hold arm rope, seed 0"):
        load(tmp_path / "twins", "dev")
    study(tmp_path / "lengths")
    far = [one | {"train_length": 128} for one in ROWS]
    write_run(tmp_path / "lengths/runs/rope-s2", far, seed=2, train_length=128)
    with pytest.raises(ValueError, match=r"different lengths \[64, 128\]"):
        load(tmp_path / "lengths", "dev")
    study(tmp_path / "ages")
    old = [{k: v for k, v in one.items() if k != "definitions"} for one in ROWS]
    write_run(tmp_path / "ages/runs/rope-s2", old, seed=2)
    with pytest.raises(ValueError, match="runs/rope-s2 was measured under older definitions"):
        load(tmp_path / "ages", "dev")


@pytest.mark.parametrize(
    ("folder", "words"),
    [("absent", "is no folder"), ("empty", "there is no run.json"), ("bare", "no evaluated run")],
)
def test_a_folder_without_results_says_what_to_do(tmp_path, folder, words):
    (tmp_path / "empty").mkdir()
    run = write_run(tmp_path / "bare", ROWS)
    (run / "evaluation_dev/rows.jsonl").unlink()
    with pytest.raises(ValueError, match=words):
        load(tmp_path / folder, "dev")


def test_a_published_folder_that_is_torn_is_refused(tmp_path):
    (tmp_path / "runs.json").write_text(json.dumps([record(name="rope-s0")]))
    packed = gzip.compress("".join(json.dumps(one) + "\n" for one in ROWS).encode())
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(packed)
    assert len(load(tmp_path, "dev").runs[0].rows) == 3
    (tmp_path / "runs.json").write_text(json.dumps([record(name="rope-s1")]))
    with pytest.raises(ValueError, match="has no run 'rope-s0', of which there are rows"):
        load(tmp_path, "dev")
    (tmp_path / "runs.json").write_text(json.dumps([["rope-s0"]]))
    with pytest.raises(ValueError, match=r"runs\.json must list objects"):
        load(tmp_path, "dev")
    (tmp_path / "runs.json").write_text(json.dumps([record(name="rope-s0")]))
    for torn in (packed[:-9], packed[:40], b"plain", packed[:50] + b"\0\0\0" + packed[53:]):
        path.write_bytes(torn)
        with pytest.raises(ValueError, match=r"rows\.jsonl\.gz"):
            load(tmp_path, "dev")


@pytest.mark.parametrize(
    ("workdir", "results", "words"),
    [
        (None, None, "one of them"),
        ("a", "b", "one of them"),
        (None, "bare", r"holds no runs\.json"),
    ],
)
def test_one_folder_is_asked_for_by_name(tmp_path, workdir, results, words):
    (tmp_path / "bare").mkdir()
    results = results and str(tmp_path / results)
    with pytest.raises(ValueError, match=words):
        chosen_folder(workdir, results)
    assert chosen_folder(str(tmp_path), None) == tmp_path
