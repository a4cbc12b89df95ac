"""Evaluates the last checkpoint of a run: items of work, each measured once, rows as they come."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import jax

from posenc_jax.encodings import parse, stretched, unparse
from posenc_jax.evaluation import key_targets
from posenc_jax.evaluation.classification import check_suites
from posenc_jax.evaluation.measures import Measures
from posenc_jax.evaluation.perplexity import held_out_stretches
from posenc_jax.evaluation.rows import RowFile
from posenc_jax.evaluation.scorer import Scorer
from posenc_jax.evaluation.suites import SUITES, chosen
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder
from posenc_jax.training.checkpoints import Checkpoints, has_checkpoint
from posenc_jax.training.config import RunConfig, read
from posenc_jax.training.inputs import Inputs, open_inputs
from posenc_jax.training.layout import make_mesh, parameter_layout
from posenc_jax.training.progress import Progress
from posenc_jax.training.step import state_builder
from posenc_jax.training.workdir import write_json


def evaluate(
    workdir: Path,
    *,
    multiples: tuple[int, ...] | None,
    suites: tuple[str, ...] | None,
    split: str,
    stretch: str | None,
    key_targets: Path | None = None,
) -> Path:
    """Measures what is not measured yet and returns the path of rows.jsonl.

    Args:
      workdir: a trained run. multiples: lengths in units of L; None takes the run's own and writes
        down as skipped those that do not fit. suites: names of `suites.py`; None takes
        the run's own. split: "test" or "dev". stretch: a
        rule of `posenc_jax.encodings.reading`, or None; its rows are an arm of their own, in
        `<workdir>/stretched/<rule>`. key_targets: file of E5's targets, or None.

    Raises:
      ValueError: no checkpoint, an unknown suite or split, or a length asked for that does not fit.
    """
    trained = _config_of(workdir)
    if split not in ("test", "dev"):
        raise ValueError(
            f"--split must be test or dev, not {split!r}: scores on training text mean nothing"
        )
    config = trained
    if stretch is not None:
        config = _named(trained, f"{trained.arm} {stretch}")
    own = ("C",) if config.data.task == "classification" else config.evaluation.measures
    measures = chosen(own if suites is None else suites)
    check_suites(config, tuple(measures))
    if key_targets is not None and not key_targets.is_file():
        raise ValueError(f"--key_targets={key_targets} is no file")
    wanted = tuple(sorted(set(multiples or config.evaluation.multiples)))
    if wanted[0] < 1:
        raise ValueError(f"--lengths must be whole multiples of the training length, not {wanted}")
    fitting = _fitting(config, wanted, asked=multiples is not None)
    inputs = open_inputs(config)
    every = tuple(sorted({*config.evaluation.multiples, *wanted}))
    top, deepest = every[-1], max(_fitting(config, every, asked=False))
    longest = max(fitting) * config.train.length
    model_configs = {
        n: _reading(config, stretch, n).model_config(inputs.tokenizer.vocab_size)
        for n in _compiled_lengths(config, stretch, fitting)
    }
    step, params = _restore(workdir, trained, inputs)

    # Rows of another checkpoint or other settings are replaced; E rows also when their text changes.
    deciding = dataclasses.replace(config.evaluation, measures=())
    settings = {"step": step, "settings": repr(deciding), "stretch": stretch}
    stamps = dict.fromkeys(SUITES, _stamp(settings | {"top": top}))
    stamps |= {"R": _stamp(settings), "all": _stamp(settings)}
    if stretch is not None:
        workdir = _stretched_folder(workdir, stretch, _reading(config, stretch, longest))
    # Scores for tuning lie apart, where no report looks for results.
    folder = workdir / ("evaluation" if split == "test" else f"evaluation_{split}")
    (folder / "arrays").mkdir(parents=True, exist_ok=True)
    rows = RowFile(folder / "rows.jsonl", stamps)
    if rows.dropped:
        print(f"{rows.dropped} rows of other settings or an older checkpoint are replaced")
    scorer = _scorer(model_configs, params, config.evaluation.batch_tokens)
    shown = model_configs[max(model_configs)]
    work = Measures(
        folder, config, inputs, shown, params, scorer, fitting, split, top, deepest, rows, key_targets,
        model_configs, every,
    )  # fmt: skip
    items = {"scheme": work.scheme}
    for letter, names in measures.items():
        items |= SUITES[letter].items(work, names)
    for k in sorted(set(wanted) - set(fitting)):
        limit = shown.placed.longest()
        L = config.train.length
        reason = f"{k * L} tokens and {L // 2} targets exceed the {limit} positions of {config.model.scheme}"
        items[f"skipped/{k}"] = lambda k=k, reason=reason: work.skipped(
            "all", "skipped", k * config.train.length, reason
        )
    bar = Progress(f"evaluate {config.arm}", 0, len(items))
    for done, (item, measure) in enumerate(items.items(), 1):
        if not rows.has(item):
            rows.add(item, measure())
        bar.update(done, item=item)
    bar.close()
    write_json(
        folder / "evaluation.json",
        settings
        | {
            "split": split,
            "programs": scorer.compilations,
            "attention": {n: c.attention_paths(n) for n, c in model_configs.items()},
        },
    )
    return folder / "rows.jsonl"


def write_key_targets(workdir: Path, path: Path, *, split: str) -> int:
    """Chooses E5's targets with a run trained at 4L, writes them, and returns how many they are.

    Raises:
      ValueError: a training length that four does not divide, or a model that cannot read 4L + L/2.
    """
    config = _config_of(workdir)
    L, rest = divmod(config.train.length, key_targets.REFERENCE_MULTIPLE)
    if rest:
        raise ValueError(f"{workdir} was trained at {config.train.length} tokens, not at 4 L")
    inputs = open_inputs(config)
    top = max(config.evaluation.multiples)
    rows_RT = held_out_stretches(
        inputs.stream(split), top * L + L // 2, config.evaluation.stretches
    )
    step, params = _restore(workdir, config, inputs)
    model = config.model_config(inputs.tokenizer.vocab_size)
    lengths = (L + L // 2, config.train.length + L // 2)
    scorer = _scorer(dict.fromkeys(lengths, model), params, config.evaluation.batch_tokens)
    chosen_RT = key_targets.choose(scorer, rows_RT, L)
    reference = {"arm": config.arm, "scheme": config.model.scheme, "step": step}
    key_targets.write(path, chosen_RT, key_targets.about(inputs, split, L, top, rows_RT), reference)
    return int(chosen_RT.sum())


def _scorer(model_configs: dict, params, batch_tokens: int) -> Scorer:
    """A scorer over all devices of this process."""
    if len(jax.devices()) == 1:
        return Scorer(model_configs, jax.device_put(params), batch_tokens)
    mesh = make_mesh(0, 1)
    places = jax.tree.map(
        lambda spec: jax.NamedSharding(mesh, spec),
        parameter_layout(params),
        is_leaf=lambda spec: isinstance(spec, jax.P),
    )
    return Scorer(model_configs, jax.device_put(params, places), batch_tokens, mesh)


def _config_of(workdir: Path) -> RunConfig:
    """Returns the configuration of a run that has a checkpoint; ValueError for any other folder."""
    if not (workdir / "config.json").exists() or not has_checkpoint(workdir):
        raise ValueError(
            f"{workdir} holds no trained run; python train.py --workdir={workdir} makes one"
        )
    return read(workdir / "config.json")


def _stamp(settings: dict) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _fitting(config: RunConfig, wanted: tuple[int, ...], asked: bool) -> tuple[int, ...]:
    L = config.train.length
    longest = config.model_config(vocab_size=1).placed.longest()
    fitting = tuple(k for k in wanted if longest is None or k * L + L // 2 <= longest or k == 1)
    if asked and fitting != wanted:
        k = min(set(wanted) - set(fitting))
        raise ValueError(
            f"--lengths={k} asks for {k * L + L // 2} positions ({k} L and L/2 targets); "
            f"{config.model.scheme!r} has {longest}: ask for lengths up to {max((longest - L // 2) // L, 1)}"
        )
    return fitting


def _compiled_lengths(
    config: RunConfig, stretch: str | None, multiples: tuple[int, ...]
) -> list[int]:
    """Returns the few input lengths that all items are padded to.

    Most rows have kL inputs; those of a fixed target L/2 more, which the next multiple takes in, unless
    a scheme is read differently there.
    """
    L = config.train.length
    longest = config.model_config(vocab_size=1).placed.longest()
    lengths = [L, *(k * L for k in multiples), max(multiples) * L + L // 2]
    if len({_reading(config, stretch, n) for n in lengths}) > 1:
        lengths += [k * L + L // 2 for k in multiples]
    return sorted({n if longest is None else min(n, longest) for n in lengths})


def _reading(config: RunConfig, stretch: str | None, length: int) -> RunConfig:
    """Returns the configuration whose scheme is read under `stretch` for rows of up to `length`."""
    if stretch is None:
        return config
    scheme = stretched(
        parse(config.model.scheme), stretch, length=length, train_length=config.train.length
    )
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, scheme=unparse(scheme))
    )


def _named(config: RunConfig, arm: str) -> RunConfig:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, arm=arm))


def _stretched_folder(workdir: Path, stretch: str, config: RunConfig) -> Path:
    """Makes the folder of a reading, with the records of the run that it reads."""
    folder = workdir / "stretched" / re.sub(r"[^A-Za-z0-9.]+", "_", stretch)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config.to_json())
    record = json.loads((workdir / "run.json").read_text())
    record |= {"arm": config.arm, "scheme": config.model.scheme, "read_with": stretch}
    write_json(folder / "run.json", record)
    return folder


def _restore(workdir: Path, config: RunConfig, inputs: Inputs):
    model_config = config.model_config(inputs.tokenizer.vocab_size)
    mesh = make_mesh(1, 1)
    with jax.set_mesh(mesh), Checkpoints(workdir, config.train.keep, clean=False) as checkpoints:
        _, shapes = state_builder(config, Decoder(model_config), mesh)
        step = checkpoints.latest(fall_back=False)
        state = checkpoints.restore(step, shapes)
    return step, jax.device_get(state["params"])


@dataclasses.dataclass(frozen=True)
class OpenRun:
    """The last checkpoint of a run, for readers other than `evaluate`.

    Attributes:
      workdir: of the run. config: its own; the arm names the stretch. stretch: the rule it is read
        with, or None. inputs: opened. step: of the checkpoint. params: of the decoder, float32.
    """

    workdir: Path
    config: RunConfig
    stretch: str | None
    inputs: Inputs
    step: int
    params: dict

    @property
    def longest(self) -> int | None:
        """Positions that the scheme has; None for any number."""
        return self.config.model_config(vocab_size=1).placed.longest()

    def multiples(self, asked: tuple[int, ...] | None) -> tuple[int, ...]:
        """Returns the lengths to read, in units of L; None takes those of the run's own that fit.

        Raises:
          ValueError: a length asked for that does not fit the scheme.
        """
        wanted = tuple(sorted(set(asked or self.config.evaluation.multiples)))
        if wanted[0] < 1:
            raise ValueError(
                f"--lengths must be whole multiples of the training length, not {wanted}"
            )
        return _fitting(self.config, wanted, asked=asked is not None)

    def compiled_lengths(self, multiples: tuple[int, ...]) -> list[int]:
        """Returns the few input lengths, in tokens, that `evaluate` pads its rows to."""
        return _compiled_lengths(self.config, self.stretch, multiples)

    def model_config(self, length: int) -> ModelConfig:
        """Returns the decoder's configuration as rows of up to `length` tokens are read."""
        config = _reading(self.config, self.stretch, length)
        return config.model_config(self.inputs.tokenizer.vocab_size)

    def folder(self, length: int) -> Path:
        """Returns where results go: the run's folder, or that of the stretched reading of `length`."""
        if self.stretch is None:
            return self.workdir
        reading = _reading(self.config, self.stretch, length)
        return _stretched_folder(self.workdir, self.stretch, reading)


def open_run(workdir: Path, stretch: str | None) -> OpenRun:
    """Restores the last checkpoint of a run.

    Raises:
      ValueError: no checkpoint, or a stretch that is none or changes nothing in this scheme.
    """
    trained = _config_of(workdir)
    config = trained if stretch is None else _named(trained, f"{trained.arm} {stretch}")
    _reading(config, stretch, config.train.length)  # refuses a bad rule before anything is opened
    inputs = open_inputs(config)
    step, params = _restore(workdir, trained, inputs)
    return OpenRun(workdir, config, stretch, inputs, step, params)
