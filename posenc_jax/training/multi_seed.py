"""Runs that differ in their training seed alone, trained in one program.

A tiny model leaves an accelerator waiting for the next kernel; here one kernel serves every seed. Each
run keeps a folder of its own, as if it had been trained alone, and may go on alone at any time.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.checkpoints.hash_chain import HashChain, batch_fingerprints
from posenc_jax.checkpoints.manager import CheckpointManager
from posenc_jax.model.decoder import Decoder
from posenc_jax.results.files import replace_text
from posenc_jax.training.config import RunConfig
from posenc_jax.training.inputs import Inputs, dev_examples, open_inputs, training_batches
from posenc_jax.training.loop import Diverged, Preempted, diverged, run_mesh
from posenc_jax.training.preemption import PreemptionRequest
from posenc_jax.training.progress import MetricLog, Progress
from posenc_jax.training.run_record import make_record, seconds_before, write_finished, write_record
from posenc_jax.training.step import State, make_step, state_builder
from posenc_jax.training.validation import ValidationLoss
from posenc_jax.training.workdir import check_owner, check_same_config, lock_workdir, ownership


@dataclasses.dataclass
class _SeedRun:
    """One of the runs; lost says why it has left the others, once it diverged."""

    config: RunConfig
    workdir: Path
    checkpoints: CheckpointManager
    record: dict = dataclasses.field(default_factory=dict)
    spent: float = 0.0
    owner: dict = dataclasses.field(default_factory=dict)
    chain: HashChain | None = None
    log: MetricLog | None = None
    lost: str = ""


def train_seeds(config: RunConfig, workdirs: Mapping[int, Path], command: str) -> None:
    """Trains `config` once for every seed, each in its folder, from the last step they all have saved.

    Runs that have finished are left alone. Losses equal those of runs trained alone up to rounding; the
    data of each are the same. A run that diverges stays at its last good checkpoint, the others go on.

    Args:
      config: of all of them; its own seed is not read. workdirs: folder by training seed.

    Raises:
      ValueError: anything wrong with the configuration, the inputs or a folder; a seed below 0; more
        than one device; runs that have begun and have no step in common.
      Stopped: SIGTERM or Ctrl-C, after a checkpoint of the last finished step of each.
      Diverged: one of them or more did; raised once the others have finished.
    """
    mesh = run_mesh(config)
    if mesh.size > 1 or jax.process_count() > 1:
        raise ValueError(
            f"seeds are trained together on one device; config.train asks for {mesh.size}: set "
            "config.train.data_devices=1, or train the seeds one by one"
        )
    if config.train.init_from:
        raise ValueError(
            f"config.train.init_from={config.train.init_from}: runs are fine-tuned one by one, each from its "
            "own; leave --seeds out"
        )
    configs = {
        seed: dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
        for seed in workdirs
    }
    if len({folder.resolve() for folder in workdirs.values()}) < len(workdirs):
        raise ValueError("runs of several seeds need a --workdir each; write {seed} in its name")
    for seed, workdir in workdirs.items():
        check_same_config(workdir, configs[seed])
    inputs = open_inputs(config)
    model = Decoder(config.model_config(inputs.tokenizer.vocab_size))
    training_batches(config, inputs, first_step=0, process_index=0, process_count=1)
    if config.train.dev_every:
        dev_examples(config, inputs)
    with contextlib.ExitStack() as held:
        for workdir in workdirs.values():
            held.enter_context(lock_workdir(workdir))
        held.enter_context(jax.set_mesh(mesh))
        stop = held.enter_context(PreemptionRequest())
        runs = []
        for seed, workdir in workdirs.items():
            replace_text(workdir / "config.json", configs[seed].to_json())
            checkpoints = held.enter_context(CheckpointManager(workdir, config.train.keep))
            runs.append(_SeedRun(configs[seed], workdir, checkpoints))
        _train(config, runs, command, inputs, model, mesh, stop)


def _train(config, runs: list[_SeedRun], command: str, inputs: Inputs, model, mesh, stop) -> None:
    t = config.train
    build, shapes = state_builder(config, model, mesh)
    ahead = [run for run in runs if run.checkpoints.latest() == t.steps]
    left = [run for run in runs if run not in ahead]
    first = _common_step(left)
    states = {}
    for run in runs:
        step = t.steps if run in ahead else first
        seed = run.config.train.seed
        run.owner = ownership(run.config, inputs)
        before = run.checkpoints.record(step) if step else {"links": None}
        if step:
            check_owner(run.workdir, step, run.owner, before["owner"])
        run.chain = HashChain(before["links"])
        state = run.checkpoints.restore(step, shapes) if step else build(jax.random.key(seed))
        run.record = make_record(run.config, command, inputs, state["params"], run.workdir) | {
            "attention": model.config.attention_paths(t.length),
            "seeds_in_program": _seeds_before(run.workdir) if run in ahead else len(left),
        }
        run.spent = seconds_before(run.workdir)
        if run in ahead:
            print(f"{run.workdir} has finished its {t.steps} steps")
            write_finished(run.workdir, run.record, run.spent, state, run.chain)
        else:
            states[seed] = state
    if not left:
        return
    print(f"attention over {t.length} tokens: {'; '.join(model.config.attention_paths(t.length))}")
    if first:
        print(f"resuming {len(left)} seeds after step {first} of {t.steps}")
    for run in left:
        run.checkpoints.drop_after(first)
        run.log = MetricLog(run.workdir, run.config, first)
        write_record(run.workdir, run.record, run.spent, first)
    _steps(config, left, first, list(states.values()), inputs, model, mesh, shapes, stop)


def _seeds_before(workdir: Path) -> int:
    """How many seeds a finished run shared its program with, counting itself."""
    return ({"seeds_in_program": 1} | json.loads((workdir / "run.json").read_text()))["seeds_in_program"]  # fmt: skip


def _common_step(runs: Sequence[_SeedRun]) -> int:
    """The last step that all runs have a checkpoint of; 0 where none has one yet.

    A kill between two saves leaves some of them one checkpoint ahead.
    """
    saved = [run.checkpoints.steps() for run in runs]
    common = set.intersection(*map(set, saved)) if saved else set()
    if common or not any(saved):
        return max(common, default=0)
    at = ", ".join(f"{run.workdir} {steps[-1] if steps else 0}" for run, steps in zip(runs, saved, strict=True))  # fmt: skip
    raise ValueError(
        f"the runs have no saved step in common ({at}); train them one by one, each with its own --workdir"
    )


def _steps(config, runs, first: int, states, inputs, model, mesh, shapes, stop) -> None:
    t, count = config.train, len(runs)
    state = jax.jit(lambda *parts: jax.tree.map(lambda *x: jnp.stack(x), *parts))(*states)
    places = jax.tree.map(lambda s: s.sharding, shapes)
    apart = jax.jit(
        lambda state: [jax.tree.map(lambda x, i=i: x[i], state) for i in range(count)],
        out_shardings=[places] * count,
    )
    step = jax.jit(jax.vmap(make_step(config, model)), donate_argnums=0)
    seen = jax.jit(
        lambda *of: [_seen(*jax.tree.map(lambda x, i=i: x[i], of)) for i in range(count)]
    )
    dev = ValidationLoss(config, model, mesh, inputs) if t.dev_every else None
    bar = Progress(f"{config.arm}, {count} seeds", first, t.steps)
    feeds = [training_batches(run.config, inputs, first_step=first, process_index=0, process_count=1) for run in runs]  # fmt: skip
    started = time.time()
    clock = (started, first)  # when the last row was written, and of which step
    pending, done = None, first  # metrics of the step before, read once the next one is under way
    try:
        for batches in zip(*feeds, strict=True):
            placed = _placed(config, mesh, batches)
            state, metrics = step(state, placed)
            done += 1
            for run, of_run in zip(runs, seen(placed, metrics), strict=True):
                run.chain.note(done, of_run)
                run.checkpoints.check()
            asked = stop.at(done)
            if pending is not None:
                clock = _report(pending, done - 1, t, runs, bar, clock)
            pending = metrics
            if done % t.save_every == 0 or done == t.steps or asked:
                measured: list[dict] = [{}] * count
                if dev and dev.due(done):
                    measured = [{"dev_loss": loss} for loss in dev.of_each(state["params"])]
                clock = _report(pending, done, t, runs, bar, clock, measured)
                pending = None
                for run, own, found in zip(runs, apart(state), measured, strict=True):
                    if not run.lost:
                        said = {"owner": run.owner, "links": run.chain.through(done)}
                        run.checkpoints.save(done, own, said | found)
                for run in runs if t.wait_for_saves else ():
                    run.checkpoints.wait()
                for run in runs:
                    if not run.lost:
                        seconds = run.spent + time.time() - started
                        write_record(run.workdir, run.record, seconds, done)
            if asked and done < t.steps:
                raise Preempted(f"stopped by {asked} after step {done} of {t.steps}; run the same command to go on")  # fmt: skip
            if all(run.lost for run in runs):
                break
        _end(runs, apart(state), t, time.time() - started)
    except Preempted:
        for run in runs:
            run.checkpoints.wait()
            if not run.lost:
                write_record(run.workdir, run.record, run.spent + time.time() - started, done)
        raise
    finally:
        for run in runs:
            run.log.close()
        bar.close()


def _seen(batch, metrics) -> tuple[jax.Array, jax.Array, jax.Array]:
    return batch_fingerprints(batch), metrics["loss"], metrics["grad_norm"]


def _end(runs: Sequence[_SeedRun], states: Sequence[State], t, seconds: float) -> None:
    """Writes the records of the runs that have finished; raises Diverged for the others."""
    for run, state in zip(runs, states, strict=True):
        run.checkpoints.wait()
        if not run.lost:
            write_finished(run.workdir, run.record, run.spent + seconds, state, run.chain)
    lost = [run.lost for run in runs if run.lost]
    if lost:
        raise Diverged("; ".join(lost))


def _report(
    metrics, step: int, t, runs: Sequence[_SeedRun], bar: Progress, clock: tuple, measured=()
) -> tuple[float, int]:
    """Writes each run's metrics of one finished step, every `log_every` steps and where a loss was measured.

    A run that has skipped too many updates in a row is lost, whichever step that is, and gets its last row.
    """
    in_a_row = jax.device_get(metrics["skipped_in_a_row"])
    lost = [not run.lost and n >= t.bad_steps for run, n in zip(runs, in_a_row, strict=True)]
    if step % t.log_every and step != t.steps and not any(measured) and not any(lost):
        return clock
    found = jax.device_get(metrics)
    now = time.time()
    rate = t.batch_size * t.length * (step - clock[1]) / max(now - clock[0], 1e-9)
    for i, run in enumerate(runs):
        if run.lost:
            continue
        row = {name: float(values[i]) for name, values in found.items()}
        beside = measured[i] if measured else {}
        run.log.write(
            {"step": step, **row, **beside, "tokens_per_second": round(rate, 1), **run.chain.through(step)}
        )  # fmt: skip
        if lost[i]:
            run.lost = f"{run.workdir}: {diverged(in_a_row[i], step)}"
    bar.update(step, loss=f"{found['loss'].mean():.3f}", tokens_per_s=f"{len(runs) * rate:,.0f}")
    return now, step


def _placed(config, mesh, batches: Sequence[Mapping[str, np.ndarray]]) -> dict[str, jax.Array]:
    """Puts the batches of all seeds on the device as [seeds, slices, B, T]."""
    sharding = jax.NamedSharding(mesh, jax.P(None, None, "data", None))

    def stacked(name: str) -> np.ndarray:
        rows = np.stack([batch[name] for batch in batches])
        return rows.reshape(len(batches), config.train.accumulation, -1, rows.shape[-1])

    return {name: jax.device_put(stacked(name), sharding) for name in batches[0]}
