"""The grid of a study: arms x learning rates x seeds, as a list of runs."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from posenc_jax.results.near_names import near_names
from posenc_jax.results.schema import SPLITS
from posenc_jax.results.study_data import OTHER_LENGTHS, RUNS, TUNING

TUNED_PEAK = 0.1  # default share of the parent's peak learning rates in fine-tuning
UNPLANNED = "test was read without a frozen plan"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One treatment that a study compares.

    Attributes:
      name: in folders, tables and figures. scheme: a line of the scheme grammar, or a preset.
      overrides: settings by "section.key" that differ from the base configuration, such as a head
        count.
      length: its own training length in tokens, 0: the study's. Every step keeps its number of
        tokens.
      readings: stretches (`yarn:4`) that also evaluate its runs, each an arm named "<name>
        <stretch>".
      factors: its levels in the factorial of the study, such as {"rotation": "full", "bias":
        "linear"}.
      parent: the arm whose run of the same seed it fine-tunes, at its own `length` if it has one.
        It is measured in units of the study's length, and takes the tuned learning rate of its
        parent.
      peak: a fine-tuned arm's peak learning rates, as a share of its parent's.
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
    """The search for the learning rate of every arm, by in-distribution loss on dev.

    Attributes:
      rates: peaks of `optimizer.learning_rate`, ascending.
      seed: training seed of the search; no run that counts may have it. steps: 0 for those of the
        run.
      scaled: settings that are multiplied by rate / base rate, so that two optimizers keep their
        ratio.
    """

    rates: tuple[float, ...]
    seed: int
    steps: int = 0
    scaled: tuple[str, ...] = ("optimizer.learning_rate", "optimizer.muon_learning_rate")


@dataclasses.dataclass(frozen=True)
class GridCell:
    """One run of the grid: an arm with a seed, at a learning rate (None: that of the base)."""

    arm: Arm
    rate: float | None
    seed: int
    tuning: bool

    @property
    def setting(self) -> str:
        """What follows the colon of `--config=FILE:`, e.g. rope-s0-lr0.01."""
        slot = f"{self.arm.name}-s{self.seed}"
        return slot if self.rate is None else f"{slot}-lr{self.rate:g}"

    @property
    def name(self) -> str:
        """The name of the folder of the run; only tuning runs have their rate in it."""
        return self.setting if self.tuning else f"{self.arm.name}-s{self.seed}"

    def folder(self, workdir: Path) -> Path:
        """Returns the folder of the run.

        Tuning runs, and runs that were trained at another length from the start, have folders of
        their own, since the report does not compare them with the runs that count.
        """
        other_length = self.arm.length and not self.arm.parent
        below = TUNING if self.tuning else OTHER_LENGTHS if other_length else RUNS
        return workdir / below / self.name


@dataclasses.dataclass(frozen=True)
class Study:
    """The contents of a study file.

    Attributes:
      tier: smoke, cpu, gpu or cluster. arms, seeds: of the runs that count. tuning: None if every
        arm takes the learning rate of the base configuration.
      skip: returns the reason to leave a run out, or None; the reasons are recorded.
      roles: for the verdict: {"rope": name, "alibi": name or names, "hybrids": [names]}; optional
        are "stretched": [names] (candidates of R+) and "oracle": name.
      split: of the rows of the runs that count: "dev" to explore, "test" for a frozen plan.
      prereg: path of the frozen plan, for split "test". Without a plan, study.json records the use
        of test as a deviation, which the verdict prints.
      suite: measures of a run that counts; empty: those of its configuration.
      tuning_suite: measures of a tuning run, at L and on dev; they must include bpb_ctx.
      together: whether one program trains all seeds of an arm, on one device.

    Raises:
      ValueError: duplicate names or seeds, two arms that train the same, a tuning seed that is also
        a seed of the runs that count, rates that do not ascend, a role that no arm has, a frozen
        plan for dev.
    """

    tier: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    tuning: Tuning | None = None
    skip: Callable[[GridCell], str | None] = lambda cell: None
    roles: Mapping[str, str | Sequence[str]] = dataclasses.field(default_factory=dict)
    split: str = "dev"
    prereg: str = ""
    suite: str = ""
    tuning_suite: str = "E"
    together: bool = False

    def __post_init__(self):
        _check(self)

    def grid(self, rates: Mapping[str, float | None]) -> list[GridCell]:
        """Returns the runs that count, seed by seed, for the arms that have a rate."""
        cells = [
            GridCell(a, rates[a.parent or a.name], s, False)
            for s in self.seeds
            for a in self.arms
            if (a.parent or a.name) in rates
        ]
        return self._kept(cells)

    def tuning_grid(self) -> list[GridCell]:
        """Returns the runs of the learning-rate search, rate by rate; none without a tuning."""
        t = self.tuning
        arms = [arm for arm in self.arms if not arm.parent]
        cells = [GridCell(a, rate, t.seed, True) for rate in t.rates for a in arms] if t else []
        return self._kept(cells)

    def parent(self, cell: GridCell) -> GridCell | None:
        """Returns the run that this one fine-tunes, or None."""
        arms = {arm.name: arm for arm in self.arms}
        return dataclasses.replace(cell, arm=arms[cell.arm.parent]) if cell.arm.parent else None

    def waves(self, cells: Sequence[GridCell]) -> list[list[GridCell]]:
        """Returns two groups of runs: from scratch, then those that fine-tune one of them."""
        waves = [[c for c in cells if bool(c.arm.parent) == tuned] for tuned in (False, True)]
        return [wave for wave in waves if wave]

    def groups(self, cells: Sequence[GridCell]) -> list[tuple[GridCell, ...]]:
        """Returns the runs of each process: one run, or with `together` all seeds of an arm."""
        groups: dict[str, list[GridCell]] = {}
        for cell in cells:
            shared = self.together and not cell.tuning and not cell.arm.parent
            groups.setdefault(cell.arm.name if shared else cell.name, []).append(cell)
        return [tuple(group) for group in groups.values()]

    def slots(self) -> list[str]:
        """Returns the names of the runs that count; they do not depend on the rates."""
        return [cell.name for cell in self.grid({arm.name: None for arm in self.arms})]

    def skipped(self) -> dict[str, str]:
        """Returns the reason for every run that is left out, by name."""
        everything = dataclasses.replace(self, skip=lambda cell: None)
        cells = everything.tuning_grid() + everything.grid({a.name: None for a in self.arms})
        return {cell.name: reason for cell in cells if (reason := self._reason(cell)) is not None}

    def cell(self, setting: str) -> GridCell:
        """Returns the run of `--config=FILE:setting`; ValueError for no such run or rate."""
        match = re.fullmatch(r"(.+?)-s(0|[1-9][0-9]*)(?:-lr([0-9.e+-]+))?", setting)
        arms, t = {arm.name: arm for arm in self.arms}, self.tuning
        if not match or match[1] not in arms:
            hint = near_names(setting.partition("-lr")[0], self.slots(), listed=arms)
            raise ValueError(f"the study has no run {setting!r} (<arm>-s<seed>[-lr<rate>]){hint}")
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
            raise ValueError(
                f"run {setting!r}: a fine-tuned arm takes the rate of its parent and is not tuned"
            )
        if not tuned and seed not in self.seeds:
            raise ValueError(
                f"run {setting!r}: seed {seed} is not of the study; seeds: "
                f"{', '.join(map(str, self.seeds))}"
            )
        return GridCell(arms[match[1]], rate, seed, tuned)

    def fill(self, setting: str, base):
        """Writes the settings of a run into the base configuration, and returns it.

        Args:
          setting: see `cell`. base: section -> key -> value (a ConfigDict or dicts); it is changed
            in place.

        Raises:
          ValueError: an override of an unknown setting, or a length that does not divide the tokens
            of a step.
        """
        cell = self.cell(setting)
        arm, train = cell.arm, base["train"]
        if arm.parent:
            train["original_length"] = train["length"]
            parent = self.parent(cell)
            train["init_from"] = parent.name if parent else ""  # StudyRunner gives the folder
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
        if cell.rate is not None and self.tuning is not None:
            factor = cell.rate / base["optimizer"]["learning_rate"]
            for name in self.tuning.scaled:
                section, key = _section_and_key(name, base, "tuning.scaled")
                section[key] = section[key] * factor
            base["optimizer"]["learning_rate"] = cell.rate  # without rounding
        if arm.parent:
            for name in ("learning_rate", "muon_learning_rate"):
                base["optimizer"][name] *= arm.peak
        for name, value in arm.overrides.items():
            section, key = _section_and_key(name, base, f"arm {arm.name!r}")
            section[key] = value
        if cell.tuning and self.tuning is not None and self.tuning.steps:
            train["steps"] = self.tuning.steps
        return base

    def record(self) -> dict:
        """Returns study.json: what report and verdict read about the study."""
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
    """Returns the name of runs trained together, e.g. rope-s0+1+2, or of a single run."""
    return "+".join([cells[0].name, *(str(cell.seed) for cell in cells[1:])])


def unique(cells: Sequence[GridCell]) -> list[GridCell]:
    """Returns the runs without duplicates; ValueError if two different ones share a folder."""
    by_name: dict[tuple[bool, str], GridCell] = {}
    for cell in cells:
        if by_name.setdefault((cell.tuning, cell.name), cell) != cell:
            raise ValueError(f"two different runs are called {cell.name!r}; rename an arm")
    return list(by_name.values())


def _section_and_key(name: str, base, owner: str):
    section, _, key = name.partition(".")
    if section not in base or key not in base[section]:
        raise ValueError(
            f"{owner}: {name!r} is not a setting; write section.key, e.g. model.num_heads"
        )
    return base[section], key


ROLES = {"rope", "alibi", "hybrids", "stretched", "oracle"}
# Settings that a study writes itself (`Study.fill`).
OWN_SETTINGS = (
    "model.scheme",
    "train.arm",
    "train.tier",
    "train.seed",
    "train.length",
    "train.init_from",
    "train.original_length",
)
ONE = ("rope", "oracle")  # roles that a single arm has
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~=-]*")


def _check(s: "Study") -> None:
    """Raises ValueError for duplicates, and for parts of a study that contradict each other."""
    names = [arm.name for arm in s.arms]
    for name in names:
        if not NAME.fullmatch(name) or re.search(r"-s\d+(-|$)", name):
            raise ValueError(
                f"arm {name!r}: a name is a folder: letters, digits and ._+~=-, no -s<number>"
            )
    for what, values in (("arm", names), ("seed", s.seeds)):
        twice = {v for v in values if list(values).count(v) > 1}
        if twice or not values:
            raise ValueError(f"a study needs {what}s, each once; twice: {sorted(twice)}")
    trained: dict[tuple, str] = {}
    for arm in s.arms:
        key = (arm.scheme, repr(sorted(arm.overrides.items())), arm.length, arm.parent, arm.peak)
        other = trained.setdefault(key, arm.name)
        if other != arm.name:
            raise ValueError(
                f"arms {other!r} and {arm.name!r} train the same thing; make one a reading of the "
                "other, or drop it"
            )
        if own := sorted(arm.overrides.keys() & set(OWN_SETTINGS)):
            raise ValueError(
                f"arm {arm.name!r}: the study itself sets {own[0]}; leave it out of overrides"
            )
        if arm.length < 0 or len(set(arm.readings)) < len(arm.readings):
            raise ValueError(f"arm {arm.name!r}: a negative length, or a reading twice")
        if not 0 < arm.peak <= 1 or (arm.peak != type(arm).peak and not arm.parent):
            raise ValueError(
                f"arm {arm.name!r}: peak={arm.peak:g} is a share, up to 1, of the rates of its "
                "parent"
            )
        if arm.parent and not any(
            a.name == arm.parent and not (a.parent or a.length) for a in s.arms
        ):
            raise ValueError(
                f"arm {arm.name!r}: parent {arm.parent!r} must be an arm of the study's length "
                "that has no parent"
            )
    if s.tuning:
        rates = s.tuning.rates
        if len(rates) < 2 or list(rates) != sorted(set(rates)) or rates[0] <= 0:
            raise ValueError(
                f"tuning.rates must be two or more, positive and ascending, not {rates}"
            )
        if s.tuning.seed in s.seeds:
            raise ValueError(
                f"tuning.seed={s.tuning.seed} is also a seed that counts: a run that chose its own "
                "rate is no independent evidence; tune on another seed"
            )
    known = {*names, *(f"{a.name} {rule}" for a in s.arms for rule in a.readings)}
    named = [n for arms in s.roles.values() for n in ([arms] if isinstance(arms, str) else arms)]
    unknown = sorted({*named} - known) + sorted({*s.roles} - ROLES)
    if unknown:
        raise ValueError(f"roles name what the study does not have: {', '.join(unknown)}")
    for role in ONE:
        if not isinstance(s.roles.get(role, ""), str):
            raise ValueError(f"roles[{role!r}] is one arm, not a list: {s.roles[role]}")
    if s.split not in SPLITS:
        raise ValueError(f"split must be {' or '.join(SPLITS)}, not {s.split!r}")
    if s.prereg and s.split != "test":
        raise ValueError(f'prereg={s.prereg} belongs to split="test"; the study reads {s.split}')
