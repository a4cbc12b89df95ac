"""Prepared corpora and token streams: damage is named and repaired, one process prepares, data is never
code.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
import tensorflow_datasets as tfds
from posenc_jax.data import corpora
from posenc_jax.data.corpora import open_corpus
from posenc_jax.data.packing import text_window
from posenc_jax.data.token_stream import open_stream
from posenc_jax.data.tokenizers import open_tokenizer
from posenc_jax.results.locks import locked
from tensorflow_datasets.core import registered

SPLITS = ("train", "dev", "test")
TOKENIZER = open_tokenizer("bytes")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder of text, and a data_dir with its corpus and its streams."""
    root = tmp_path_factory.mktemp("prepared")
    (root / "texts").mkdir()
    for i in range(9):
        (root / "texts" / f"{i}.txt").write_text(f"text {i} " * (20 + i))
    read(root)
    return root


@pytest.fixture
def place(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "place")
    return tmp_path / "place"


def read(root):
    """Returns all documents and all ids below a folder made by `prepared`."""
    corpus = open_corpus("text_folder", str(root / "data"), folder=str(root / "texts"))
    streams = {s: open_stream(corpus, s, TOKENIZER, str(root / "data")) for s in SPLITS}
    documents = {s: sorted(corpus.documents(s)) for s in SPLITS}
    return documents, {s: stream.tokens[:].tolist() for s, stream in streams.items()}


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGE = {
    "flipped bit": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": pathlib.Path.unlink,
    "no JSON": lambda path: path.write_bytes(b"{"),
    "a link": lambda path: (path.rename(path.with_name("x")), path.symlink_to("x")),
}


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_of_a_corpus_or_a_stream_is_named_and_made_again(place, capsys, damage):
    whole = read(place)
    assert capsys.readouterr().err == ""
    files = sorted(p for p in (place / "data").rglob("*") if p.is_file() and p.suffix != ".lock")
    assert {"tokens.bin", "starts.npy", "names.json", "manifest.json", "dataset_info.json"} <= {
        p.name for p in files
    }
    for path in files:
        DAMAGE[damage](path)
        assert read(place) == whole, path
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1, (path, said)
        assert path.relative_to(place / "data").parts[0] in said
        assert "is damaged" in said
    assert read(place) == whole
    assert capsys.readouterr().err == ""


def test_an_emptied_folder_and_a_foreign_one_are_made_again(place, capsys):
    whole = read(place)
    for folder in (*(place / "data").glob("text_folder-*"), *(place / "data/streams").iterdir()):
        shutil.rmtree(folder)
        folder.mkdir()
        assert read(place) == whole
    streams = sorted((place / "data/streams").iterdir())
    shutil.rmtree(streams[0])
    shutil.copytree(streams[1], streams[0])
    capsys.readouterr()
    assert read(place) == whole
    assert "is the stream of another text" in capsys.readouterr().err


def test_a_stream_that_is_cut_under_a_reader_is_an_error_and_no_signal(place):
    corpus = open_corpus("text_folder", str(place / "data"), folder=str(place / "texts"))
    stream = open_stream(corpus, "train", TOKENIZER, str(place / "data"))
    before = text_window(stream, 0, 16)
    (path,) = (place / "data/streams").glob("*-train-*/tokens.bin")
    os.truncate(path, 20)
    with pytest.raises(ValueError, match=r"tokens\.bin was shortened while it was read"):
        text_window(stream, 0, 16)
    shutil.rmtree(path.parent)  # while another reader has it open
    again = open_stream(corpus, "train", TOKENIZER, str(place / "data"))
    np.testing.assert_array_equal(text_window(again, 0, 16)["tokens_T"], before["tokens_T"])


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_the_umask_decides_who_may_read_a_stream_and_a_corpus(prepared, tmp_path, umask):
    before = os.umask(umask)
    try:
        shutil.copytree(prepared / "texts", tmp_path / "texts")
        read(tmp_path)
    finally:
        os.umask(before)
    for path in (tmp_path / "data").rglob("*"):
        usual = 0o777 if path.is_dir() else 0o666
        assert path.stat().st_mode & 0o777 == usual & ~umask, path


RACE = """
import os, pathlib, shutil, signal, sys, traceback
from posenc_jax.data.corpora import open_corpus
from posenc_jax.data.token_stream import open_stream
from posenc_jax.data.tokenizers import open_tokenizer

texts, rounds = sys.argv[1], int(sys.argv[2])

def prepare(data, start):
    os.read(start, 1)  # until all are there
    corpus = open_corpus("text_folder", data, folder=texts)
    stream = open_stream(corpus, "train", open_tokenizer("bytes"), data)
    count = sum(len(corpus.documents(split)) for split in corpus.splits)
    assert count == 9 and len(stream) == sum(len(t) + 1 for _, t in corpus.documents("train"))

load = [os.fork() or [0 for _ in iter(int, 1)] for _ in range(2)]
failed = 0
for number in range(rounds):
    data, (start, go) = f"{sys.argv[3]}/{number}", os.pipe()
    children = []
    for _ in range(3):
        if not (child := os.fork()):
            try:
                prepare(data, start)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    os.write(go, b"123")
    failed += sum(os.waitpid(child, 0)[1] != 0 for child in children)
    os.close(start), os.close(go)
    shutil.rmtree(data, ignore_errors=True)
for pid in load:
    os.kill(pid, signal.SIGKILL)
print(failed)
"""


