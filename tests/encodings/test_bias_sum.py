"""A sum of rotation and bias has the logits of both.

Thorough: every rotation is added to every bias; test_attend.py adds two by default.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from support.schemes import placed


@pytest.mark.thorough
def test_rope_with_every_bias_is_rope_plus_that_bias():
    """Composition: the parts of a sum are the parts alone, for any rotation with any bias."""
    from posenc_jax.encodings import REGISTRY, Bias, Rotation

    pos = jnp.array([[0, 1, 5, 40]])
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 16))
    rotations = [n for n, p in REGISTRY.items() if issubclass(p, Rotation)]
    biases = [n for n, p in REGISTRY.items() if issubclass(p, Bias)]
    assert len(rotations) > 4 < len(biases)
    for rotation in rotations:
        for bias in biases:
            both, one, two = (
                placed(line).layers[0] for line in (f"{rotation}+{bias}", rotation, bias)
            )
            params = both.init(jax.random.key(5))
            part = {k: v for k, v in params.items() if k == "0.rotation"}
            np.testing.assert_array_equal(
                both.rotate(params, x, pos, "key"), one.rotate(part, x, pos, "key")
            )
            part = {k: v for k, v in params.items() if k == "0.bias"}
            np.testing.assert_array_equal(both.bias(params, pos, pos), two.bias(part, pos, pos))
