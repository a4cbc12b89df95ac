"""Rows, matrices and the tokens of a row on many devices: the same step on every mesh, a piece of every
matrix on each.

Thorough: steps are compiled for many meshes; test_system_layouts.py runs by default.
"""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.model.decoder import Decoder
from posenc_jax.training.loop import check_mesh, run_mesh, train
from posenc_jax.training.sharding import (
    BATCH,
    MESH_AXES,
    make_mesh,
    optimizer_layout,
    parameter_layout,
)
from posenc_jax.training.step import make_optimizer, make_step, state_builder

from support import runs
from support.marks import slow

pytestmark = pytest.mark.thorough


SCHEME = "rope+alibi|nope~logn"


def configured(folder, scheme=SCHEME, kv_heads=0, optimizer="adamw", **axes):
    devices = {f"{axis}_devices": axes.get(axis, 1) for axis in MESH_AXES}
    return runs.config(
        folder,
        scheme,
        model={"num_kv_heads": kv_heads},
        optimizer={"epsilon": 1e-3, "name": optimizer},
        train=devices,
    )


def prepared(config):
    """(mesh, step, state, placed batches)"""
    mesh = run_mesh(config)
    decoder = Decoder(config.model_config(260))
    with jax.set_mesh(mesh):
        build, _ = state_builder(config, decoder, mesh)
        state, step = build(jax.random.key(0)), make_step(config, decoder)
    batch_sharding = jax.NamedSharding(mesh, BATCH)
    return mesh, step, state, [jax.device_put(batch(seed), batch_sharding) for seed in range(4)]


def batch(seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 256, (1, 8, 17), dtype=np.int32)
    ones = np.ones((1, 8, 16), np.int32)
    return {
        "tokens_BT": tokens[..., :-1],
        "targets_BT": tokens[..., 1:],
        "positions_BT": np.broadcast_to(np.arange(16, dtype=np.int32), ones.shape),
        "segments_BT": ones,
        "weights_BT": rng.integers(0, 2, ones.shape).astype(np.float32),
    }


def trained(config):
    mesh, step, state, batches = prepared(config)
    found = []
    with jax.set_mesh(mesh):
        for placed in batches:
            state, metrics = step(state, placed)
            found.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.array(found), jax.device_get(state["params"])


@pytest.mark.parametrize(
    ("scheme", "axes"),
    [
        (SCHEME, {"fsdp": 2, "data": 2, "model": 2}),
        ("alibi", {"fsdp": 2, "sequence": 2, "model": 2}),
        *slow(
            (SCHEME, {"fsdp": 8}),
            (SCHEME, {"fsdp": 4, "model": 2}),
            (SCHEME, {"sequence": 2}),
            (SCHEME, {"sequence": 4}),
            (SCHEME, {"sequence": 8}),
            (SCHEME, {"data": 2, "sequence": 4}),
            (SCHEME, {"fsdp": 2, "sequence": 2, "model": 2}),
            ("rope+forget|fire,t5", {"data": 2, "sequence": 2, "model": 2}),
            ("learned+slopes", {"sequence": 4, "model": 2}),
        ),
    ],
    ids=str,
)
def test_a_mesh_takes_the_steps_of_one_device(tmp_path, scheme, axes):
    want, params = trained(configured(tmp_path, scheme))
    got, sharded = trained(configured(tmp_path, scheme, **axes))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert np.ptp(want[:, 0]) > 1e-3  # four different steps
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(sharded), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5)


