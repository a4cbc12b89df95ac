"""Fingerprints and SHA-256 of arrays: the same on every mesh, another for every bit."""

import hashlib

import jax.numpy as jnp
import numpy as np
from posenc_jax.checkpoints.fingerprint import fingerprint, sha256
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
