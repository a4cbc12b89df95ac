"""Files that are whole or absent: atomic writes, and JSON lines."""

import json
import os
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