@pytest.mark.parametrize(
    ("scheme", "kv_heads", "optimizer", "axes"),
    [
        (SCHEME, 1, "adamw", {"data": 2, "model": 2}),
        *slow(
            (SCHEME, 2, "adamw", {"fsdp": 2, "model": 4}),
            (SCHEME, 1, "muon", {"data": 2, "model": 2}),
            (SCHEME, 1, "adamw", {"fsdp": 2, "sequence": 2, "model": 2}),
            ("mixed|forget,linear", 1, "adamw", {"data": 2, "model": 4}),
        ),
    ],
    ids=str,
)
def test_key_heads_that_do_not_divide_over_a_mesh_take_the_steps_of_one_device(
    tmp_path, scheme, kv_heads, optimizer, axes
):
    want, params = trained(configured(tmp_path, scheme, kv_heads, optimizer))
    got, sharded = trained(configured(tmp_path, scheme, kv_heads, optimizer, **axes))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(sharded), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5)


def test_key_heads_are_whole_only_where_the_model_axis_does_not_divide_them(tmp_path):
    for kv_heads, held in ((4, 2), (1, 1)):
        _, _, state, _ = prepared(configured(tmp_path, kv_heads=kv_heads, fsdp=2, model=2))
        for tree in (state["params"], *moments(state["optimizer"])):
            shard = tree["layer_0"]["attention"]["key_DKH"].addressable_shards[0]
            assert shard.data.shape[1] == held


def moments(optimizer):
    """Adam's two trees of moments."""
    (adam,) = [
        x
        for x in jax.tree.leaves(optimizer, is_leaf=lambda x: hasattr(x, "mu"))
        if hasattr(x, "mu")
    ]
    return adam.mu, adam.nu


def test_a_device_keeps_an_eighth_of_every_matrix_and_of_its_moments(tmp_path):
    _, _, state, _ = prepared(configured(tmp_path, fsdp=8))
    matrices = [x for x in jax.tree.leaves((state["params"], state["optimizer"])) if x.ndim > 1]
    assert len(matrices) == 3 * (
        1 + 2 * 7
    )  # the table, seven matrices a layer; and two moments each
    assert all(x.addressable_shards[0].data.size * 8 == x.size for x in matrices)


def test_every_matrix_is_gathered_and_no_activation_travels(tmp_path):
    mesh, step, state, batches = prepared(configured(tmp_path, fsdp=8))
    with jax.set_mesh(mesh):
        text = step.lower(state, batches[0]).compile().as_text()
    found = collections.Counter(
        re.findall(r" (all-gather|all-to-all|collective-permute)(?:-start)?\(", text)
    )
    assert found["all-to-all"] == found["collective-permute"] == 0
    assert found["all-gather"] == 1 + 2 * 7


def test_a_big_model_is_laid_out_on_256_chips_that_are_not_here(tmp_path):
    sizes = {"data": 4, "fsdp": 16, "sequence": 1, "model": 4}
    explicit = (jax.sharding.AxisType.Explicit,) * 4
    mesh = jax.sharding.AbstractMesh(
        tuple(sizes[axis] for axis in MESH_AXES), MESH_AXES, axis_types=explicit
    )
    config = runs.config(
        tmp_path,
        SCHEME,
        train={"batch_size": 64, "length": 2048},
        model={
            "num_layers": 2,
            "model_dim": 2048,
            "num_heads": 16,
            "head_dim": 128,
            "mlp_dim": 8192,
        },
    )
    check_mesh(config, mesh)
    decoder, key = Decoder(config.model_config(32_000)), jax.random.key(0)
    with jax.sharding.use_abstract_mesh(mesh):
        tokens = jax.ShapeDtypeStruct(
            (64, 2048), jnp.int32, sharding=jax.NamedSharding(mesh, jax.P(*BATCH[1:]))
        )
        params = jax.eval_shape(decoder.init, key, *(3 * [tokens]))["params"]
        layout = parameter_layout(params, mesh)
        shapes = jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=jax.NamedSharding(mesh, spec)
            ),
            params,
            layout,
        )
        logits, _ = jax.eval_shape(
            lambda p, *x: decoder.apply({"params": p}, *x), shapes, *(3 * [tokens])
        )
    assert logits.shape == (64, 2048, 32_000)
    assert logits.sharding.spec[0] == ("data", "fsdp")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"train": {"fsdp_devices": 3, "data_devices": 1}},
            "8 rows do not divide over 3 data x fsdp",
        ),
        (
            {"train": {"sequence_devices": 3, "data_devices": 1}},
            r"config.train.length=\d+ tokens do not divide over 3 sequence",
        ),
        (
            {
                "train": {"sequence_devices": 2, "data_devices": 1},
                "model": {"scheme": "rope+linear", "attention": "dense"},
            },
            "config.train.sequence_devices=2: .* by 'auto' alone",
        ),
        (
            {"train": {"sequence_devices": 2, "data_devices": 1}, "model": {"attention": "dense"}},
            "config.train.sequence_devices=2: .* 'auto' or 'blockwise', not 'dense'",
        ),
        (
            {"train": {"model_devices": 8, "data_devices": 1}},
            "model.num_heads=4 does not divide over 8",
        ),
        (
            {
                "train": {"fsdp_devices": 8, "data_devices": 1},
                "model": {"model_dim": 36, "head_dim": 8},
            },
            "model.model_dim=36 does not divide over 8",
        ),
    ],
)
def test_what_does_not_divide_is_refused_by_name(tmp_path, changes, words):
    config = runs.config(tmp_path, **changes)
    t = config.train
    sizes = (t.data_devices, t.fsdp_devices, t.sequence_devices, t.model_devices)
    with pytest.raises(ValueError, match=words):
        check_mesh(config, jax.sharding.AbstractMesh(sizes, MESH_AXES))


