"""Atomic writes, JSON, and JSON lines, which may end in a line that a kill cut off."""

import contextlib
import gzip
import json
import os
import secrets
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO


def replace_bytes(path: Path, content: bytes) -> None:
    """Replaces a file by bytes, atomically."""
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yields a file whose content replaces that of `path` at the end of the block, atomically.

    After a kill or a power loss the old or the new content is there, whole. An error in the block
    leaves the old.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(3)}.partial")  # two may write at once
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Forces the entries of a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Replaces a file by UTF-8 text, atomically."""
    replace_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Replaces a file by JSON, atomically."""
    replace_text(path, json.dumps(value, indent=2) + "\n")


def json_lines(objects: Iterable[Mapping]) -> str:
    """Returns the objects as JSON, one a line."""
    return "".join(json.dumps(one) + "\n" for one in objects)


def read_json(path: Path, kind: type = dict):
    """Returns the JSON object (dict) or list of a file; ValueError, naming it, otherwise."""
    value = _parsed(_text(path), str(path))
    if not isinstance(value, kind):
        raise ValueError(f"{path} must hold a JSON {kind.__name__}, not a {type(value).__name__}")
    return value


def read_json_lines(path: Path) -> tuple[list[tuple[int, dict]], int]:
    """Returns the objects of a JSONL file with their line numbers, and the number of a cut-off
    line.

    Blank lines, a byte order mark and Windows line ends are ignored. A last line without a line end
    that is no JSON was cut off by a kill: it is left out and its number is returned, otherwise 0.

    Args:
      path: the file; .gz is decompressed.

    Raises:
      ValueError: another line that is no JSON object, a file that is not UTF-8, or a damaged gzip
        file, in one line that names the file.
    """
    lines = _text(path).split("\n")  # not splitlines, which also splits at U+2028
    objects: list[tuple[int, dict]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = _parsed(line, where)
        except ValueError:
            if number == len(lines) and path.suffix != ".gz":
                return objects, number
            raise
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be a JSON object, not a {type(value).__name__}")
        objects.append((number, value))
    return objects, 0


def readable_lines(path: Path) -> tuple[list[tuple[int, dict]], list[int]]:
    """Returns the objects of a JSONL log with line numbers, and the damaged lines' numbers."""
    objects, damaged = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            value = _parsed(line.decode("utf-8-sig"), "")
        except ValueError:
            value = None
        if isinstance(value, dict):
            objects.append((number, value))
        else:
            damaged.append(number)
    return objects, damaged


def _parsed(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{where} is not JSON: it is nested too deeply") from None


def _text(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is a damaged gzip file: {error}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line} is not UTF-8 (byte {error.start})") from None
