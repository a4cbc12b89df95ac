"""The mask of causal order, documents and windows, against a matrix written by hand."""

import jax.numpy as jnp
import numpy as np
from posenc_jax.attention import TokenSide, visible


def test_mask_equals_a_hand_written_matrix():
    pos, seg = jnp.array([[0, 0, 1, 2, 0]]), jnp.array([[0, 1, 1, 1, 2]])
    want = np.array(
        [[0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 1]]
    )
    np.testing.assert_array_equal(
        visible(TokenSide(pos, seg), TokenSide(pos, seg), causal=True)[0], want
    )
    both = visible(TokenSide(pos, seg), TokenSide(pos, seg), causal=False)[0]
    np.testing.assert_array_equal(both, (np.array(seg) == np.array(seg).T) & (np.array(seg) != 0))
