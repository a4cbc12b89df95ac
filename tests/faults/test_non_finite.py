"""A NaN on one device of eight and a huge batch: skipped and counted alike, clipped, and never in a
checkpoint.
"""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from faults import corrupted_batches, non_finite
from faults.small_run import SmallRun, finished, record
from faults.trial import failed


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with SmallRun(tmp_path_factory.mktemp("poison")) as small:
        yield small


@pytest.mark.slow
def test_one_bad_device_costs_the_update_and_nothing_else(run):
    trials = list(non_finite.one_device(run, 1, random.Random(0)))
    assert [t.fault for t in trials] == ["NaN in one device", "NaN in one piece of a gradient"]
    assert failed(trials) == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", [non_finite.one_device, non_finite.in_a_row, non_finite.spike])
def test_ten_bad_updates_of_every_kind(run, fault):
    assert failed(fault(run, 10, random.Random(1))) == []


@pytest.mark.slow
def test_a_bad_device_that_is_not_noticed_fails_the_trial(run, monkeypatch):
    """Spoiled without being left out: what the trial compares must tell the two apart."""
    monkeypatch.setattr(non_finite, "_trained", _never_left_out(non_finite._trained))
    done = list(non_finite.one_device(run, 1, random.Random(0)))
    assert len(failed(done)) == 2


def _never_left_out(trained):
    def other(run, name, mesh, what, steps, *settings, **how):
        quiet = "nothing" if what == "left_out" else what
        return trained(
            run, name, mesh, quiet, steps, *settings, **({} if quiet == "nothing" else how)
        )

    return other


def test_devices_that_hold_other_bits_are_told_apart():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    everywhere = jax.NamedSharding(mesh, jax.P())
    corrupted_batches._refuse_unlike_devices({"x": jax.device_put(jnp.ones(3), everywhere)})
    pieces = [
        jax.device_put(np.float32([1, 1, 1 + (i == 5)]), d) for i, d in enumerate(mesh.devices)
    ]
    unlike = jax.make_array_from_single_device_arrays((3,), everywhere, pieces)
    with pytest.raises(RuntimeError, match="holds other bits"):
        corrupted_batches._refuse_unlike_devices({"x": unlike})


@pytest.mark.slow
def test_a_spike_is_taken_clipped_or_left_out_and_the_run_goes_on(run):
    for size in (1e6, 1e30):
        workdir, code, err = non_finite._trained(run, f"{size}", (1, 1, 1), "spike", [7], size=size)
        assert (code, finished(workdir)) == (0, True), err
        assert record(workdir)["skipped_updates"] == (size == 1e30)  # its norm overflows
        assert non_finite._not_finite(workdir) == 0
