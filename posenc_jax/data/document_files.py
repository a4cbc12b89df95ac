"""Text files as documents: files of a folder, and the split of each."""

import dataclasses
import hashlib
import os
import pathlib
import sysconfig
from collections.abc import Iterable, Sequence

SPLITS = ("train", "dev", "test")
_SHARES = (0.85, 0.05, 0.10)
_SUFFIXES = (".txt", ".md")
_TESTS = {"test", "tests", "idle_test"}
_TABLES_AND_PROGRAMS = {"encodings", "pydoc_data", "idlelib", "turtledemo"}
_NOT_IN_EVERY_PYTHON = {"distutils", "lib2to3", "ensurepip", "site-packages", "dist-packages"}
_NOT_LIBRARY = _TESTS | _TABLES_AND_PROGRAMS | _NOT_IN_EVERY_PYTHON


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A document on disk: its split, its name in the corpus and the SHA-256 of its bytes."""

    split: str
    name: str
    path: pathlib.Path
    digest: str

    def read(self) -> bytes:
        """Returns the bytes of the file; ValueError if they changed since it was listed."""
        text = self.path.read_bytes()
        if hashlib.sha256(text).hexdigest() != self.digest:
            raise ValueError(f"{self.path} changed while the corpus was prepared; start again")
        return text


def fingerprint(files: Iterable[TextFile]) -> str:
    """Returns SHA-256 over splits, names and contents, for any order of the files."""
    lines = sorted(f"{file.split}\0{file.name}\0{file.digest}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def split_by_hash(
    units: Iterable[str], splits: Sequence[str] = SPLITS, shares: Sequence[float] = _SHARES
) -> dict[str, str]:
    """Returns the split of each unit by the SHA-256 of its name, independent of other units.

    A split that would be empty takes the units with the nearest hashes. Needs at least one unit per
    split.
    """
    hashed = {
        unit: int(hashlib.sha256(unit.encode()).hexdigest()[:8], 16) / 2**32 for unit in units
    }
    order = sorted(hashed, key=lambda unit: (hashed[unit], unit))
    assert len(order) >= len(splits)
    result, start, edge = {}, 0, 0.0
    for k, (split, share) in enumerate(zip(splits, shares, strict=True)):
        edge += share
        below = sum(hashed[unit] < edge for unit in order)
        later = len(splits) - 1 - k
        stop = min(max(below, start + 1), len(order) - later) if later else len(order)
        result.update(dict.fromkeys(order[start:stop], split))
        start = stop
    return result


def python_stdlib_files() -> list[TextFile]:
    """Returns the source files of this interpreter's standard library, split by top-level module.

    Left out: tests, tables (encodings, pydoc_data), programs (idlelib, turtledemo), packages that
    some Pythons lack (distutils, lib2to3, ensurepip) and the record of the machine that built this
    Python.
    """
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    paths = {}
    for path in _library_files(root):
        name = path.relative_to(root)
        built_here = name.parts[0].startswith(("_sysconfigdata", "config-"))
        if not built_here and path.stat().st_size:
            paths[name.as_posix()] = path
    module = {name: name.split("/")[0].removesuffix(".py") for name in paths}
    if len(set(module.values())) < len(SPLITS):
        raise ValueError(
            f"data.corpus=python_stdlib: {root} holds no Python sources; use "
            "data.corpus=text_folder"
        )
    split = split_by_hash(set(module.values()))
    return [
        TextFile(split[module[name]], name, path, _utf8_digest(path)[0])
        for name, path in paths.items()
    ]


def _library_files(root: pathlib.Path) -> list[pathlib.Path]:
    """Returns the .py files of a standard library, sorted, without site-packages."""
    found = []
    for folder, inside, names in os.walk(root):
        inside[:] = set(inside) - _NOT_LIBRARY
        found += [pathlib.Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(found)


def text_folder_files(folder: str | None) -> list[TextFile]:
    """Returns the .txt and .md files below a folder, each in one split.

    Subfolders train/, validation/ and test/ are the splits (without test/, validation/ is halved by
    file name). Without train/ and validation/ the hash of the relative path decides; copies of a
    file have one split. Raises ValueError for a missing or empty folder, too few files, and a file
    that is not UTF-8.
    """
    if not folder:
        raise ValueError(
            "data.folder is not set; data.corpus=text_folder reads the text files below it"
        )
    root = pathlib.Path(folder)
    if not root.is_dir():
        raise ValueError(f"data.folder={folder} is not a folder")
    paths = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.suffix.lower() in _SUFFIXES and path.is_file() and not hidden:
            paths[name.as_posix()] = path
    digests = {name: _utf8_digest(path) for name, path in paths.items()}
    digest = {name: digest for name, (digest, size) in digests.items() if size}
    if not digest:
        raise ValueError(f"data.folder={folder} holds no text: put .txt or .md files there")
    if (root / "train").is_dir() and (root / "validation").is_dir():
        split = _split_of_folders(folder, digest)
    else:
        split = _split_of_contents(folder, digest)
    return [TextFile(split[name], name, paths[name], digest[name]) for name in split]


def _split_of_folders(folder: str, digest: dict[str, str]) -> dict[str, str]:
    inside = {
        part: [name for name in digest if name.startswith(part + "/")]
        for part in ("train", "validation", "test")
    }
    split = dict.fromkeys(inside["train"], "train")
    if inside["test"]:
        split |= dict.fromkeys(inside["validation"], "dev") | dict.fromkeys(inside["test"], "test")
    elif len(inside["validation"]) >= 2:
        split |= split_by_hash(inside["validation"], ("dev", "test"), (0.5, 0.5))
    missing = sorted(set(SPLITS) - set(split.values()))
    if missing:
        raise ValueError(
            f"data.folder={folder}: no text for {' and '.join(missing)}; train/ needs a file, and "
            "validation/ two, or one beside a test/ with one"
        )
    first: dict[str, str] = {}
    for name, where in split.items():
        other = first.setdefault(digest[name], name)
        if split[other] != where:
            raise ValueError(
                f"data.folder={folder}: {other} and {name} are the same text in two splits; remove "
                "one"
            )
    return split


def _split_of_contents(folder: str, digest: dict[str, str]) -> dict[str, str]:
    first: dict[str, str] = {}
    for name, content in digest.items():
        first.setdefault(content, name)
    if len(first) < len(SPLITS):
        raise ValueError(
            f"data.folder={folder} holds {len(first)} different text file(s); train, dev and test "
            "need one each, so put at least 3 there"
        )
    split = split_by_hash(first.values())
    return {name: split[first[content]] for name, content in digest.items()}


def _utf8_digest(path: pathlib.Path) -> tuple[str, int]:
    text = path.read_bytes()
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte {error.start} (0x{text[error.start]:02x}); convert or "
            "remove it"
        ) from None
    return hashlib.sha256(text).hexdigest(), len(text)
