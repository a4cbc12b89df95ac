"""One update: what decays, what a weight weighs, at which rate, and what is never kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.encodings import parse
from posenc_jax.model.decoder import Decoder
from posenc_jax.training.sharding import make_mesh
from posenc_jax.training.step import make_optimizer, make_step, state_builder

from support import runs, schemes

ROWS, LENGTH = 8, 16
PLAIN = {"name": "adamw", "weight_decay": 0.5, "learning_rate": 1e-2, "warmup_steps": 0}


def config(optimizer=PLAIN, **train):
    return runs.config(
        "unused", "rope", model={"num_layers": 1}, optimizer=optimizer, train={"steps": 8} | train
    )


@functools.cache
def stepper(of, axes=(1, 1)):
    """(mesh, build, step) of a configuration."""
    mesh = make_mesh(*axes)
    with jax.set_mesh(mesh):
        model = Decoder(of.model_config(260))
        return mesh, state_builder(of, model, mesh)[0], make_step(of, model)


def batch(weights, slices=1):
    tokens = np.random.default_rng(0).integers(0, 256, (ROWS, LENGTH + 1), dtype=np.int32)
    ones = np.ones((ROWS, LENGTH), np.int32)
    whole = {
        "tokens_BT": tokens[:, :-1],
        "targets_BT": tokens[:, 1:],
        "positions_BT": ones * np.arange(LENGTH, dtype=np.int32),
        "segments_BT": ones,
        "weights_BT": np.broadcast_to(np.float32(weights), ones.shape),
    }
    return {name: x.reshape(slices, ROWS // slices, LENGTH) for name, x in whole.items()}


def paths(tree):
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x) for path, x in found
    }


# --------------------------------------------------------------------------------------- weight decay


SINGLE = [line for line in schemes.ALL if "," not in line and parse(line).absolute is None]
STACKS = [",".join(SINGLE[i : i + 8]) for i in range(0, len(SINGLE), 8)]
STACKS += [line for line in schemes.ALL if parse(line).absolute is not None]
HIDDEN = ("query_DNH", "key_DKH", "value_DKH", "out_NHD", "up_DF", "gate_DF", "down_FD")


def positional(name):
    return not {"scheme", "absolute"}.isdisjoint(name.split("/"))


@functools.cache
def parameters():
    """Random parameters by name: every positional one of every scheme, and all of one decoder."""
    ones = jnp.ones((1, 8), jnp.int32)
    rng = np.random.default_rng(0)
    found = {}
    for stack in STACKS:
        layers = len(parse(stack).layers)
        model = Decoder(
            runs.config("unused", stack, model={"num_layers": layers}).model_config(260)
        )
        shapes = jax.eval_shape(model.init, jax.random.key(0), ones, ones, ones)["params"]
        kept = shapes if not found else _positional_alone(shapes)
        found[stack] = jax.tree.map(lambda s: np.asarray(rng.uniform(1, 2, s.shape), s.dtype), kept)
    return found


def _positional_alone(shapes):
    if not isinstance(shapes, dict):
        return {}
    return {
        name: below if name in ("scheme", "absolute") else _positional_alone(below)
        for name, below in shapes.items()
    }


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_without_a_gradient_no_positional_parameter_moves_and_matrices_shrink_by_the_decay(name):
    """Each alone, and as one of several seeds in one program."""
    rate, decay = 1e-2, 0.1
    optimizer = {
        "name": name,
        "weight_decay": decay,
        "warmup_steps": 0,
        "learning_rate": rate,
        "muon_learning_rate": rate,
    }
    update, params = make_optimizer(config(optimizer)), parameters()

    def moved(params):
        return update.update(jax.tree.map(jnp.zeros_like, params), update.init(params), params)[0]

    @jax.jit
    def both(params):
        seeds = jax.vmap(moved)(jax.tree.map(lambda x: jnp.stack([x, x]), params))
        return moved(params), jax.tree.map(lambda x: x[1], seeds)

    updates, of_seed = both(params)
    still = set()
    for (path, was), change, seed in zip(
        paths(params).items(), paths(updates).values(), paths(of_seed).values(), strict=True
    ):
        hidden = path.rsplit("/", 1)[-1] in HIDDEN
        decays = not positional(path) and (hidden if name == "muon" else was.ndim > 1)
        np.testing.assert_allclose(
            change, -rate * decay * was if decays else 0 * was, rtol=1e-5, err_msg=path
        )
        np.testing.assert_array_equal(change, seed, err_msg=path)
        if positional(path) and was.ndim > 1:
            still.add(path.rsplit("/", 1)[-1])
    assert len(still) >= 5, still  # matrices of T5, KERPLE, FIRE, `mixed`, `learned`, the gates


# ------------------------------------------------------------------------------------- a weighted mean


def loss_in_float64(params, of, read):
    """Sum of weight times nll, over the sum of weights, from the model's logits."""
    given = (jnp.asarray(read[name][0]) for name in ("tokens_BT", "positions_BT", "segments_BT"))
    logits, _ = jax.jit(Decoder(of.model_config(260)).apply)(
        jax.tree.map(jnp.asarray, {"params": params}), *given
    )
    logits_BTV = np.asarray(logits, np.float64)
    total_BT = np.log(np.exp(logits_BTV).sum(-1))
    target_BT = np.take_along_axis(logits_BTV, read["targets_BT"][0][..., None], -1)[..., 0]
    weights_BT = read["weights_BT"][0].astype(np.float64)
    return ((total_BT - target_BT) * weights_BT).sum() / weights_BT.sum()


