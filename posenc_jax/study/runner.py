"""The stages of a study: its tuning runs, its runs that count, and what remains of them as rows."""

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

# What makes a row one measurement; a study that holds two of one kind is broken.
KEY = ("arm", "seed", "suite", "metric", "length", "bucket", "split")


@dataclasses.dataclass(frozen=True)
class StudyRunner:
    """A study file and where it is carried out.

    Attributes:
      study: its value. file: its path, as the commands name it. config: returns the checked
        configuration of a setting. workdir: of the study. train, evaluate: paths of the two scripts.
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
        """Returns the trainings of several seeds in one program; none where every run trains alone.

        Raises:
          ValueError: seeds that differ in more than their seed.
        """
        return [self._program(group) for group in self.study.groups(cells) if len(group) > 1]

    def runs(self, cells: Sequence[GridCell]) -> list[local_executor.RunCommands]:
        """Returns what is left once the programs have ended: of runs that finished there, the evaluation.

        A run whose program did not finish it is none of them.
        """
        found = []
        for group in self.study.groups(cells):
            if len(group) == 1:
                found.append(self.run(group[0]))
            else:
                done = [cell for cell in group if _trained(cell.folder(self.workdir))]
                found += [self._as_commands(cell, self._scoring(cell)) for cell in done]
        return found

    def run(self, cell: GridCell) -> local_executor.RunCommands:
        """Returns the run as commands: it trains alone and is evaluated."""
        train = (*self._training(cell), f"--workdir={cell.folder(self.workdir)}")
        return self._as_commands(cell, (train, *self._scoring(cell)))

    def evaluation(self, cell: GridCell) -> Path:
        """Returns the folder of a run's rows."""
        split = tuning.SPLIT if cell.tuning else self.study.split
        return evaluation_folder(cell.folder(self.workdir), split)

    def _training(self, cell: GridCell) -> tuple[str, ...]:
        parent = self.study.parent(cell)
        begins = () if parent is None else (f"--config.train.init_from={parent.folder(self.workdir)}",)  # fmt: skip
        return ("python", self.train, f"--config={self.file}:{cell.setting}", *begins)

    def _scoring(self, cell: GridCell) -> tuple[tuple[str, ...], ...]:
        scored = ("python", self.evaluate, f"--workdir={cell.folder(self.workdir)}")
        if cell.tuning:
            suite = f"--suite={self.study.tuning_suite}"
            return ((*scored, f"--split={tuning.SPLIT}", suite, "--lengths=1"),)
        scored = (*scored, f"--split={self.study.split}")
        suite = (f"--suite={self.study.suite}",) if self.study.suite else ()
        readings = tuple((*scored, *suite, f"--stretch={rule}") for rule in cell.arm.readings)
        return ((*scored, *suite), *readings)

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
        _refuse_unlike(cells, configs)
        pattern = folders[0].with_name(f"{first.arm.name}-s{{seed}}")
        seeds = ",".join(str(cell.seed) for cell in cells)
        commands = ((*self._training(first), f"--workdir={pattern}", f"--seeds={seeds}"),)
        products, stamp = tuple(f / "run.json" for f in folders), _stamp(commands, configs)
        return local_executor.RunCommands(
            group_name(cells), first.arm.name, folders[0], commands, stamp, products
        )

    def check(self) -> None:
        """Builds every configuration and reads the plan; ValueError for a mistake, before anything starts."""
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
        """Makes the study's folder and writes study.json, and the frozen plan beside it.

        What an earlier call said to deviate stays said.
        """
        self.workdir.mkdir(parents=True, exist_ok=True)
        path, record = self.workdir / "study.json", self.study.record()
        before = read_json(path).get("deviations", []) if path.exists() else []
        record["deviations"] = list(dict.fromkeys([*before, *record["deviations"]]))
        write_json(path, {"name": self.workdir.name} | record)
        if self.study.prereg:
            replace_bytes(self.workdir / "prereg.json", Path(self.study.prereg).read_bytes())

    def rates(self) -> tuple[dict[str, float | None], list[str]]:
        """Returns the learning rate of every arm that has one, and sentences about the choice.

        Without a tuning every arm has the rate None, the base's own. Writes nothing: tasks of an array
        ask at the same time.

        Raises:
          ValueError: a tuning run has neither a dev loss nor failed: the stage is not over.
        """
        s = self.study
        if s.tuning is None:
            return {arm.name: None for arm in s.arms}, []
        found, said = self._choices(), []
        for choice in found:
            if choice.rate is None:
                said.append(
                    f"{choice.arm}: no tuning run has a dev loss, so the arm has no learning rate"
                )
            elif choice.edge:
                said.append(
                    f"{choice.arm}: its best learning rate, {choice.rate:g}, lies on the edge of the grid"
                )
        return {c.arm: c.rate for c in found if c.rate is not None}, said

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
        """Writes rows.jsonl (and tuning.jsonl) from the runs that are there, sorted; returns its path.

        Raises:
          ValueError: one measurement stands there twice.
        """
        if self.study.tuning:
            dev = [self.evaluation(cell) for cell in self.study.tuning_grid()]
            # Tuning runs of one arm and seed differ in their rate, which their name alone says.
            text = sorted_rows(dev, self.workdir, (*KEY, "run"))
            replace_text(self.workdir / "tuning.jsonl", text)
        read = [self.evaluation(cell) for cell in cells]
        read += [p for f in read for p in sorted(f.parent.glob(f"stretched/*/{f.name}"))]
        path = self.workdir / "rows.jsonl"
        replace_text(path, sorted_rows(read, self.workdir, KEY))
        return path


def _stamp(commands: Sequence[Sequence[str]], configs: Sequence[RunConfig]) -> str:
    decides = [DEFINITIONS, commands, *(config.to_json() for config in configs)]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]


def _trained(folder: Path) -> bool:
    path = folder / "run.json"
    return path.exists() and json.loads(path.read_text())["finished"]


def _refuse_unlike(cells: Sequence[GridCell], configs: Sequence[RunConfig]) -> None:
    """Raises ValueError if runs that are to be trained together differ in more than their seed."""
    for cell, config in zip(cells, configs, strict=True):
        found = [line for line in differences(config, configs[0]) if not line.startswith("train.seed:")]  # fmt: skip
        if found:
            raise ValueError(
                f"together=True: {cell.name} and {cells[0].name} differ in more than their seed ({found[0]})"
            )


def sorted_rows(evaluations: Sequence[Path], workdir: Path, names: Sequence[str]) -> str:
    """Returns the rows of all evaluation folders that are there as JSONL, in one order.

    A row's `run` becomes its folder below `workdir`; how it was resumed (item, stamp) is left behind.

    Args:
      names: the fields that make a row one measurement, and that rows are sorted by.

    Raises:
      ValueError: one measurement stands there twice.
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
    """Returns the course of a study file whose get_config gives ConfigDicts.

    scripts: the repository root, relative to where the commands run.
    """
    return StudyRunner(
        study, file, lambda setting: from_sections(get_config(setting).to_dict()), workdir,
        str(scripts / "train.py"), str(scripts / "scripts" / "evaluate.py"),
    )  # fmt: skip
