"""Training loop of one run: open, resume, step, log, save."""

import contextlib
import dataclasses
import errno
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from posenc_jax.checkpoints.hash_chain import HashChain
from posenc_jax.checkpoints.manager import CheckpointManager
from posenc_jax.costs.flops import model_flops
from posenc_jax.model.decoder import Decoder
from posenc_jax.results.files import replace_text
from posenc_jax.training import run_record as records
from posenc_jax.training.config import RunConfig
from posenc_jax.training.finetune import (
    check_init_compatible,
    find_init_checkpoint,
    init_provenance,
)
from posenc_jax.training.hosts import agree_on_refusal, rows_of_process
from posenc_jax.training.inputs import Inputs, dev_examples, open_inputs, training_batches
from posenc_jax.training.monitor import Monitor
from posenc_jax.training.preemption import PreemptionRequest
from posenc_jax.training.profile import NO_PROFILE, Profile
from posenc_jax.training.progress import check_wandb
from posenc_jax.training.sharding import BATCH, batch_rows, make_mesh
from posenc_jax.training.step import State, make_step, state_builder
from posenc_jax.training.validation import ValidationLoss
from posenc_jax.training.watchdog import Watchdog
from posenc_jax.training.workdir import (
    check_owner,
    check_same_config,
    lock_workdir,
    ownership,
    saved_record,
)

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class Preempted(Exception):
    """The run was asked to stop; its last finished step is saved."""


class Diverged(Exception):
    """Too many non-finite updates in a row; the last good checkpoint is kept."""


@dataclasses.dataclass(frozen=True)
class TrainingContext:
    """Everything opened that the steps of a run need.

    Attributes:
      config: of the run. command: the command line, for the record. inputs: corpus and tokenizer.
      model: the decoder. mesh: that batches and parameters are laid out on.
    """

    config: RunConfig
    command: str
    inputs: Inputs
    model: Decoder
    mesh: jax.sharding.Mesh

    def validation(self) -> ValidationLoss | None:
        """Returns the loss on the dev split; None for a run that never measures it."""
        if not self.config.train.dev_every:
            return None
        return ValidationLoss(self.config, self.model, self.mesh, self.inputs)


def open_training(config: RunConfig, command: str, mesh: jax.sharding.Mesh) -> TrainingContext:
    """Opens corpus and tokenizer, makes the decoder; ValueError for unusable inputs."""
    inputs = open_inputs(config)
    model = Decoder(config.model_config(inputs.tokenizer.vocab_size))
    _feed(config, mesh, inputs, first_step=0)
    if config.train.dev_every:
        dev_examples(config, inputs)
    return TrainingContext(config, command, inputs, model, mesh)


def train(config: RunConfig, workdir: Path, command: str, profile: Profile = NO_PROFILE) -> None:
    """Trains to `config.train.steps`, from the last checkpoint in `workdir` if there is one.

    Args:
      command: for the record. profile: steps to trace.

    Raises:
      ValueError: anything wrong with the configuration, the inputs or the folder.
      Preempted: SIGTERM, SIGHUP or Ctrl-C, after a checkpoint of the last finished step.
      Diverged: `train.bad_steps` non-finite updates in a row.
      SaveFailed: the folder can no longer be written; the last checkpoint is whole.
    """
    is_first = jax.process_index() == 0  # only process 0 writes record, metrics and lock
    with contextlib.ExitStack() as stack:
        with agree_on_refusal(config):
            mesh = run_mesh(config)
            check_mesh(config, mesh)
            if is_first:
                check_same_config(workdir, config)
                check_wandb(config)
            ctx = open_training(config, command, mesh)
            source = find_init_checkpoint(config, workdir)
        step = source.latest() if source else None
        init = None if source is None or step is None else (source, step)
        with agree_on_refusal(config):
            if init:
                check_init_compatible(config, ctx.inputs, ctx.model, *init)
            if is_first:
                stack.enter_context(lock_workdir(workdir))
                replace_text(workdir / "config.json", config.to_json())
        with agree_on_refusal(config):
            if not (workdir / "config.json").exists():
                raise ValueError(
                    f"{workdir} is not the folder that process 0 sees: --workdir must be shared by "
                    "all hosts"
                )
        stack.enter_context(jax.set_mesh(mesh))
        preemption = stack.enter_context(PreemptionRequest())
        checkpoints = CheckpointManager(workdir, config.train.keep)
        with unwritable_named({workdir: checkpoints}), checkpoints:
            validation = ctx.validation()
            leg = _start(ctx, workdir, checkpoints, init, validation)
            _run(ctx, leg, checkpoints, validation, preemption, profile)


