"""Eight CPU devices for the whole suite, and no silent broadcasting across ranks."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """One prepared copy of the embedded corpus for the whole session."""
    return tmp_path_factory.mktemp("data")


def pytest_collection_modifyitems(items):
    """Tests of one scheme go to one worker (--dist loadgroup), which compiles its model once."""
    for item in items:
        line = getattr(item, "callspec", None) and item.callspec.params.get("line")
        if line and item.module.__name__ in ("test_attention", "test_decoder"):
            item.add_marker(pytest.mark.xdist_group(line))
