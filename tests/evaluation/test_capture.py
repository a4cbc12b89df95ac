"""Capture of activations in batches of one size, and of logits with a softcap."""

import dataclasses

import numpy as np
import pytest
from posenc_jax.evaluation.capture import over_batches
from posenc_jax.evaluation.head_statistics import head_sums, needle_heads
from posenc_jax.evaluation.properties import shift_errors
from posenc_jax.tasks.instances import Answer, Instance

from support.decoders import model


def test_batches_are_filled_up_and_the_filling_is_cut_off():
    shapes = []

    def program(x_BT):
        shapes.append(x_BT.shape)
        return x_BT.sum(1)

    rows = np.arange(15).reshape(5, 3)
    found = np.concatenate(over_batches(program, 6, rows))
    np.testing.assert_array_equal(found, rows.sum(1))
    assert shapes == [(2, 3)] * 3


@pytest.mark.thorough
def test_heads_of_a_model_with_a_softcap_are_measured_with_it():
    cap, (config, params) = 0.3, model("rope")
    rows = np.random.default_rng(0).integers(0, 37, (2, 40))
    instance = Instance(rows[0].astype(np.int32), (Answer(35, 37, 20, 0.4, 0.1),))
    largest = []
    for one in (config, dataclasses.replace(config, attention_softcap=cap)):
        sums = head_sums(one, params, rows, 80, first=20)
        needles = needle_heads(one, params, [instance], 80)
        shifts = shift_errors(one, params, rows, (3,), 80)[3]
        assert shifts.max() < 1e-3  # RoPE is relative, with a cap too
        logits = max(np.abs(layer.content_NZ).max() for layer in sums)
        largest.append((logits, max(np.abs(layer.margin_NA).max() for layer in needles)))
    (plain, margin), (capped, capped_margin) = largest
    assert capped < cap < plain
    assert capped_margin < 2 * cap < margin
