"""TFDS sets by name: opened from prepared folders, with splits train, dev and test.

A prepared folder describes itself, so reading needs no TensorFlow, Beam or network; a connected
machine must have prepared it.
"""

import hashlib
import importlib
import json
import pathlib
import pkgutil
import re
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds

from posenc_jax.results.files import read_json
from posenc_jax.results.locks import locked
from posenc_jax.results.near_names import near_names

# Names of the text feature, in order of preference.
_TEXT_KEYS = ("text", "book_text", "passage", "article", "document", "content")
_NAME = re.compile(r"(?P<set>\w+)(/(?P<config>[\w.\-]+))?(:(?P<version>\d+\.\d+\.\d+))?", re.ASCII)
_VERSION = re.compile(r"\d+\.\d+\.\d+", re.ASCII)
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # the last one of older folders
_OWN_CLASSES = "tensorflow_datasets.core.features."


class Documents(Sequence):
    """(name, text) pairs of the examples start..stop of a TFDS data source."""

    def __init__(self, source, text: str, name: str | None, split: str, start: int, stop: int):
        self._source = source
        self._text_key, self._name_key = text, name
        self._split = split
        self._range = range(start, stop)

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, index: int) -> tuple[str, bytes]:  # type: ignore[override]  # no slices
        number = self._range[index]
        record = self._record(number)
        if self._name_key is None:
            return f"{self._split}[{number}]", bytes(record[self._text_key])
        return record[self._name_key].decode(), bytes(record[self._text_key])

    def column(self, key: str) -> np.ndarray:
        """Returns a whole-number feature of every example."""
        return np.array([self._record(number)[key] for number in self._range], np.int32)

    def _record(self, number: int) -> dict:
        try:
            return self._source[number]
        except Exception as error:  # array_record and TFDS raise any kind
            folder = self._source.dataset_info.data_dir
            raise ValueError(
                f"{folder}: record {number} of {self._split} cannot be read ({_line(error)}); "
                "remove the folder and prepare it again"
            ) from error


