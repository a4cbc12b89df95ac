"""Trains an image classifier and reads test images of several sizes with it.

One process on one device. The batch of a step is a function of (seed, step), so a run that is
stopped and started again ends in the same bits.
"""

import contextlib
import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.checkpoints.manager import CheckpointManager
from posenc_jax.data.images import ImageSet, open_images
from posenc_jax.model.vision import Encoder, VisionConfig, read_tables_at
from posenc_jax.results.files import (
    json_lines,
    read_json,
    read_json_lines,
    replace_text,
    write_json,
)
from posenc_jax.tasks.instances import key_of
from posenc_jax.training.image_config import ImageRunConfig
from posenc_jax.training.loop import Diverged, Preempted, preempted, unwritable_named
from posenc_jax.training.loss import token_losses
from posenc_jax.training.preemption import PreemptionRequest
from posenc_jax.training.step import apply_gradients, make_optimizer
from posenc_jax.training.workdir import lock_workdir, provenance

ROWS = "resolution.jsonl"
READ_AT_ONCE = 256  # test images


@dataclasses.dataclass(frozen=True)
class ImageTraining:
    """What the steps of a run need: settings, images, encoder, scale of the pixels."""

    config: ImageRunConfig
    images: ImageSet
    vision: VisionConfig
    mean_C: np.ndarray
    std_C: np.ndarray

    def standardised(self, image_NHWC: np.ndarray) -> np.ndarray:
        """Returns images with the mean and standard deviation of the training set taken out."""
        return (image_NHWC - self.mean_C) / self.std_C


