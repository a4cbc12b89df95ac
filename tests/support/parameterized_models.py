"""Small models with parameters, as interventions take them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from posenc_jax.evaluation.interventions import ParameterizedModel
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder

T, V = 24, 50


SMALL = ModelConfig(
    scheme="rope+alibi", vocab_size=V, train_length=T, num_layers=2, model_dim=32, num_heads=4,
    num_kv_heads=2, head_dim=8, mlp_dim=32, activation="gelu", qk_norm=True, tied_head=True,
    embedding_scale=1.0, norm_epsilon=1e-6, dtype="float32", attention="dense",
)  # fmt: skip


@functools.cache
def model(scheme="rope+alibi", **changes):
    config = dataclasses.replace(SMALL, scheme=scheme, **changes)
    places = jnp.arange(4)[None]
    params = jax.jit(Decoder(config).init)(jax.random.key(0), places, places, places * 0 + 1)[
        "params"
    ]
    return ParameterizedModel(config, jax.tree.map(lambda x: x + 0.03, params))
