"""Corrupted batches and gradients, injected into an unmodified trainer.

A forked trainer calls `arm` before it runs (`fork_server`); `arm` replaces names of `training.loop`. The
trainer then gets the values that a broken device, link or document would give.
"""

from collections.abc import Collection, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from posenc_jax.checkpoints.fingerprint import leaves
from posenc_jax.training import loop, run_record
from posenc_jax.training.sharding import BATCH

CORRUPTED = "params/layer_0/mlp/up_DF"  # leaf with the bad gradient, split over fsdp and model


def arm(what: str, steps: Collection[int], **how) -> None:
    """Corrupts the given steps, counted from 1, of the trainer that will run in this process.

    Args:
      what: "rows": the loss weights of one device's rows are NaN. "gradient": one device's piece of one
        gradient is NaN. "spike": two tokens have weights +size and -size, so that loss and gradient are
        finite and of this size. "left_out": the step only increases the counters, the reference for a
        skipped update. "nothing".
      how: device: from 0; with "left_out" it selects the program of "gradient", as another program rounds
        differently. size: of a spike.
    """
    kinds = {
        "rows": _rows,
        "gradient": _gradient,
        "spike": _spike,
        "left_out": _left_out,
        "nothing": _nothing,
    }
    kinds[what](frozenset(steps), **how)
    run_record.write_finished = _after(_refuse_unlike_devices, run_record.write_finished)


def _nothing(steps: Collection[int]) -> None:
    pass


def _rows(steps: Collection[int], device: int) -> None:
    def corrupt(batch, mesh):
        weights_BT = batch["weights_BT"].copy()
        layout = jax.NamedSharding(mesh, BATCH).devices_indices_map((1, *weights_BT.shape))
        weights_BT[layout[mesh.devices.flat[device]][1:]] = np.nan
        return batch | {"weights_BT": weights_BT}

    loop._feed = _corrupted_feed(steps, corrupt)


def _spike(steps: Collection[int], size: float) -> None:
    def corrupt(batch, mesh):
        weights_BT = batch["weights_BT"].copy()
        weights_BT[0, :2] = size, -size
        return batch | {"weights_BT": weights_BT}

    loop._feed = _corrupted_feed(steps, corrupt)


def _gradient(steps: Collection[int], device: int) -> None:
    def mark(
        batch, mesh
    ):  # marks the batch for the compiled step; the model below removes the mark
        return batch | {"segments_BT": -1 - batch["segments_BT"]}

    loop._feed = _corrupted_feed(steps, mark)
    make_step = loop.make_step
    loop.make_step = lambda config, model: make_step(
        config, _CorruptedDecoder(model, jax.sharding.get_mesh(), device)
    )


def _left_out(steps: Collection[int], device: int | None = None) -> None:
    if device is not None:
        _gradient(frozenset(), device)
    make_step = loop.make_step

    def with_steps_left_out(config, model):
        taken = make_step(config, model)

        def step(state, batch):
            if int(state["step"]) + 1 not in steps:
                return taken(state, batch)
            counters = ("skipped", "skipped_in_a_row")
            counted, told = ({name: state[name] + 1 for name in counters} for _ in range(2))
            counted["step"] = state["step"] + 1
            none = dict.fromkeys(
                ("loss", "grad_norm", "learning_rate", "loss_tokens"), jnp.zeros(())
            )
            return state | counted, none | told

        return step

    loop.make_step = with_steps_left_out


def _corrupted_feed(steps: Collection[int], corrupt):
    feed = loop._feed

    def corrupted(config, mesh, inputs, *, first_step: int) -> Iterator[dict[str, np.ndarray]]:
        batches = feed(config, mesh, inputs, first_step=first_step)
        return (
            corrupt(batch, mesh) if step in steps else batch
            for step, batch in enumerate(batches, first_step + 1)
        )

    return corrupted


class _CorruptedDecoder:
    """A decoder that puts a NaN into the gradient of one leaf, on one device, in a marked batch."""

    def __init__(self, model, mesh: jax.sharding.Mesh, device: int):
        self._model, self.config, self._mesh, self._device = model, model.config, mesh, device

    def clone(self, **changes) -> "_CorruptedDecoder":
        return _CorruptedDecoder(self._model.clone(**changes), self._mesh, self._device)

    def apply(self, variables, tokens_BT, positions_BT, segments_BT):
        marked = (segments_BT < 0).any()
        segments_BT = jnp.where(segments_BT < 0, -1 - segments_BT, segments_BT)
        params = jax.tree_util.tree_map_with_path(
            lambda path, x: (
                self._corrupt(x, marked)
                if "params/" + jax.tree_util.keystr(path, simple=True, separator="/") == CORRUPTED
                else x
            ),
            variables["params"],
        )
        return self._model.apply({"params": params}, tokens_BT, positions_BT, segments_BT)

    def _corrupt(self, x: jax.Array, marked: jax.Array) -> jax.Array:
        mesh, spec = self._mesh, jax.typeof(x).sharding.spec
        places = jax.NamedSharding(mesh, spec).devices_indices_map(x.shape)
        hit = np.zeros(x.shape, bool)
        hit[places[mesh.devices.flat[self._device]]] = True

        @jax.custom_vjp
        def same(x, marked):
            return x

        def backward(marked, gradient):
            where = jax.sharding.reshard(jnp.asarray(hit), jax.typeof(gradient).sharding)
            return jnp.where(where & marked, jnp.nan, gradient), None

        same.defvjp(lambda x, marked: (x, marked), backward)
        return same(x, marked)


def _after(look, write):
    def written(workdir, record, spent, state, chain) -> None:
        look(state)
        write(workdir, record, spent, state, chain)

    return written


def _refuse_unlike_devices(state) -> None:
    """Raises RuntimeError when devices that should hold the same piece of a leaf hold other bits."""
    for name, leaf in leaves(state):
        pieces: dict[str, bytes] = {}
        for shard in leaf.addressable_shards:
            bits = np.asarray(shard.data).tobytes()
            if pieces.setdefault(str(shard.index), bits) != bits:
                raise RuntimeError(f"{name}: {shard.device} holds other bits than another device")
