"""The hash chain of batches and losses: handed on, on every mesh, changed by one bit."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from posenc_jax.checkpoints.hash_chain import START, HashChain, _batch_fingerprints
from posenc_jax.training.sharding import make_mesh


def batch_on(mesh, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (1, 8, 16), dtype=np.int32)
    return {"tokens_BT": jax.device_put(x, jax.NamedSharding(mesh, jax.P(None, "data", None)))}


def links(mesh, asked, losses):
    """Links after the steps in `asked`, of a chain that is handed on at every one of them."""
    stored, found, chain = None, [], HashChain(None)
    for step, loss in enumerate(losses, 1):
        chain.add(
            step, batch_on(mesh, step), {"loss": jnp.float32(loss), "grad_norm": jnp.float32(1)}
        )
        if step in asked:
            stored = chain.through(step)
            found.append(stored)
            chain = HashChain(stored)
    return found


def test_a_chain_handed_on_is_the_chain_of_one_run_and_sees_one_changed_bit():
    mesh, losses = make_mesh(1, 1), [5.0, 4.0, 3.0, 2.0]
    whole = links(mesh, (4,), losses)[-1]
    assert links(mesh, (1, 3, 4), losses)[-1] == whole
    other = links(mesh, (4,), [5.0, float(np.nextafter(np.float32(4), np.float32(9))), 3.0, 2.0])
    assert other[-1]["chain"] != whole["chain"]
    assert other[-1]["data_chain"] == whole["data_chain"]
    assert len({links(mesh, (n,), losses)[-1]["chain"] for n in (1, 2, 3, 4)} | {START}) == 5


def test_the_chain_of_the_data_is_the_same_on_every_mesh():
    found = {
        links(make_mesh(d, m), (3,), [1.0, 2.0, 3.0])[-1]["data_chain"]
        for d, m in ((1, 1), (8, 1), (2, 4))
    }
    assert len(found) == 1


def test_a_link_is_sha256_of_the_one_before_and_the_bits_of_the_step():
    batch = batch_on(make_mesh(1, 1), 1)
    words = np.asarray(_batch_fingerprints(batch)).tobytes()
    before = bytes.fromhex(START)
    bits = np.float32(5).tobytes() + np.float32(1).tobytes()
    assert links(make_mesh(1, 1), (1,), [5.0])[-1] == {
        "chain": hashlib.sha256(before + words + bits).hexdigest(),
        "data_chain": hashlib.sha256(before + words).hexdigest(),
    }
