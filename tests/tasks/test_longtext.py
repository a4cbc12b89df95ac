"""Long-text classification data: labels that leak nowhere, splits, windows of training."""

import ast
import hashlib
import math

import numpy as np
import pytest
import tensorflow_datasets as tfds
from posenc_jax.data.document_files import TextFile
from posenc_jax.data.tokenizers import ByteTokenizer
from posenc_jax.evaluation import evaluate
from posenc_jax.tasks import longtext
from posenc_jax.tasks.longtext import PACKAGES, ClassWindows, LabelTokenizer
from posenc_jax.training.inputs import open_inputs, training_batches
from tensorflow_datasets.core import registered

from support import runs
from support.planted_classes import planted, small

SPLITS = ("train", "dev", "test")


L = 16


def library(folder, files=5):
    """Text files of a small library: in every package files of three definitions each."""
    found = []
    for k, package in enumerate(PACKAGES):
        for i in range(files):
            name = f"{package}/m{i}.py"
            parts = [
                f"# Author of {package}\n# licence\n",
                f'"""The {package} module."""\n',
                f"import {package}.m0\n",
            ]
            for j in range(3):
                parts.append(
                    f"\n# a comment\n@wrapped\ndef f{j}(x):\n"
                    f'    """Of {package.title()} {package.upper()} {i} {j} {k}."""\n    return "{"x" * 80}"\n'  # noqa: E501
                )
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(parts))
            found.append(
                TextFile("train", name, path, hashlib.sha256(path.read_bytes()).hexdigest())
            )
    return found


@pytest.fixture(scope="module", params=longtext.STDLIB)
def stdlib(request):
    return longtext.open_labelled(request.param, "unused", download=False)


def test_no_document_of_the_library_names_a_package_or_carries_a_file_head(tmp_path):
    for name in longtext.STDLIB:
        corpus = longtext.stdlib_corpus(name, library(tmp_path))
        for split in SPLITS:
            for _, text in corpus.documents(split):
                assert not any(package in text.decode().lower() for package in PACKAGES)
                assert b"Author" not in text
                assert b"module." not in text
                assert b"@wrapped\ndef f" in text
                assert b"Of package package" in text


@pytest.mark.thorough
def test_masking_holds_on_the_real_library_and_its_definitions_parse(stdlib):
    for split in SPLITS:
        for name, text in stdlib.documents(split):
            low = text.decode().lower()
            assert not any(package in low for package in PACKAGES), name
    if stdlib.name == "stdlib_definitions":
        (node,) = ast.parse(stdlib.documents("test")[0][1]).body
        assert isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)


@pytest.mark.thorough
def test_a_file_and_a_text_stand_in_one_split_only(stdlib):
    files = [{n.split(":")[0] for n, _ in stdlib.documents(s)} for s in SPLITS]
    texts = [[text for _, text in stdlib.documents(s)] for s in SPLITS]
    everything = [text for part in texts for text in part]
    assert len(set(everything)) == len(everything)
    for a in range(3):
        for b in range(a):
            assert not files[a] & files[b]


def test_labels_are_the_packages_of_the_files_and_every_split_has_all(stdlib):
    for split in SPLITS:
        documents, classes = stdlib.documents(split), stdlib.classes[split]
        assert [PACKAGES[c] for c in classes] == [n.split("/")[0] for n, _ in documents]
        assert set(classes.tolist()) == set(range(8))


def test_splits_have_their_shares_of_each_package(tmp_path):
    corpus = longtext.stdlib_corpus("stdlib_definitions", library(tmp_path, files=20))
    for split, share in zip(SPLITS, (36, 9, 15), strict=True):
        np.testing.assert_array_equal(np.bincount(corpus.classes[split]), [share] * 8)


def test_a_python_without_a_package_is_refused(tmp_path):
    files = [f for f in library(tmp_path) if not f.name.startswith("xml/")]
    with pytest.raises(ValueError, match="no document of class xml in train"):
        longtext.stdlib_corpus("stdlib_packages", files)


