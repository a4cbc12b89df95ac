"""The committed results that the ledger of claims reads, and tests over seeds of what they hold."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from posenc_jax.results.files import read_json, read_json_lines
from posenc_jax.results.load import load
from posenc_jax.results.published_folder import PUBLISHED
from posenc_jax.results.study_data import RunData, StudyData

# Arms of each published study by the role that a claim asks for. A new study is a line.
STUDIES: Mapping[str, Mapping[str, str]] = {
    "quickstart": {"rope": "rope", "alibi": "alibi", "sum": "rope+alibi"},
    "cpu": {"rope": "rope", "alibi": "alibi-match", "sum": "sum", "yarn": "rope yarn:4"},
    "screening": {"rope": "rope", "alibi": "alibi-match", "sum": "sum", "yarn": "rope yarn:4"},
    "claims": {"rope": "rope", "alibi": "alibi", "sinusoidal": "sinusoidal"},
}

NOWHERE = "none here"  # source of a finding without rows

Quantity = Callable[[RunData], float | None]


class Evidence:
    """Published folders below a root, read once each.

    Args:
      root: the folder `results`.
    """

    def __init__(self, root: Path):
        self._root = root
        self.study = functools.cache(self._study)

    def _study(self, name: str) -> StudyData | None:
        """Returns a published study, or None where its folder is not there."""
        folder = self._root / name
        return load(folder) if (folder / PUBLISHED).exists() else None

    def with_roles(self, *roles: str) -> list[tuple[str, StudyData, Mapping[str, str]]]:
        """Returns (name, study, arm by role) of the published studies with these roles."""
        return [
            (name, data, arms)
            for name, arms in STUDIES.items()
            if set(roles) <= arms.keys() and (data := self.study(name)) is not None
        ]

    def bench(self, path: str) -> Mapping | None:
        """Returns the JSON of a bench, such as bench/step/step.json, or None."""
        file = self._root / path
        return read_json(file) if file.exists() else None

    def lines(self, path: str) -> list[dict]:
        """Returns the objects of a JSONL file; none where there is no file."""
        file = self._root / path
        return [row for _, row in read_json_lines(file)[0]] if file.exists() else []

    def commands(self, sources: Sequence[str], awaited: Sequence[str]) -> list[str]:
        """Returns the commands that made the rows of sources, and those that awaited rows need."""
        found: dict[str, None] = {}
        for source in dict.fromkeys(source for source in sources if source != NOWHERE):
            path = source.removeprefix("results/")
            if path in STUDIES or path == "longtext":
                found[_study_command(f"configs/studies/{path}.py")] = None
            elif path.endswith(".json"):
                found[(self.bench(path) or {})["command"]] = None
            elif path.endswith(".jsonl"):
                found |= dict.fromkeys(row["command"] for row in self.lines(path))
            else:
                found[source] = None  # computed here
        found |= dict.fromkeys(_study_command(file) for file in awaited)
        return list(found)


def _study_command(file: str) -> str:
    return f"python scripts/study.py --study={file} --workdir=studies/{Path(file).stem}"


def by_seed(data: StudyData, arm: str, quantity: Quantity) -> dict[int, float | None]:
    """Returns a quantity of every run of an arm, by seed; runs that may not count are left out."""
    runs = [r for r in (*data.runs, *data.elsewhere) if r.arm == arm and not r.why]
    return {run.seed: quantity(run) for run in runs}


def bpb(k: float) -> Quantity:
    """Returns the quantity bpb_ctx after k times L tokens; k = 1/2 is within L."""
    return lambda run: run.value("bpb_ctx", k)
