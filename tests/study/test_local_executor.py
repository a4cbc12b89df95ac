"""Child processes of a study: their environment and flags."""

import pathlib

from posenc_jax.study import local_executor

COMPILED = pathlib.Path("study/compiled")


def test_children_share_what_they_compile_unless_the_user_says_where(monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    assert local_executor.environment(0, COMPILED)["JAX_COMPILATION_CACHE_DIR"] == str(
        COMPILED.resolve()
    )
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    assert local_executor.environment(0, COMPILED)["JAX_COMPILATION_CACHE_DIR"] == "mine"


def test_children_on_one_core_use_huge_pages_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert local_executor.environment(0, COMPILED)["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert "GLIBC_TUNABLES" not in local_executor.environment(None, COMPILED)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=1")
    assert local_executor.environment(0, COMPILED)["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=1"
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setattr("sys.platform", "darwin")
    assert "GLIBC_TUNABLES" not in local_executor.environment(0, COMPILED)


def test_children_on_one_core_keep_the_flags_of_the_user(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert (
        local_executor.environment(0, COMPILED)["XLA_FLAGS"] == local_executor.ONE_CORE["XLA_FLAGS"]
    )
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=dump")
    assert (
        local_executor.environment(0, COMPILED)["XLA_FLAGS"]
        == f"{local_executor.ONE_CORE['XLA_FLAGS']} --xla_dump_to=dump"
    )
    assert local_executor.environment(None, COMPILED)["XLA_FLAGS"] == "--xla_dump_to=dump"
