"""Token shift against a loop over each document, on one device and over a mesh."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.attention import ShiftWeights, token_shift

from support import oracles
from support.packed_rows import packed_rows

# The shift itself, and the sink in every path: tests/attention/test_attend_implementations.py.


def weights_of(K):
    return ShiftWeights(
        *(jax.random.normal(key, (K,)) for key in jax.random.split(jax.random.key(7), 4))
    )


def test_a_shift_is_its_loop_over_each_document():
    T, K, H = 16, 2, 4
    k, v = jax.random.normal(jax.random.key(0), (2, 2, T, K, H))
    k = k.at[0, :2].set(jnp.nan)  # padding is never heard
    shift, (_, seg) = weights_of(K), packed_rows(T)
    got = token_shift(k, v, seg, shift)
    for b, a, z in ((0, 2, 6), (0, 6, 7), (0, 7, 15), (1, 0, T)):
        for x, y, weights in ((k, got[0], shift[:2]), (v, got[1], shift[2:])):
            want = oracles.token_shift(np.asarray(x[b, a:z], np.float64), *map(np.asarray, weights))
            np.testing.assert_allclose(y[b, a:z], want, rtol=1e-5, atol=1e-6)
    coarse = token_shift(*(x[1:].astype(jnp.bfloat16) for x in (k, v)), seg[1:], shift)
    for x, y in zip(coarse, got, strict=True):
        assert x.dtype == jnp.bfloat16
        np.testing.assert_allclose(x.astype(jnp.float32), y[1:], rtol=0.02, atol=0.05)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("sizes", [(1, 4, 2), (2, 2, 1), (1, 8, 1), (2, 1, 4)])
def test_a_shift_over_a_mesh_is_that_of_one_device(sizes):
    T, K, H = 16, 2, 4
    axes = ("data", "sequence", "model")
    k, v, aim = jax.random.normal(jax.random.key(0), (3, 2, T, K, H))
    shift, (_, seg) = weights_of(K), packed_rows(T)

    @jax.jit
    def run(k, v, shift, seg, aim):
        out, vjp = jax.vjp(lambda *x: token_shift(*x[:2], seg, x[2]), k, v, shift)
        return out, vjp((aim, aim * aim))

    want = run(k, v, shift, seg, aim)
    mesh = jax.make_mesh(sizes, axes, axis_types=(jax.sharding.AxisType.Explicit,) * 3)
    heads = "model" if K % sizes[2] == 0 else None
    with jax.set_mesh(mesh):
        put = lambda x, *spec: jax.device_put(x, jax.NamedSharding(mesh, jax.P(*spec)))  # noqa: E731
        k, v, aim = (put(x, "data", "sequence", heads) for x in (k, v, aim))
        got = run(k, v, jax.tree.map(put, shift), put(seg, "data", "sequence"), aim)
        program = run.lower(k, v, shift, put(seg, "data", "sequence"), aim).compile().as_text()
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert "collective-permute" in program or sizes[1] == 1
    of_tokens = r"\[\d+,\d+,\d+,\d+\]\S* all-gather"
    assert not re.search(of_tokens, program)
