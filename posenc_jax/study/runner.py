"""Runner of a study: commands of its runs, choice of the learning rates, and collection of the
rows.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from posenc_jax.evaluation.classification import check_suites
from posenc_jax.evaluation.load_run import extended_scheme
from posenc_jax.evaluation.suites import chosen_measures
from posenc_jax.results.files import (
    json_lines,
    read_json,
    read_json_lines,
    replace_bytes,
    replace_text,
    write_json,
)
from posenc_jax.results.load import evaluation_folder
from posenc_jax.results.published_folder import PUBLISHED
from posenc_jax.results.record_schema import STUDY, check
from posenc_jax.results.schema import DEFINITIONS, DONE, STOPPED
from posenc_jax.results.stored_run import checked_record, checked_row
from posenc_jax.study import local_executor, preregistration, tuning
from posenc_jax.study.grid import GridCell, Study, group_name
from posenc_jax.training.config import RunConfig, check_encodings, differences, from_sections

# Fields that identify a measurement; a study holds each at most once.
KEY = ("arm", "seed", "suite", "metric", "length", "bucket", "split")


@dataclasses.dataclass(frozen=True)
class StudyRunner:
    """A study and the folder in which it runs.

    Attributes:
      file: path of the study file, for the commands. config: returns the checked configuration of a
        setting. train, evaluate: paths of the two scripts.
    """

    study: Study
    file: str
    config: Callable[[str], RunConfig]
    workdir: Path
    train: str
    evaluate: str

    @property
    def logs(self) -> Path:
        """Folder of the logs."""
        return self.workdir / "logs"

    def programs(self, cells: Sequence[GridCell]) -> list[local_executor.RunCommands]:
        """Returns commands that train several seeds in one program; ValueError if others differ."""
        return [self._program(group) for group in self.study.groups(cells) if len(group) > 1]

    def runs(self, cells: Sequence[GridCell]) -> list[local_executor.RunCommands]:
        """Returns the runs that train alone, and the evaluation of those that a program has
        trained.

        A run that its program did not finish is left out.
        """
        runs = []
        for group in self.study.groups(cells):
            if len(group) == 1:
                runs.append(self.run(group[0]))
            else:
                trained = [cell for cell in group if _trained(cell.folder(self.workdir))]
                runs += [self._as_commands(cell, self._evaluating(cell)) for cell in trained]
        return runs

    def run(self, cell: GridCell) -> local_executor.RunCommands:
        """Returns the commands that train one run alone and evaluate it."""
        train = (*self._training(cell), f"--workdir={cell.folder(self.workdir)}")
        return self._as_commands(cell, (train, *self._evaluating(cell)))

    def finished(self, cells: Sequence[GridCell]) -> bool:
        """Whether all commands of a single run, or of runs trained together, have succeeded."""
        runs = [*self.programs(cells), *self.runs(cells)]
        whole = len(self.runs(cells)) == len(cells)
        return whole and all(local_executor.finished(run, self.logs) for run in runs)

    def evaluation(self, cell: GridCell) -> Path:
        """Returns the folder of a run's rows."""
        split = tuning.SPLIT if cell.tuning else self.study.split
        return evaluation_folder(cell.folder(self.workdir), split)

    def _training(self, cell: GridCell) -> tuple[str, ...]:
        parent = self.study.parent(cell)
        start = (
            () if parent is None else (f"--config.train.init_from={parent.folder(self.workdir)}",)
        )
        flags = (f"--config={self.file}:{cell.setting}", *self._imports(cell), *start)
        return ("python", self.train, *flags)

    def _imports(self, cell: GridCell) -> tuple[str, ...]:
        modules = self.config(cell.setting).model.imports
        return (f"--import={','.join(modules)}",) if modules else ()

    def _evaluating(self, cell: GridCell) -> tuple[tuple[str, ...], ...]:
        workdir = f"--workdir={cell.folder(self.workdir)}"
        command = ("python", self.evaluate, workdir, *self._imports(cell))
        if cell.tuning:
            suite = f"--suite={self.study.tuning_suite}"
            return ((*command, f"--split={tuning.SPLIT}", suite, "--lengths=1"),)
        suites = (f"--suite={self.study.suite}",) if self.study.suite else ()
        command = (*command, f"--split={self.study.split}", *suites)
        return (command, *((*command, f"--stretch={rule}") for rule in cell.arm.readings))

    def _as_commands(
        self, cell: GridCell, commands: tuple[tuple[str, ...], ...]
    ) -> local_executor.RunCommands:
        folder = cell.folder(self.workdir)
        products = (self.evaluation(cell) / "evaluation.json",)
        stamp = self._stamp(commands, [self.config(cell.setting)])
        return local_executor.RunCommands(
            cell.name, cell.arm.name, folder, commands, stamp, products
        )

    def _program(self, cells: Sequence[GridCell]) -> local_executor.RunCommands:
        first, folders = cells[0], [cell.folder(self.workdir) for cell in cells]
        configs = [self.config(cell.setting) for cell in cells]
        _refuse_different(cells, configs)
        pattern = folders[0].with_name(f"{first.arm.name}-s{{seed}}")
        seeds = ",".join(str(cell.seed) for cell in cells)
        commands = ((*self._training(first), f"--workdir={pattern}", f"--seeds={seeds}"),)
        products, stamp = tuple(f / "run.json" for f in folders), self._stamp(commands, configs)
        return local_executor.RunCommands(
            group_name(cells), first.arm.name, folders[0], commands, stamp, products
        )

    def _stamp(self, commands: Sequence[Sequence[str]], configs: Sequence[RunConfig]) -> str:
        """Returns a hash of what a run depends on, the same however its paths are written."""
        words = [[self._without_paths(word) for word in command] for command in commands]
        inputs = [DEFINITIONS, words, *(config.to_json() for config in configs)]
        return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]

    def _without_paths(self, word: str) -> str:
        """Returns a word of a command with names for workdir, study file and scripts."""
        if word in (self.train, self.evaluate):
            return Path(word).name
        flag, is_flag, value = word.partition("=")
        for path, name in ((f"{self.workdir}/", "WORKDIR/"), (f"{self.file}:", "STUDY:")):
            if is_flag and value.startswith(path):
                return f"{flag}={name}{value.removeprefix(path)}"
        return word

    def check(self) -> None:
        """Raises ValueError for a mistake in a configuration or plan, before any run starts."""
        s = self.study
        if s.prereg and (planned := preregistration.read(Path(s.prereg)).plan.split) != s.split:
            raise ValueError(
                f"prereg={s.prereg} is a plan for {planned}; the study reads {s.split}"
            )
        cells = s.tuning_grid() or s.grid({arm.name: None for arm in s.arms})
        if s.tuning:
            cells = cells + s.grid({arm.name: s.tuning.rates[0] for arm in s.arms})
        for cell in cells:
            check_encodings(self.config(cell.setting))
            self.run(cell)
            self._check_measures(cell)
        self.programs(cells)
        self._refuse_other_study()

    def _check_measures(self, cell: GridCell) -> None:
        """Raises ValueError for a suite or stretch with which an evaluation would fail."""
        config = self.config(cell.setting)
        name = "tuning_suite" if cell.tuning else "suite"
        if suite := getattr(self.study, name):
            try:
                measures = chosen_measures(suite.split(","))
                check_suites(config, tuple(measures))
            except ValueError as error:
                raise ValueError(f"{name}={suite!r} of the study: {error}") from None
            if cell.tuning and "E3" not in measures.get("E", ()):
                raise ValueError(
                    f"tuning_suite={suite!r} must include E3, by which rates are chosen"
                )
        for rule in cell.arm.readings:
            try:
                extended_scheme(config, rule, config.train.length)
            except ValueError as error:
                raise ValueError(f"arm {cell.arm.name!r}, reading {rule!r}: {error}") from None

    def _refuse_other_study(self) -> None:
        """Raises ValueError for a folder with a run, published results or another study."""
        for name, what in (("config.json", "a run"), (PUBLISHED, "published results")):
            if (self.workdir / name).exists():
                raise ValueError(f"{self.workdir} holds {what}; choose another --workdir")
        before, ours = self._stored(), self.study.record()
        if not before:
            return
        foreign = [
            f"{name} {', '.join(map(str, lost))} there"
            for name in ("arms", "seeds")
            if (lost := [one for one in before[name] if one not in ours[name]])
        ]
        if before["tier"] != ours["tier"]:
            foreign.append(f"tier {before['tier']} there, {ours['tier']} here")
        if foreign:
            raise ValueError(
                f"{self.workdir} holds another study ({'; '.join(foreign)}); choose another "
                "--workdir"
            )

    def _stored(self) -> dict:
        """Returns study.json, checked; {} where there is none."""
        path = self.workdir / "study.json"
        record = read_json(path) if path.exists() else {}
        check(record, STUDY, str(path), ("tier", "arms", "seeds", "deviations") if record else ())
        return record

    def begin(self) -> None:
        """Makes the folder, study.json and the frozen plan; keeps deviations of earlier calls."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        path, record = self.workdir / "study.json", self.study.record()
        before = {"deviations": [], **self._stored()}["deviations"]
        record["deviations"] = list(dict.fromkeys([*before, *record["deviations"]]))
        write_json(path, {"name": self.workdir.name} | record)
        if self.study.prereg:
            replace_bytes(self.workdir / "prereg.json", Path(self.study.prereg).read_bytes())

    def rates(self) -> tuple[dict[str, float | None], list[str]]:
        """Returns the learning rate of every arm that has one, and remarks on the choice.

        Without a tuning every rate is None, that of the base. Nothing is written, since the tasks
        of an array call this at the same time.

        Raises:
          ValueError: a tuning run has not ended.
        """
        s = self.study
        if s.tuning is None:
            return {arm.name: None for arm in s.arms}, []
        choices, remarks = self._choices(), []
        for c in choices:
            if c.rate is None:
                remarks.append(
                    f"{c.arm}: no tuning run has a dev loss, so the arm has no learning rate"
                )
            elif c.edge:
                remarks.append(
                    f"{c.arm}: its best learning rate, {c.rate:g}, lies on the edge of the grid"
                )
        return {c.arm: c.rate for c in choices if c.rate is not None}, remarks

    def write_tuning(self) -> None:
        """Writes tuning.json, where the study tunes; raises as `rates`."""
        s = self.study
        if s.tuning is not None:
            steps = self.config(s.tuning_grid()[0].setting).train.steps
            record = tuning.record(self._choices(), seed=s.tuning.seed, steps=steps)
            write_json(self.workdir / "tuning.json", record)

    def _choices(self) -> list[tuning.Choice]:
        cells = self.study.tuning_grid()
        for cell in cells:
            lost = local_executor.exit_code(cell.name, self.logs) not in (None, DONE, STOPPED)
            if tuning.dev_loss(cell.folder(self.workdir)) is None and not lost:
                raise ValueError(
                    f"tuning run {cell.name} has not ended; the learning rate of {cell.arm.name} "
                    "cannot be chosen"
                )
        return tuning.choices(cells, self.workdir)

    def collect(self, cells: Sequence[GridCell]) -> Path:
        """Writes rows.jsonl and tuning.jsonl, sorted; ValueError for a measurement given twice."""
        if self.study.tuning:
            dev = [self.evaluation(cell) for cell in self.study.tuning_grid()]
            # Tuning runs of one arm and seed differ in their rate, which only their name contains.
            text = sorted_rows(dev, self.workdir, (*KEY, "run"))
            replace_text(self.workdir / "tuning.jsonl", text)
        folders = [self.evaluation(cell) for cell in cells]
        folders += [p for f in folders for p in sorted(f.parent.glob(f"stretched/*/{f.name}"))]
        path = self.workdir / "rows.jsonl"
        replace_text(path, sorted_rows(folders, self.workdir, KEY))
        return path


def _trained(folder: Path) -> bool:
    path = folder / "run.json"
    return path.exists() and checked_record(read_json(path), str(path))["finished"]


def _refuse_different(cells: Sequence[GridCell], configs: Sequence[RunConfig]) -> None:
    """Raises ValueError if runs that are to be trained together differ in more than their seed."""
    for cell, config in zip(cells, configs, strict=True):
        lines = [x for x in differences(config, configs[0]) if not x.startswith("train.seed:")]
        if lines:
            raise ValueError(
                f"together=True: {cell.name} and {cells[0].name} differ in more than their seed "
                f"({lines[0]})"
            )


def sorted_rows(evaluations: Sequence[Path], workdir: Path, names: Sequence[str]) -> str:
    """Returns the rows of all evaluation folders as JSONL, sorted.

    `run` of a row becomes its folder below `workdir`; item and stamp are left out.

    Args:
      names: fields that identify a measurement, and by which rows are sorted.

    Raises:
      ValueError: a measurement occurs twice.
    """
    rows = {}
    for folder in evaluations:
        path = folder / "rows.jsonl"
        run = str(folder.parent.relative_to(workdir))
        for number, stored in read_json_lines(path)[0] if path.exists() else []:
            row = checked_row(stored, path, number)
            row = dataclasses.replace(row, run=run, item="", stamp="")
            key = tuple(getattr(row, name) for name in names)
            if key in rows:
                raise ValueError(f"{path} measures {dict(zip(names, key, strict=True))} twice")
            rows[key] = row.to_json()
    return json_lines(rows[key] for key in sorted(rows))


def study_runner(
    study: Study, get_config: Callable, file: str, workdir: Path, scripts: Path
) -> StudyRunner:
    """Returns the runner of a study file; scripts: the repository root, relative to here."""
    return StudyRunner(
        study,
        file,
        lambda setting: from_sections(get_config(setting).to_dict()),
        workdir,
        str(scripts / "train.py"),
        str(scripts / "scripts" / "evaluate.py"),
    )
