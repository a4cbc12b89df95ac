"""What a checkpoint's folder holds, byte for byte: sealed before it gets its name, verified before it is read."""

import hashlib
import json
import os
from pathlib import Path

NAME = "manifest.json"


class CorruptedCheckpoint(ValueError):
    """A checkpoint that is not what was written; says which file, and how."""


def seal(folder: Path, contents: dict) -> None:
    """Writes the manifest of every file below `folder`, and forces all of them to disk.

    Args:
      folder: finished, but not yet under the name by which a reader finds it.
      contents: what the checkpoint says of itself, in JSON's types; `verify` hands it back.
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
    """Returns the contents that `seal` was given, once every byte below `folder` is what it was then.

    Names in the manifest are compared with those in the folder and never opened, so it can lead nowhere.

    Raises:
      Damaged: anything else: a changed, missing or additional file, a link, or a changed manifest.
    """
    found = _files(folder)
    found.pop(NAME, None)
    body = read(folder)
    for name in sorted(body["files"].keys() | found.keys()):
        if name not in found:
            raise CorruptedCheckpoint(f"{name} is missing")
        if name not in body["files"]:
            raise CorruptedCheckpoint(f"{name} does not belong to it")
        _compare(name, found[name], body["files"][name])
    return body["contents"]


def read(folder: Path) -> dict:
    """Returns the contents and the list of files of a manifest that is whole; opens no other file.

    Raises:
      Damaged: there is none, or it was changed.
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
    """Forces a folder's list of names to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _compare(name: str, path: Path, said: dict) -> None:
    size = path.stat().st_size
    if size != said["bytes"]:
        raise CorruptedCheckpoint(f"{name} has {size} bytes instead of {said['bytes']}")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != said["sha256"]:
            raise CorruptedCheckpoint(f"{name} has other bytes than were written")


def _files(folder: Path) -> dict[str, Path]:
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise CorruptedCheckpoint(f"{name} is a link")
        if path.is_file():
            found[name] = path
        elif not path.is_dir():
            raise CorruptedCheckpoint(f"{name} is neither a file nor a folder")
    return found


def _text(body: dict) -> str:
    """Returns the one text of a manifest: with a digest of itself, and no byte that could be another."""
    digest = hashlib.sha256(_json(body).encode()).hexdigest()
    return _json({**body, "sha256": digest}) + "\n"


def _json(value: dict) -> str:
    return json.dumps(value, indent=1, sort_keys=True)
