"""A published folder says what the run folders say, to the last bit, and nothing of the machine."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from posenc_jax.data import document_files
from posenc_jax.data.corpora import open_corpus
from posenc_jax.data.text_digests import list_texts
from posenc_jax.report import StudyView, tables
from posenc_jax.results.load import load, load_unmigrated, splits
from posenc_jax.results.publish import joined, publish, smallest, without_folders
from posenc_jax.study.preregistration import AnalysisPlan
from posenc_jax.study.verdict import AuxiliaryRuns, judge

from support.result_folders import L, row, write_run
from support.synthetic_verdicts import (
    HYBRID,
    ROTATIONLESS,
    YARN,
    add_instances,
    edit,
    write_outcome_study,
)

TEXTS = [{"split": "dev", "name": "a", "bytes": 3, "sha256": "00"}]


def study(folder, name="x"):
    random = np.random.default_rng(0)
    for seed in (0, 1):
        run = write_run(
            folder / f"runs/rope-s{seed}", [row("bpb_ctx", L // 2, random.normal())], seed=seed
        )
        arrays(run, random)
        arrays(
            write_run(
                run / "stretched/yarn_4",
                [row("bpb_ctx", L, random.normal())],
                seed=seed,
                arm="rope yarn:4",
            ),
            random,
        )
    far = [row("bpb_ctx", L, 0.1) | {"train_length": 4 * L}]
    write_run(folder / "other_lengths/oracle-s0", far, arm="oracle", train_length=4 * L)
    write_run(folder / "tuning/rope-s9-lr0.01", [row("bpb_ctx", L // 2, 1.5)], seed=9)
    (folder / "tuning.json").write_text(
        json.dumps({"metric": "bpb_ctx", "steps": 1, "seed": 9, "arms": {}})
    )
    record = {"name": name, "split": "dev", "arms": ["rope"], "seeds": [0, 1]}
    (folder / "study.json").write_text(json.dumps(record))
    (folder / "prereg.json").write_text(json.dumps({"plan": {}, "sha256": "0"}))
    return folder


def arrays(run, random):
    place = run / "evaluation_dev/arrays"
    place.mkdir()
    np.savez(
        place / "passkey_4.npz",
        correct=random.random(9) > 0.5,
        chance=np.full(9, 1 / 3),
        distance=np.arange(9),
        kind=np.array(["", "LAST"] * 4 + [""]),
    )
    np.savez(place / "bpb_ctx_32.npz", nats_R=random.normal(size=5), bytes_R=np.arange(5))
    (place / "scheme.json").write_text(json.dumps({"scheme": "rope", "heads": [{"slope": None}]}))


def same(a, b):
    """Whether two studies hold the same, whatever folder they were read from."""
    plain = {"runs": (), "elsewhere": (), "folder": "", "texts": ()}
    assert dataclasses.replace(a, **plain) == dataclasses.replace(b, **plain)
    for field in ("runs", "elsewhere"):
        assert len(getattr(a, field)) == len(getattr(b, field)) > 0
        for x, y in zip(getattr(a, field), getattr(b, field), strict=True):
            assert dataclasses.replace(x, arrays=None, rows=()) == dataclasses.replace(
                y, arrays=None, rows=()
            )
            assert [bare(r) for r in x.rows] == [bare(r) for r in y.rows]
            for name in x.array_names:
                one, other = x.arrays(name), y.arrays(name)
                assert one.keys() == other.keys()
                assert all(np.array_equal(one[f], other[f]) for f in one)


def bare(one):
    return dataclasses.replace(one, item="", stamp="")


def test_what_is_published_reads_as_the_study_does(tmp_path):
    folder = study(tmp_path / "study")
    sizes = publish(load_unmigrated(folder), tmp_path / "out", TEXTS)
    same(load(folder), load(tmp_path / "out"))
    assert load(tmp_path / "out").texts == tuple(TEXTS)
    assert sizes == {name: (tmp_path / "out" / name).stat().st_size for name in sizes}
    assert len(load(folder).runs) == 4  # two seeds, and each read under a stretch


def test_rows_of_the_other_split_are_published_without_their_arrays(tmp_path):
    folder = study(tmp_path / "study")
    place = folder / "runs/rope-s1"
    arrays_of, moved = place / "evaluation_dev", place / "evaluation"
    shutil.copytree(arrays_of, moved)
    path = moved / "rows.jsonl"
    path.write_text(path.read_text().replace('"split": "dev"', '"split": "test"'))
    assert splits(folder) == ("dev", "test")
    publish(load_unmigrated(folder), tmp_path / "out", TEXTS, load_unmigrated(folder, "test"))
    same(load(folder), load(tmp_path / "out"))
    test = load(tmp_path / "out", "test")
    assert [run.name for run in test.runs if not run.why] == ["runs/rope-s1"]
    assert {row.split for run in test.runs for row in run.rows} == {"test"}
    assert {run.array_names for run in test.runs} == {()}
    with pytest.raises(ValueError, match="was not published"):
        test.runs[0].arrays("passkey_4")


def test_the_same_study_gives_the_same_bytes(tmp_path):
    folder = study(tmp_path / "study")
    for place in ("a", "b", "a"):
        publish(load_unmigrated(folder), tmp_path / place, TEXTS)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
        if path.suffix == ".gz":
            assert path.read_bytes()[4:8] == b"\0\0\0\0"  # no time in it (RFC 1952, MTIME)


def test_a_study_that_is_published_in_two_parts_is_the_study_published_at_once(tmp_path):
    folder, whole, parts = study(tmp_path / "study"), tmp_path / "whole", tmp_path / "parts"
    publish(load_unmigrated(folder), whole, TEXTS)
    first, second = (Path(shutil.copytree(folder, tmp_path / n)) for n in ("a/study", "b/study"))
    shutil.rmtree(first / "runs/rope-s1")
    shutil.rmtree(second / "runs/rope-s0")
    shutil.rmtree(second / "other_lengths")
    for part in (first, second):
        publish(joined(load_unmigrated(part), parts), parts, TEXTS)
    files = sorted(path.name for path in whole.iterdir())
    assert sorted(path.name for path in parts.iterdir()) == files
    for name in files:
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name


def test_parts_under_different_plans_or_of_different_studies_are_not_joined(tmp_path):
    folder, out = study(tmp_path / "study"), tmp_path / "out"
    publish(load_unmigrated(folder), out, TEXTS)
    (folder / "prereg.json").write_text(json.dumps({"plan": {}, "sha256": "1"}))
    with pytest.raises(ValueError, match="differ in plan"):
        joined(load_unmigrated(folder), out)
    (out / "study.json").write_text(json.dumps({"name": "y", "split": "dev"}))
    with pytest.raises(ValueError, match="holds the study 'y'"):
        joined(load_unmigrated(folder), out)


def test_another_study_is_not_overwritten(tmp_path):
    publish(load_unmigrated(study(tmp_path / "one", "one")), tmp_path / "out", TEXTS)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    other = load_unmigrated(study(tmp_path / "two", "two"))
    with pytest.raises(ValueError, match="holds the study 'one'"):
        publish(other, tmp_path / "out", TEXTS)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("mine")
    with pytest.raises(ValueError, match="neither empty nor a published study"):
        publish(other, tmp_path / "full", TEXTS)


def test_a_published_folder_is_not_published_again(tmp_path):
    publish(load_unmigrated(study(tmp_path / "one")), tmp_path / "out", TEXTS)
    with pytest.raises(ValueError, match="is published already"):
        publish(load_unmigrated(tmp_path / "out"), tmp_path / "again", TEXTS)


def test_runs_of_two_corpora_are_not_published_together(tmp_path):
    folder = study(tmp_path / "study")
    write_run(
        folder / "runs/rope-s2", [row("bpb_ctx", L, 1.0)], seed=2, corpus_fingerprint="cd" * 32
    )
    with pytest.raises(ValueError, match="differ in corpus_fingerprint"):
        publish(load_unmigrated(folder), tmp_path / "out", TEXTS)
    assert not (tmp_path / "out/runs.json").exists()


def test_arrays_that_are_damaged_are_named(tmp_path):
    folder = study(tmp_path / "study")
    path = folder / "runs/rope-s1/evaluation_dev/arrays/passkey_4.npz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"arrays/passkey_4\.npz is damaged"):
        publish(load_unmigrated(folder), tmp_path / "out", TEXTS)
    publish(load_unmigrated(study(tmp_path / "sound")), tmp_path / "out", TEXTS)
    packed = tmp_path / "out/arrays.npz"
    content = bytearray(packed.read_bytes())
    content[len(content) // 2] ^= 0xFF
    packed.write_bytes(content)
    with pytest.raises(ValueError, match=r"arrays\.npz is damaged"):
        [run.arrays(name) for run in load(tmp_path / "out").runs for name in run.array_names]


@pytest.mark.parametrize(
    "array",
    [
        np.array([1 / 3, 0.5]),
        np.array([0.5, np.nan, np.inf]),
        np.array([2**40]),
        np.array([7, -7]),
        np.array([1e300]),
        np.array([True]),
        np.array(["a"]),
        np.array(3.0),
        np.array([2**32 - 1], np.uint64),
    ],
)
def test_numbers_are_kept_exactly(array):
    small = smallest(array)
    assert small.nbytes <= array.nbytes
    assert np.array_equal(small, array, equal_nan=array.dtype.kind == "f")


def test_what_four_bytes_hold_takes_four():
    assert smallest(np.array([0.5])).dtype == np.float32
    assert smallest(np.array([7])).dtype == np.int32
    assert smallest(np.array([1 / 3])).dtype == np.float64


@pytest.mark.parametrize(
    ("recorded", "published"),
    [
        ("/home/me/books", "books"),
        (
            "python train.py --workdir=/home/me/x/runs/a --config=configs/lm.py:rope",
            "python train.py --workdir=a --config=configs/lm.py:rope",
        ),
        ("wiki40b/en", "wiki40b/en"),
        ("data/books", "data/books"),
        (["/a/b", 3, None], ["b", 3, None]),
        ({"x": {"y": "'--workdir=/a/b c'"}}, {"x": {"y": "'--workdir=b c'"}}),
    ],
)
def test_folders_of_the_machine_are_not_published(recorded, published):
    assert without_folders(recorded) == published


def test_the_list_of_texts_gives_the_fingerprint_of_the_corpus(tmp_path):
    for name, text in (("train/a.txt", "a"), ("validation/b.txt", "b"), ("validation/c.txt", "ü")):
        path = tmp_path / "books" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text * 9)
    corpus = open_corpus("text_folder", str(tmp_path / "data"), folder=str(tmp_path / "books"))
    texts = list_texts(corpus)
    lines = sorted(f"{t['split']}\0{t['name']}\0{t['sha256']}\n" for t in texts)
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == corpus.fingerprint
    assert {t["name"]: t["sha256"] for t in texts}["train/a.txt"] == hashlib.sha256(
        b"a" * 9
    ).hexdigest()
    assert [t["bytes"] for t in sorted(texts, key=lambda t: t["name"])] == [9, 9, 18]
    assert {t["split"] for t in texts} == set(document_files.SPLITS)


def test_verdict_and_tables_are_those_of_the_run_folders(tmp_path):
    seeds = (0, 1, 2)
    folder = write_outcome_study(tmp_path / "study", seeds)
    add_instances(folder, 6)
    for path in folder.glob("runs/*/run.json"):
        edit(path, corpus="python_stdlib", command="python train.py --workdir=/home/me/x")
    publish(load_unmigrated(folder, "test"), tmp_path / "out", TEXTS)
    plan = AnalysisPlan(
        (HYBRID,),
        "rope",
        ("alibi",),
        seeds,
        {HYBRID: {"rotation": ROTATIONLESS}},
        stretched=(YARN,),
    )
    ours, theirs = load(folder, "test"), load(tmp_path / "out")
    said = [
        judge(data, plan, beside=AuxiliaryRuns(), frozen=None, deviations=[])
        for data in (ours, theirs)
    ]
    assert json.dumps(said[0]) == json.dumps(said[1])
    assert any("seeds and instances" in str(s) for s in said)  # the arrays were read
    assert tables.records(StudyView(ours)) == tables.records(StudyView(theirs)) != []
