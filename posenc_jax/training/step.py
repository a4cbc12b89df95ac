"""Training step: optimizer, sharded state, and the one jitted update."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from posenc_jax.model.activation_sharding import ROWS, reshard
from posenc_jax.model.decoder import Decoder, at_progress
from posenc_jax.model.layer_stack import LayerExecution
from posenc_jax.training.config import RunConfig
from posenc_jax.training.config_sections import TrainSection
from posenc_jax.training.loss import Loss, per_weight, summed_loss
from posenc_jax.training.sharding import batch_rows, optimizer_layout, parameter_layout

State = dict[str, Any]


def make_optimizer(config: RunConfig) -> optax.GradientTransformation:
    """Returns the clipped optimizer; its rates follow the `count` that `at_step` sets.

    Weight decay applies to matrices only: not to gains and other vectors, and not to parameters of
    a positional encoding, for a decayed bias table or frequency is another encoding (as in Swin and
    T5).
    """
    o = config.optimizer

    if o.name == "adamw":
        update = optax.adamw(
            learning_rate_schedule(config, o.learning_rate),
            b1=o.beta1,
            b2=o.beta2,
            eps=o.epsilon,
            weight_decay=o.weight_decay,
            mask=_decayed,
        )
    else:
        update = optax.contrib.muon(
            learning_rate_schedule(config, o.muon_learning_rate),
            weight_decay=o.weight_decay,  # of the hidden matrices; Adam's parameters have none
            adam_learning_rate=learning_rate_schedule(config, o.learning_rate),
            adam_b1=o.beta1,
            adam_b2=o.beta2,
            eps=o.epsilon,
            muon_weight_dimension_numbers=_hidden_matrices,
        )
    return optax.chain(optax.clip_by_global_norm(o.clip_norm), update)


# Subtrees with the parameters of an encoding, by their names in `LAYOUT`.
_POSITIONAL = {"scheme", "absolute"}


def _positional(path) -> bool:
    return not _POSITIONAL.isdisjoint(key.key for key in path)


def _decayed(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, p: p.ndim > 1 and not _positional(path) and "_bias_" not in path[-1].key,
        params,
    )


# Input dims and output dims of each hidden matrix; Adam updates all other parameters.
_MATRIX_DIMS = {
    "query_DNH": ((0,), (1, 2)),
    "gate_DNH": ((0,), (1, 2)),
    "key_DKH": ((0,), (1, 2)),
    "value_DKH": ((0,), (1, 2)),
    "out_NHD": ((0, 1), (2,)),
    "up_DF": ((0,), (1,)),
    "gate_DF": ((0,), (1,)),
    "down_FD": ((0,), (1,)),
    "up_EDF": ((1,), (2,)),
    "gate_EDF": ((1,), (2,)),
    "down_EFD": ((1,), (2,)),
    "transform_DD": ((0,), (1,)),
}


def _hidden_matrices(params):
    def dims(path, _):
        numbers = None if _positional(path) else _MATRIX_DIMS.get(path[-1].key)
        return optax.contrib.MuonDimensionNumbers(*numbers) if numbers else None

    return jax.tree_util.tree_map_with_path(dims, params)


def learning_rate_schedule(config: RunConfig, peak: float) -> optax.Schedule:
    """Returns the learning rate as a function of the finished steps, skipped updates included."""
    warmup = min(config.optimizer.warmup_steps, config.train.steps - 1)
    return optax.warmup_cosine_decay_schedule(
        init_value=peak / (warmup + 1),
        peak_value=peak,
        warmup_steps=warmup,
        decay_steps=config.train.steps,
        end_value=peak * config.optimizer.final_fraction,
    )


def at_step(optimizer_state, step: jax.Array):
    """Returns an optimizer's state whose schedules are at `step`, however many updates were
    skipped.

    A schedule that counted updates would end above `final_fraction` after skipped ones, and two
    arms of one configuration would be trained at different rates. Adam's own count of updates does
    not change.
    """

    def placed(part):
        if isinstance(part, optax.ScaleByScheduleState):
            return part._replace(count=jnp.asarray(step, part.count.dtype))
        return part

    return jax.tree.map(
        placed, optimizer_state, is_leaf=lambda part: isinstance(part, optax.ScaleByScheduleState)
    )


def state_builder(config: RunConfig, model: Decoder, mesh: jax.sharding.Mesh):
    """Returns (build, shapes): `build(key)` makes the sharded state; shapes describe it for a
    restore.

    The whole state has explicit layouts, for moments do not inherit those of their parameters.
    """
    optimizer = make_optimizer(config)

    def build(key: jax.Array) -> State:
        # Linen's init runs the forward pass, so its dummy batch must divide over the mesh.
        dummy_BT = jnp.ones((batch_rows(mesh), 8 * mesh.shape["sequence"]), jnp.int32)
        params = model.init(key, dummy_BT, dummy_BT, dummy_BT)["params"]
        zero = jnp.zeros((), jnp.int32)
        return {
            "params": params,
            "optimizer": optimizer.init(params),
            "step": zero,
            "skipped": zero,
            "skipped_in_a_row": zero,
        }

    shapes = jax.eval_shape(lambda: build(jax.random.key(0)))
    layout = parameter_layout(shapes["params"], mesh)
    specs = {
        "params": layout,
        "optimizer": optimizer_layout(shapes["optimizer"], layout),
        **dict.fromkeys(("step", "skipped", "skipped_in_a_row"), jax.P()),
    }
    shardings = jax.tree.map(
        lambda spec: jax.NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, jax.P)
    )
    abstract = jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    return jax.jit(build, out_shardings=shardings), abstract


def batch_loss(train: TrainSection, model: Decoder) -> Callable[..., Loss]:
    """Returns the summed loss as a function of (params, batch [B, T])."""
    stream = model.clone(read_out=False, execution=LayerExecution(train.scan_layers, train.remat))
    head = "embedding_VD" if model.config.tied_head else "head_VD"
    softcap = model.config.logit_softcap

    def loss_of(params, batch) -> Loss:
        x_BTD, _ = stream.apply(
            {"params": params}, batch["tokens_BT"], batch["positions_BT"], batch["segments_BT"]
        )
        return summed_loss(
            x_BTD,
            params[head],
            batch["targets_BT"],
            batch["weights_BT"],
            z_loss=train.z_loss,
            chunks=train.loss_chunks,
            bias_V=params.get("head_bias_V"),
            softcap=softcap,
        )

    return loss_of


def apply_gradients(optimizer: optax.GradientTransformation, state: State, grads):
    """Returns (parameters, optimizer state) after the update of the state's step."""
    moments = at_step(state["optimizer"], state["step"])
    updates, moments = optimizer.update(grads, moments, state["params"])
    return optax.apply_updates(state["params"], updates), moments


