"""Corpora: every document in one split, prepared once, and clear words for what is wrong."""

import hashlib
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
from posenc_jax.data import corpora, document_files
from posenc_jax.data.corpora import open_corpus
from posenc_jax.data.token_stream import open_stream
from posenc_jax.data.tokenizers import open_tokenizer

SPLITS = ("train", "dev", "test")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def stdlib(data_dir):
    return open_corpus("python_stdlib", data_dir)


def write_files(folder: pathlib.Path, texts: dict[str, str | bytes]) -> str:
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(folder)


def contents(corpus) -> dict[str, dict[str, bytes]]:
    return {split: dict(corpus.documents(split)) for split in SPLITS}


def test_stdlib_is_some_hundred_documents_and_megabytes(stdlib):
    texts = [text for split in SPLITS for _, text in stdlib.documents(split)]
    assert 250 < len(texts) < 700
    assert 5e6 < sum(map(len, texts)) < 15e6


def test_stdlib_documents_are_the_files_of_this_interpreter(stdlib):
    root = pathlib.Path(os.__file__).parent
    names = [name for split in SPLITS for name, _ in stdlib.documents(split)]
    assert {"os.py", "asyncio/tasks.py", "argparse.py"} <= set(names)
    assert len(set(names)) == len(names)
    for split in SPLITS:
        name, text = stdlib.documents(split)[-1]
        assert text == (root / name).read_bytes()
    left_out = r"(^|/)(tests?|idle_test|encodings|pydoc_data|idlelib|turtledemo|ensurepip)/"
    assert not [name for name in names if re.search(left_out, name)]


def test_a_module_of_the_stdlib_lies_in_one_split(stdlib):
    split_of = {}
    for split in SPLITS:
        documents = stdlib.documents(split)
        assert len(documents) > 5
        for name, _ in documents:
            module = name.split("/")[0].removesuffix(".py")
            assert split_of.setdefault(module, split) == split


def test_stdlib_shares_are_near_those_asked_for(stdlib):
    sizes = {split: sum(len(text) for _, text in stdlib.documents(split)) for split in SPLITS}
    share = {split: size / sum(sizes.values()) for split, size in sizes.items()}
    assert 0.7 < share["train"] < 0.95
    assert share["dev"] > 0.01
    assert share["test"] > 0.03


def test_the_fingerprint_is_that_of_names_and_contents(tmp_path):
    folder = write_files(tmp_path / "f", {f"{i}.txt": f"text {i}" for i in range(5)})
    corpus = open_corpus("text_folder", str(tmp_path / "d"), folder=folder)
    lines = sorted(
        f"{split}\0{name}\0{hashlib.sha256(text).hexdigest()}\n"
        for split, documents in contents(corpus).items()
        for name, text in documents.items()
    )
    assert corpus.fingerprint == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_a_folder_is_split_by_file_and_an_edit_is_seen(tmp_path):
    texts = {f"a/{i}.txt": f"caf\u00e9 {i}" for i in range(40)} | {"b/c/notes.md": "notes"}
    ignored = {"a/.hidden.txt": "no", "a/picture.png": b"\xff\xd8", "empty.txt": ""}
    folder = write_files(tmp_path / "f", texts | ignored)
    first = open_corpus("text_folder", str(tmp_path / "d"), folder=folder)
    found = contents(first)
    assert all(found.values())
    assert {name: text.decode() for part in found.values() for name, text in part.items()} == texts
    write_files(tmp_path / "f", {"a/7.txt": "edited"})
    second = open_corpus("text_folder", str(tmp_path / "d"), folder=folder)
    assert second.fingerprint != first.fingerprint
    again = contents(second)
    (split,) = [split for split in SPLITS if "a/7.txt" in again[split]]
    assert again[split]["a/7.txt"] == b"edited"
    assert "a/7.txt" in found[split]
    for split in SPLITS:
        assert found[split].keys() == again[split].keys()


@pytest.mark.parametrize("count", [3, 4, 7, 30, 400])
def test_no_split_is_ever_empty_and_shares_are_kept(count):
    split = document_files.split_by_hash([f"unit {i}" for i in range(count)])
    sizes = {name: list(split.values()).count(name) for name in SPLITS}
    assert min(sizes.values()) >= 1
    assert sum(sizes.values()) == count
    if count == 400:
        assert abs(sizes["train"] - 340) < 30


def test_more_units_do_not_move_those_already_placed():
    few = document_files.split_by_hash([f"unit {i}" for i in range(200)])
    many = document_files.split_by_hash([f"unit {i}" for i in range(400)])
    assert all(many[unit] == split for unit, split in few.items())


def test_copies_of_a_file_stay_in_one_split(tmp_path):
    texts = {f"{i}.txt": f"text {i % 5}" for i in range(40)}
    listed = document_files.text_folder_files(write_files(tmp_path, texts))
    split_of = {}
    for file in listed:
        assert split_of.setdefault(file.read(), file.split) == file.split
    assert len(listed) == 40


