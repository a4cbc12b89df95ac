"""Manifest of a checkpoint folder: sizes and SHA-256 of its files, written last, verified first."""

import hashlib
import json
import os
from pathlib import Path

NAME = "manifest.json"


class CorruptedCheckpoint(ValueError):
    """A checkpoint that differs from what was written; names the file and the difference."""


def seal(folder: Path, contents: dict) -> None:
    """Writes the manifest of all files below `folder`, and forces them to disk.

    Args:
      folder: complete, before its final rename.
      contents: description of the checkpoint, of JSON's types; `verify` returns it.
    """
    files = {}
    for name, path in _files(folder).items():
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        files[name] = {"bytes": path.stat().st_size, "sha256": digest}
    body = {"contents": contents, "files": files}
    with (folder / NAME).open("w") as file:
        file.write(_text(body))
        file.flush()
        os.fsync(file.fileno())
    for path in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
        sync_folder(path)


def verify(folder: Path) -> dict:
    """Returns the contents given to `seal` if every byte below `folder` is unchanged.

    Names in the manifest are only compared with those in the folder and never opened, so a manifest cannot
    lead to other files.

    Raises:
      CorruptedCheckpoint: a changed, missing or additional file, a link, or a changed manifest.
    """
    files = _files(folder)
    files.pop(NAME, None)
    body = read(folder)
    for name in sorted(body["files"].keys() | files.keys()):
        if name not in files:
            raise CorruptedCheckpoint(f"{name} is missing")
        if name not in body["files"]:
            raise CorruptedCheckpoint(f"{name} does not belong to it")
        _compare(name, files[name], body["files"][name])
    return body["contents"]


def read(folder: Path) -> dict:
    """Returns the contents and the list of files of a sound manifest; opens no other file.

    Raises:
      CorruptedCheckpoint: no manifest, or a changed one.
    """
    path = folder / NAME
    if path.is_symlink() or not path.is_file():
        raise CorruptedCheckpoint(f"no {NAME}, so its save never ended, or it was made by hand")
    try:
        text = path.read_bytes().decode()
        stored = json.loads(text)
        body = {"contents": dict(stored["contents"]), "files": dict(stored["files"])}
    except (ValueError, LookupError, TypeError, RecursionError):
        raise CorruptedCheckpoint(f"{NAME} cannot be read") from None
    if text != _text(body):
        raise CorruptedCheckpoint(f"{NAME} was changed")
    return body


def sync_folder(path: Path) -> None:
    """Forces the entries of a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _compare(name: str, path: Path, entry: dict) -> None:
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise CorruptedCheckpoint(f"{name} has {size} bytes instead of {entry['bytes']}")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
            raise CorruptedCheckpoint(f"{name} has other bytes than were written")


def _files(folder: Path) -> dict[str, Path]:
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise CorruptedCheckpoint(f"{name} is a link")
        if path.is_file():
            files[name] = path
        elif not path.is_dir():
            raise CorruptedCheckpoint(f"{name} is neither a file nor a folder")
    return files


def _text(body: dict) -> str:
    """Returns the canonical text of a manifest, with a digest of itself."""
    digest = hashlib.sha256(_json(body).encode()).hexdigest()
    return _json({**body, "sha256": digest}) + "\n"


def _json(value: dict) -> str:
    return json.dumps(value, indent=1, sort_keys=True)
