"""Evaluation of a checkpoint: a list of items, each measured once, its rows written at once."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import jax

from posenc_jax.encodings.backend import float32_matmuls
from posenc_jax.evaluation import key_targets
from posenc_jax.evaluation.classification import check_suites
from posenc_jax.evaluation.context import EvaluatedModel, EvaluationContext, Multiples
from posenc_jax.evaluation.lengths import Multiple, tokens_of
from posenc_jax.evaluation.load_run import (
    LAST,
    compiled_lengths,
    extended_model,
    extension_folder,
    fitting_multiples,
    restore_checkpoint,
    stored_config,
    with_arm_name,
)
from posenc_jax.evaluation.perplexity import held_out_stretches
from posenc_jax.evaluation.scorer import Scorer
from posenc_jax.evaluation.suites import SUITES, chosen_measures
from posenc_jax.results.files import write_json
from posenc_jax.results.locks import is_locked, lock_folder
from posenc_jax.results.row_file import COUNTED, RowFile
from posenc_jax.training.config import RunConfig
from posenc_jax.training.inputs import open_inputs
from posenc_jax.training.progress import Progress
from posenc_jax.training.sharding import make_mesh, parameter_layout


@dataclasses.dataclass(frozen=True)
class EvaluationCounts:
    """How much is measured, where it differs from what the run says.

    Attributes:
      instances: of a retrieval task at each length, or None. stretches: of text, for suite E, or
        None. A row's stamp names them, so that rows of other counts are told apart.
    """

    instances: int | None = None
    stretches: int | None = None

    def applied(self, config: RunConfig) -> RunConfig:
        """Returns the configuration with these counts."""
        given = {name: n for name, n in vars(self).items() if n is not None}
        return dataclasses.replace(
            config, evaluation=dataclasses.replace(config.evaluation, **given)
        )

    def of_suite(self, letter: str, config: RunConfig) -> str:
        """Returns the end of a suite's stamps; "" for the run's own counts."""
        name = {"E": "stretches", "R": "instances"}.get(letter)
        own = None if name is None else getattr(config.evaluation, name)
        given = own if name is None else getattr(self, name)
        return "" if given in (None, own) else f"{COUNTED}{given}"


def evaluate(
    workdir: Path,
    *,
    multiples: tuple[Multiple, ...] | None,
    suites: tuple[str, ...] | None,
    split: str,
    stretch: str | None,
    key_targets: Path | None = None,
    checkpoint: str = LAST,
    counts: EvaluationCounts | None = None,
) -> Path:
    """Measures the items that have no rows yet and returns the path of rows.jsonl.

    Args:
      workdir: a trained run. multiples: lengths in units of L; None takes the run's own and writes
        a skipped row for each that does not fit. suites: names of `suites.py`; None takes the run's
        own.
        split: "test" or "dev". stretch: a rule of `posenc_jax.encodings.length_extension`, or None;
        its rows are those of another arm, in `<workdir>/stretched/<rule>`. key_targets: file of
        E5's targets, or None. checkpoint: "last", the one that results use, "best" by dev loss, or
        a step; rows of another checkpoint than the last go to a folder of their own and name it.
      counts: of instances and stretches, where not the run's own.

    Raises:
      ValueError: no checkpoint or one of another run, an unknown suite or split, or a requested
        length that does not fit.
    """
    trained = stored_config(workdir)
    if split not in ("test", "dev"):
        raise ValueError(
            f"--split must be test or dev, not {split!r}: scores on training text mean nothing"
        )
    counts = counts or EvaluationCounts()
    named = trained if stretch is None else with_arm_name(trained, f"{trained.arm} {stretch}")
    config = counts.applied(named)
    own = ("C",) if config.data.task == "classification" else config.evaluation.measures
    measures = chosen_measures(own if suites is None else suites)
    check_suites(config, tuple(measures))
    if key_targets is not None and not key_targets.is_file():
        raise ValueError(f"--key_targets={key_targets} is no file")
    wanted = tuple(sorted(set(multiples or config.evaluation.multiples)))
    fitting = fitting_multiples(config, wanted, strict=multiples is not None)
    inputs = open_inputs(config)
    study = tuple(sorted({*config.evaluation.multiples, *wanted}))
    lengths = Multiples(fitting, study, max(fitting_multiples(config, study, strict=False)))
    L = config.placed_length
    by_length = {
        n: extended_model(config, stretch, n, inputs.tokenizer.vocab_size)
        for n in compiled_lengths(config, stretch, fitting)
    }
    restored = restore_checkpoint(workdir, trained, inputs, checkpoint)
    extra = {} if checkpoint == LAST else {"checkpoint": checkpoint, "step": restored.step}
    extra |= {"step": restored.step, "unfinished": True} if restored.unfinished else {}

    # Rows of another run, checkpoint or settings are measured again, E rows also for another text.
    deciding = dataclasses.replace(trained.evaluation, measures=())
    settings = {"step": restored.step, "settings": repr(deciding), "stretch": stretch}
    settings |= restored.identity | extra
    if config.train.length != L:  # rows of fine-tuned runs were once in units of their own length
        settings |= {"train_length": L}
    stamps = dict.fromkeys(SUITES, _stamp(settings | {"top": lengths.top}))
    stamps |= {"R": _stamp(settings), "all": _stamp(settings)}
    stamps = {s: stamp + counts.of_suite(s, trained) for s, stamp in stamps.items()}
    if stretch is not None:
        workdir = extension_folder(workdir, stretch, named, tokens_of(max(fitting), L))
    suffixes = [part for part, usual in ((split, "test"), (checkpoint, LAST)) if part != usual]
    folder = workdir / "_".join(["evaluation", *suffixes])
    (folder / "arrays").mkdir(parents=True, exist_ok=True)
    with _only_evaluation(folder):
        rows = RowFile(folder / "rows.jsonl", stamps)
        if rows.dropped:
            print(f"{rows.dropped} rows of other settings or another checkpoint are replaced")
        scorer = _scorer(by_length, restored.params, config.evaluation.batch_tokens)
        model = EvaluatedModel(by_length, restored.params, scorer)
        ctx = EvaluationContext(
            folder, config, inputs, split, model, lengths, rows, key_targets, extra
        )
        items = {"scheme": ctx.scheme}
        for letter, names in measures.items():
            items |= SUITES[letter].items(ctx, names)
        for k in sorted(set(wanted) - set(fitting)):
            limit = model.config.placed.longest()
            reason = (
                f"{tokens_of(k, L)} tokens and {L // 2} targets exceed the {limit} positions of "
                f"{config.model.scheme}"
            )
            items[f"skipped/{k}"] = functools.partial(
                ctx.skipped, "all", "skipped", tokens_of(k, L), reason
            )
        bar = Progress(f"evaluate {config.arm}", 0, len(items))
        with float32_matmuls():
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
                "checkpoint": checkpoint,
                "programs": scorer.compilations,
                "attention": {n: c.measured.attention_paths(n) for n, c in by_length.items()},
            },
        )
    return folder / "rows.jsonl"


@contextlib.contextmanager
def _only_evaluation(folder: Path) -> Iterator[None]:
    """Waits until no other evaluation writes into the folder, so that no rows are lost."""
    if is_locked(folder):
        print(f"another evaluation is at work in {folder}; waiting for it", file=sys.stderr)
    with lock_folder(folder, wait=True):
        yield


def write_key_targets(workdir: Path, path: Path, *, split: str) -> int:
    """Chooses E5's targets with a run trained at 4L, writes them, and returns their number.

    Raises:
      ValueError: a training length that four does not divide, or a model that cannot read 4L + L/2.
    """
    config = stored_config(workdir)
    L, rest = divmod(config.train.length, key_targets.REFERENCE_MULTIPLE)
    if rest:
        raise ValueError(f"{workdir} was trained at {config.train.length} tokens, not at 4 L")
    inputs = open_inputs(config)
    top = max(config.evaluation.multiples)
    rows_RT = held_out_stretches(
        inputs.stream(split), top * L + L // 2, config.evaluation.stretches
    )
    restored = restore_checkpoint(workdir, config, inputs, LAST)
    model = config.model_config(inputs.tokenizer.vocab_size)
    lengths = (L + L // 2, config.train.length + L // 2)
    scorer = _scorer(dict.fromkeys(lengths, model), restored.params, config.evaluation.batch_tokens)
    chosen_RT = key_targets.choose(scorer, rows_RT, L)
    reference = {"arm": config.arm, "scheme": config.model.scheme, "step": restored.step}
    key_targets.write(path, chosen_RT, key_targets.about(inputs, split, L, top, rows_RT), reference)
    return int(chosen_RT.sum())


def _scorer(by_length: dict, params, batch_tokens: int) -> Scorer:
    """Returns a scorer over all devices of this process."""
    if len(jax.devices()) == 1:
        return Scorer(by_length, jax.device_put(params), batch_tokens)
    mesh = make_mesh(0, 1)
    shardings = jax.tree.map(
        lambda spec: jax.NamedSharding(mesh, spec),
        parameter_layout(params, mesh),
        is_leaf=lambda spec: isinstance(spec, jax.P),
    )
    return Scorer(by_length, jax.device_put(params, shardings), batch_tokens, mesh)


def _stamp(settings: dict) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
