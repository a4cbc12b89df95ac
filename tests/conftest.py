"""Eight CPU devices for the whole suite, and no silent broadcasting across ranks."""

import collections
import os

from support import machine

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} {machine.QUICK} --xla_force_host_platform_device_count=8"
)
if os.environ.setdefault("JAX_PLATFORMS", "cpu") == "cpu":
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # here and in what a test starts

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from support import entries

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """One prepared copy of the embedded corpus for the whole session."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """Where `compiled_once` keeps programs."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def compiled_once(compiled):
    """A program that several runs of a module compile alike is compiled once: JAX keeps it on disk."""
    settings = {
        "jax_compilation_cache_dir": str(compiled),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for values in (settings, before):
        compilation_cache.reset_cache()
        for name, value in values.items():
            jax.config.update(name, value)
        if values is settings:
            yield
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """Where scripts are run without the seconds that Python needs to import; see support/entries.py."""
    with entries.Forks(tmp_path_factory.mktemp("said")) as forks:
        yield forks


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Sorts tests into tiers, and gives each its worker.

    Of a test with the mark `default_cases(n, thorough=m)`, the first n cases run by default, the
    next m are thorough (all others where m is left out), and the rest is slow; cases with a tier of
    their own are not counted. A file's tests go to one worker (--dist loadgroup), which makes its
    fixtures once. Those of one scheme go together where they share a model, which is compiled once.
    """
    counts = collections.Counter()
    for item in items:
        named = item.get_closest_marker("slow") or item.get_closest_marker("thorough")
        if (few := item.get_closest_marker("default_cases")) and not named:
            counts[item.function] += 1
            beyond = counts[item.function] - few.args[0]
            if beyond > 0:
                slow = beyond > few.kwargs.get("thorough", beyond)
                item.add_marker("slow" if slow else "thorough")
        group = item.module.__name__
        line = getattr(item, "callspec", None) and item.callspec.params.get("line")
        if line and group in ("test_attend", "test_decoder"):
            group = line
        item.add_marker(pytest.mark.xdist_group(group))