@contextlib.contextmanager
def unwritable_named(runs: Mapping[Path, CheckpointManager]) -> Iterator[None]:
    """Turns an error of the disk into SaveFailed, with the last whole checkpoint of the first run.

    Args:
      runs: the checkpoints of each workdir that the `with` block writes into.
    """
    try:
        yield
    except OSError as error:
        for checkpoints in runs.values():
            checkpoints.check_folder()
        if error.errno not in NO_ROOM:
            raise
        workdir, checkpoints = next(iter(runs.items()))
        raise checkpoints.failed(f"{workdir} cannot be written", error) from error


@dataclasses.dataclass(frozen=True)
class _Leg:
    """One start of the command: the state that it begins with, and its records.

    Attributes:
      workdir: of the run. first: steps finished before. state: after these steps. chain: links up
        to them.
      checkpoint_record: entries in the record of every checkpoint. run_record: of run.json, with
      the seconds of earlier legs.
    """

    workdir: Path
    first: int
    state: State
    chain: HashChain
    checkpoint_record: dict
    run_record: dict


def _start(ctx: TrainingContext, workdir: Path, checkpoints, init, validation) -> _Leg:
    """Restores the last checkpoint, or makes a new state, with `init`'s parameters if given."""
    config, t = ctx.config, ctx.config.train
    build, shapes = state_builder(config, ctx.model, ctx.mesh)
    owner = ownership(config, ctx.inputs)
    first = checkpoints.latest() or 0
    stored: dict[str, Any] = saved_record(checkpoints, first) if first else {"links": None}
    if first:
        check_owner(workdir, first, owner, stored["owner"])
        state = checkpoints.restore(first, shapes)
    else:
        state = build(jax.random.key(t.seed))
    checkpoint_record: dict[str, Any] = {"owner": owner}
    if init and not first:
        source, step = init
        state["params"] = source.parameters(step, shapes["params"])
        provenance = init_provenance(config, source, step, state["params"])
        if validation:
            provenance["dev_loss"] = validation(state["params"])
        checkpoint_record["source"] = provenance
    elif t.init_from:
        checkpoint_record["source"] = stored["source"]
    earlier = records.stored_record(workdir)
    run_record = records.make_record(config, ctx.command, ctx.inputs, state["params"], earlier)
    if t.init_from:
        run_record["source"] = checkpoint_record["source"]
    run_record["attention"] = ctx.model.config.attention_paths(t.length, t.sequence_devices)
    chain = HashChain(stored["links"])
    return _Leg(workdir, first, state, chain, checkpoint_record, run_record)


def _run(
    ctx: TrainingContext,
    leg: _Leg,
    checkpoints: CheckpointManager,
    validation: ValidationLoss | None,
    preemption: PreemptionRequest,
    profile: Profile,
) -> None:
    config, t, workdir = ctx.config, ctx.config.train, leg.workdir
    first, state, record, chain = leg.first, leg.state, leg.run_record, leg.chain
    before = record["wall_seconds"]
    profile.check(first, t.steps)
    if first >= t.steps:
        print(f"{workdir} has finished its {t.steps} steps")
        records.write_finished(workdir, record, before, state, chain)
        return
    if jax.process_index() == 0:
        print(records.opening(record), flush=True)  # before the compilation
        print(f"attention over {t.length} tokens: {'; '.join(record['attention'])}")
        if first:
            print(f"resuming {workdir} after step {first} of {t.steps}")
    records.write_record(workdir, record, before, first)

    step = make_step(config, ctx.model)
    flops = model_flops(ctx.model.config, t.batch_size, t.length).total
    started, done = time.monotonic(), first
    pending = None  # metrics of the previous step, read only after the next step was dispatched
    with (
        Monitor(workdir, config, first, record["began"], flops, chain) as monitor,
        _watchdog(workdir, t.stall_seconds) as watchdog,
    ):
        for rows in monitor.waiting(_feed(config, ctx.mesh, ctx.inputs, first_step=first)):
            profile.before(done + 1, workdir)
            batch = _place(config, ctx.mesh, rows)
            state, metrics = step(state, batch)
            monitor.started(metrics)
            done += 1
            chain.add(done, batch, metrics)
            checkpoints.check()
            if pending is not None:
                _finish(pending, done - 1, t.bad_steps, monitor, watchdog)
            pending = metrics
            reason = preemption.at(done)
            if done % t.save_every == 0 or done == t.steps or reason:
                measured = {}
                if validation and validation.due(done):
                    jax.block_until_ready(metrics)  # keeps the step's time out of the measurement
                    with monitor.saving():
                        measured = {"dev_loss": validation(state["params"])}
                _finish(pending, done, t.bad_steps, monitor, watchdog, measured)
                pending = None  # every saved step has a row of metrics
                with monitor.saving():
                    links = {"links": chain.through(done)}
                    checkpoints.save(done, state, leg.checkpoint_record | links | measured)
                    if t.wait_for_saves:
                        checkpoints.wait()
                    records.write_record(workdir, record, before + time.monotonic() - started, done)
            profile.after(done, state)
            if reason:
                break
        checkpoints.wait()
    seconds = before + time.monotonic() - started
    if done < t.steps:
        records.write_record(workdir, record, seconds, done)
        raise Preempted(preempted(reason, done, t.steps))
    records.write_finished(workdir, record, seconds, state, chain)
    if jax.process_index() == 0:
        print(records.ending(workdir, monitor.last))