def split_ranges(sizes: dict[str, int]) -> dict[str, tuple[str, int, int]]:
    """Returns (split of the set, start, stop) of our train, dev and test, from the set's sizes.

    dev is validation, or else the last 5 % of train. test is test, or else the second half of
    validation, or else the 5 % of train before dev. Raises ValueError for an empty split.
    """
    if "train" not in sizes:
        raise ValueError(f"has no train split, only {', '.join(sizes)}")
    rest = sizes["train"]
    ranges = {}
    if "validation" in sizes and "test" in sizes:
        ranges["dev"] = ("validation", 0, sizes["validation"])
    elif "validation" in sizes:
        half = sizes["validation"] // 2
        ranges["dev"] = ("validation", 0, half)
        ranges["test"] = ("validation", half, sizes["validation"])
    else:
        part = max(1, rest // 20)
        ranges["dev"] = ("train", rest - part, rest)
        rest -= part
        if "test" not in sizes:
            ranges["test"] = ("train", rest - part, rest)
            rest -= part
    if "test" in sizes:
        ranges["test"] = ("test", 0, sizes["test"])
    ranges["train"] = ("train", 0, rest)
    empty = [name for name, (_, start, stop) in ranges.items() if stop <= start]
    if empty:
        raise ValueError(f"has too few examples for {' and '.join(sorted(empty))}: {sizes}")
    return {name: ranges[name] for name in ("train", "dev", "test")}


def open_public(
    name: str, data_dir: str, *, download: bool, also: Sequence[str]
) -> tuple[str, dict[str, Documents]]:
    """Returns fingerprint and splits of a TFDS set ("pg19", "wiki40b/en", "c4/en:3.1.0").

    Raises ValueError if TFDS knows no such set (with near names, also among `also`), or if it is
    not prepared below data_dir and may not be, or could not be, downloaded.
    """
    builder, splits = _opened(name, data_dir, download, also)
    return _fingerprint(builder), splits


def open_labelled(
    name: str, data_dir: str, *, download: bool, also: Sequence[str]
) -> tuple[str, dict[str, Documents], tuple[str, ...], dict[str, np.ndarray]]:
    """Fingerprint, splits, names of the classes and each split's classes of a labelled TFDS set.

    The class is the feature `label`, a ClassLabel. Raises ValueError as `open_public` does, and for
    a set without that feature or a document without a class.
    """
    builder, splits = _opened(name, data_dir, download, also)
    features = dict(builder.info.features.items())
    label = features.get("label")
    if not isinstance(label, tfds.features.ClassLabel):
        raise ValueError(
            f"data.corpus={name} has no class label among its features "
            f"({', '.join(sorted(features))})"
        )
    classes = {split: documents.column("label") for split, documents in splits.items()}
    for split, labels in classes.items():
        if labels.min() < 0:
            raise ValueError(f"data.corpus={name} has documents without a class in {split}")
    return _fingerprint(builder), splits, tuple(label.names), classes


def open_pictures(
    name: str, data_dir: str, *, download: bool, also: Sequence[str]
) -> tuple[str, dict[str, tuple[Sequence, np.ndarray]], tuple[str, ...]]:
    """Fingerprint, by split (images [H, W, C] uint8, classes), and names of the classes of a TFDS
    set.

    The splits are train and test. Raises ValueError as `open_public` does, and for a set without
    the features image and label.
    """
    builder = _builder(name, data_dir, download, also)
    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    for key, kind in kinds.items():
        if not isinstance(builder.info.features.get(key), kind):
            raise ValueError(
                f"data.corpus={name} has no {key} among its features "
                f"({', '.join(builder.info.features)})"
            )
    ranges = _ranges(name, builder)
    splits: dict[str, tuple[Sequence, np.ndarray]] = {}
    for split in ("train", "test"):
        part, start, stop = ranges[split]
        pictures = Pictures(_source(name, builder, part), start, stop)
        splits[split] = (pictures, pictures.labels())
    return _fingerprint(builder), splits, tuple(builder.info.features["label"].names)


class Pictures(Sequence):
    """The images [H, W, C], uint8, of the examples start..stop of a TFDS data source."""

    def __init__(self, source, start: int, stop: int):
        self._source, self._range = source, range(start, stop)

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]  # no slices
        return self._source[self._range[index]]["image"]

    def labels(self) -> np.ndarray:
        """Returns the class of every image, int32."""
        return np.array([self._source[number]["label"] for number in self._range], np.int32)


def _builder(
    name: str, data_dir: str, download: bool, also: Sequence[str]
) -> tfds.core.DatasetBuilder:
    parts = _NAME.fullmatch(name)
    if parts is None or not _known(parts["set"], data_dir):
        hint = near_names(name, [*also, *_set_names()], listed=also)
        raise ValueError(f"data.corpus={name} is no corpus of ours and no TFDS set{hint}")
    folder = _prepared_folder(name, parts, data_dir)
    if folder is None:
        if not download:
            raise ValueError(
                f"data.corpus={name} is not prepared below {data_dir}; prepare it on a connected "
                f"machine with data.download=True and copy {pathlib.Path(data_dir, parts['set'])} "
                "here"
            )
        pathlib.Path(data_dir).mkdir(parents=True, exist_ok=True)
        with locked(pathlib.Path(data_dir, f".{parts['set']}.lock"), wait=True):
            folder = _prepared_folder(name, parts, data_dir) or _download(name, data_dir)
    return _reader(name, folder)


def _ranges(name: str, builder: tfds.core.DatasetBuilder) -> dict[str, tuple[str, int, int]]:
    try:
        return split_ranges({key: info.num_examples for key, info in builder.info.splits.items()})
    except ValueError as error:
        raise ValueError(f"data.corpus={name} {error}") from None


def _opened(
    name: str, data_dir: str, download: bool, also: Sequence[str]
) -> tuple[tfds.core.DatasetBuilder, dict[str, Documents]]:
    builder = _builder(name, data_dir, download, also)
    text, ranges = _text_key(name, builder), _ranges(name, builder)
    sources = {
        part: _source(name, builder, part) for part in {part for part, _, _ in ranges.values()}
    }
    splits = {
        split: Documents(sources[part], text, None, part, start, stop)
        for split, (part, start, stop) in ranges.items()
    }
    return builder, splits