def test_folders_train_and_validation_decide(tmp_path):
    texts = {f"train/{i}.txt": f"t{i}" for i in range(3)}
    texts |= {f"validation/{i}.txt": f"v{i}" for i in range(8)}
    listed = document_files.text_folder_files(write_files(tmp_path / "two", texts))
    split = {file.name: file.split for file in listed}
    assert {split[f"train/{i}.txt"] for i in range(3)} == {"train"}
    assert {split[f"validation/{i}.txt"] for i in range(8)} == {"dev", "test"}
    listed = document_files.text_folder_files(write_files(tmp_path / "two", {"test/0.txt": "x"}))
    split = {file.name: file.split for file in listed}
    assert {split[f"validation/{i}.txt"] for i in range(8)} == {"dev"}
    assert split["test/0.txt"] == "test"


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ({}, r"data\.folder=.* holds no text: put \.txt or \.md files there"),
        ({"a.txt": ""}, "holds no text"),
        ({"a.txt": "a", "b.txt": "b"}, "2 different text .* at least 3"),
        ({"a.txt": "a", "b/c.txt": b"good \xff bad"}, r"b/c\.txt is not UTF-8: byte 5 \(0xff\)"),
        ({"train/a.txt": "a", "validation/b.txt": "b"}, "no text for dev and test"),
        (
            {"train/a.txt": "a", "validation/b.txt": "b", "validation/c.txt": "a"},
            r"train/a\.txt and validation/c\.txt are the same text in two splits",
        ),
    ],
)
def test_a_wrong_folder_is_answered_in_one_line(tmp_path, texts, words):
    write_files(tmp_path / "f", texts)
    (tmp_path / "f").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=words) as error:
        open_corpus("text_folder", str(tmp_path / "d"), folder=str(tmp_path / "f"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "d").exists()


def test_a_missing_folder_or_split_is_named(tmp_path, stdlib):
    with pytest.raises(ValueError, match=r"data\.folder=/nowhere/at/all is not a folder"):
        open_corpus("text_folder", str(tmp_path), folder="/nowhere/at/all")
    with pytest.raises(ValueError, match=r"data\.folder is not set"):
        open_corpus("text_folder", str(tmp_path))
    with pytest.raises(ValueError, match="split 'validation' is not one of train, dev, test"):
        stdlib.documents("validation")


def test_a_file_edited_while_preparing_stops_the_preparation(tmp_path):
    folder = write_files(tmp_path / "f", {f"{i}.txt": f"text {i}" for i in range(5)})
    listed = document_files.text_folder_files(folder)
    write_files(tmp_path / "f", {"3.txt": "another"})
    with pytest.raises(ValueError, match="changed while the corpus was prepared"):
        corpora._corpus_of_files("text_folder", corpora.TextFolder, listed, str(tmp_path / "d"))


PREPARE = """
import sys
from posenc_jax.data.corpora import open_corpus
from posenc_jax.data.token_stream import open_stream
from posenc_jax.data.tokenizers import open_tokenizer
corpus = open_corpus("text_folder", sys.argv[1], folder=sys.argv[2])
stream = open_stream(corpus, "train", open_tokenizer("bytes"), sys.argv[1])
assert "tensorflow" not in sys.modules and "jax" not in sys.modules
print(corpus.fingerprint, len(stream), sum(len(corpus.documents(s)) for s in corpus.splits))
"""


def start_preparing(data_dir, folder) -> subprocess.Popen:
    command = [sys.executable, "-W", "error", "-c", PREPARE, str(data_dir), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_preparing_together_all_end_with_a_whole_corpus(tmp_path):
    folder = write_files(tmp_path / "f", {f"{i}.txt": f"{i} " * 20_000 for i in range(60)})
    workers = [start_preparing(tmp_path / "d", folder) for _ in range(3)]
    results = [worker.communicate(timeout=60) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], results
    assert len({out for out, _ in results}) == 1
    assert results[0][0].split()[-1] == "60"
    assert [err for _, err in results] == ["", "", ""]


def test_the_loser_of_a_race_reads_the_winners_corpus(tmp_path, monkeypatch):
    folder = write_files(tmp_path / "f", {f"{i}.txt": f"text {i}" for i in range(5)})
    prepare = corpora.TextFolder.download_and_prepare

    def second(builder):
        prepare(builder)
        raise FileExistsError(builder.data_dir)

    monkeypatch.setattr(corpora.TextFolder, "download_and_prepare", second)
    corpus = open_corpus("text_folder", str(tmp_path / "d"), folder=folder)
    assert sum(len(part) for part in contents(corpus).values()) == 5


KILLED = """
import os, signal
from posenc_jax.data import document_files, tokenizers
def killed_at_the_third(function, calls=[]):
    def counted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return counted
WHERE = killed_at_the_third(WHERE)
"""


@pytest.mark.parametrize(
    "where", ["document_files.TextFile.read", "tokenizers.ByteTokenizer.encode"]
)
def test_a_kill_while_preparing_is_harmless(tmp_path, where):
    folder = write_files(tmp_path / "f", {f"{i}.txt": f"{i} " * 1000 for i in range(40)})
    command = [
        sys.executable,
        "-c",
        KILLED.replace("WHERE", where) + PREPARE,
        tmp_path / "d",
        folder,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list((tmp_path / "d").rglob("*incomplete*")) + list((tmp_path / "d").rglob(".unf*"))
    corpus = open_corpus("text_folder", str(tmp_path / "d"), folder=folder)
    stream = open_stream(corpus, "train", open_tokenizer("bytes"), str(tmp_path / "d"))
    assert sum(len(part) for part in contents(corpus).values()) == 40
    assert len(stream) == sum(1 + len(text) for _, text in corpus.documents("train"))