def train_images(config: ImageRunConfig, workdir: Path, command: str) -> Path:
    """Trains to `config.train.steps`, from the last checkpoint if there is one; returns the path of
    the rows.

    The rows have the accuracy on the test images at each of `config.image.read_sizes`.

    Raises:
      ValueError: anything wrong with the settings, the images or the folder.
      Preempted: SIGTERM or Ctrl-C, after a checkpoint of the last finished step.
      Diverged: a loss that is not finite.
      SaveFailed: the folder can no longer be written; the last checkpoint is whole.
    """
    images = open_images(config.image.corpus, config.image.data_dir, download=config.image.download)
    image_NHWC = images.train.at(config.image.size)
    vision = config.vision(len(images.classes), image_NHWC.shape[-1])
    axes = (0, 1, 2)
    run = ImageTraining(config, images, vision, image_NHWC.mean(axes), image_NHWC.std(axes) + 1e-6)
    for size in config.image.read_sizes:
        read_tables_at(vision, None, (size, size))
    with contextlib.ExitStack() as stack:
        _check_folder(workdir, config, images)
        stack.enter_context(lock_workdir(workdir))
        replace_text(workdir / "config.json", config.to_json())
        preemption = stack.enter_context(PreemptionRequest())
        checkpoints = CheckpointManager(workdir, config.train.keep)
        stack.enter_context(unwritable_named({workdir: checkpoints}))
        stack.enter_context(checkpoints)
        params, seconds = _trained(run, image_NHWC, workdir, checkpoints, preemption)
        record = _record(run, command, params, seconds)
        write_json(workdir / "run.json", record)
        same = {key: record[key] for key in ("arm", "scheme", "seed", "tier", "corpus")}
        rows = [same | row for row in accuracy_by_size(run, params)]
        replace_text(workdir / ROWS, json_lines(rows))
    return workdir / ROWS


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Returns the images of a step (from 0): epoch by epoch, each in its own order."""
    places = step * batch_size + np.arange(batch_size)
    orders = {
        epoch: np.random.Generator(np.random.Philox(key=key_of("images", seed, epoch))).permutation(
            count
        )
        for epoch in np.unique(places // count).tolist()
    }
    return np.array([orders[place // count][place % count] for place in places.tolist()])


def accuracy_by_size(run: ImageTraining, params) -> list[dict]:
    """Returns a row for each reading size: the accuracy on the test images and the mean loss."""
    rows, label_N = [], run.images.test.label_N
    for size in run.config.image.read_sizes:
        config, learned = read_tables_at(run.vision, params, (size, size))
        read = jax.jit(lambda p, x, config=config: Encoder(config).apply({"params": p}, x))
        image_NHWC = run.standardised(run.images.test.at(size))
        pieces = range(0, len(label_N), READ_AT_ONCE)
        logits_NV = np.concatenate(
            [read(learned, image_NHWC[i : i + READ_AT_ONCE]) for i in pieces]
        )
        losses_N = token_losses(jnp.asarray(logits_NV)[:, None], jnp.asarray(label_N)[:, None])
        rows.append(
            {
                "train_size": run.config.image.size,
                "size": size,
                "n": len(label_N),
                "accuracy": float((logits_NV.argmax(-1) == label_N).mean()),
                "nll": float(losses_N.mean()),
            }
        )
    return rows


def _trained(run: ImageTraining, image_NHWC, workdir: Path, checkpoints, preemption):
    """Returns the parameters after the last step, and the seconds of training in all."""
    t, encoder = run.config.train, Encoder(run.vision)
    step = _make_step(run.config, encoder)
    build = jax.jit(functools.partial(_initial, run.config, encoder, image_NHWC.shape[1:]))
    done = checkpoints.latest() or 0
    seconds = 0.0
    if done:
        stored = checkpoints.record(done)
        _check_images(run.images, stored["fingerprint"], workdir)
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = jax.eval_shape(build, jax.random.key(0))
        state = checkpoints.restore(
            done,
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes),
        )
        seconds = stored["seconds"]
        print(f"resuming {workdir} after step {done} of {t.steps}")
    else:
        state = build(jax.random.key(t.seed))
    metrics = _Metrics(workdir / "metrics.jsonl", done)
    began, labels_N = time.monotonic() - seconds, run.images.train.label_N
    while done < t.steps:
        chosen = batch_indices(len(labels_N), t.batch_size, t.seed, done)
        state, loss = step(state, run.standardised(image_NHWC[chosen]), labels_N[chosen])
        done += 1
        reason = preemption.at(done)
        saves = done % t.save_every == 0 or done == t.steps or reason
        if saves or done % t.log_every == 0:
            _check_finite(float(loss), done)
            metrics.add(done, float(loss), time.monotonic() - began)
        if saves:
            checkpoints.save(
                done,
                state,
                {"fingerprint": run.images.fingerprint, "seconds": time.monotonic() - began},
            )
            checkpoints.wait()
        if reason and done < t.steps:
            raise Preempted(preempted(reason, done, t.steps))
    return state["params"], time.monotonic() - began


def _initial(config: ImageRunConfig, encoder: Encoder, shape: tuple[int, ...], key: jax.Array):
    params = encoder.init(key, jnp.zeros((1, *shape)))["params"]
    optimizer = make_optimizer(config.decoder_run).init(params)
    return {"params": params, "optimizer": optimizer, "step": jnp.zeros((), jnp.int32)}


def _make_step(config: ImageRunConfig, encoder: Encoder):
    """Returns the jitted `step(state, image_BHWC, label_B) -> (state, loss)`."""
    optimizer = make_optimizer(config.decoder_run)

    def loss_of(params, image_BHWC, label_B):
        logits_BV: Any = encoder.apply({"params": params}, image_BHWC)
        return token_losses(logits_BV[:, None], label_B[:, None]).mean()

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, image_BHWC, label_B):
        loss, grads = jax.value_and_grad(loss_of)(state["params"], image_BHWC, label_B)
        params, moments = apply_gradients(optimizer, state, grads)
        return {"params": params, "optimizer": moments, "step": state["step"] + 1}, loss

    return step


class _Metrics:
    """metrics.jsonl: rows of the steps so far, and one more with each call."""

    def __init__(self, path: Path, done: int):
        self._path, self._rows = path, []
        if done and path.exists():
            self._rows = [row for _, row in read_json_lines(path)[0] if row["step"] <= done]

    def add(self, step: int, loss: float, seconds: float) -> None:
        self._rows.append({"step": step, "loss": loss, "seconds": round(seconds, 3)})
        replace_text(self._path, json_lines(self._rows))


def _check_folder(workdir: Path, config: ImageRunConfig, images: ImageSet) -> None:
    """Raises ValueError for a folder of another run, or one that holds something else."""
    stored = workdir / "config.json"
    if stored.exists():
        ours, theirs = json.loads(config.to_json()), read_json(stored)
        where = ("data_dir", "download", "read_sizes", "save_every", "log_every", "keep")
        differing = [
            f"{section}.{key}"
            for section in ours
            for key, value in ours[section].items()
            if key not in where and theirs.get(section, {}).get(key) != value
        ]
        if differing:
            raise ValueError(
                f"{workdir} holds another run ({', '.join(differing[:4])} differ); choose another "
                "--workdir"
            )
        record = workdir / "run.json"
        if record.exists():
            _check_images(images, read_json(record)["fingerprint"], workdir)
    elif workdir.exists() and (
        not workdir.is_dir() or any(p.name != ".lock" for p in workdir.iterdir())
    ):
        raise ValueError(f"{workdir} is neither empty nor a run's folder; choose another --workdir")


def _check_images(images: ImageSet, fingerprint: str, workdir: Path) -> None:
    if images.fingerprint != fingerprint:
        raise ValueError(
            f"{workdir} was begun with other images of the name {images.name}; choose another "
            "--workdir"
        )


def _check_finite(loss: float, step: int) -> None:
    if not np.isfinite(loss):
        raise Diverged(
            f"the loss of step {step} is {loss}; lower config.optimizer.learning_rate and start "
            "again in another --workdir"
        )


def _record(run: ImageTraining, command: str, params, seconds: float) -> dict:
    t = run.config.train
    return {
        "arm": t.arm,
        "scheme": run.config.model.scheme,
        "seed": t.seed,
        "tier": t.tier,
        "steps": t.steps,
        "corpus": run.images.name,
        "fingerprint": run.images.fingerprint,
        "classes": run.images.classes,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "command": command,
        "wall_seconds": round(seconds, 1),
        "finished": True,
        **provenance(),
    }