def _reader(name: str, folder: str) -> tfds.core.DatasetBuilder:
    """Returns the reader of a prepared folder; ValueError for damage or a class not of TFDS."""
    features = pathlib.Path(folder, "features.json")
    if not features.exists():
        raise ValueError(f"data.corpus={name}: there is no {features}; prepare the corpus again")
    _refuse_foreign_classes(name, read_json(features))
    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # of JSON, protobuf and TFDS
        raise ValueError(
            f"data.corpus={name}: {folder} cannot be read ({_line(error)}); remove it and prepare "
            "it again"
        ) from error


def _refuse_foreign_classes(name: str, value: object) -> None:
    """Raises ValueError for a class in features.json, or in JSON in its strings, not of TFDS."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        if key in _CLASS_KEYS and isinstance(inner, str) and not inner.startswith(_OWN_CLASSES):
            raise ValueError(
                f"data.corpus={name}: its features.json names the class {inner!r:.80}; only TFDS's "
                "own are read, for another one would be imported and run"
            )
        if key == "json" and isinstance(inner, str):
            inner = json.loads(inner)
        _refuse_foreign_classes(name, inner)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _set_names() -> list[str]:
    # Sets with many languages register when their module is imported; their modules count as names.
    import tensorflow_datasets.text as text

    modules = [module.name for module in pkgutil.iter_modules(text.__path__)]
    return sorted({*tfds.list_builders(with_community_datasets=False), *modules})


def _known(name: str, data_dir: str) -> bool:
    return pathlib.Path(data_dir, name).is_dir() or name in _set_names()


def _prepared_folder(name: str, parts: re.Match, data_dir: str) -> str | None:
    root = pathlib.Path(data_dir, parts["set"])
    prepared: dict[str, list[pathlib.Path]] = {}
    for info in [*root.glob("*/dataset_info.json"), *root.glob("*/*/dataset_info.json")]:
        folder = info.parent
        config = "" if folder.parent == root else folder.parent.name
        wanted = parts["config"] in (None, config) and parts["version"] in (None, folder.name)
        if wanted and _VERSION.fullmatch(folder.name):
            prepared.setdefault(config, []).append(folder)
    if len(prepared) > 1:
        configs = " or ".join(f"{parts['set']}/{config}" for config in sorted(prepared))
        raise ValueError(f"data.corpus={name} is prepared more than once; say {configs}")
    for folders in prepared.values():
        return str(max(folders, key=lambda path: [int(part) for part in path.name.split(".")]))
    return None


def _download(name: str, data_dir: str) -> str:
    base = name.split("/")[0].split(":")[0]
    try:
        if base not in tfds.list_builders(with_community_datasets=False):
            importlib.import_module(f"tensorflow_datasets.text.{base}")
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # mirrors, proxies and missing packages raise any kind
        if isinstance(error, FileExistsError) and builder.data_path.exists():
            return str(builder.data_path)
        raise ValueError(
            f"data.corpus={name} could not be downloaded ({_line(error)}); prepare it on a "
            f"connected machine with data.download=True and copy {pathlib.Path(data_dir, base)} "
            "here"
        ) from error
    return str(builder.data_path)


def _text_key(name: str, builder: tfds.core.DatasetBuilder) -> str:
    for key in _TEXT_KEYS:
        if key in builder.info.features:
            return key
    keys = ", ".join(builder.info.features)
    raise ValueError(f"data.corpus={name} has no text among its features ({keys})")


def _source(name: str, builder: tfds.core.DatasetBuilder, split: str):
    file_format = builder.info.file_format.value
    if file_format != "array_record":
        raise ValueError(
            f"data.corpus={name} is prepared as {file_format}, which only TensorFlow reads; remove "
            f"{builder.data_path} and prepare it again with data.download=True"
        )
    return builder.as_data_source(split)


def _fingerprint(builder: tfds.core.DatasetBuilder) -> str:
    digest = hashlib.sha256(builder.info.full_name.encode())
    for split, info in sorted(builder.info.splits.items()):
        digest.update(f"\n{split} {info.num_bytes} {list(info.shard_lengths)}".encode())
    return digest.hexdigest()
