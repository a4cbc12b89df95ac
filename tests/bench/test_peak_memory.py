"""Peak memory of a run, measured and planned."""

import importlib.machinery
import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.bench import pytorch
from posenc_jax.bench.peak_memory import Compiled, peak, peak_bytes, planned_bytes


@pytest.mark.thorough
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc")
def test_peak_memory_is_what_a_run_takes_and_gives_back():
    def run():
        return np.ones(8_000_000).sum()

    np.ones(12_000_000).sum()  # freed before, and not counted
    held = np.ones(4_000_000)  # held all the time, and not counted
    assert 60e6 < peak_bytes(run) < 72e6
    assert peak_bytes(lambda: None) < 4e6
    assert held.sum() == 4_000_000


@pytest.mark.thorough
def test_pytorchs_memory_on_a_gpu_is_what_its_allocator_counted_beyond_what_was_held(monkeypatch):
    counted = {"now": 100, "most": 900}

    def run():
        counted["most"] = max(counted["most"], counted["now"] + 40)
        return Waited()

    class Waited:
        def block_until_ready(self):
            counted["waited"] = True

    torch = types.ModuleType("torch")
    torch.__spec__ = importlib.machinery.ModuleSpec("torch", None)
    torch.cuda = types.SimpleNamespace(
        is_available=lambda: True,
        synchronize=lambda: None,
        reset_peak_memory_stats=lambda: counted.update(most=counted["now"]),
        memory_allocated=lambda: counted["now"],
        max_memory_allocated=lambda: counted["most"],
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert pytorch.device() == "cpu"  # with JAX, whatever the machine has
    assert peak(run)[1] == "system"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert pytorch.device() == "cuda"
    assert peak(run) == (40, "torch")
    assert counted["waited"]
    ours = Compiled(lambda x: (x + 1,), (jnp.ones(1000),))
    assert peak(ours) == (4000, "compiler")


def test_a_result_in_memory_that_was_given_away_is_not_planned_twice():
    x = jnp.ones(1000)
    given, kept = (jax.jit(lambda x: x + 1, donate_argnums=n) for n in ((0,), ()))
    assert planned_bytes(given.lower(x).compile()) == 0
    assert planned_bytes(kept.lower(x).compile()) == 4000
