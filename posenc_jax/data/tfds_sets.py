"""TFDS sets by name: opened from prepared folders, with splits train, dev and test.

A prepared folder describes itself, so reading needs no TensorFlow, Beam or network; a connected machine
must have prepared it.
"""

import hashlib
import importlib
import pathlib
import pkgutil
import re
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds

from posenc_jax.results.near_names import near_names

# Names of the text feature, in order of preference.
_TEXT_KEYS = ("text", "book_text", "passage", "article", "document", "content")
_NAME = re.compile(r"(?P<set>\w+)(/(?P<config>[\w.\-]+))?(:(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class Documents(Sequence):
    """(name, text) pairs of the examples start..stop of a TFDS data source."""

    def __init__(self, source, text: str, name: str | None, split: str, start: int, stop: int):
        self._source = source
        self._text_key, self._name_key = text, name
        self._split = split
        self._range = range(start, stop)

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, index: int) -> tuple[str, bytes]:
        number = self._range[index]
        record = self._source[number]
        if self._name_key is None:
            return f"{self._split}[{number}]", bytes(record[self._text_key])
        return record[self._name_key].decode(), bytes(record[self._text_key])

    def column(self, key: str) -> np.ndarray:
        """Returns a whole-number feature of every example."""
        return np.array([self._source[number][key] for number in self._range], np.int32)


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
            f"data.corpus={name} has no class label among its features ({', '.join(sorted(features))})"
        )
    classes = {split: documents.column("label") for split, documents in splits.items()}
    for split, labels in classes.items():
        if labels.min() < 0:
            raise ValueError(f"data.corpus={name} has documents without a class in {split}")
    return _fingerprint(builder), splits, tuple(label.names), classes


def _opened(
    name: str, data_dir: str, download: bool, also: Sequence[str]
) -> tuple[tfds.core.DatasetBuilder, dict[str, Documents]]:
    parts = _NAME.fullmatch(name)
    if parts is None or not _known(parts["set"], data_dir):
        hint = near_names(name, [*also, *_set_names()], listed=also)
        raise ValueError(f"data.corpus={name} is no corpus of ours and no TFDS set{hint}")
    folder = _prepared_folder(name, parts, data_dir)
    if folder is None:
        if not download:
            raise ValueError(
                f"data.corpus={name} is not prepared below {data_dir}; prepare it on a connected machine "
                f"with data.download=True and copy {pathlib.Path(data_dir, parts['set'])} here"
            )
        folder = _download(name, data_dir)
    builder = tfds.builder_from_directory(folder)
    text = _text_key(name, builder)
    try:
        ranges = split_ranges({key: info.num_examples for key, info in builder.info.splits.items()})
    except ValueError as error:
        raise ValueError(f"data.corpus={name} {error}") from None
    sources = {
        part: _source(name, builder, part) for part in {part for part, _, _ in ranges.values()}
    }
    splits = {
        split: Documents(sources[part], text, None, part, start, stop)
        for split, (part, start, stop) in ranges.items()
    }
    return builder, splits


def _set_names() -> list[str]:
    # Sets with many languages register when their module is imported; their modules count as names.
    import tensorflow_datasets.text as text

    modules = [module.name for module in pkgutil.iter_modules(text.__path__)]
    return sorted({*tfds.list_builders(with_community_datasets=False), *modules})


def _known(name: str, data_dir: str) -> bool:
    return pathlib.Path(data_dir, name).is_dir() or name in _set_names()


def _prepared_folder(name: str, parts: re.Match, data_dir: str) -> str | None:
    root = pathlib.Path(data_dir, parts["set"])
    prepared = {}
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
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"data.corpus={name} could not be downloaded ({type(error).__name__}: {reason}); prepare it on a "
            f"connected machine with data.download=True and copy {pathlib.Path(data_dir, base)} here"
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