def preempted(reason: str, step: int, steps: int) -> str:
    """Returns the message of a run that was asked to stop."""
    return f"stopped by {reason} after step {step} of {steps}; run the same command to go on"


def _finish(metrics, step, bad_steps, monitor: Monitor, watchdog: Watchdog, measured=()) -> None:
    """Waits for a step, writes its metrics, and raises Diverged after too many skipped updates.

    It reads the counter of every step, because one good update sets it back to 0. The next step was
    dispatched before, so the read costs no device time.
    """
    skipped = int(metrics["skipped_in_a_row"])
    monitor.finished(step, metrics, dict(measured), due=skipped >= bad_steps)
    watchdog.finished(step)
    if skipped >= bad_steps:
        raise Diverged(diverged(skipped, step))


def diverged(skipped: int, step: int) -> str:
    """Returns the message of a run that ends after so many non-finite updates in a row."""
    return (
        f"{skipped} updates in a row were not finite, up to step {step}; lower "
        "config.optimizer.learning_rate and start again in another --workdir"
    )


def _watchdog(workdir: Path, seconds: float) -> Watchdog:
    index = jax.process_index()
    name = f"stalls-{index}.log" if index else "stalls.log"
    return Watchdog(workdir / name, seconds, f"process {index} of {jax.process_count()}")


def _feed(config: RunConfig, mesh, inputs: Inputs, *, first_step: int):
    """Returns this process's rows of the batches from `first_step` on."""
    t = config.train
    index, count = rows_of_process(
        jax.NamedSharding(mesh, BATCH), t.batch_size // t.accumulation, axis=1, ndim=3
    )
    return training_batches(
        config, inputs, first_step=first_step, process_index=index, process_count=count
    )


def _place(config: RunConfig, mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Returns one process's rows on its devices as [slices, B, T], laid out as `BATCH`."""
    slices, rows = config.train.accumulation, config.train.batch_size // config.train.accumulation

    def put(x: np.ndarray) -> jax.Array:
        local = x.reshape(slices, -1, x.shape[-1])
        shape = (slices, rows, x.shape[-1])
        return jax.make_array_from_process_local_data(jax.NamedSharding(mesh, BATCH), local, shape)

    return {name: put(x) for name, x in batch.items()}


def run_mesh(config: RunConfig) -> jax.sharding.Mesh:
    """Returns the mesh of `config.train`; ValueError for more devices than there are."""
    t = config.train
    return make_mesh(
        t.data_devices,
        t.model_devices,
        fsdp_devices=t.fsdp_devices,
        sequence_devices=t.sequence_devices,
    )


def check_mesh(config: RunConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises ValueError for a batch, a length or a model that does not divide over the mesh."""
    t, parts = config.train, batch_rows(mesh)
    rows = t.batch_size // t.accumulation
    if rows % parts:
        raise ValueError(
            f"config.train.batch_size / accumulation = {rows} rows do not divide over {parts} data "
            "x fsdp devices; set config.train.data_devices"
        )
    c, sequence = config.architecture, mesh.shape["sequence"]
    if t.length % sequence:
        raise ValueError(
            f"config.train.length={t.length} tokens do not divide over {sequence} sequence "
            "devices; set config.train.sequence_devices"
        )
    try:
        c.attention_paths(t.length, sequence)
    except ValueError as error:
        raise ValueError(f"config.train.sequence_devices={sequence}: {error}") from None
    for name, size, axes in (
        ("num_heads", c.num_heads, ("model",)),
        ("mlp_dim", c.mlp_dim, ("model",)),
        ("model_dim", c.model_dim, ("model", "fsdp")),
    ):
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            raise ValueError(
                f"model.{name}={size} does not divide over {parts} {' x '.join(axes)} devices"
            )
