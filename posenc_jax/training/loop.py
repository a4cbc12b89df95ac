"""The training loop: open, resume, step, log, save."""

import contextlib
import functools
import time
from pathlib import Path

import jax
import numpy as np

from posenc_jax.model.decoder import Decoder
from posenc_jax.training.checkpoints import Checkpoints
from posenc_jax.training.config import RunConfig
from posenc_jax.training.hosts import refusing_alike, rows_of_process
from posenc_jax.training.inputs import Inputs, open_inputs, training_batches
from posenc_jax.training.layout import make_mesh
from posenc_jax.training.progress import MetricLog, Progress
from posenc_jax.training.record import (
    record_of,
    seconds_before,
    write_finished,
    write_record,
)
from posenc_jax.training.step import make_step, state_builder
from posenc_jax.training.stop import StopRequest
from posenc_jax.training.workdir import claim, refuse_strangers, replace_text

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
    leads = jax.process_index() == 0  # it alone writes the record, the metrics and the lock
    with contextlib.ExitStack() as held:
        with refusing_alike(config):
            mesh = make_mesh(config.train.data_devices, config.train.model_devices)
            _check_mesh(config, mesh)
            if leads:
                refuse_strangers(workdir, config)
            inputs = open_inputs(config)
            model = Decoder(config.model_config(inputs.tokenizer.vocab_size))
            _feed(config, mesh, inputs, first_step=0)
        with refusing_alike(config):
            if leads:
                held.enter_context(claim(workdir))
                replace_text(workdir / "config.json", config.to_json())
        with refusing_alike(config):
            if not (workdir / "config.json").exists():
                raise ValueError(
                    f"{workdir} is not the folder that process 0 sees: --workdir must be shared by all hosts"
                )
        held.enter_context(jax.set_mesh(mesh))
        stop = held.enter_context(StopRequest())
        checkpoints = held.enter_context(Checkpoints(workdir, config.train.keep))
        _run(config, workdir, command, inputs, model, mesh, checkpoints, stop)


def _run(config, workdir, command, inputs: Inputs, model, mesh, checkpoints, stop) -> None:
    t = config.train
    build, shapes = state_builder(config, model, mesh)
    first = checkpoints.latest() or 0
    state = checkpoints.restore(first, shapes) if first else build(jax.random.key(t.seed))
    record = record_of(config, command, inputs, state["params"], workdir)
    record["attention"] = model.config.attention_paths(t.length)
    spent = seconds_before(workdir)
    if first >= t.steps:
        print(f"{workdir} has finished its {t.steps} steps")
        write_finished(workdir, record, spent, state)
        return
    if jax.process_index() == 0:
        print(f"attention over {t.length} tokens: {'; '.join(record['attention'])}")
        if first:
            print(f"resuming {workdir} after step {first} of {t.steps}")
    write_record(workdir, record, spent)

    step = make_step(config, model)
    log = bar = None
    if jax.process_index() == 0:
        log, bar = MetricLog(workdir, first), Progress(config.arm, first, t.steps)
    place = functools.partial(_place, config, mesh)
    started = clock = time.time()
    pending = None  # metrics of the step before, read only after the next one is under way
    done = first
    try:
        for batch in _feed(config, mesh, inputs, first_step=first):
            state, metrics = step(state, place(batch))
            done += 1
            if pending is not None:
                clock = _report(pending, done - 1, t, log, bar, clock)
            pending = metrics
            asked = stop.at(done)
            if done % t.save_every == 0 or done == t.steps or asked:
                clock = _report(pending, done, t, log, bar, clock)
                pending = None  # a saved step is a logged step, whatever happens next
                checkpoints.save(done, state)
            if asked and done < t.steps:
                raise Stopped(
                    f"stopped by {asked} after step {done} of {t.steps}; run the same command to go on"
                )
        seconds = spent + time.time() - started
        checkpoints.wait()
        write_finished(workdir, record, seconds, state)
    except Stopped:
        checkpoints.wait()
        write_record(workdir, record, spent + time.time() - started)
        raise
    finally:
        for open_one in filter(None, (log, bar)):
            open_one.close()


def _report(metrics, step: int, t, log: MetricLog, bar: Progress, clock: float) -> float:
    """Reads one finished step's metrics; writes them every `log_every` steps."""
    if step % t.log_every and step != t.steps:
        return clock
    row = {name: float(value) for name, value in jax.device_get(metrics).items()}
    now = time.time()
    rate = t.batch_size * t.length * t.log_every / max(now - clock, 1e-9)
    if log is not None:
        log.write({"step": step, **row, "tokens_per_second": round(rate, 1)})
        bar.update(step, loss=f"{row['loss']:.3f}", tokens_per_s=f"{rate:,.0f}")
    if row["skipped_in_a_row"] >= t.bad_steps:
        raise Diverged(
            f"{row['skipped_in_a_row']:.0f} updates in a row were not finite, up to step {step}; "
            "lower config.optimizer.learning_rate and start again in another --workdir"
        )
    return now


def _rows(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
    """How a batch [slices, B, T] lies: B over the data axis."""
    return jax.NamedSharding(mesh, jax.P(None, "data", None))


def _feed(config: RunConfig, mesh, inputs: Inputs, *, first_step: int):
    """Batches from `first_step` on, this process's rows of them."""
    t = config.train
    index, count = rows_of_process(_rows(mesh), t.batch_size // t.accumulation, axis=1, ndim=3)
    return training_batches(
        config, inputs, first_step=first_step, process_index=index, process_count=count
    )


def _place(config: RunConfig, mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts one process's rows on its devices as [slices, B, T], B over the data axis."""
    slices, rows = config.train.accumulation, config.train.batch_size // config.train.accumulation

    def put(x: np.ndarray) -> jax.Array:
        local = x.reshape(slices, -1, x.shape[-1])
        shape = (slices, rows, x.shape[-1])
        return jax.make_array_from_process_local_data(_rows(mesh), local, shape)

    return {name: put(x) for name, x in batch.items()}


def _check_mesh(config: RunConfig, mesh: jax.sharding.Mesh) -> None:
    rows, data, model = config.train.batch_size // config.train.accumulation, *mesh.devices.shape
    if rows % data:
        raise ValueError(
            f"config.train.batch_size / accumulation = {rows} rows do not divide over {data} data devices; "
            "set config.train.data_devices"
        )
    c = config.model_config(vocab_size=1)
    for name, size in (
        ("num_kv_heads", c.num_kv_heads),
        ("mlp_dim", c.mlp_dim),
        ("model_dim", c.model_dim),
    ):
        if size % model:
            raise ValueError(f"model.{name}={size} does not divide over {model} model devices")
