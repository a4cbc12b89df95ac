"""Values of a bias over all pairs of positions: those of the package and those of a float64 loop."""

import jax
import jax.numpy as jnp
import numpy as np
from posenc_jax.encodings import HeadContext

PLACE = HeadContext(heads=4, num_heads=4, head_dim=16, model_dim=32, train_length=64)


QUERY = 5000


DISTANCES = np.array([0, 1, 2, 3, 15, 16, 17, 31, 64, 100, 127, 128, 129, 1000, 5000])


def values(part, params=None, place=PLACE, query=QUERY):
    """bias[head, distance] of one query."""
    params = part.init(jax.random.key(0), place) if params is None else params
    keys = jnp.asarray(query - DISTANCES)[None]
    return np.asarray(part.bias(params, jnp.array([[query]]), keys, place)[0, :, 0])


def looped(function, heads=4):
    return np.array([[function(n, int(d)) for d in DISTANCES] for n in range(heads)])
