"""Small decoders with their parameters."""

import jax
import jax.numpy as jnp
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder


def model(line):
    config = ModelConfig(
        scheme=line, vocab_size=37, train_length=64, num_layers=2, model_dim=32, num_heads=4,
        num_kv_heads=4, head_dim=8, mlp_dim=48, activation="swiglu", qk_norm=True, tied_head=True,
        embedding_scale=1.0, norm_epsilon=1e-6, dtype="float32", attention="auto",
    )  # fmt: skip
    ones = jnp.ones((1, 4), jnp.int32)
    return config, jax.jit(Decoder(config).init)(jax.random.key(0), ones, ones, ones)["params"]