WAYS = [
    pytest.param({}, (1, 1), False, id="plain"),
    pytest.param({"accumulation": 4, "loss_chunks": 3}, (1, 1), False, id="slices, pieces"),
    pytest.param({"z_loss": 1e-2}, (2, 2), False, id="mesh", marks=pytest.mark.thorough),
    pytest.param({}, (1, 1), True, id="seeds", marks=pytest.mark.thorough),
]


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(("train", "axes", "seeds"), WAYS)
def test_loss_and_gradient_are_means_whatever_the_weights_sum_to(train, axes, seeds):
    of = config(**train)
    mesh, build, step = stepper(of, axes)
    uneven = np.random.default_rng(1).uniform(0.5, 1.5, (ROWS, LENGTH))
    uneven /= uneven.sum()
    found = []
    with jax.set_mesh(mesh):
        if seeds:
            step = jax.jit(jax.vmap(step))
        for total in (100.0, 0.3, 1e-4):
            state, read = build(jax.random.key(0)), batch(total * uneven, of.train.accumulation)
            params = jax.device_get(state["params"])
            if seeds:
                state, read = (jax.tree.map(lambda x: jnp.stack([x, x]), y) for y in (state, read))
            _, metrics = step(state, read)
            found.append({name: np.ravel(x)[0] for name, x in jax.device_get(metrics).items()})
    want = loss_in_float64(params, of, batch(uneven))
    for total, metrics in zip((100.0, 0.3, 1e-4), found, strict=True):
        np.testing.assert_allclose(metrics["loss_tokens"], total, rtol=1e-5)
        np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], found[0]["grad_norm"], rtol=1e-4)
        if "z_loss" in metrics:
            np.testing.assert_allclose(metrics["z_loss"], found[0]["z_loss"], rtol=1e-4)


def test_where_no_token_has_weight_loss_and_gradient_are_zero_and_the_update_is_taken():
    mesh, build, step = stepper(config())
    with jax.set_mesh(mesh):
        _, metrics = step(build(jax.random.key(0)), batch(0.0))
    assert [float(metrics[n]) for n in ("loss", "grad_norm", "loss_tokens", "skipped")] == [0] * 4


# ------------------------------------------------------------------------------------------- the rate


@pytest.mark.parametrize("name", ["adamw", pytest.param("muon", marks=pytest.mark.thorough)])
def test_the_rate_is_a_function_of_the_step_and_the_one_that_is_logged(name):
    """With no gradient an update is -rate * decay * parameter, which tells the rate that was applied."""
    of = config(PLAIN | {"name": name, "muon_learning_rate": 1e-2})
    final = of.optimizer.final_fraction
    rate = 1e-2 * (final + (1 - final) * (1 + np.cos(np.pi * np.arange(8) / 8)) / 2)
    mesh, build, step = stepper(of)
    with jax.set_mesh(mesh):
        state = build(jax.random.key(0))
        for n in range(8):
            before = np.asarray(state["params"]["layer_0"]["mlp"]["up_DF"], np.float64)
            state, metrics = step(state, batch(np.nan if n == 1 else 0.0))
            after = np.asarray(state["params"]["layer_0"]["mlp"]["up_DF"], np.float64)
            applied = ((before - after) / (0.5 * before)).mean()
            np.testing.assert_allclose(applied, 0 if n == 1 else rate[n], rtol=1e-3)
            np.testing.assert_allclose(metrics["learning_rate"], rate[n], rtol=1e-5)
    assert (int(state["step"]), int(state["skipped"])) == (8, 1)


# ------------------------------------------------------------------------------------- what is kept


def test_an_update_that_would_not_be_finite_is_left_out_though_its_gradient_is():
    """A first moment near the end of float32, over a second moment near zero, as 1 - beta1 = 0 gives."""
    mesh, build, step = stepper(config())

    def huge(path, x):
        name = jax.tree_util.keystr(path)
        return x + 3e38 if ".mu" in name and "up_DF" in name else x

    with jax.set_mesh(mesh):
        state = jax.tree_util.tree_map_with_path(huge, build(jax.random.key(0)))
        before = paths(jax.device_get(state))
        state, metrics = step(state, batch(1.0))
        after = paths(jax.device_get(state))
    assert any((x > 1e38).any() for x in before.values())
    assert np.isfinite(metrics["loss"])
    assert np.isfinite(metrics["grad_norm"])
    assert (int(state["skipped"]), int(state["step"])) == (1, 1)
    for name in before:
        if name.startswith(("params", "optimizer")):
            np.testing.assert_array_equal(before[name], after[name], err_msg=name)
