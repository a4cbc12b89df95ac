"""The receptive field: gradients by distance and the reach of their share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.evaluation import interventions as change
from posenc_jax.evaluation.receptive_field import gradient_by_distance, reach_of_share
from posenc_jax.model.decoder import Decoder

from support.parameterized_models import model

T, V = 24, 50


TOKENS = np.asarray(jax.random.randint(jax.random.key(5), (3, T), 0, V))


@pytest.mark.parametrize("tied", [False, True])
def test_the_gradient_is_what_moving_an_embedding_does_to_the_loss(tied):
    m = model(num_layers=1, tied_head=tied)
    tokens_T, target = TOKENS[0], 7
    norm_Z = np.asarray(
        jax.jit(lambda p, t: gradient_by_distance(m.config, p, t, target))(m.params, tokens_T)
    )
    assert norm_Z.shape == (T,)

    # The same loss with a table of one word a place, by central differences.
    table = np.asarray(m.params["embedding_VD"])
    head = table if tied else np.asarray(m.params["head_VD"])
    config = dataclasses.replace(m.config, tied_head=False)

    @jax.jit
    def loss(own_TD):
        words = jnp.zeros((V, 32)).at[:T].set(own_TD)
        params = {**m.params, "embedding_VD": words, "head_VD": jnp.asarray(head)}
        places = jnp.arange(T)[None]
        out = Decoder(config).apply({"params": params}, places, places, places * 0 + 1)[0][0, -1]
        return jax.nn.logsumexp(out) - out[target]

    own_TD, step = table[tokens_T], 2e-3
    for distance in (0, 1, 5):
        place = T - 1 - distance
        slopes = []
        for d in range(32):
            bump = np.zeros((T, 32), np.float32)
            bump[place, d] = step
            slopes.append((loss(own_TD + bump) - loss(own_TD - bump)) / (2 * step))
        assert norm_Z[distance] == pytest.approx(np.linalg.norm(slopes), rel=2e-2, abs=2e-4)


@pytest.mark.slow
def test_a_window_bounds_the_receptive_field_of_one_layer():
    cut = change.windowed(5)(model(num_layers=1))
    norm_Z = np.asarray(gradient_by_distance(cut.config, cut.params, TOKENS[0], 3))
    assert (norm_Z[:5] > 0).all()
    assert (norm_Z[5:] == 0).all()


def test_the_reach_is_the_first_distance_that_completes_the_share():
    norm_Z = np.array([5.0, 1.0, 3.0, 1.0])
    assert [reach_of_share(norm_Z, s) for s in (0.5, 0.6, 0.61, 0.9, 1.0)] == [0, 1, 2, 2, 3]
    with pytest.raises(ValueError, match="no gradient"):
        reach_of_share(np.zeros(4), 0.5)
