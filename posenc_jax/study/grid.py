"""A study as a value: arms x learning rates x seeds, written out as a plain list of runs."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from posenc_jax.results.schema import SPLITS
from posenc_jax.results.study_data import OTHER_LENGTHS, RUNS, TUNING

TUNED_PEAK = 0.1  # of the parent's peak learning rates, in fine-tuning
UNPLANNED = "test was read without a frozen plan"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One thing that is compared.

    Attributes:
      name: of folders, tables and pictures. scheme: a line of the scheme language, or the name of one.
      overrides: settings by "section.key" that differ from the study's base, such as a head count.
      length: its own training length in tokens, 0 for the study's. The batch shrinks alike, so that
        a step has equally many tokens (the oracle that was trained at 4L).
      readings: stretches (`yarn:4`) under which its trained runs are read as well. Each is an arm of
        its own, named "<name> <stretch>", and trains nothing.
      factors: its levels in the study's factorial, such as {"rotation": "full", "bias": "linear"}.
      parent: the arm whose run of the same seed it fine-tunes, at its own `length` if it has one. It is measured in
        the study's length and stands beside the others; it is tuned with its parent and not by itself.
      peak: share of the parent's peak learning rates that a fine-tuned arm takes.
    """

    name: str
    scheme: str
    overrides: Mapping[str, object] = dataclasses.field(default_factory=dict)
    length: int = 0
    readings: tuple[str, ...] = ()
    factors: Mapping[str, str] = dataclasses.field(default_factory=dict)
    parent: str = ""
    peak: float = TUNED_PEAK


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The stage that chooses each arm's learning rate, on in-distribution dev loss alone.

    Attributes:
      rates: peaks of `optimizer.learning_rate`, ascending. Whatever else is in `scaled` moves in
        proportion, so that two optimisers keep their ratio.
      seed: its training seed; no confirmation seed may be the same. steps: 0 takes the run's own.
      scaled: settings multiplied by rate / the base's `optimizer.learning_rate`.
    """

    rates: tuple[float, ...]
    seed: int
    steps: int = 0
    scaled: tuple[str, ...] = ("optimizer.learning_rate", "optimizer.muon_learning_rate")


@dataclasses.dataclass(frozen=True)
class GridCell:
    """One run of the grid: an arm at a rate (None: the base's own) with a seed."""

    arm: Arm
    rate: float | None
    seed: int
    tuning: bool

    @property
    def setting(self) -> str:
        """What follows the colour of `--config=FILE:`, e.g. rope-s0-lr0.01."""
        slot = f"{self.arm.name}-s{self.seed}"
        return slot if self.rate is None else f"{slot}-lr{self.rate:g}"

    @property
    def name(self) -> str:
        """The run's folder: a confirmation run has one rate, so its name needs none."""
        return self.setting if self.tuning else f"{self.arm.name}-s{self.seed}"

    def folder(self, workdir: Path) -> Path:
        """Returns where the run lives.

        Tuning runs and those that began at another training length lie apart: the page compares neither
        with the runs that count.
        """
        apart = self.arm.length and not self.arm.parent
        place = TUNING if self.tuning else OTHER_LENGTHS if apart else RUNS
        return workdir / place / self.name


@dataclasses.dataclass(frozen=True)
class Study:
    """Everything a study file says.

    Attributes:
      tier: smoke, cpu, gpu or cluster. arms, seeds: of the runs that count. tuning: None where every
        arm takes the base's learning rate.
      skip: returns the reason why a run is left out, or None; reasons are written down.
      roles: for the verdict: {"rope": name, "alibi": name or names, "hybrids": [names]}, and where
        there are such arms "stretched": [names] (candidates of R+) and "oracle": name.
      split: of the rows of the runs that count: "dev" to explore, "test" for what a frozen plan reads.
      prereg: path of the frozen plan, for split "test". Without it test is read all the same, and
        study.json says so among its deviations, which the verdict prints.
      suite: what evaluate.py measures of a run that counts; empty: the run's own settings decide.
      tuning_suite: what it measures, at L and on dev, of a tuning run; it must hold bpb_ctx.
      together: whether the seeds of an arm are trained in one program, on one device.

    Raises:
      ValueError: names or seeds twice, two arms that would train the same thing, a tuning seed that is
        also a confirmation seed, rates that do not ascend, a role that no arm has, a frozen plan for dev.
    """

    tier: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    tuning: Tuning | None = None
    skip: Callable[[GridCell], str | None] = lambda cell: None
    roles: Mapping[str, object] = dataclasses.field(default_factory=dict)
    split: str = "dev"
    prereg: str = ""
    suite: str = ""
    tuning_suite: str = "E"
    together: bool = False

    def __post_init__(self):
        _check(self)

    def grid(self, rates: Mapping[str, float | None]) -> list[GridCell]:
        """Returns the runs that count, seed by seed, of the arms that have a rate."""
        cells = [
            GridCell(a, rates[a.parent or a.name], s, False)
            for s in self.seeds
            for a in self.arms
            if (a.parent or a.name) in rates
        ]
        return self._kept(cells)

    def tuning_grid(self) -> list[GridCell]:
        """Returns the runs that choose the learning rates, rate by rate; none without a tuning."""
        t = self.tuning
        arms = [arm for arm in self.arms if not arm.parent]
        cells = [GridCell(a, rate, t.seed, True) for rate in t.rates for a in arms] if t else []
        return self._kept(cells)

    def parent(self, cell: GridCell) -> GridCell | None:
        """Returns the run that a fine-tuned one begins as; None for one that begins by itself."""
        arms = {arm.name: arm for arm in self.arms}
        return dataclasses.replace(cell, arm=arms[cell.arm.parent]) if cell.arm.parent else None

    def waves(self, cells: Sequence[GridCell]) -> list[list[GridCell]]:
        """Returns the runs in the order they can be carried out: those that begin by themselves, then the others."""
        found = [[c for c in cells if bool(c.arm.parent) == tuned] for tuned in (False, True)]
        return [wave for wave in found if wave]

    def groups(self, cells: Sequence[GridCell]) -> list[tuple[GridCell, ...]]:
        """Returns the runs that one process trains: each alone, or an arm's seeds that count together."""
        found: dict[object, list[GridCell]] = {}
        for cell in cells:
            shared = self.together and not cell.tuning and not cell.arm.parent
            found.setdefault(cell.arm.name if shared else cell.name, []).append(cell)
        return [tuple(group) for group in found.values()]

    def slots(self) -> list[str]:
        """Returns the names of the runs that count, known before any rate is chosen."""
        return [cell.name for cell in self.grid({arm.name: None for arm in self.arms})]

    def skipped(self) -> dict[str, str]:
        """Returns the reason for every run that the study leaves out, by name."""
        everything = dataclasses.replace(self, skip=lambda cell: None)
        cells = everything.tuning_grid() + everything.grid({a.name: None for a in self.arms})
        return {cell.name: reason for cell in cells if (reason := self._reason(cell)) is not None}

    def cell(self, setting: str) -> GridCell:
        """Returns the run that `--config=FILE:setting` means.

        Raises:
          ValueError: no such run; or a rate that is lacking, not on the grid, or not asked for.
        """
        match = re.fullmatch(r"(.+?)-s(\d+)(?:-lr([0-9.e+-]+))?", setting)
        arms, t = {arm.name: arm for arm in self.arms}, self.tuning
        if not match or match[1] not in arms:
            near = difflib.get_close_matches(setting, self.slots(), n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(arms)}"
            raise ValueError(f"the study has no run {setting!r} (<arm>-s<seed>[-lr<rate>]); {hint}")
        rate = {f"{r:g}": r for r in (t.rates if t else ())}.get(match[3])
        if t and rate is None:
            raise ValueError(
                f"run {setting!r} needs a learning rate of the study's grid: "
                + ", ".join(f"{match[1]}-s{match[2]}-lr{r:g}" for r in t.rates)
            )
        if match[3] and not t:
            raise ValueError(f"run {setting!r} names a learning rate, but the study tunes none")
        seed, tuned = int(match[2]), t is not None and int(match[2]) == t.seed
        if tuned and arms[match[1]].parent:
            raise ValueError(f"run {setting!r}: a fine-tuned arm takes the rate of its parent and is not tuned")  # fmt: skip
        if not tuned and seed not in self.seeds:
            raise ValueError(f"run {setting!r}: seed {seed} is not of the study; seeds: {', '.join(map(str, self.seeds))}")  # fmt: skip
        return GridCell(arms[match[1]], rate, seed, tuned)

    def fill(self, setting: str, base):
        """Writes the run's own settings into the base configuration, and returns it.

        Args:
          setting: see `cell`. base: section -> key -> value, changed in place (a ConfigDict or dicts).

        Raises:
          ValueError: an override of something that is no setting, or a length that does not keep the
            tokens of a step equal.
        """
        cell = self.cell(setting)
        arm, train = cell.arm, base["train"]
        if arm.parent:
            train["original_length"] = train["length"]
            train["init_from"] = self.parent(cell).name  # Course knows the folder
        if arm.length:
            tokens = train["batch_size"] * train["length"]
            if tokens % arm.length:
                raise ValueError(
                    f"arm {arm.name!r}: {tokens} tokens a step are no whole number of rows of "
                    f"length={arm.length}; choose a length that divides them"
                )
            train["batch_size"], train["length"] = tokens // arm.length, arm.length
        base["model"]["scheme"] = arm.scheme
        train["arm"], train["tier"], train["seed"] = arm.name, self.tier, cell.seed
        if cell.rate is not None:
            factor = cell.rate / base["optimizer"]["learning_rate"]
            for place in self.tuning.scaled:
                section, key = _place(place, base, "tuning.scaled")
                section[key] = section[key] * factor
            base["optimizer"]["learning_rate"] = cell.rate  # exactly, not up to a rounding
        if arm.parent:
            for name in ("learning_rate", "muon_learning_rate"):
                base["optimizer"][name] *= arm.peak
        for place, value in arm.overrides.items():
            section, key = _place(place, base, f"arm {arm.name!r}")
            section[key] = value
        if cell.tuning and self.tuning.steps:
            train["steps"] = self.tuning.steps
        return base

    def record(self) -> dict:
        """Returns what report and verdict read about the study, as JSON values."""
        readings = [f"{a.name} {rule}" for a in self.arms for rule in a.readings]
        return {
            "tier": self.tier,
            "arms": [arm.name for arm in self.arms] + readings,
            "seeds": list(self.seeds),
            "factors": {arm.name: dict(arm.factors) for arm in self.arms if arm.factors},
            "roles": dict(self.roles),
            "split": self.split,
            "deviations": [UNPLANNED] if self.split == "test" and not self.prereg else [],
            "skipped": self.skipped(),
        }

    def _kept(self, cells: Sequence[GridCell]) -> list[GridCell]:
        return unique([cell for cell in cells if self._reason(cell) is None])

    def _reason(self, cell: GridCell) -> str | None:
        parent = self.parent(cell)
        if parent is not None and self.skip(parent) is not None:
            return f"{parent.name}, which it would fine-tune, is left out"
        return self.skip(cell)


def group_name(cells: Sequence[GridCell]) -> str:
    """Returns the name of runs that are trained together, e.g. rope-s0+1+2; of one, its own."""
    return "+".join([cells[0].name, *(str(cell.seed) for cell in cells[1:])])


def unique(cells: Sequence[GridCell]) -> list[GridCell]:
    """Returns the runs in their order, each once, so that grids can be added as lists.

    Raises:
      ValueError: two different runs would share a folder.
    """
    found: dict[tuple[bool, str], GridCell] = {}
    for cell in cells:
        if found.setdefault((cell.tuning, cell.name), cell) != cell:
            raise ValueError(f"two different runs are called {cell.name!r}; rename an arm")
    return list(found.values())


def _place(place: str, base, who: str):
    section, _, key = place.partition(".")
    if section not in base or key not in base[section]:
        raise ValueError(f"{who}: {place!r} is not a setting; write section.key, e.g. model.num_heads")  # fmt: skip
    return base[section], key


ROLES = {"rope", "alibi", "hybrids", "stretched", "oracle"}
ONE = ("rope", "oracle")  # roles of one arm
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~=-]*")


