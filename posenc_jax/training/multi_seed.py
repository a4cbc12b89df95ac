"""Training of several seeds in one program (vmap over seeds), each with a run folder of its own.

A tiny model does not fill an accelerator; one kernel for all seeds does. Each folder equals the
folder of a run trained alone, and each run may be continued alone at any time.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.checkpoints.hash_chain import HashChain, batch_fingerprints
from posenc_jax.checkpoints.manager import CheckpointManager
from posenc_jax.results.files import replace_text
from posenc_jax.training.config import RunConfig
from posenc_jax.training.inputs import training_batches
from posenc_jax.training.loop import (
    Diverged,
    Preempted,
    TrainingContext,
    diverged,
    open_training,
    preempted,
    run_mesh,
    unwritable_named,
)
from posenc_jax.training.preemption import PreemptionRequest
from posenc_jax.training.progress import MetricLog, Progress
from posenc_jax.training.run_record import (
    ending,
    make_record,
    opening,
    stored_record,
    write_finished,
    write_record,
)
from posenc_jax.training.step import State, make_step, state_builder
from posenc_jax.training.workdir import (
    check_owner,
    check_same_config,
    lock_workdir,
    ownership,
    saved_record,
)


@dataclasses.dataclass
class _SeedRun:
    """One of the runs; `lost` says why it diverged, and is empty before."""

    config: RunConfig
    workdir: Path
    checkpoints: CheckpointManager
    record: dict = dataclasses.field(default_factory=dict)
    spent: float = 0.0
    owner: dict = dataclasses.field(default_factory=dict)
    chain: HashChain = dataclasses.field(default_factory=lambda: HashChain(None))
    log: MetricLog | None = None
    lost: str = ""


def train_seeds(config: RunConfig, workdirs: Mapping[int, Path], command: str) -> None:
    """Trains `config` once for every seed, each in its folder, from the last step that all have
    saved.

    Finished runs do not change. Data equal those of a run trained alone, losses up to rounding. A
    run that diverges keeps its last good checkpoint; the others go on.

    Args:
      config: of all runs; its own seed is not used. workdirs: folder by training seed.

    Raises:
      ValueError: anything wrong with the configuration, the inputs or a folder; a seed below 0;
        more than one device; runs that have begun and have no step in common.
      Preempted: SIGTERM, SIGHUP or Ctrl-C, after a checkpoint of the last finished step of each.
      Diverged: at least one run diverged; raised once the others have finished.
      SaveFailed: a folder can no longer be written; the last checkpoints are whole.
    """
    mesh = run_mesh(config)
    if mesh.size > 1 or jax.process_count() > 1:
        raise ValueError(
            f"seeds are trained together on one device; config.train asks for {mesh.size}: set "
            "config.train.data_devices=1, or train the seeds one by one"
        )
    if config.train.init_from:
        raise ValueError(
            f"config.train.init_from={config.train.init_from}: runs are fine-tuned one by one, "
            "each from its own; leave --seeds out"
        )
    configs = {
        seed: dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
        for seed in workdirs
    }
    if len({folder.resolve() for folder in workdirs.values()}) < len(workdirs):
        raise ValueError("runs of several seeds need a --workdir each; write {seed} in its name")
    for seed, workdir in workdirs.items():
        check_same_config(workdir, configs[seed])
    ctx = open_training(config, command, mesh)
    with contextlib.ExitStack() as stack:
        for workdir in workdirs.values():
            stack.enter_context(lock_workdir(workdir))
        stack.enter_context(jax.set_mesh(mesh))
        preemption = stack.enter_context(PreemptionRequest())
        runs = []
        for seed, workdir in workdirs.items():
            replace_text(workdir / "config.json", configs[seed].to_json())
            checkpoints = stack.enter_context(CheckpointManager(workdir, config.train.keep))
            runs.append(_SeedRun(configs[seed], workdir, checkpoints))
        with unwritable_named({run.workdir: run.checkpoints for run in runs}):
            _train(ctx, runs, preemption)


def _train(ctx: TrainingContext, runs: list[_SeedRun], preemption: PreemptionRequest) -> None:
    t, inputs = ctx.config.train, ctx.inputs
    build, shapes = state_builder(ctx.config, ctx.model, ctx.mesh)
    ended = [run for run in runs if run.checkpoints.latest() == t.steps]
    left = [run for run in runs if run not in ended]
    first = _common_step(left)
    attention = ctx.model.config.attention_paths(t.length)
    states = []
    for run in runs:
        step = t.steps if run in ended else first
        run.owner = ownership(run.config, inputs)
        stored: dict = saved_record(run.checkpoints, step) if step else {"links": None}
        if step:
            check_owner(run.workdir, step, run.owner, stored["owner"])
        run.chain = HashChain(stored["links"])
        key = jax.random.key(run.config.train.seed)
        state = run.checkpoints.restore(step, shapes) if step else build(key)
        before = stored_record(run.workdir)
        run.record = make_record(run.config, ctx.command, inputs, state["params"], before) | {
            "attention": attention,
            "seeds_in_program": before.get("seeds_in_program", 1) if run in ended else len(left),
        }
        run.spent = run.record["wall_seconds"]
        if run in ended:
            print(f"{run.workdir} has finished its {t.steps} steps")
            write_finished(run.workdir, run.record, run.spent, state, run.chain)
        else:
            states.append(state)
    if not left:
        return
    print(f"{len(left)} seeds of {opening(left[0].record)}")
    print(f"attention over {t.length} tokens: {'; '.join(attention)}")
    if first:
        print(f"resuming {len(left)} seeds after step {first} of {t.steps}")
    for run in left:
        run.checkpoints.drop_after(first)
        run.log = MetricLog(run.workdir, run.config, first)
        write_record(run.workdir, run.record, run.spent, first)
    _steps(ctx, left, first, states, preemption)


def _common_step(runs: Sequence[_SeedRun]) -> int:
    """Returns the last step that all runs have a checkpoint of; 0 where none has one yet.

    After a kill between two saves some runs have one checkpoint more.
    """
    saved = [run.checkpoints.steps() for run in runs]
    common = set.intersection(*map(set, saved)) if saved else set()
    if common or not any(saved):
        return max(common, default=0)
    at = ", ".join(
        f"{run.workdir} {steps[-1] if steps else 0}" for run, steps in zip(runs, saved, strict=True)
    )
    raise ValueError(
        f"the runs have no saved step in common ({at}); train them one by one, each with its own "
        "--workdir"
    )


def _steps(ctx: TrainingContext, runs, first: int, states, preemption) -> None:
    config, t, count = ctx.config, ctx.config.train, len(runs)
    layouts = jax.tree.map(lambda x: x.sharding, states[0])
    state = jax.jit(lambda *of_runs: jax.tree.map(lambda *x: jnp.stack(x), *of_runs))(*states)
    split = jax.jit(
        lambda state: [jax.tree.map(lambda x, i=i: x[i], state) for i in range(count)],
        out_shardings=[layouts] * count,
    )
    step = jax.jit(jax.vmap(make_step(config, ctx.model)), donate_argnums=0)
    chain_inputs = jax.jit(
        lambda *x: [_chain_input(*jax.tree.map(lambda y, i=i: y[i], x)) for i in range(count)]
    )
    validation = ctx.validation()
    bar = Progress(f"{config.arm}, {count} seeds", first, t.steps)
    feeds = [
        training_batches(run.config, ctx.inputs, first_step=first, process_index=0, process_count=1)
        for run in runs
    ]
    started = time.monotonic()
    clock = (started, first)  # time and step of the last row
    pending, done = None, first  # metrics of the previous step, read after the next was dispatched
    try:
        for batches in zip(*feeds, strict=True):
            batch = _placed(config, ctx.mesh, batches)
            state, metrics = step(state, batch)
            done += 1
            for run, chain_input in zip(runs, chain_inputs(batch, metrics), strict=True):
                run.chain.note(done, chain_input)
                run.checkpoints.check()
            reason = preemption.at(done)
            if pending is not None:
                clock = _report(pending, done - 1, t, runs, bar, clock)
            pending = metrics
            if done % t.save_every == 0 or done == t.steps or reason:
                measured: list[dict] = [{}] * count
                if validation and validation.due(done):
                    measured = [{"dev_loss": loss} for loss in validation.of_each(state["params"])]
                clock = _report(pending, done, t, runs, bar, clock, measured)
                pending = None
                for run, own_state, loss in zip(runs, split(state), measured, strict=True):
                    if not run.lost:
                        record = {"owner": run.owner, "links": run.chain.through(done)}
                        run.checkpoints.save(done, own_state, record | loss)
                for run in runs if t.wait_for_saves else ():
                    run.checkpoints.wait()
                for run in runs:
                    if not run.lost:
                        seconds = run.spent + time.monotonic() - started
                        write_record(run.workdir, run.record, seconds, done)
            if reason and done < t.steps:
                raise Preempted(preempted(reason, done, t.steps))
            if all(run.lost for run in runs):
                break
        _end(runs, split(state), t, time.monotonic() - started)
    except Preempted:
        for run in runs:
            run.checkpoints.wait()
            if not run.lost:
                write_record(run.workdir, run.record, run.spent + time.monotonic() - started, done)
        raise
    finally:
        for run in runs:
            if run.log is not None:
                run.log.close(failed=sys.exc_info()[0] is not None)
        bar.close()


def _chain_input(batch, metrics) -> tuple[jax.Array, jax.Array, jax.Array]:
    return batch_fingerprints(batch), metrics["loss"], metrics["grad_norm"]


def _end(runs: Sequence[_SeedRun], states: Sequence[State], t, seconds: float) -> None:
    """Writes the records of the runs that have finished; raises Diverged for the others."""
    for run, state in zip(runs, states, strict=True):
        run.checkpoints.wait()
        if not run.lost:
            write_finished(run.workdir, run.record, run.spent + seconds, state, run.chain)
            print(ending(run.workdir, run.log.last if run.log else {}))
    lost = [run.lost for run in runs if run.lost]
    if lost:
        raise Diverged("; ".join(lost))


def _report(
    metrics, step: int, t, runs: Sequence[_SeedRun], bar: Progress, clock: tuple, measured=()
) -> tuple[float, int]:
    """Writes each run's metrics of one finished step, every `log_every` steps and with every dev
    loss.

    A run that has skipped too many updates in a row is lost and gets its last row, at any step.
    """
    in_a_row = jax.device_get(metrics["skipped_in_a_row"])
    lost = [not run.lost and n >= t.bad_steps for run, n in zip(runs, in_a_row, strict=True)]
    if step % t.log_every and step != t.steps and not any(measured) and not any(lost):
        return clock
    values_of = jax.device_get(metrics)
    now = time.monotonic()
    rate = t.batch_size * t.length * (step - clock[1]) / max(now - clock[0], 1e-9)
    for i, run in enumerate(runs):
        if run.lost or run.log is None:
            continue
        row = {name: float(values[i]) for name, values in values_of.items()}
        row |= measured[i] if measured else {}
        row["tokens_per_second"] = round(rate, 1)
        run.log.write({"step": step, **row, **run.chain.through(step)})
        if lost[i]:
            run.lost = f"{run.workdir}: {diverged(in_a_row[i], step)}"
    bar.update(
        step, loss=f"{values_of['loss'].mean():.3f}", tokens_per_s=f"{len(runs) * rate:,.0f}"
    )
    return now, step


def _placed(config, mesh, batches: Sequence[Mapping[str, np.ndarray]]) -> dict[str, jax.Array]:
    """Returns the batches of all seeds on the device as [seeds, slices, B, T]."""
    sharding = jax.NamedSharding(mesh, jax.P(None, None, "data", None))

    def stacked(name: str) -> np.ndarray:
        rows = np.stack([batch[name] for batch in batches])
        return rows.reshape(len(batches), config.train.accumulation, -1, rows.shape[-1])

    return {name: jax.device_put(stacked(name), sharding) for name in batches[0]}
