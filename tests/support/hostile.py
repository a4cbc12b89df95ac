"""Damage drawn at random: to the bytes of a file, and to one value of its JSON."""

import gzip
import json

VALUES = (
    None,
    True,
    -1,
    1.5,
    10**25,
    1e308,
    float("nan"),
    "",
    "\0",
    "é" * 300,
    [],
    [[]],
    {},
    {"a": {}},
    "<script>",
)


def unpacked(path):
    """Returns the content of a file, that of .gz decompressed."""
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


def damage_bytes(content, rng):
    """Returns a file with a flipped bit, cut, emptied, with bytes in it, or with a line twice or gone."""
    content, at = bytearray(content), int(rng.integers(max(len(content), 1)))
    lines = bytes(content).splitlines(keepends=True)
    flipped = bytearray(content)
    if flipped:
        flipped[at] ^= 1 << int(rng.integers(8))
    choices = [
        flipped,
        content[:at],
        b"",
        content + b"\0" * 9,
        b"\xef\xbb\xbf" + content,
        b"[" * 9999 + content,
        content[:at] + b"\xff" + content[at:],
        b"".join(lines[1:]),
        b"".join([*lines, *lines[:1]]),
        b"\n" + content,
        content.replace(b"rope", b"alibi"),
        content + content[:at],
    ]
    return bytes(choices[rng.integers(len(choices))])


def damage_value(value, rng):
    """Returns a JSON value in which one value somewhere is another one, or one field is missing."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = list(value)[rng.integers(len(value))]
        if rng.random() < 0.15:
            return {k: v for k, v in value.items() if k != name}
        return value | {name: damage_value(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = int(rng.integers(len(value)))
        return [*value[:at], damage_value(value[at], rng), *value[at + 1 :]]
    return VALUES[rng.integers(len(VALUES))]


def damage(path, rng):
    """Damages a file: more often than not one value, if it holds JSON, otherwise its bytes."""
    content = unpacked(path)
    if ".json" in path.name and rng.random() < 0.7:
        if ".jsonl" in path.name:
            lines = content.splitlines()
            at = int(rng.integers(len(lines)))
            lines[at] = json.dumps(damage_value(json.loads(lines[at]), rng)).encode()
            content = b"\n".join(lines) + b"\n"
        else:
            content = json.dumps(damage_value(json.loads(content), rng)).encode()
    else:
        content = damage_bytes(content, rng)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
