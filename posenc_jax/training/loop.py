"""The training loop: open, resume, step, log, save."""

import datetime
import functools
import json
import math
import signal
import time
from pathlib import Path

import jax
import numpy as np

from posenc_jax.model.decoder import Decoder
from posenc_jax.training.checkpoints import Checkpoints
from posenc_jax.training.config import RunConfig
from posenc_jax.training.inputs import Inputs, open_inputs, training_batches, unigram_bits_per_byte
from posenc_jax.training.layout import BATCH, batch_rows, make_mesh
from posenc_jax.training.progress import MetricLog, Progress
from posenc_jax.training.step import make_step, state_builder
from posenc_jax.training.workdir import (
    claim,
    provenance,
    refuse_strangers,
    replace_text,
    write_json,
)

STOPPED = 75  # exit code of a run that was told to stop and can be resumed (EX_TEMPFAIL)


class Stopped(Exception):
    """The run was told to stop; its last finished step is saved."""


class Diverged(Exception):
    """Too many non-finite updates in a row; the last good checkpoint is kept."""


def train(config: RunConfig, workdir: Path, command: str) -> None:
    """Trains to `config.train.steps`, from the last checkpoint in `workdir` if there is one.

    Raises:
      ValueError: anything wrong with the configuration, the inputs or the folder.
      Stopped: SIGTERM or Ctrl-C, after a checkpoint of the last finished step.
      Diverged: `train.bad_steps` non-finite updates in a row.
    """
    mesh = make_mesh(
        config.train.data_devices,
        config.train.model_devices,
        fsdp_devices=config.train.fsdp_devices,
    )
    check_mesh(config, mesh)
    refuse_strangers(workdir, config)
    inputs = open_inputs(config)
    model = Decoder(config.model_config(inputs.tokenizer.vocab_size))
    training_batches(config, inputs, first_step=0, process_index=0, process_count=1)
    with claim(workdir), jax.set_mesh(mesh), _Stop() as stop:
        replace_text(workdir / "config.json", config.to_json())
        with Checkpoints(workdir, config.train.keep) as checkpoints:
            _run(config, workdir, command, inputs, model, mesh, checkpoints, stop)


def _run(config, workdir, command, inputs: Inputs, model, mesh, checkpoints, stop) -> None:
    t = config.train
    build, shapes = state_builder(config, model, mesh)
    first = checkpoints.latest() or 0
    state = checkpoints.restore(first, shapes) if first else build(jax.random.key(t.seed))
    record = _record(config, command, inputs, state["params"])
    record["began"] = _began(workdir)
    record["attention"] = model.config.attention_paths(t.length)
    _refuse_other_text(workdir, record)
    spent = _seconds_before(workdir)
    if first >= t.steps:
        print(f"{workdir} has finished its {t.steps} steps")
        _finish(workdir, record, spent, t, state)
        return
    print(f"attention over {t.length} tokens: {'; '.join(record['attention'])}")
    if first:
        print(f"resuming {workdir} after step {first} of {t.steps}")

    if jax.process_index() == 0:
        write_json(workdir / "run.json", record | {"finished": False, "wall_seconds": spent})

    step = make_step(config, model)
    log, bar = MetricLog(workdir, first), Progress(config.arm, first, t.steps)
    feed = training_batches(
        config, inputs, first_step=first,
        process_index=jax.process_index(), process_count=jax.process_count(),
    )  # fmt: skip
    place = functools.partial(_place, config, mesh)
    started = clock = time.time()
    pending = None  # metrics of the step before, read only after the next one is under way
    done = first
    try:
        for batch in feed:
            state, metrics = step(state, place(batch))
            done += 1
            if pending is not None:
                clock = _report(pending, done - 1, t, log, bar, clock)
            pending = metrics
            if done % t.save_every == 0 or done == t.steps or stop.asked:
                clock = _report(pending, done, t, log, bar, clock)
                pending = None  # a saved step is a logged step, whatever happens next
                checkpoints.save(done, state)
            if stop.asked and done < t.steps:
                raise Stopped(
                    f"stopped by {stop.asked} after step {done} of {t.steps}; run the same command to go on"
                )
        seconds = spent + time.time() - started
        checkpoints.wait()
        _finish(workdir, record, seconds, t, state)
    except Stopped:
        checkpoints.wait()
        seconds = spent + time.time() - started
        if jax.process_index() == 0:
            write_json(workdir / "run.json", record | {"finished": False, "wall_seconds": seconds})
        raise
    finally:
        log.close()
        bar.close()