@pytest.mark.parametrize(("name", "kv_heads"), [("adamw", 4), ("adamw", 2), ("muon", 1)])
def test_moments_lie_like_their_parameters_on_a_big_abstract_mesh(tmp_path, name, kv_heads):
    config = runs.config(tmp_path, optimizer={"name": name}, model={"num_kv_heads": kv_heads})
    mesh = jax.sharding.AbstractMesh((8, 8, 1, 4), MESH_AXES)
    model = Decoder(config.model_config(260))
    ones = jnp.ones((1, 8), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), ones, ones, ones)["params"]
    layout = parameter_layout(params, mesh)
    for key in ("key_DKH", "value_DKH"):  # whole in K where four devices do not divide it
        want = jax.P("fsdp", "model" if kv_heads == 4 else None, None)
        assert layout["layer_0"]["attention"][key] == want
    state = jax.eval_shape(make_optimizer(config).init, params)
    places = optimizer_layout(state, layout)
    by_path = {
        jax.tree_util.keystr(p): s
        for p, s in jax.tree_util.tree_leaves_with_path(
            layout, is_leaf=lambda x: isinstance(x, jax.P)
        )
    }
    found = 0
    for path, spec in jax.tree_util.tree_leaves_with_path(
        places, is_leaf=lambda x: isinstance(x, jax.P)
    ):
        owner = [s for p, s in by_path.items() if jax.tree_util.keystr(path).endswith(p)]
        if owner:
            assert spec == owner[0]
            found += 1
    assert found >= len(by_path)


def test_a_parameter_without_a_row_in_the_layout_raises():
    with pytest.raises(ValueError, match="parameter layer_0/attention/surprise"):
        parameter_layout({"layer_0": {"attention": {"surprise": np.zeros(3)}}}, make_mesh(1, 1))


def test_a_mesh_that_does_not_fit_is_refused(tmp_path, data_dir):
    with pytest.raises(ValueError, match="this machine has 8"):
        make_mesh(5, 2)
    for train_section, message in (
        ({"batch_size": 6}, "6 rows do not divide over 8 data x fsdp devices"),
        ({"model_devices": 8, "data_devices": 1}, "model.num_heads=4 does not divide over 8"),
    ):
        with pytest.raises(ValueError, match=message):
            train(runs.config(data_dir, train=train_section), tmp_path / "x", "a test")
    assert not (tmp_path / "x").exists()
