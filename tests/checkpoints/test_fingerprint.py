"""Fingerprints and SHA-256 of arrays: the same on every mesh, another for every bit."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from posenc_jax.checkpoints import fingerprint as module
from posenc_jax.checkpoints.fingerprint import fingerprint, fingerprints, sha256
from posenc_jax.training.sharding import make_mesh

from support.train_states import state


def test_sha256_of_a_leaf_is_that_of_its_bytes_on_any_mesh():
    want = hashlib.sha256(np.asarray(state(3)["params"]["up_DF"]).tobytes()).hexdigest()
    for mesh in (make_mesh(1, 1), make_mesh(2, 4)):
        assert sha256(state(3, mesh))["params/up_DF"] == want


def test_a_fingerprint_changes_with_every_bit_and_with_the_place_of_every_element():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    seen = {fingerprint(jnp.asarray(x)).tobytes()}
    for element in range(6):
        for bit in range(32):
            y = x.copy()
            y.view(np.uint32).reshape(-1)[element] ^= np.uint32(1 << bit)
            seen.add(fingerprint(jnp.asarray(y)).tobytes())
    assert len(seen) == 1 + 6 * 32
    seen.add(fingerprint(jnp.asarray(x[::-1])).tobytes())
    assert len(seen) == 2 + 6 * 32


def test_one_cpu_sums_in_blocks_what_a_mesh_sums_in_one_program(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 7)
    one, many = (fingerprints(state(3, make_mesh(*shape))) for shape in ((1, 1), (2, 4)))
    assert all(isinstance(x, np.ndarray) for x in one.values())
    assert all(isinstance(x, jax.Array) for x in many.values())
    jax.tree.map(np.testing.assert_array_equal, one, many)
    rng = np.random.default_rng(0)
    shapes = dict.fromkeys(("float32", "bfloat16", "int8", "bool"), (3, 5, 2))
    for dtype, shape in [*shapes.items(), ("int32", ()), ("float32", (0,))]:
        x = jnp.asarray(rng.normal(size=shape) * 9).astype(dtype)
        np.testing.assert_array_equal(fingerprints({"x": x})["x"], fingerprint(x))
