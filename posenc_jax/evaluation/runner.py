"""Evaluates the last checkpoint of a run: items of work, each measured once, rows as they come."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import jax

from posenc_jax.encodings import parse, stretched, unparse
from posenc_jax.evaluation.classification import Classifier, ClassScores, check_suites
from posenc_jax.evaluation.measures import Measures
from posenc_jax.evaluation.rows import RowFile
from posenc_jax.evaluation.scorer import Scorer
from posenc_jax.model.decoder import Decoder
from posenc_jax.training.checkpoints import Checkpoints, has_checkpoint
from posenc_jax.training.config import RunConfig, read
from posenc_jax.training.inputs import Inputs, open_inputs
from posenc_jax.training.layout import make_mesh
from posenc_jax.training.progress import Progress
from posenc_jax.training.step import state_builder
from posenc_jax.training.workdir import write_json

SUITES = ("E", "R", "C")


def evaluate(
    workdir: Path,
    *,
    multiples: tuple[int, ...] | None,
    suites: tuple[str, ...],
    split: str,
    stretch: str | None,
) -> Path:
    """Measures what is not measured yet and returns the path of rows.jsonl.

    Args:
      workdir: a trained run. multiples: lengths in units of L; None takes the run's own and writes
        down as skipped those that do not fit. suites: of SUITES. split: "test" or "dev". stretch: a
        rule of `posenc_jax.encodings.reading`, or None; its rows are an arm of their own, in
        `<workdir>/stretched/<rule>`.

    Raises:
      ValueError: no checkpoint, an unknown suite or split, or a length asked for that does not fit.
    """
    if not (workdir / "config.json").exists() or not has_checkpoint(workdir):
        raise ValueError(
            f"{workdir} holds no trained run; python train.py --workdir={workdir} makes one"
        )
    unknown = [s for s in suites if s not in SUITES]
    if unknown or not suites:
        raise ValueError(f"--suite must name some of {', '.join(SUITES)}, not {unknown}")
    if split not in ("test", "dev"):
        raise ValueError(
            f"--split must be test or dev, not {split!r}: scores on training text mean nothing"
        )
    config = trained = read(workdir / "config.json")
    check_suites(config, suites)
    if stretch is not None:
        config = _named(trained, f"{trained.arm} {stretch}")
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
        for n in _compiled_lengths(config, fitting)
    }
    step, params = _restore(workdir, trained, inputs)

    # Rows of another checkpoint or other settings are replaced; E rows also when their text changes.
    settings = {"step": step, "settings": repr(config.evaluation), "stretch": stretch}
    stamps = {"R": _stamp(settings), "E": _stamp(settings | {"top": top}), "all": _stamp(settings)}
    stamps["C"] = stamps["E"]
    if stretch is not None:
        workdir = _stretched_folder(workdir, stretch, _reading(config, stretch, longest))
    # Scores for tuning lie apart, where no report looks for results.
    folder = workdir / ("evaluation" if split == "test" else f"evaluation_{split}")
    (folder / "arrays").mkdir(parents=True, exist_ok=True)
    rows = RowFile(folder / "rows.jsonl", stamps)
    if rows.dropped:
        print(f"{rows.dropped} rows of other settings or an older checkpoint are replaced")
    scorer = Scorer(model_configs, params, config.evaluation.batch_tokens)
    shown = model_configs[max(model_configs)]
    work = Measures(folder, config, inputs, shown, params, scorer, fitting, split, top, deepest)
    items = {"scheme": work.scheme}
    if "E" in suites:
        items |= work.extrapolation_items()
    if "R" in suites:
        items |= work.retrieval_items()
    if "C" in suites:
        labels_C = inputs.tokenizer.labels_C
        classifier = Classifier(model_configs, params, config.evaluation.batch_tokens, labels_C)
        items |= ClassScores(work, classifier, inputs.corpus, inputs.tokenizer, every).items()
    for k in sorted(set(wanted) - set(fitting)):
        limit = shown.placed.longest()
        L = config.train.length
        reason = f"{k * L} tokens and {L // 2} targets exceed the {limit} positions of {config.model.scheme}"
        items[f"skipped/{k}"] = lambda k=k, reason=reason: [
            work.row("all", "skipped", k * config.train.length, "all", None, 0)
            | {"skipped": reason}
        ]
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


def _compiled_lengths(config: RunConfig, multiples: tuple[int, ...]) -> list[int]:
    """Returns the few input lengths that all items are padded to."""
    L = config.train.length
    longest = config.model_config(vocab_size=1).placed.longest()
    lengths = [L, *(k * L + L // 2 for k in multiples)]
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
        step = checkpoints.latest()
        state = checkpoints.restore(step, shapes)
    return step, jax.device_get(state["params"])
