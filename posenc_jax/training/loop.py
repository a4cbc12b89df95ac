"""The training loop: open, resume, step, log, save."""

import contextlib
import errno
import functools
import math
import time
from pathlib import Path

import jax
import numpy as np

from posenc_jax.checkpoints.hash_chain import HashChain
from posenc_jax.checkpoints.manager import CheckpointManager
from posenc_jax.costs.flops import model_flops
from posenc_jax.model.decoder import Decoder
from posenc_jax.results.files import replace_text
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
from posenc_jax.training.run_record import make_record, seconds_before, write_finished, write_record
from posenc_jax.training.sharding import BATCH, batch_rows, make_mesh
from posenc_jax.training.step import make_step, state_builder
from posenc_jax.training.validation import ValidationLoss
from posenc_jax.training.watchdog import Watchdog
from posenc_jax.training.workdir import check_owner, check_same_config, lock_workdir, ownership

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class Preempted(Exception):
    """The run was told to stop; its last finished step is saved."""


class Diverged(Exception):
    """Too many non-finite updates in a row; the last good checkpoint is kept."""


def train(config: RunConfig, workdir: Path, command: str, profile: Profile = NO_PROFILE) -> None:
    """Trains to `config.train.steps`, from the last checkpoint in `workdir` if there is one.

    Args:
      command: for the record. profile: steps to trace.

    Raises:
      ValueError: anything wrong with the configuration, the inputs or the folder.
      Stopped: SIGTERM or Ctrl-C, after a checkpoint of the last finished step.
      Diverged: `train.bad_steps` non-finite updates in a row.
      SaveFailed: the folder can no longer be written; the last checkpoint is whole.
    """
    leads = jax.process_index() == 0  # it alone writes the record, the metrics and the lock
    with contextlib.ExitStack() as held:
        with agree_on_refusal(config):
            mesh = run_mesh(config)
            check_mesh(config, mesh)
            if leads:
                check_same_config(workdir, config)
                check_wandb(config)
            inputs = open_inputs(config)
            model = Decoder(config.model_config(inputs.tokenizer.vocab_size))
            _feed(config, mesh, inputs, first_step=0)
            if config.train.dev_every:
                dev_examples(config, inputs)
            source = find_init_checkpoint(config, workdir)
        begins = source and (source, source.latest())
        with agree_on_refusal(config):
            if begins:
                check_init_compatible(config, inputs, model, *begins)
            if leads:
                held.enter_context(lock_workdir(workdir))
                replace_text(workdir / "config.json", config.to_json())
        with agree_on_refusal(config):
            if not (workdir / "config.json").exists():
                raise ValueError(
                    f"{workdir} is not the folder that process 0 sees: --workdir must be shared by all hosts"
                )
        held.enter_context(jax.set_mesh(mesh))
        stop = held.enter_context(PreemptionRequest())
        checkpoints = CheckpointManager(workdir, config.train.keep)
        try:
            with checkpoints:
                _run(config, workdir, command, inputs, model, mesh, checkpoints, begins, stop, profile)  # fmt: skip
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise checkpoints.failed(f"{workdir} cannot be written", error) from error