def _finish(workdir: Path, record: dict, seconds: float, t, state) -> None:
    """Writes the record of a finished run; seconds are those of its legs that ended by themselves."""
    if jax.process_index() == 0:
        rate = round(t.steps * t.batch_size * t.length / seconds) if seconds else None
        write_json(
            workdir / "run.json",
            record
            | {
                "wall_seconds": round(seconds, 1),
                "tokens_per_second": rate,
                "skipped_updates": int(state["skipped"]),
                "finished": True,
            },
        )


def _began(workdir: Path) -> str | None:
    """When the run was first started, ISO 8601 in UTC; None where an earlier leg did not say."""
    path = workdir / "run.json"
    if not path.exists():
        return datetime.datetime.now(datetime.UTC).isoformat()
    return ({"began": None} | json.loads(path.read_text()))["began"]


def _seconds_before(workdir: Path) -> float:
    path = workdir / "run.json"
    return json.loads(path.read_text()).get("wall_seconds", 0.0) if path.exists() else 0.0


def _report(metrics, step: int, t, log: MetricLog, bar: Progress, clock: float) -> float:
    """Reads one finished step's metrics; writes them every `log_every` steps."""
    if step % t.log_every and step != t.steps:
        return clock
    row = {name: float(value) for name, value in jax.device_get(metrics).items()}
    now = time.time()
    rate = t.batch_size * t.length * t.log_every / max(now - clock, 1e-9)
    log.write({"step": step, **row, "tokens_per_second": round(rate, 1)})
    bar.update(step, loss=f"{row['loss']:.3f}", tokens_per_s=f"{rate:,.0f}")
    if row["skipped_in_a_row"] >= t.bad_steps:
        raise Diverged(
            f"{row['skipped_in_a_row']:.0f} updates in a row were not finite, up to step {step}; "
            "lower config.optimizer.learning_rate and start again in another --workdir"
        )
    return now


def _place(config: RunConfig, mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts one process's rows on its devices as [slices, B, T], laid out as `BATCH`."""
    slices = config.train.accumulation
    sharding = jax.NamedSharding(mesh, BATCH)

    def put(x: np.ndarray) -> jax.Array:
        local = x.reshape(slices, -1, x.shape[-1])
        rows = config.train.batch_size // slices
        return jax.make_array_from_process_local_data(sharding, local, (slices, rows, x.shape[-1]))

    return {name: put(x) for name, x in batch.items()}


def _record(config: RunConfig, command: str, inputs: Inputs, params) -> dict:
    t = config.train
    return {
        "arm": config.arm,
        "scheme": config.model.scheme,
        "seed": t.seed,
        "tier": t.tier,
        "train_length": t.length,
        "steps": t.steps,
        "tokens": t.steps * t.batch_size * t.length,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "corpus": config.data.corpus,
        "corpus_fingerprint": inputs.corpus.fingerprint,
        "tokenizer_fingerprint": inputs.tokenizer.fingerprint,
        "unigram_bpb": unigram_bits_per_byte(
            inputs.stream("train"), inputs.stream("test"), inputs.tokenizer
        ),
        "command": command,
        **provenance(),
    }


def _refuse_other_text(workdir: Path, record: dict) -> None:
    """Raises ValueError when the run was begun on another corpus or tokenizer of the same name."""
    path = workdir / "run.json"
    if path.exists():
        begun = json.loads(path.read_text())
        for name in ("corpus_fingerprint", "tokenizer_fingerprint"):
            if begun[name] != record[name]:
                raise ValueError(
                    f"{workdir} was begun with {name} {begun[name][:12]}, now it is {record[name][:12]}: "
                    "the text or the Python that it comes from has changed; choose another --workdir"
                )


def check_mesh(config: RunConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises ValueError for a batch or a model that does not divide over the mesh."""
    t, parts = config.train, batch_rows(mesh)
    rows = t.batch_size // t.accumulation
    if rows % parts:
        raise ValueError(
            f"config.train.batch_size / accumulation = {rows} rows do not divide over {parts} data x fsdp "
            "devices; set config.train.data_devices"
        )
    c = config.model_config(vocab_size=1)
    for name, size, axes in (
        ("num_kv_heads", c.num_kv_heads, ("model",)),
        ("mlp_dim", c.mlp_dim, ("model",)),
        ("model_dim", c.model_dim, ("model", "fsdp")),
    ):
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            raise ValueError(
                f"model.{name}={size} does not divide over {parts} {' x '.join(axes)} devices"
            )


class _Stop:
    """Turns SIGTERM and the first Ctrl-C into a request; a second Ctrl-C ends the process."""

    def __enter__(self) -> "_Stop":
        self.asked = ""
        self._before = {s: signal.signal(s, self._hear) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _hear(self, number, frame) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name

    def __exit__(self, *exc) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