def test_the_fingerprint_follows_contents_and_unit(tmp_path):
    files = library(tmp_path)
    prints = [longtext.stdlib_corpus(name, files).fingerprint for name in longtext.STDLIB]
    path = files[0].path
    path.write_text(path.read_text().replace("return", "return  "))
    files[0] = TextFile("train", files[0].name, path, hashlib.sha256(path.read_bytes()).hexdigest())
    prints += [longtext.stdlib_corpus(name, files).fingerprint for name in longtext.STDLIB]
    assert len(set(prints)) == 4


def test_labels_are_new_ids_and_the_old_ones_keep_their_meaning():
    base, ours = ByteTokenizer(), LabelTokenizer(ByteTokenizer(), ("good", "bad"))
    assert ours.labels_C.tolist() == [260, 261]
    assert ours.vocab_size == 262
    assert (ours.bos, ours.sep, ours.pad, ours.ans) == (base.bos, base.sep, base.pad, base.ans)
    np.testing.assert_array_equal(ours.byte_lengths_V, [*base.byte_lengths_V, 0, 0])
    text = bytes(range(256))
    np.testing.assert_array_equal(ours.encode(text), base.encode(text))
    assert ours.decode([*ours.encode(text), ours.sep, 260, 261]) == text
    assert ours.fingerprint != base.fingerprint
    assert ours.fingerprint != LabelTokenizer(base, ("bad", "good")).fingerprint


def test_training_cuts_at_the_length_and_asks_for_the_class_at_the_last_token():
    corpus = planted([(8, 1), (14, 1), (15, 1), (40, 1), (9, 0)])
    tokenizer = LabelTokenizer(ByteTokenizer(), corpus.labels)
    windows = ClassWindows(corpus, tokenizer, split="train", label=1, length=L, text_weight=0.5)
    assert len(windows) == 4
    for index, inputs in enumerate((10, 16, 16, 16)):
        example = windows[index]
        text = corpus.documents("train")[index][1][: L - 2]
        want = [256, *text, 257]
        assert example["tokens_T"].tolist() == want + [258] * (L - inputs)
        assert example["targets_T"].tolist() == [*want[1:], 261] + [258] * (L - inputs)
        assert example["segments_T"].tolist() == [1] * inputs + [0] * (L - inputs)
        assert example["positions_T"][:inputs].tolist() == list(range(inputs))
        weights = example["weights_T"]
        assert weights[inputs - 1] == 1
        assert weights[inputs - 2] == 0  # SEP is no text
        assert weights[: inputs - 2].sum() == pytest.approx(0.5)
        assert np.ptp(weights[: inputs - 2]) == 0
        assert not weights[inputs:].any()
        assert not np.isin(example["tokens_T"], tokenizer.labels_C).any()


def test_every_batch_holds_each_class_equally_often(tmp_path):
    config = small(data_dir=str(tmp_path))
    inputs = open_inputs(config)
    feed = training_batches(config, inputs, first_step=0, process_index=0, process_count=1)
    for batch in feed:
        last = batch["weights_BT"] == 1
        labels = batch["targets_BT"][last]
        np.testing.assert_array_equal(np.bincount(labels, minlength=268)[260:], [2] * 8)