def _run(
    config, workdir, command, inputs: Inputs, model, mesh, checkpoints, begins, stop, profile
) -> None:
    t = config.train
    build, shapes = state_builder(config, model, mesh)
    owner = ownership(config, inputs)
    first = checkpoints.latest() or 0
    before = checkpoints.record(first) if first else {"links": None}
    dev = ValidationLoss(config, model, mesh, inputs) if t.dev_every else None
    if first:
        check_owner(workdir, first, owner, before["owner"])
        state = checkpoints.restore(first, shapes)
    else:
        state = build(jax.random.key(t.seed))
    stays = {"owner": owner}  # in the record of every checkpoint
    if begins and not first:
        source, step = begins
        state["params"] = source.parameters(step, shapes["params"])
        stays["source"] = init_provenance(config, source, step, state["params"])
        if dev:
            stays["source"]["dev_loss"] = dev(state["params"])
    elif t.init_from:
        stays["source"] = before["source"]
    chain = HashChain(before["links"])
    record = make_record(config, command, inputs, state["params"], workdir)
    record |= {"source": stays["source"]} if t.init_from else {}
    record["attention"] = model.config.attention_paths(t.length, t.sequence_devices)
    spent = seconds_before(workdir)
    profile.check(first, t.steps)
    if first >= t.steps:
        print(f"{workdir} has finished its {t.steps} steps")
        write_finished(workdir, record, spent, state, chain)
        return
    if jax.process_index() == 0:
        print(f"attention over {t.length} tokens: {'; '.join(record['attention'])}")
        if first:
            print(f"resuming {workdir} after step {first} of {t.steps}")
    write_record(workdir, record, spent, first)

    step = make_step(config, model)
    place = functools.partial(_place, config, mesh)
    flops = model_flops(model.config, t.batch_size, t.length).total
    started, done = time.time(), first
    pending = None  # metrics of the step before, read only after the next one is under way
    with (
        Monitor(workdir, config, first, record["began"], flops, chain) as monitor,
        _watchdog(workdir, t.stall_seconds) as watchdog,
    ):
        for batch in monitor.waiting(_feed(config, mesh, inputs, first_step=first)):
            profile.before(done + 1, workdir)
            placed = place(batch)
            state, metrics = step(state, placed)
            monitor.started(metrics)
            done += 1
            chain.add(done, placed, metrics)
            checkpoints.check()
            if pending is not None:
                _finish(pending, done - 1, t.bad_steps, monitor, watchdog)
            pending = metrics
            asked = stop.at(done)
            if done % t.save_every == 0 or done == t.steps or asked:
                measured = {}
                if dev and dev.due(done):
                    jax.block_until_ready(metrics)  # the step's own time is not the measurement's
                    with monitor.saving():
                        measured = {"dev_loss": dev(state["params"])}
                _finish(pending, done, t.bad_steps, monitor, watchdog, measured)
                pending = None  # a saved step is a logged step, whatever happens next
                with monitor.saving():
                    links = {"links": chain.through(done)}
                    checkpoints.save(done, state, stays | links | measured)
                    if t.wait_for_saves:
                        checkpoints.wait()
                    write_record(workdir, record, spent + time.time() - started, done)
            profile.after(done, state)
            if asked:
                break
        checkpoints.wait()
    seconds = spent + time.time() - started
    if done < t.steps:
        write_record(workdir, record, seconds, done)
        raise Preempted(
            f"stopped by {asked} after step {done} of {t.steps}; run the same command to go on"
        )
    write_finished(workdir, record, seconds, state, chain)


def _finish(metrics, step, bad_steps, monitor: Monitor, watchdog: Watchdog, measured=()) -> None:
    """Waits until a step is finished, has it written down, and ends a run that diverges.

    The counter of every step is read, not only that of steps with a row: it is back at 0 after one good
    update. The next step is under way by then, so reading it costs no time of the devices.
    """
    skipped = int(metrics["skipped_in_a_row"])
    monitor.finished(step, metrics, dict(measured), due=skipped >= bad_steps)
    watchdog.finished(step)
    if skipped >= bad_steps:
        raise Diverged(diverged(skipped, step))


def diverged(skipped: int, step: int) -> str:
    """Returns what ends a run after so many updates in a row that were not finite."""
    return (
        f"{skipped} updates in a row were not finite, up to step {step}; "
        "lower config.optimizer.learning_rate and start again in another --workdir"
    )


def _watchdog(workdir: Path, seconds: float) -> Watchdog:
    name, who = "stalls.log", f"process {jax.process_index()} of {jax.process_count()}"
    if jax.process_index():
        name = f"stalls-{jax.process_index()}.log"
    return Watchdog(workdir / name, seconds, who)


def _feed(config: RunConfig, mesh, inputs: Inputs, *, first_step: int):
    """Batches from `first_step` on, this process's rows of them."""
    t = config.train
    index, count = rows_of_process(
        jax.NamedSharding(mesh, BATCH), t.batch_size // t.accumulation, axis=1, ndim=3
    )
    return training_batches(
        config, inputs, first_step=first_step, process_index=index, process_count=count
    )


def _place(config: RunConfig, mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts one process's rows on its devices as [slices, B, T], laid out as `BATCH`."""
    slices, rows = config.train.accumulation, config.train.batch_size // config.train.accumulation

    def put(x: np.ndarray) -> jax.Array:
        local = x.reshape(slices, -1, x.shape[-1])
        shape = (slices, rows, x.shape[-1])
        return jax.make_array_from_process_local_data(jax.NamedSharding(mesh, BATCH), local, shape)

    return {name: put(x) for name, x in batch.items()}


def run_mesh(config: RunConfig) -> jax.sharding.Mesh:
    """Returns the mesh that `config.train` asks for; ValueError where it asks for too much."""
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
            f"config.train.batch_size / accumulation = {rows} rows do not divide over {parts} data x fsdp "
            "devices; set config.train.data_devices"
        )
    c, sequence = config.model_config(vocab_size=1), mesh.shape["sequence"]
    if t.length % sequence:
        raise ValueError(
            f"config.train.length={t.length} tokens do not divide over {sequence} sequence devices; "
            "set config.train.sequence_devices"
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
