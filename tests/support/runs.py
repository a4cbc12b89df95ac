"""Tiny runs for tests: the smoke configuration, shortened."""

import json
from pathlib import Path

from configs import smoke
from posenc_jax.training.config import RunConfig, from_sections
from posenc_jax.training.loop import train


def config(data_dir, scheme="rope+alibi", **changes) -> RunConfig:
    """The smoke configuration with changes like train={"steps": 4}."""
    sections = smoke.get_config(scheme).to_dict()
    sections["data"]["data_dir"] = str(data_dir)
    sections["train"] |= {"steps": 12, "log_every": 1, "save_every": 6}
    sections["evaluation"] |= {"stretches": 4, "instances": 10}
    for section, values in changes.items():
        sections[section] |= values
    return from_sections(sections)


def finished(run: RunConfig, workdir: Path) -> list[dict]:
    """Trains to the end and returns the metrics rows."""
    train(run, workdir, "a test")
    return rows(workdir / "metrics.jsonl")


def rows(path: Path) -> list[dict]:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
