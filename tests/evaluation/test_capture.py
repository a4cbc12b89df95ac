"""Capture of activations in batches of one size."""

import numpy as np
from posenc_jax.evaluation.capture import over_batches


def test_batches_are_filled_up_and_the_filling_is_cut_off():
    shapes = []

    def program(x_BT):
        shapes.append(x_BT.shape)
        return x_BT.sum(1)

    rows = np.arange(15).reshape(5, 3)
    found = np.concatenate(over_batches(program, 6, rows))
    np.testing.assert_array_equal(found, rows.sum(1))
    assert shapes == [(2, 3)] * 3
