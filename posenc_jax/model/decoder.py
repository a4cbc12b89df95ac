"""The decoder in Flax Linen: modules own the parameters; the mathematics lies in pure functions.

Pre-norm, RMSNorm, grouped-query attention, SwiGLU or GELU, optional qk-norm, tied or untied head.
The model does not depend on the encoding: it passes queries, keys and positions to `attend`.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from posenc_jax.attention import attend
from posenc_jax.encodings.gather import gather_rows
from posenc_jax.model.activation_sharding import ROWS, reshard, token_einsum
from posenc_jax.model.blocks import Block, normal_init, rms_norm
from posenc_jax.model.cache import Cache
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.layer_stack import LayerExecution, apply_layers, period


def _apply(block: Block, pos_BT, seg_BT, params, x_BTD):
    return block.apply({"params": params}, x_BTD, pos_BT, seg_BT, None)[0]


def _cast(params, dtype: str):
    """Returns a block's parameters with matrices in `dtype`, the others unchanged."""

    def cast(path, x):
        learned = any(key.key == "scheme" for key in path)
        return x if learned or x.ndim == 1 else x.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def at_progress(config: ModelConfig, params, progress: jax.Array):
    """Returns a decoder's parameters with the scheduled ones set for a share `progress` of
    training.

    Most schemes have no scheduled parameters.
    """
    params = dict(params)
    for i, layer in enumerate(config.placed.layers):
        block = params[f"layer_{i}"]
        if "scheme" in block["attention"]:
            learned = layer.scheduled(block["attention"]["scheme"], progress)
            attention = {**block["attention"], "scheme": learned}
            params[f"layer_{i}"] = {**block, "attention": attention}
    return params


def readout(config: ModelConfig, head_VD: jax.Array, x_BTD: jax.Array) -> jax.Array:
    """Returns logits_BTV, float32, of the final normed activations."""
    return token_einsum(
        "BTD,VD->BTV", x_BTD, head_VD.astype(config.dtype), preferred_element_type=jnp.float32
    )


class Decoder(nn.Module):
    """Tokens, positions and segments in, logits out.

    ``apply({"params": p}, tokens_BT, pos_BT, seg_BT)`` returns (logits_BTV float32, None); with a
    cache it returns (logits_BTV, cache), where the new cache includes the T tokens. The caller
    keeps track of free slots: under jit, writing past the last slot raises no error. Without a
    cache, tokens are in the order of their positions and the tokens of a document stand together;
    linear attention and the forget gate need this. With read_out=False the normed activations x_BTD
    are returned instead of the logits; `readout` computes logits from a part of them.

    `attend` is called for the layers in order. A probe can replace it by a function of the same
    arguments. `execution` is for passes without a cache; with it, one call may serve several
    layers.
    """

    config: ModelConfig
    read_out: bool = True
    attend: Callable = attend
    execution: LayerExecution = LayerExecution()

    @nn.compact
    def __call__(self, tokens_BT, pos_BT, seg_BT, cache: Cache | None = None):
        c = self.config
        embedding_VD = self.param(
            "embedding_VD", normal_init(c.model_dim), (c.vocab_size, c.model_dim)
        )
        tokens_BT, pos_BT, seg_BT = (
            reshard(x, ROWS, "sequence") for x in (tokens_BT, pos_BT, seg_BT)
        )
        # The table is split over "model" along D: rows are looked up first and gathered afterwards.
        table_VD = reshard(embedding_VD, None, "model")
        rows_BTD = gather_rows(table_VD, tokens_BT, "promise_in_bounds")
        x_BTD = reshard(rows_BTD, ROWS, "sequence", None) * c.embedding_scale
        absolute = c.placed.absolute
        if absolute is not None:
            learned = self.param("absolute", c.placed.init_absolute) if absolute.learns else {}
            x_BTD = x_BTD + c.placed.embed(learned, pos_BT)
        x_BTD = x_BTD.astype(c.dtype)

        kept = []
        if cache is not None or self.execution == LayerExecution() or self.is_initializing():
            for i in range(c.num_layers):
                x_BTD, layer_cache = Block(c, i, attend=self.attend, name=f"layer_{i}")(
                    x_BTD, pos_BT, seg_BT, cache
                )
                kept.append(layer_cache)
        else:
            blocks = [
                functools.partial(_apply, Block(c, i, attend=self.attend, parent=None), pos_BT, seg_BT)
                for i in range(period(c.placed.layers))
            ]  # fmt: skip
            stored = (self.variables["params"][f"layer_{i}"] for i in range(c.num_layers))
            x_BTD = apply_layers(
                blocks, [_cast(own, c.dtype) for own in stored], x_BTD, self.execution
            )
        gain_D = self.param("final_gain_D", nn.initializers.ones, (c.model_dim,))
        x_BTD = rms_norm(x_BTD, gain_D, c.norm_epsilon)
        if not self.read_out:
            return x_BTD, None

        head_VD = embedding_VD
        if not c.tied_head:
            head_VD = self.param("head_VD", normal_init(c.model_dim), embedding_VD.shape)
        logits_BTV = readout(c, head_VD, x_BTD)
        if cache is None:
            return logits_BTV, None
        layers, last = zip(*kept, strict=True)
        written = cache.filled + tokens_BT.shape[1]
        return logits_BTV, dataclasses.replace(cache, layers=layers, last=last, filled=written)
