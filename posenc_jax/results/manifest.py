"""Manifest of a folder: size and SHA-256 of every file, written last, verified before reading."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from posenc_jax.results.files import replace_text, sync_folder
from posenc_jax.results.record_schema import COUNT, TEXT, check

NAME = "manifest.json"
_ENTRY = {"bytes": COUNT, "sha256": TEXT}


class Corrupted(ValueError):
    """A folder or a file that differs from what was written; names the file and the difference."""


def seal(folder: Path, contents: dict) -> None:
    """Writes the manifest of all files below `folder`, and forces them to disk.

    Args:
      folder: complete, before its final rename.
      contents: description of what the folder holds, of JSON's types; `verify` returns it.
    """
    files = {}
    for name, path in _files(folder).items():
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        files[name] = {"bytes": path.stat().st_size, "sha256": digest}
    for path in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
        sync_folder(path)
    replace_text(folder / NAME, _text({"contents": contents, "files": files}))


def verify(folder: Path) -> dict:
    """Returns the contents given to `seal` if every byte below `folder` is unchanged.

    Names in the manifest are only compared with those in the folder and never opened, so a manifest
    cannot lead to other files.

    Raises:
      Corrupted: a changed, missing, additional or unreadable file, a link, or a changed manifest.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise Corrupted("it is a link or no folder")
    try:
        files = _files(folder)
        files.pop(NAME, None)
        body = read(folder)
        for name in sorted(body["files"].keys() | files.keys()):
            if name not in files:
                raise Corrupted(f"{name} is missing")
            if name not in body["files"]:
                raise Corrupted(f"{name} does not belong to it")
            _compare(name, files[name], body["files"][name])
    except PermissionError:
        raise  # of the user, not of the disk
    except OSError as error:
        raise Corrupted(f"{error.filename or folder} cannot be read: {error.strerror}") from None
    return body["contents"]


def read(folder: Path) -> dict:
    """Returns contents and files of an unchanged manifest; Corrupted if missing or changed."""
    path = folder / NAME
    if path.is_symlink() or not path.is_file():
        raise Corrupted(f"no {NAME}, so it was never finished, or was made by hand")
    try:
        text = path.read_bytes().decode()
        stored = json.loads(text)
        body = {"contents": dict(stored["contents"]), "files": dict(stored["files"])}
    except (ValueError, LookupError, TypeError, RecursionError):
        raise Corrupted(f"{NAME} cannot be read") from None
    if text != _text(body):
        raise Corrupted(f"{NAME} was changed")
    for name, entry in body["files"].items():
        checked(entry, _ENTRY, f"{NAME}, {name}")
    return body


def checked(record: object, kinds: Mapping, where: str) -> dict:
    """Returns the record; Corrupted unless every field of `kinds` is there and of its kind."""
    if not isinstance(record, dict):
        raise Corrupted(f"{where} must be an object, not {record!r:.60}")
    try:
        check(record, kinds, where, kinds)
    except ValueError as error:
        raise Corrupted(str(error)) from None
    return record


def _compare(name: str, path: Path, entry: dict) -> None:
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise Corrupted(f"{name} has {size} bytes instead of {entry['bytes']}")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
            raise Corrupted(f"{name} has other bytes than were written")


def _files(folder: Path) -> dict[str, Path]:
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise Corrupted(f"{name} is a link")
        if path.is_file():
            files[name] = path
        elif not path.is_dir():
            raise Corrupted(f"{name} is neither a file nor a folder")
    return files


def _text(body: dict) -> str:
    """Returns the canonical text of a manifest, with a digest of itself."""
    digest = hashlib.sha256(_json(body).encode()).hexdigest()
    return _json({**body, "sha256": digest}) + "\n"


def _json(value: dict) -> str:
    return json.dumps(value, indent=1, sort_keys=True)
