"""TFDS's own sets by name: read where they are prepared, explained where they are not."""

import pathlib
import re

import pytest
import tensorflow_datasets as tfds
from posenc_jax.data.corpora import open_corpus
from posenc_jax.data.tfds_sets import split_ranges
from posenc_jax.data.token_stream import open_stream
from posenc_jax.data.tokenizers import open_tokenizer
from tensorflow_datasets.core import registered

SPLITS = ("train", "dev", "test")


def contents(corpus) -> dict[str, dict[str, bytes]]:
    return {split: dict(corpus.documents(split)) for split in SPLITS}


def prepare_elsewhere(
    data_dir: pathlib.Path,
    class_name: str,
    sizes: dict[str, int],
    *,
    key: str = "text",
    config: str | None = None,
    file_format: str = "array_record",
) -> None:
    """Prepares a TFDS set as a connected machine would, under its name and with its features."""

    def info(self):
        text = tfds.features.Text()
        features = tfds.features.FeaturesDict({key: text, "title": text})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in sizes}

    def generate_examples(self, split):
        for i in range(sizes[split]):
            yield i, {key: f"{split} {i}", "title": "a title"}

    members = {
        "VERSION": tfds.core.Version("1.2.0"),
        "BUILDER_CONFIGS": [tfds.core.BuilderConfig(name=config)] if config else [],
        "_info": info,
        "_split_generators": split_generators,
        "_generate_examples": generate_examples,
    }
    with registered.skip_registration():
        builder_class = type(class_name, (tfds.core.GeneratorBasedBuilder,), members)
    builder_class(data_dir=str(data_dir), file_format=file_format).download_and_prepare()


@pytest.mark.parametrize(
    ("class_name", "name", "key"),
    [
        ("TinyShakespeare", "tiny_shakespeare", "text"),
        ("Pg19", "pg19", "book_text"),
        ("Lambada", "lambada", "passage"),
    ],
)
def test_a_set_prepared_elsewhere_is_read_by_name(tmp_path, class_name, name, key):
    sizes = {"train": 30, "validation": 4, "test": 5}
    prepare_elsewhere(tmp_path, class_name, sizes, key=key)
    corpus = open_corpus(name, str(tmp_path))
    found = contents(corpus)
    for split, part in zip(SPLITS, sizes, strict=True):
        assert sorted(found[split].values()) == sorted(
            b"%s %d" % (part.encode(), i) for i in range(sizes[part])
        )
        assert all(re.fullmatch(part + r"\[\d+\]", title) for title in found[split])
    stream = open_stream(corpus, "test", open_tokenizer("bytes"), str(tmp_path))
    assert len(stream.names) == 5


def test_a_set_without_validation_gives_up_the_end_of_train(tmp_path):
    prepare_elsewhere(tmp_path, "ImdbReviews", {"train": 40, "test": 5}, config="plain_text")
    found = contents(open_corpus("imdb_reviews", str(tmp_path)))
    assert [len(found[split]) for split in SPLITS] == [38, 2, 5]
    assert not found["train"].keys() & found["dev"].keys()
    assert not set(found["train"].values()) & set(found["dev"].values())


def test_configurations_are_told_apart(tmp_path):
    sizes = {"train": 5, "validation": 4}
    for config in ("en", "de"):
        prepare_elsewhere(tmp_path, "Wiki40b", sizes, config=config)
    english = open_corpus("wiki40b/en", str(tmp_path))
    german = open_corpus("wiki40b/de:1.2.0", str(tmp_path))
    assert english.fingerprint != german.fingerprint
    assert [len(english.documents(split)) for split in SPLITS] == [5, 2, 2]
    with pytest.raises(ValueError, match="prepared more than once; say wiki40b/de or wiki40b/en"):
        open_corpus("wiki40b", str(tmp_path))
    with pytest.raises(ValueError, match="wiki40b/fr is not prepared"):
        open_corpus("wiki40b/fr", str(tmp_path))


def test_a_set_in_tensorflows_own_format_is_explained(tmp_path):
    prepare_elsewhere(tmp_path, "Lm1b", {"train": 40, "test": 5})
    (info,) = tmp_path.glob("lm1b/*/dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"prepared as tfrecord, which only TensorFlow reads"):
        open_corpus("lm1b", str(tmp_path))


@pytest.mark.parametrize("name", ["pg19", "wiki40b/en", "lm1b", "c4", "tiny_shakespeare"])
def test_a_set_not_prepared_says_where_to_prepare_it(tmp_path, name):
    words = f"data.corpus={name} is not prepared .* connected machine with data.download=True"
    with pytest.raises(ValueError, match=words) as error:
        open_corpus(name, str(tmp_path))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_failed_download_is_one_line_with_its_reason(tmp_path, monkeypatch):
    def offline(builder, **_):
        raise ConnectionError("no route to host\nMax retries exceeded")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", offline)
    with pytest.raises(
        ValueError, match=r"could not be downloaded \(ConnectionError: no route"
    ) as error:
        open_corpus("tiny_shakespeare", str(tmp_path), download=True)
    assert "\n" not in str(error.value)


def test_unknown_sets_are_answered_with_near_names(tmp_path):
    with pytest.raises(ValueError, match=r"no TFDS set; did you mean .*python_stdlib"):
        open_corpus("python_stlib", str(tmp_path))
    with pytest.raises(ValueError, match=r"did you mean .*tiny_shakespeare"):
        open_corpus("tiny_shakespear", str(tmp_path))
    for name in ("zzzzzzzz", "../../etc", "", "a b"):
        with pytest.raises(ValueError, match=r"data\.corpus=.* is no corpus of ours"):
            open_corpus(name, str(tmp_path))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (
            {"train": 100, "validation": 10, "test": 20},
            [("train", 0, 100), ("validation", 0, 10), ("test", 0, 20)],
        ),
        (
            {"train": 100, "validation": 11},
            [("train", 0, 100), ("validation", 0, 5), ("validation", 5, 11)],
        ),
        ({"train": 100, "test": 20}, [("train", 0, 95), ("train", 95, 100), ("test", 0, 20)]),
        ({"train": 100}, [("train", 0, 90), ("train", 95, 100), ("train", 90, 95)]),
    ],
)
def test_sets_of_tfds_are_divided_as_the_studies_need(sizes, expected):
    assert split_ranges(sizes) == dict(zip(SPLITS, expected, strict=True))


@pytest.mark.parametrize("sizes", [{"train": 1}, {"train": 9, "validation": 1}, {"test": 4}])
def test_sets_too_small_to_divide_are_refused(sizes):
    with pytest.raises(ValueError, match=r"has (too few|no train)"):
        split_ranges(sizes)
