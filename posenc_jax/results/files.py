"""Files that are whole or absent: atomic writes, JSON, and JSON lines with the damage a kill can leave."""

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path


def replace_bytes(path: Path, content: bytes) -> None:
    """Writes a file by way of a temporary one, so that a kill or a power loss leaves the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def replace_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, whole or not at all."""
    replace_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Writes JSON, whole or not at all."""
    replace_text(path, json.dumps(value, indent=2) + "\n")


def json_lines(objects: Iterable[Mapping]) -> str:
    """Returns one JSON object a line."""
    return "".join(json.dumps(one) + "\n" for one in objects)


def read_json(path: Path, kind: type = dict):
    """Returns the JSON value that a file holds, of that kind: an object (dict) or a list.

    Raises:
      ValueError: anything else, in one line that names the file.
    """
    value = _parsed(_text(path), str(path))
    if not isinstance(value, kind):
        raise ValueError(f"{path} must hold a JSON {kind.__name__}, not a {type(value).__name__}")
    return value


def read_json_lines(path: Path) -> tuple[list[tuple[int, dict]], int]:
    """Returns the objects of a JSONL file, each with the number of its line, and the line that was cut off.

    Blank lines, a byte order mark and Windows line ends change nothing. A last line that does not end
    and is no JSON was cut off by a kill: it is left out and its number returned, otherwise 0.

    Args:
      path: the file; one that ends in .gz is unpacked.

    Raises:
      ValueError: any other line that is no JSON object, or a file that is not UTF-8 or no whole gzip,
        in one line that names the file.
    """
    lines = _text(path).split("\n")  # not splitlines: U+2028 and its like end no line of JSON
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = _parsed(line, where)
        except ValueError:
            if number == len(lines) and path.suffix != ".gz":
                return found, number
            raise
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be a JSON object, not a {type(value).__name__}")
        found.append((number, value))
    return found, 0


def _parsed(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{where} is not JSON that we write: it is nested too deeply") from None


def _text(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is no whole gzip file: {error}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line} is not UTF-8 (byte {error.start})") from None
