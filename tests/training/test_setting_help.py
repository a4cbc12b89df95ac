"""Settings as text: --help and docs/settings.md say every one, from the sections themselves."""

import dataclasses

import pytest
from posenc_jax.training.config import RunConfig
from posenc_jax.training.setting_help import meanings, settings, settings_help, settings_page

from support.entries import ROOT, typed


def test_every_setting_has_its_default_and_a_meaning():
    said = {one.name: one for known in settings().values() for one in known}
    config = RunConfig()
    for section in dataclasses.fields(RunConfig):
        for field in dataclasses.fields(section.type):
            one = said.pop(f"{section.name}.{field.name}")
            value = getattr(getattr(config, section.name), field.name)
            assert one.default in (
                str(value),
                ",".join(map(str, value)) if isinstance(value, tuple) else "",
                "empty",
            )
            assert len(one.meaning) > 8, one.name
    assert said == {}


def test_the_page_of_settings_is_what_the_sections_say():
    assert (ROOT / "docs" / "settings.md").read_text() == settings_page()


def test_a_field_without_a_meaning_is_an_error():
    @dataclasses.dataclass
    class Section:
        """One.

        Attributes:
          a, b: two. c: three; d: not a sentence of its own but
            the rest: of it.
        """

        a: int
        b: int
        c: int

    assert meanings(Section) == {
        "a": "two.",
        "b": "two.",
        "c": "three; d: not a sentence of its own but the rest: of it.",
    }
    Section.__doc__ = Section.__doc__.replace("c: ", "the third: ")
    assert "c" not in meanings(Section)


@pytest.mark.parametrize("script", ["train.py", "scripts/report.py"])
def test_help_says_the_flags_and_the_settings(script):
    done = typed(script, "--help")
    assert done.returncode == 0, done.stderr
    assert "--workdir" in done.stdout
    assert (settings_help() in done.stdout) == (script == "train.py")
    if script == "train.py":
        assert (
            "--config.train.steps  (int, default 1,000" in done.stdout
            or "--config.train.steps  (int, default 1000" in done.stdout
        )
