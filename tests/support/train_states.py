"""A small training state with every kind of leaf that a run has."""

import jax
import jax.numpy as jnp
import numpy as np
from posenc_jax.training.sharding import make_mesh


def state(seed=0, mesh=None):
    """A small state of every kind of leaf that a run has."""
    rng = np.random.default_rng(seed)
    values = {
        "params": {"up_DF": rng.normal(size=(16, 64)).astype(np.float32)},
        "optimizer": {"mu": rng.normal(size=(16, 64)).astype(jnp.bfloat16)},
        "step": np.int32(seed),
    }
    mesh = mesh or make_mesh(1, 1)
    places = {
        "params": {"up_DF": jax.P("data", "model")},
        "optimizer": {"mu": jax.P(None, "model")},
        "step": jax.P(),
    }
    return jax.tree.map(
        lambda x, spec: jax.device_put(x, jax.NamedSharding(mesh, spec)), values, places
    )
