"""Fingerprint of an array: 128 bits that do not depend on its layout over devices."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

_KEYS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F)  # odd: one per word of the result
BLOCK = 2**16  # elements, which fit into a cache


@jax.jit
def fingerprint(x: jax.Array) -> jax.Array:
    """Returns uint32[4]: sums, modulo 2^32, of a hash of every element's bits and index.

    Each term is a bijection of an element's bits (MurmurHash3's finaliser, Appleby 2011), so one
    changed element always changes all four words; several changes go undetected with probability
    2^-128. The order of a sum does not matter, so each device adds its own elements and nothing is
    gathered.
    """
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = (x if x.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(x, unsigned)).astype(
        jnp.uint32
    )
    index = jnp.zeros((1,) * x.ndim, jnp.uint32)
    stride = 1
    for axis in reversed(range(x.ndim)):
        shape = [1] * x.ndim
        shape[axis] = x.shape[axis]
        along = jnp.arange(x.shape[axis], dtype=jnp.uint32).reshape(shape)
        index = index + along * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return jnp.stack(
        [_mixed(bits ^ (index * jnp.uint32(key) + jnp.uint32(key >> 3))).sum() for key in _KEYS]
    )


def _mixed(h):
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def _in_blocks(x: np.ndarray) -> np.ndarray:
    """Returns `fingerprint(x)` of an array in host memory, with little memory beside it."""
    flat, words = x.reshape(-1).view(f"u{x.itemsize}"), [0] * len(_KEYS)
    for start in range(0, flat.size, BLOCK):
        bits = flat[start : start + BLOCK].astype(np.uint32)
        index = np.arange(start, start + bits.size, dtype=np.uint64).astype(np.uint32)
        for k, key in enumerate(_KEYS):
            mixed = _mixed(bits ^ (index * np.uint32(key) + np.uint32(key >> 3)))
            words[k] += int(mixed.sum(dtype=np.uint64))
    return np.array([word % 2**32 for word in words], np.uint32)


def fingerprints(tree) -> dict[str, jax.Array | np.ndarray]:
    """Returns the fingerprint of every leaf by its path; dispatches the work and does not wait.

    One program runs all sums over devices in one order. Many small programs, each with a
    collective, can block each other on a host with more devices than threads. On one CPU the
    sums are computed at once, in blocks: the program would take four times the memory of the tree.
    """
    named = dict(leaves(tree))
    if all(_on_one_cpu(x) for x in named.values()):
        return {name: _in_blocks(np.asarray(x)) for name, x in named.items()}
    return _fingerprints(named)


def _on_one_cpu(x: jax.Array) -> bool:
    devices = list(x.devices())
    return len(devices) == 1 and devices[0].platform == "cpu"


@jax.jit
def _fingerprints(named: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: fingerprint(leaf) for name, leaf in named.items()}


def describe(tree) -> dict[str, str]:
    """Returns dtype and shape of every leaf as text: "float32[4, 8]"."""
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves(tree)}


def sha256(tree) -> dict[str, str]:
    """Returns SHA-256 of every leaf's bytes in row-major order, by path; one leaf at a time."""
    return {name: hashlib.sha256(_whole(leaf).tobytes()).hexdigest() for name, leaf in leaves(tree)}


def leaves(tree) -> list[tuple[str, jax.Array]]:
    """Returns (path, leaf) of a tree; a path is like params/layer_0/mlp/up_DF."""
    named = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in named]


def _whole(leaf: jax.Array) -> np.ndarray:
    if leaf.is_fully_addressable:
        return np.asarray(leaf)
    if not isinstance(leaf.sharding, jax.NamedSharding):
        raise ValueError(f"an array of several processes needs a mesh, not {leaf.sharding}")
    everywhere = jax.NamedSharding(leaf.sharding.mesh, jax.P())
    return np.asarray(jax.jit(lambda x: x, out_shardings=everywhere)(leaf))
