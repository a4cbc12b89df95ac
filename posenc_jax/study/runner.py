"""Runner of a study: commands of its runs, choice of the learning rates, and collection of the rows."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from posenc_jax.results.files import (
    json_lines,
    read_json,
    read_json_lines,
    replace_bytes,
    replace_text,
    write_json,
)
from posenc_jax.results.load import evaluation_folder
from posenc_jax.results.schema import DEFINITIONS, DONE, STOPPED, row_from_json
from posenc_jax.study import local_executor, preregistration, tuning
from posenc_jax.study.grid import GridCell, Study, group_name
from posenc_jax.training.config import RunConfig, differences, from_sections

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
        """Returns the commands that train several seeds in one program; none where every run trains alone.

        Raises:
          ValueError: seeds that differ in more than their seed.
        """
        return [self._program(group) for group in self.study.groups(cells) if len(group) > 1]

    def runs(self, cells: Sequence[GridCell]) -> list[local_executor.RunCommands]:
        """Returns the runs that train alone, and the evaluation of those that a program has trained.

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

    def evaluation(self, cell: GridCell) -> Path:
        """Returns the folder of a run's rows."""
        split = tuning.SPLIT if cell.tuning else self.study.split
        return evaluation_folder(cell.folder(self.workdir), split)

    def _training(self, cell: GridCell) -> tuple[str, ...]:
        parent = self.study.parent(cell)
        start = () if parent is None else (f"--config.train.init_from={parent.folder(self.workdir)}",)  # fmt: skip
        return ("python", self.train, f"--config={self.file}:{cell.setting}", *start)

    def _evaluating(self, cell: GridCell) -> tuple[tuple[str, ...], ...]:
        command = ("python", self.evaluate, f"--workdir={cell.folder(self.workdir)}")
        if cell.tuning:
            suite = f"--suite={self.study.tuning_suite}"
            return ((*command, f"--split={tuning.SPLIT}", suite, "--lengths=1"),)
        suite = (f"--suite={self.study.suite}",) if self.study.suite else ()
        command = (*command, f"--split={self.study.split}", *suite)
        return (command, *((*command, f"--stretch={rule}") for rule in cell.arm.readings))

    def _as_commands(
        self, cell: GridCell, commands: tuple[tuple[str, ...], ...]
    ) -> local_executor.RunCommands:
        folder = cell.folder(self.workdir)
        products = (self.evaluation(cell) / "evaluation.json",)
        stamp = _stamp(commands, [self.config(cell.setting)])
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
        products, stamp = tuple(f / "run.json" for f in folders), _stamp(commands, configs)
        return local_executor.RunCommands(
            group_name(cells), first.arm.name, folders[0], commands, stamp, products
        )

    def check(self) -> None:
        """Raises ValueError for a mistake in a configuration or in the plan, before any run starts."""
        s = self.study
        if s.prereg and (planned := preregistration.read(Path(s.prereg)).plan.split) != s.split:
            raise ValueError(
                f"prereg={s.prereg} is a plan for {planned}; the study reads {s.split}"
            )
        cells = s.tuning_grid() or s.grid({arm.name: None for arm in s.arms})
        if s.tuning:
            cells = cells + s.grid({arm.name: s.tuning.rates[0] for arm in s.arms})
        for cell in cells:
            self.run(cell)
        self.programs(cells)

    def begin(self) -> None:
        """Makes the folder and writes study.json and the frozen plan; deviations of earlier calls are kept."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        path, record = self.workdir / "study.json", self.study.record()
        before = read_json(path).get("deviations", []) if path.exists() else []
        record["deviations"] = list(dict.fromkeys([*before, *record["deviations"]]))
        write_json(path, {"name": self.workdir.name} | record)
        if self.study.prereg:
            replace_bytes(self.workdir / "prereg.json", Path(self.study.prereg).read_bytes())

    def rates(self) -> tuple[dict[str, float | None], list[str]]:
        """Returns the learning rate of every arm that has one, and remarks on the choice.

        Without a tuning every rate is None, that of the base. Nothing is written, since the tasks of an array
        call this at the same time.

        Raises:
          ValueError: a tuning run has not ended.
        """
        s = self.study
        if s.tuning is None:
            return {arm.name: None for arm in s.arms}, []
        choices, remarks = self._choices(), []
        for c in choices:
            if c.rate is None:
                remarks.append(f"{c.arm}: no tuning run has a dev loss, so the arm has no learning rate")  # fmt: skip
            elif c.edge:
                remarks.append(f"{c.arm}: its best learning rate, {c.rate:g}, lies on the edge of the grid")  # fmt: skip
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
                    f"tuning run {cell.name} has not ended; the learning rate of {cell.arm.name} cannot be chosen"
                )
        return tuning.choices(cells, self.workdir)

    def collect(self, cells: Sequence[GridCell]) -> Path:
        """Writes rows.jsonl (and tuning.jsonl), sorted, from the evaluated runs; returns its path.

        Raises:
          ValueError: a measurement occurs twice.
        """
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


def _stamp(commands: Sequence[Sequence[str]], configs: Sequence[RunConfig]) -> str:
    inputs = [DEFINITIONS, commands, *(config.to_json() for config in configs)]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]


def _trained(folder: Path) -> bool:
    path = folder / "run.json"
    return path.exists() and json.loads(path.read_text())["finished"]


def _refuse_different(cells: Sequence[GridCell], configs: Sequence[RunConfig]) -> None:
    """Raises ValueError if runs that are to be trained together differ in more than their seed."""
    for cell, config in zip(cells, configs, strict=True):
        lines = [x for x in differences(config, configs[0]) if not x.startswith("train.seed:")]
        if lines:
            raise ValueError(
                f"together=True: {cell.name} and {cells[0].name} differ in more than their seed ({lines[0]})"
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
        for _, stored in read_json_lines(path)[0] if path.exists() else []:
            row = dataclasses.replace(row_from_json(stored), run=run, item="", stamp="")
            key = tuple(getattr(row, name) for name in names)
            if key in rows:
                raise ValueError(f"{path} measures {dict(zip(names, key, strict=True))} twice")
            rows[key] = row.to_json()
    return json_lines(rows[key] for key in sorted(rows))


def study_runner(
    study: Study, get_config: Callable, file: str, workdir: Path, scripts: Path
) -> StudyRunner:
    """Returns the runner of a study file; scripts: the repository root, relative to the working directory."""
    return StudyRunner(
        study, file, lambda setting: from_sections(get_config(setting).to_dict()), workdir,
        str(scripts / "train.py"), str(scripts / "scripts" / "evaluate.py"),
    )  # fmt: skip