@pytest.mark.thorough
@pytest.mark.parametrize("rounds", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_three_processes_under_load_prepare_one_corpus_and_none_fails(prepared, tmp_path, rounds):
    command = [sys.executable, "-c", RACE, prepared / "texts", str(rounds), tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "0", "")


def refusal(call):
    """Returns the message of the ValueError that a call raises; "" where it raises none."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


def texts_of(corpus):
    return {split: list(corpus.documents(split)) for split in SPLITS}


def test_a_corpus_is_opened_when_no_process_can_be_preparing_it(prepared, tmp_path, monkeypatch):
    """A builder that is made before another process is done stays empty: "has not been generated yet"."""
    made, init = [], corpora.TextFolder.__init__

    def watched(self, *, text_files, root):
        whole = (root / "manifest.json").exists()
        try:
            with locked(tmp_path / f".{root.name}.lock", wait=False):
                made.append("whole" if whole else "open to others")
        except BlockingIOError:
            made.append("locked")
        init(self, text_files=text_files, root=root)

    monkeypatch.setattr(corpora.TextFolder, "__init__", watched)
    for _ in range(2):
        open_corpus("text_folder", str(tmp_path), folder=str(prepared / "texts"))
    assert made == ["locked", "whole", "whole"]


def make_set(data_dir):
    """Prepares a TFDS set as another machine would, and returns its folder."""

    def info(self):
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"text": text})
        )

    members = {
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": info,
        "_split_generators": lambda self, _: {"train": self._generate_examples()},
        "_generate_examples": lambda self: ((i, {"text": f"text {i}"}) for i in range(60)),
    }
    with registered.skip_registration():
        builder = type("Myset", (tfds.core.GeneratorBasedBuilder,), members)
        builder(data_dir=str(data_dir), file_format="array_record").download_and_prepare()
    return data_dir / "myset" / "1.0.0"


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("public"))


@pytest.fixture
def myset(public, tmp_path):
    shutil.copytree(public.parent.parent, tmp_path / "data")
    return tmp_path / "data" / "myset" / "1.0.0"


FOREIGN = "payload_of_a_test.Text"


def nested(value):
    return {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "jsonFeature": {"json": json.dumps({"text": value})},
    }


@pytest.mark.parametrize(
    "features",
    [
        {"pythonClassName": FOREIGN, "text": {}},
        {"python_class_name": FOREIGN, "text": {}},
        {"type": FOREIGN, "content": {}},
        nested({"type": FOREIGN, "content": {}}),
        nested({"pythonClassName": FOREIGN}),
    ],
)
def test_a_class_that_a_prepared_folder_names_is_never_imported(
    myset, tmp_path, monkeypatch, features
):
    (tmp_path / "payload_of_a_test.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    assert len(open_corpus("myset", str(myset.parent.parent)).documents("train")) == 54
    (myset / "features.json").write_text(json.dumps(features))
    with pytest.raises(ValueError, match="only TFDS's own are read") as refused:
        open_corpus("myset", str(myset.parent.parent))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_set_of_tfds_is_refused_in_one_line(myset, damage):
    """Nobody can prepare it again here, and the file format has checksums of its own."""
    data, whole = myset.parent.parent, None
    for path in [None, *sorted(p for p in myset.iterdir() if p.suffix != ".lock")]:
        before = path and path.read_bytes()
        if path:
            DAMAGE[damage](path)
        found = {}
        said = refusal(lambda: found.update(texts_of(open_corpus("myset", str(data)))))  # noqa: B023
        if said:
            assert "\n" not in said
            assert "myset" in said
        else:
            whole = whole or found
            assert found == whole, path  # what was changed is no text
        if path:
            path.unlink(missing_ok=True)
            path.write_bytes(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "the",
        "lazy",
        "dog",
        "and",
        "key",
        "value",
        "pairs",
        "0123456789",
        "=",
        ".",
        "?",
    ]
    draw = np.random.default_rng(0)
    lines = [" ".join(draw.choice(words, 9)) for _ in range(300)]
    path = tmp_path_factory.mktemp("model") / "tiny.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=file,
            vocab_size=300,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            minloglevel=2,
        )
    return path


def test_a_damaged_sentencepiece_model_is_refused_in_one_line_or_gives_its_text_back(
    model, tmp_path
):
    whole, rng, refused = model.read_bytes(), np.random.default_rng(0), 0
    for trial in range(60):
        content = bytearray(whole)
        if trial % 2:
            content = content[: rng.integers(len(whole))]
        else:
            content[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        (tmp_path / "x.model").write_bytes(content)
        if said := refusal(lambda: open_tokenizer(str(tmp_path / "x.model"))):
            refused += 1
            assert "x.model" in said
            assert "\n" not in said
        else:
            tokenizer = open_tokenizer(str(tmp_path / "x.model"))
            assert tokenizer.decode(tokenizer.encode(b"the fox = 12")) == b"the fox = 12"
    assert refused > 20