def all_finite(tree) -> jax.Array:
    """Returns whether no element of any floating-point leaf is NaN or infinite."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    # A maximum propagates NaN, and takes half the time of a conjunction on CPU.
    return jnp.isfinite(jnp.stack([jnp.abs(x).max() for x in floats])).all()


def make_step(config: RunConfig, model: Decoder):
    """Returns the jitted `step(state, batch) -> (state, metrics)`.

    Each array of `batch` is [slices, B, T]: gradients of the summed loss are accumulated over the
    slices and divided once by the total weight, so that slicing changes rounding only. If the loss,
    a gradient, or a parameter or moment after the update is not finite, the update is skipped and
    counted; step and schedules advance all the same. The metric `learning_rate` is the rate of this
    step's update (of AdamW's part, under muon).
    """
    optimizer = make_optimizer(config)
    schedule = learning_rate_schedule(config, config.optimizer.learning_rate)

    t = config.train
    loss_of = batch_loss(t, model)

    def objective(params, batch):
        loss = loss_of(params, batch)
        return loss.nll + loss.z, loss

    def slice_gradient(params, batch):
        (_, loss), grads = jax.value_and_grad(objective, has_aux=True)(params, batch)
        return loss, grads

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: State, batch) -> tuple[State, dict[str, jax.Array]]:
        params = state["params"]
        batch = {name: reshard(x, None, ROWS, "sequence") for name, x in batch.items()}
        first = slice_gradient(params, jax.tree.map(lambda x: x[0], batch))

        def add(total, one):
            return jax.tree.map(jnp.add, total, slice_gradient(params, one)), None

        rest = jax.tree.map(lambda x: x[1:], batch)
        total, grads = first if t.accumulation == 1 else jax.lax.scan(add, first, rest)[0]
        scale = per_weight(total)
        loss, grads = total.nll * scale, jax.tree.map(lambda g: g * scale, grads)
        norm = optax.tree.norm(grads)
        # The compiler lays out the optimizer's own products; its results keep the layout of the
        # state.
        shardings = jax.tree.map(lambda x: jax.typeof(x).sharding, (params, state["optimizer"]))
        update = jax.sharding.auto_axes(optimizer.update, out_sharding=shardings)
        updates, moments = update(grads, at_step(state["optimizer"], state["step"]), params)
        updated = {"params": optax.apply_updates(params, updates), "optimizer": moments}
        good = jnp.isfinite(loss) & jnp.isfinite(norm) & all_finite(updated)
        kept = {"params": params, "optimizer": state["optimizer"]}
        chosen = jax.tree.map(lambda new, old: jnp.where(good, new, old), updated, kept)
        bad = 1 - good.astype(jnp.int32)
        done = state["step"] + 1
        # A fine-tuned run starts at the end of all schedules of the scheme.
        steps = 1 if t.init_from else t.steps
        progress = jnp.minimum(done.astype(jnp.float32) / steps, 1.0)
        new_state = {
            "params": at_progress(model.config, chosen["params"], progress),
            "optimizer": chosen["optimizer"],
            "step": done,
            "skipped": state["skipped"] + bad,
            "skipped_in_a_row": (state["skipped_in_a_row"] + 1) * bad,
        }
        metrics = {
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": schedule(state["step"]),
            "loss_tokens": total.weight,
            "skipped": new_state["skipped"],
            "skipped_in_a_row": new_state["skipped_in_a_row"],
        }
        if t.z_loss:
            metrics["z_loss"] = total.z * scale
        return new_state, metrics

    return step
