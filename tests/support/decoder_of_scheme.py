"""A small decoder of any scheme, rows of tokens for it, and equality up to rounding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from posenc_jax.encodings import parse
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder

BASE = ModelConfig(
    scheme="nope", vocab_size=37, train_length=64, num_layers=2, model_dim=32, num_heads=4,
    num_kv_heads=2, head_dim=8, mlp_dim=48, activation="swiglu", qk_norm=True, tied_head=True,
    embedding_scale=1.0, norm_epsilon=1e-6, dtype="float32", attention="auto",
)  # fmt: skip


@functools.cache
def model(line: str, **changes):
    config = dataclasses.replace(BASE, scheme=line, **changes)
    decoder = Decoder(config)
    ones = jnp.ones((1, 4), jnp.int32)
    params = jax.jit(decoder.init)(jax.random.key(3), ones, ones, ones)["params"]
    # Larger weights than a fresh model has, so that attention is far from uniform.
    params = jax.tree.map(lambda p: 2 * p, params)
    return config, params, jax.jit(lambda p, *a: decoder.apply({"params": p}, *a))


def of_scheme(line):
    """A model of as many layers as the scheme describes."""
    return model(line, num_layers=len(parse(line).layers))


def row(T, seed=0):
    tokens = np.random.default_rng(seed).integers(0, BASE.vocab_size, (1, T))
    return jnp.asarray(tokens), jnp.arange(T)[None], jnp.ones((1, T), jnp.int32)


def assert_same(got, want):
    """Equal up to rounding: half an ulp on every parameter moves the largest of these logits by 1e-5."""
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
