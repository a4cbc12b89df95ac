"""`attend` on a mesh gives the numbers of one device: axes of one device by any name, keys shared by several
shards.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.attention import (
    AttentionSettings,
    OptionalInputs,
    TokenSide,
    attend,
    cumulative_log_forget,
)
from posenc_jax.attention.sharding import drop_unit_axes, shard_keys_like_queries

from support import schemes
from support.attention_inputs import qkv
from support.marks import thorough
from support.schemes import layer_of

N, H, T, L = 4, 8, 12, 16
AXES = ("data", "sequence", "model")


def mesh_of(*sizes, axes=AXES):
    explicit = (jax.sharding.AxisType.Explicit,) * len(sizes)
    return jax.make_mesh(sizes, axes, axis_types=explicit)


placed = functools.cache(functools.partial(layer_of, head_dim=H, train_length=L))


def arrays(layer, K):
    """Queries, keys, values, ticks, parameters; positions and segments of two rows, the second of two
    documents.
    """
    q, k, v, gates = qkv(2, T, N, K, H, (2, T, N))
    ticks = -0.1 * jax.nn.softplus(gates)
    pos = np.stack([np.arange(T), np.r_[np.arange(5), np.arange(T - 5)]])
    seg = np.stack([np.ones(T, int), np.repeat([1, 2], [5, T - 5])])
    params = layer.init(jax.random.split(jax.random.key(0), 5)[4])
    return (q, k, v, ticks, params), (jnp.asarray(pos), jnp.asarray(seg))


@functools.cache
def forward_and_gradients(layer, settings):
    def run(floats, places):
        pos, seg = places

        def attended(q, k, v, ticks, params):
            clock = cumulative_log_forget(ticks, seg) if layer.gated else None
            optional = OptionalInputs(schemes.projected_from(layer, pos.shape))
            how = AttentionSettings(**dict(settings))
            return attend(
                q, k, v, layer, params, TokenSide(pos, seg, clock), settings=how, optional=optional
            )

        out, vjp = jax.vjp(attended, *floats)
        return out, vjp(jnp.cos(out))

    return jax.jit(run)


@functools.cache
def on_one_device(line, K, settings):
    layer = placed(line)
    settings = dict(settings)
    if settings["implementation"] == "blockwise":
        settings["implementation"] = "dense"
    return forward_and_gradients(layer, tuple(settings.items()))(*arrays(layer, K))


def laid_out(mesh, floats, places):
    """Every dim carries its axis, of one device or more; heads that do not divide over theirs lie
    everywhere.
    """

    def put(x, axes):
        names = [
            a if a and x.shape[d] % mesh.shape[a] == 0 else None
            for d, a in enumerate(axes[: x.ndim])
        ]
        return jax.device_put(x, jax.NamedSharding(mesh, jax.P(*names)))

    *tensors, ticks, params = floats
    return (
        (
            *(put(x, (*AXES, None)) for x in tensors),
            put(ticks, ("data", "sequence", None)),
            jax.tree.map(lambda x: put(x, ()), params),
        ),
        tuple(put(x, AXES[:2]) for x in places),
    )


@pytest.mark.default_cases(1, thorough=3)
@pytest.mark.parametrize(
    ("line", "K", "sizes", "implementation"),
    [
        ("rope|nope", 1, (1, 1, 1), "dense"),
        ("rope|nope", 1, (2, 1, 2), "blockwise"),
        ("rope|nope", 1, (1, 1, 4), "dense"),
        ("rope+alibi", 2, (2, 1, 4), "dense"),
        ("rope+linear", 1, (2, 1, 2), "auto"),
        ("pope+alibi|nope~adaptive_ssmax", 2, (2, 1, 4), "dense"),
        *thorough(
            ("pope(start=uniform)+alibi&log|rope~ssmax", 1, (2, 1, 2), "blockwise"),
            ("rope+slopes", 1, (1, 2, 4), "blockwise"),
            ("rope|nope", 2, (2, 1, 4), "blockwise"),
            ("mixed", 1, (2, 1, 2), "dense"),
            ("mixed", 2, (1, 2, 2), "blockwise"),
            ("rope+forget|slopes", 1, (1, 1, 4), "dense"),
            ("rope+forget|slopes", 1, (2, 2, 2), "blockwise"),
            ("rope+forget|slopes", 2, (2, 1, 4), "blockwise"),
            ("rope+linear", 2, (1, 2, 4), "auto"),
            ("prope+log~scale_invariant", 1, (1, 1, 4), "dense"),
            ("prope+log~scale_invariant", 2, (1, 2, 2), "blockwise"),
            ("fire|t5~logn", 1, (2, 1, 2), "dense"),
            ("rope+alibi", 4, (1, 1, 2), "dense"),
            ("rope+window(size=3)|window(size=5)", 1, (2, 1, 2), "blockwise"),
            ("rope+window(size=3)|window(size=5)", 2, (2, 1, 4), "dense"),
            ("window(size=3)|alibi", 1, (2, 1, 2), "flash"),
        ),
    ],
    ids=str,
)
def test_sharded_multi_query_attention_is_that_of_one_device(line, K, sizes, implementation):
    settings = (("implementation", implementation), ("aligned", True))
    want = on_one_device(line, K, settings)
    mesh = mesh_of(*sizes)
    with jax.set_mesh(mesh):
        got = forward_and_gradients(placed(line), settings)(
            *laid_out(mesh, *arrays(placed(line), K))
        )
    assert got[0].sharding.spec == jax.P(*AXES, None)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(b, a, atol=2e-5)
    assert max(float(np.abs(x).max()) for x in jax.tree.leaves(want[1])) > 1e-2


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    "settings", [{"window": 3}, {"causal": False}, {"causal": False, "window": 3}], ids=str
)
def test_a_mask_is_made_on_axes_of_one_device(settings):
    settings = (("implementation", "dense"), *settings.items())
    want = on_one_device("alibi", 1, settings)
    mesh = mesh_of(1, 1, 1)
    with jax.set_mesh(mesh):
        got = forward_and_gradients(placed("alibi"), settings)(
            *laid_out(mesh, *arrays(placed("alibi"), 1))
        )
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(b, a, atol=2e-6)


def test_axes_of_one_device_leave_a_layout_and_others_stay():
    mesh = mesh_of(2, 1, 2, 1, axes=("data", "fsdp", "model", "sequence"))
    with jax.set_mesh(mesh):
        x = jax.device_put(
            jnp.zeros((4, 4, 4, 4)), jax.P(("data", "fsdp"), "sequence", "model", None)
        )
        bare, same = drop_unit_axes((x, None))
        assert (jax.typeof(bare).sharding.spec, same) == (jax.P("data", None, "model", None), None)
        y = jax.device_put(jnp.zeros((4, 4)), jax.P("data", "model"))
        assert drop_unit_axes(y) is y
    assert drop_unit_axes(np.zeros(3)).shape == (3,)  # no mesh at all


@pytest.mark.default_cases(2)
@pytest.mark.parametrize(
    ("heads", "K", "shards"), [(4, 1, 4), (8, 2, 4), (6, 3, 2), (8, 4, 2), (8, 1, 8), (8, 8, 4)]
)
def test_every_device_gets_the_keys_that_its_queries_read_and_as_few_as_will_do(heads, K, shards):
    mesh = mesh_of(1, 1, shards)
    with jax.set_mesh(mesh):
        q = jax.device_put(jnp.zeros((1, 2, heads, 3)), jax.P(None, None, "model", None))
        k = jnp.broadcast_to(jnp.arange(K, dtype=jnp.float32)[None, None, :, None], (1, 2, K, 3))
        got, _ = shard_keys_like_queries(q, k, k)
    assert got.shape[2] == np.lcm(K, shards)
    assert jax.typeof(got).sharding.spec[2] == "model"
    reads = np.arange(heads) // (heads // K)  # the key head of each query head
    np.testing.assert_array_equal(np.repeat(got[0, 0, :, 0], heads // got.shape[2]), reads)
    for shard in got.addressable_shards:
        mine = reads.reshape(shards, -1)[shard.index[2].start // (got.shape[2] // shards)]
        assert set(np.asarray(shard.data[0, 0, :, 0])) == set(mine)


def test_no_device_holds_the_keys_of_all_heads():
    mesh, layer = mesh_of(2, 1, 4), placed("rope|nope")
    with jax.set_mesh(mesh):
        (*tensors, _, params), (pos, seg) = laid_out(mesh, *arrays(layer, 1))
        dense = AttentionSettings(implementation="dense")
        run = jax.jit(lambda *x: attend(*x, layer, params, TokenSide(pos, seg), settings=dense))
        text = run.lower(*tensors).compile().as_text()
    assert set(re.findall(rf"f32\[1,{T},(\d+),{H}\]", text)) == {"1"}
    assert not re.findall(r" (all-gather|all-reduce|all-to-all|collective-permute)\(", text)