def _check(s: "Study") -> None:
    """Raises ValueError for a `Study` with names or seeds twice, or parts that do not belong together."""
    names = [arm.name for arm in s.arms]
    for name in names:
        if not NAME.fullmatch(name) or re.search(r"-s\d+(-|$)", name):
            raise ValueError(f"arm {name!r}: a name is a folder: letters, digits and ._+~=-, no -s<number>")  # fmt: skip
    for what, values in (("arm", names), ("seed", s.seeds)):
        twice = {v for v in values if list(values).count(v) > 1}
        if twice or not values:
            raise ValueError(f"a study needs {what}s, each once; twice: {sorted(twice)}")
    trained: dict[tuple, str] = {}
    for arm in s.arms:
        what = (arm.scheme, repr(sorted(arm.overrides.items())), arm.length, arm.parent, arm.peak)
        other = trained.setdefault(what, arm.name)
        if other != arm.name:
            raise ValueError(f"arms {other!r} and {arm.name!r} train the same thing; make one a reading of the other, or drop it")  # fmt: skip
        if arm.length < 0 or len(set(arm.readings)) < len(arm.readings):
            raise ValueError(f"arm {arm.name!r}: a negative length, or a reading twice")
        if not 0 < arm.peak <= 1 or (arm.peak != type(arm).peak and not arm.parent):
            raise ValueError(
                f"arm {arm.name!r}: peak={arm.peak:g} is a share, up to 1, of the rates of its parent"
            )
        if arm.parent and not any(
            a.name == arm.parent and not (a.parent or a.length) for a in s.arms
        ):
            raise ValueError(
                f"arm {arm.name!r}: parent {arm.parent!r} must be an arm of the study's length that begins by itself"
            )
    if s.tuning:
        rates = s.tuning.rates
        if len(rates) < 2 or list(rates) != sorted(set(rates)) or rates[0] <= 0:
            raise ValueError(f"tuning.rates must be two or more, positive and ascending, not {rates}")  # fmt: skip
        if s.tuning.seed in s.seeds:
            raise ValueError(
                f"tuning.seed={s.tuning.seed} is also a seed that counts: a run that chose its own "
                "rate is no fresh evidence; tune on another seed"
            )
    known = {*names, *(f"{a.name} {rule}" for a in s.arms for rule in a.readings)}
    named = [n for arms in s.roles.values() for n in ([arms] if isinstance(arms, str) else arms)]
    lacking = sorted({*named} - known) + sorted({*s.roles} - ROLES)
    if lacking:
        raise ValueError(f"roles name what the study has not: {', '.join(lacking)}")
    for role in ONE:
        if not isinstance(s.roles.get(role, ""), str):
            raise ValueError(f"roles[{role!r}] is one arm, not a list: {s.roles[role]}")
    if s.split not in SPLITS:
        raise ValueError(f"split must be {' or '.join(SPLITS)}, not {s.split!r}")
    if s.prereg and s.split != "test":
        raise ValueError(f'prereg={s.prereg} belongs to split="test"; the study reads {s.split}')
