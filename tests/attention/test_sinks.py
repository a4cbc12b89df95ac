"""Sink logits of attention over a mesh and in a ring."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.attention import AttentionSettings, OptionalInputs, TokenSide, attend, ring_hops
from posenc_jax.encodings import cumulative_log_forget, parse

from support.packed_rows import packed_rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "sizes", "K"),
    [
        ("rope+slopes|nope~logn", (2, 2, 2), 2),
        ("nope", (1, 1, 4), 1),
        pytest.param("forget", (1, 4, 2), 4, marks=pytest.mark.slow),
        pytest.param("fire", (2, 4, 1), 2, marks=pytest.mark.slow),
        pytest.param("alibi", (1, 8, 1), 4, marks=pytest.mark.slow),
    ],
)
def test_attention_with_sinks_over_a_mesh_is_that_of_one_device(line, sizes, K):
    B, T, N, H = 2, 32, 4, 8
    layer = (
        parse(line)
        .place(num_layers=1, num_heads=N, head_dim=H, model_dim=32, train_length=16)
        .layers[0]
    )
    keys = jax.random.split(jax.random.key(0), 5)
    q, k, v, aim = (
        jax.random.normal(key, (B, T, n, H)) for key, n in zip(keys, (N, K, K, N), strict=False)
    )
    ticks = -0.1 * jax.nn.softplus(jax.random.normal(keys[4], (B, T, N)))
    pos, seg = packed_rows(T)
    sink = jnp.array([0.0, 3.0, -2.0, 1.0])

    @functools.partial(jax.jit, static_argnames="implementation")
    def run(q, k, v, params, sink, clock, pos, seg, aim, implementation):
        tokens = TokenSide(pos, seg, clock if layer.gated else None)
        settings = AttentionSettings(implementation=implementation)

        def attended(q, k, v, params, sink):
            optional = OptionalInputs(sink_N=sink)
            return attend(q, k, v, layer, params, tokens, settings=settings, optional=optional)

        out, vjp = jax.vjp(attended, q, k, v, params, sink)
        return out, vjp(aim)

    params, clock = layer.init(keys[4]), cumulative_log_forget(ticks, seg)
    want = run(q, k, v, params, sink, clock, pos, seg, aim, implementation="dense")
    axes = ("data", "sequence", "model")
    mesh = jax.make_mesh(sizes, axes, axis_types=(jax.sharding.AxisType.Explicit,) * 3)
    with jax.set_mesh(mesh):
        put = lambda x, *spec: jax.device_put(x, jax.NamedSharding(mesh, jax.P(*spec)))  # noqa: E731
        heads = "model" if K % sizes[2] == 0 else None
        q, aim = (put(x, *axes) for x in (q, aim))
        k, v = (put(x, "data", "sequence", heads) for x in (k, v))
        pos, seg, clock = (put(x, "data", "sequence") for x in (pos, seg, clock))
        params, sink = jax.tree.map(put, (params, sink))
        got = run(q, k, v, params, sink, clock, pos, seg, aim, implementation="blockwise")
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1.0, np.abs(b).max()))


def test_a_ring_stops_no_later_for_a_sink_that_takes_all():
    T, N, H = 128, 4, 8
    layer = (
        parse("alibi")
        .place(num_layers=1, num_heads=N, head_dim=H, model_dim=32, train_length=16)
        .layers[0]
    )
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, T, N, H))
    pos, seg = jnp.arange(T)[None], jnp.ones((1, T), jnp.int32)
    axes = ("data", "sequence", "model")
    mesh = jax.make_mesh((1, 8, 1), axes, axis_types=(jax.sharding.AxisType.Explicit,) * 3)
    with jax.set_mesh(mesh):
        put = lambda x, *spec: jax.device_put(x, jax.NamedSharding(mesh, jax.P(*spec)))  # noqa: E731
        tensors = [put(x, "data", "sequence") for x in (q, k, v, pos, seg)]

        @jax.jit
        def hops(sink, q, k, v, pos, seg):
            tokens = TokenSide(pos, seg)
            return ring_hops(q, k, v, layer, {}, tokens, tokens, sink_N=sink)

        quiet, loud = (np.asarray(hops(jnp.full((N,), x), *tensors)) for x in (-50.0, 60.0))
    assert (loud <= quiet).all()
    assert loud.sum() < quiet.sum()
