"""All settings as text: for --help, and as docs/settings.md."""

import dataclasses
import inspect
import re
import textwrap
import typing

from posenc_jax.model.config import Architecture
from posenc_jax.training.config import RunConfig
from posenc_jax.training.config_sections import ModelSection

WIDTH = 98
HEAD = """# Settings

Every setting of a run, by section. On the command line a setting is `--config.SECTION.NAME=VALUE`;
`python train.py --help` prints the same list. A run keeps its settings in `config.json`.
"""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting: name with section, type, default, allowed values and meaning, as text."""

    name: str
    kind: str
    default: str
    allowed: str
    meaning: str

    def line(self) -> str:
        """Returns the setting as one sentence."""
        allowed = f"; {self.allowed}" if self.allowed else ""
        return f"`{self.name}` ({self.kind}; default {self.default}{allowed}): {self.meaning}"


def settings() -> dict[str, list[Setting]]:
    """Returns the settings of every section, in the order of the sections."""
    return {
        name: [_setting(name, section, field) for field in dataclasses.fields(section)]
        for name, section in typing.get_type_hints(RunConfig).items()
    }


def settings_page() -> str:
    """Returns docs/settings.md."""
    parts = [HEAD]
    for section, known in settings().items():
        lines = "\n".join(_wrapped(f"- {setting.line()}", "  ") for setting in known)
        parts.append(f"## {section}\n\n{lines}\n")
    return "\n".join(parts)


def settings_help() -> str:
    """Returns the settings as they are typed, for --help."""
    lines = []
    for known in settings().values():
        for one in known:
            allowed = f"; {one.allowed}" if one.allowed else ""
            lines.append(f"  --config.{one.name}  ({one.kind}, default {one.default}{allowed})")
            lines.append(textwrap.indent(_wrapped(one.meaning, ""), " " * 6))
    return "\n".join(["Settings of the run:", *lines])


def meanings(section: type) -> dict[str, str]:
    """Returns what the docstring of a section says about each of its fields.

    In "a, b: text. c: text" the first text is of a and b.
    """
    names = {field.name for field in dataclasses.fields(section)}
    text = " ".join((inspect.getdoc(section) or "").partition("Attributes:")[2].split())
    found = [
        match
        for match in re.finditer(r"(?:^|(?<=[.;] ))(\w+(?:, \w+)*): ", text)
        if names.issuperset(match[1].split(", "))
    ]
    ends = [match.start() for match in found[1:]] + [len(text)]
    return {
        name: text[match.end() : end].strip()
        for match, end in zip(found, ends, strict=True)
        for name in match[1].split(", ")
    }


def _setting(section: str, kind: type, field: dataclasses.Field) -> Setting:
    low, high = field.metadata.get("bounds", ("", ""))
    allowed = f"{_number(low)} to {_number(high)}" if low != "" else ""
    if "words" in field.metadata:
        allowed = f"one of {', '.join(field.metadata['words'])}"
    type_name = getattr(field.type, "__name__", str(field.type))
    if isinstance(field.default, tuple):
        type_name, default = "list", ",".join(map(str, field.default)) or "empty"
    else:
        default = str(field.default) if field.default != "" else "empty"
    return Setting(
        f"{section}.{field.name}", type_name, default, allowed, _meaning(kind, field.name)
    )


def _meaning(section: type, name: str) -> str:
    """Returns what a section says of a field, or, of the model's, what `Architecture` says."""
    said = meanings(section)
    return (
        said[name] if name in said or section is not ModelSection else meanings(Architecture)[name]
    )


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
