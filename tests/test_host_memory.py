"""What `keep_freed_memory` does to a process: the system is asked for a program's scratch once, not every time."""

import os
import platform
import subprocess
import sys

import pytest

from posenc_jax import host_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")

# A program with 64 MB of scratch in pieces that no fusion removes; prints the pages that a run of it is given.
_RUNS = """
import resource, sys
from posenc_jax.host_memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
import jax, jax.numpy as jnp
@jax.jit
def run(x):
    square = jnp.outer(x, x) @ jnp.outer(x, x)
    return jax.lax.optimization_barrier(square).sum()
x = jnp.ones(2048)
pages = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    run(x).block_until_ready()
before = pages()
for _ in range(10):
    run(x).block_until_ready()
print(kept, (pages() - before) / 10)
"""


def _pages(how, **environment):
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "GLIBC_TUNABLES", "XLA_FLAGS"))
    }
    said = subprocess.run(
        [sys.executable, "-c", _RUNS, how],
        env=clean | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    kept, pages = said.stdout.split()
    return kept == "True", float(pages)


def test_a_program_writes_to_the_same_pages_again():
    kept, few = _pages("keep")
    assert kept
    _, many = _pages("as it is")
    assert many > 4000  # 16 MB of pages at least, of 4 KB
    assert few < many / 10


@pytest.mark.parametrize(
    "environment", [{"MALLOC_ARENA_MAX": "4"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=4096"}]
)  # fmt: skip
def test_who_has_told_the_allocator_otherwise_is_not_overruled(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert not host_memory.keep_freed_memory()


@pytest.mark.parametrize(
    ("platforms", "plugin", "accelerated"),
    [
        ("cpu", True, False),
        ("cuda,cpu", True, True),
        ("", True, True),
        ("", False, False),
        ("tpu", False, True),
    ],
)
def test_where_jax_is_to_find_an_accelerator_nothing_is_done(monkeypatch, platforms, plugin, accelerated):  # fmt: skip
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(host_memory.importlib.util, "find_spec", lambda name: plugin or None)
    assert host_memory._accelerated() == accelerated
    if accelerated:
        assert not host_memory.keep_freed_memory()