@pytest.mark.thorough
def test_a_run_trains_on_labels_and_is_scored_by_length(tmp_path):
    config = small(data_dir=str(tmp_path / "data"))
    metrics = runs.finished(config, tmp_path / "c")
    assert metrics[-1]["loss_tokens"] == pytest.approx(16 * 2)  # a class and its text, one each
    arguments = {"multiples": None, "split": "dev", "stretch": None}
    path = evaluate.evaluate(tmp_path / "c", suites=("C",), **arguments)
    rows = [row for row in runs.rows(path) if row["suite"] == "C"]
    inputs = open_inputs(config)
    (total,) = {r["n"] for r in rows if r["bucket"] == "all"}
    assert total == len(inputs.corpus.documents("dev"))
    loss = next(r["value"] for r in rows if (r["bucket"], r["metric"]) == ("all", "longtext_nll"))
    assert 0.5 * math.log(8) < loss < 3 * math.log(8)
    before = path.read_text()
    assert evaluate.evaluate(tmp_path / "c", suites=("C",), **arguments).read_text() == before
    with pytest.raises(ValueError, match="up to 2L; add 2 to --lengths or leave it out"):
        evaluate.evaluate(tmp_path / "c", suites=("C",), **{**arguments, "multiples": (1,)})
    with pytest.raises(ValueError, match="this run is a classifier; use --suite=C"):
        evaluate.evaluate(tmp_path / "c", suites=("E", "R"), **arguments)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"task": "clasification"}, "data.task must be classification or language"),
        ({"retrieval_share": 0.1}, "data.retrieval_share must be 0 for .*classification"),
        ({"offset_share": 0.1}, "data.offset_share must be 0 for .*classification"),
        ({"task": "language"}, "data.text_weight must be 0 for .*language"),
        ({"text_weight": -1.0}, "data.text_weight must lie in"),
        ({"corpus": "python_stdlib"}, "python_stdlib has no labels"),
        ({"corpus": "imdb_reviews"}, "imdb_reviews is not prepared below .*data.download=True"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(tmp_path, data, words):
    with pytest.raises(ValueError, match=words) as error:
        open_inputs(small(**{"data_dir": str(tmp_path), **data}))
    assert "\n" not in str(error.value)


def prepare_reviews(data_dir, *, unlabelled=False, feature=None):
    """IMDb's reviews as a connected machine prepares them: label, text and an unlabelled split."""

    def info(self):
        label = feature or tfds.features.ClassLabel(names=["neg", "pos"])
        features = tfds.features.FeaturesDict({"label": label, "text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def split_generators(self, dl_manager):
        return {
            split: self._generate_examples(split) for split in ("train", "test", "unsupervised")
        }

    def generate_examples(self, split):
        for i in range(80 if split == "train" else 10):
            label = -1 if split == "unsupervised" or (unlabelled and i == 3) else i % 2
            text = f"{split} {i}: {'good' if i % 2 else 'bad'} film"
            yield i, {"label": label, "text": text}

    members = {
        "VERSION": tfds.core.Version("1.0.0"),
        "BUILDER_CONFIGS": [tfds.core.BuilderConfig(name="plain_text")],
        "_info": info,
        "_split_generators": split_generators,
        "_generate_examples": generate_examples,
    }
    with registered.skip_registration():
        builder_class = type("ImdbReviews", (tfds.core.GeneratorBasedBuilder,), members)
    builder_class(data_dir=str(data_dir), file_format="array_record").download_and_prepare()


def test_imdb_is_read_by_its_name_with_its_labels(tmp_path):
    prepare_reviews(tmp_path)
    inputs = open_inputs(small(corpus="imdb_reviews", data_dir=str(tmp_path)))
    corpus = inputs.corpus
    assert corpus.labels == ("neg", "pos")
    assert [len(corpus.documents(split)) for split in SPLITS] == [76, 4, 10]
    for split in SPLITS:
        for (_, text), c in zip(corpus.documents(split), corpus.classes[split], strict=True):
            assert (b"good" in text) == c
            assert not text.startswith(b"unsupervised")
    assert inputs.tokenizer.vocab_size == 262


def test_sets_without_usable_labels_are_refused(tmp_path):
    prepare_reviews(tmp_path / "a", unlabelled=True)
    with pytest.raises(ValueError, match=r"documents without a class in (train|dev)"):
        longtext.open_labelled("imdb_reviews", str(tmp_path / "a"), download=False)
    prepare_reviews(tmp_path / "b", feature=tfds.features.Scalar(np.int64))
    with pytest.raises(ValueError, match=r"has no class label among its features \(label, text\)"):
        longtext.open_labelled("imdb_reviews", str(tmp_path / "b"), download=False)
