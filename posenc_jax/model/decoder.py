"""The decoder in Flax Linen: modules own the parameters; the mathematics lies in pure functions.

What differs between published decoders is configuration (`posenc_jax.model.config.Architecture`,
`posenc_jax.model.presets`). The model does not depend on the encoding: it passes queries, keys and
positions to `attend`.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.attention import TokenSide, attend
from posenc_jax.attention.dense import capped
from posenc_jax.attention.tokens import check_positions, integer_side, is_concrete, zero_padding
from posenc_jax.encodings.gather import gather_rows
from posenc_jax.model.activation_sharding import ROWS, reshard, token_einsum
from posenc_jax.model.array_module import ArrayModule
from posenc_jax.model.attention_layer import add_bias, normal_init
from posenc_jax.model.blocks import Block
from posenc_jax.model.cache import Cache
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.feed_forward import activate
from posenc_jax.model.layer_stack import LayerExecution, apply_layers, period
from posenc_jax.model.norms import learned_norm


def _apply(block: Block, pos_BT, seg_BT, params, x_BTD):
    return block.apply({"params": params}, x_BTD, pos_BT, seg_BT, None)[0]


def _cast(params, dtype: str):
    """Returns a block's parameters with matrices in `dtype`, the others unchanged."""

    def cast(path, x):
        learned = any(key.key == "scheme" for key in path)
        return x if learned or x.ndim == 1 else jnp.asarray(x, dtype)

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


def checked_inputs(
    config: ModelConfig, tokens_BT, pos_BT, seg_BT, cache: Cache | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns token ids, positions and segments as int32, with id 0 and position 0 at padding.

    Raises:
      ValueError: arrays that are not integer. Outside jit also ids outside of the vocabulary, two
        tokens of one document at one position (without `slot_order`), and more tokens than the
        cache has slots.
    """
    side = integer_side(TokenSide(pos_BT, seg_BT))
    if not config.slot_order:
        check_positions(side)
    side = zero_padding(side)
    tokens_BT = jnp.where(side.seg_BT != 0, tokens_BT, 0)
    check_token_ids(tokens_BT, config.vocab_size)
    if cache is not None and is_concrete(cache.filled):
        asked = int(cache.filled) + tokens_BT.shape[1]
        if asked > cache.slots:
            raise ValueError(f"{asked} tokens in all; this cache has {cache.slots} slots")
    return tokens_BT.astype(jnp.int32), side.pos_BT, side.seg_BT


def check_token_ids(ids: np.ndarray | jax.Array, vocab_size: int) -> None:
    """Raises ValueError for ids that are not whole or, outside jit, not of the vocabulary."""
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"token ids must be whole numbers, not {ids.dtype}")
    if is_concrete(ids) and ids.size:
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"token id {low if low < 0 else high} lies outside of the vocabulary of "
                f"{vocab_size}"
            )


def readout(config: ModelConfig, params, x_BTD: jax.Array) -> jax.Array:
    """Returns logits_BTV, float32, of activations without the head; params: of the decoder."""
    head_VD = params["embedding_VD" if config.tied_head else "head_VD"].astype(config.dtype)
    logits_BTV = token_einsum("BTD,VD->BTV", x_BTD, head_VD, preferred_element_type=jnp.float32)
    if "head" in config.biases:
        logits_BTV = logits_BTV + params["head_bias_V"][None, None]
    return capped(logits_BTV, config.logit_softcap)


class Decoder(ArrayModule):
    """Tokens, positions and segments in, logits out.

    ``apply({"params": p}, tokens_BT, pos_BT, seg_BT)`` returns (logits_BTV float32, None); with a
    cache it returns (logits_BTV, cache), where the new cache includes the T tokens. The caller
    keeps track of free slots and of ids: under jit, writing past the last slot and an id outside of
    the vocabulary raise no error. Padding may have any ids and positions. Without a cache, tokens
    must be in the order of their positions (under `ModelConfig.slot_order` in any order) and the
    tokens of a document in consecutive slots; linear attention and the forget gate need this. With
    read_out=False the normed activations x_BTD are returned instead of the logits; `readout`
    computes logits from any part of these activations.

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
        if not self.is_initializing():
            tokens_BT, pos_BT, seg_BT = checked_inputs(c, tokens_BT, pos_BT, seg_BT, cache)
        elif is_concrete(pos_BT):  # a dummy batch may repeat its positions
            pos_BT = jnp.broadcast_to(jnp.arange(pos_BT.shape[1])[None], pos_BT.shape)
        # The table is split over "model" along D: rows are looked up first and gathered afterwards.
        table_VD = reshard(embedding_VD, None, "model")
        rows_BTD = gather_rows(table_VD, tokens_BT, "promise_in_bounds")
        x_BTD = reshard(rows_BTD, ROWS, "sequence", None) * c.embedding_scale
        absolute = c.placed.absolute
        if absolute is not None:
            learned = self.param("absolute", c.placed.init_absolute) if absolute.learns else {}
            x_BTD = x_BTD + absolute.embed(learned, pos_BT, c.placed.whole)
        x_BTD = x_BTD.astype(c.dtype)
        if c.embedding_norm:
            x_BTD = learned_norm(self, c, "embedding", x_BTD)

        kept = []
        if cache is not None or self.execution == LayerExecution() or self.is_initializing():
            for i in range(c.num_layers):
                x_BTD, layer_cache = Block(c, i, attend=self.attend, name=f"layer_{i}")(
                    x_BTD, pos_BT, seg_BT, cache
                )
                kept.append(layer_cache)
        else:
            blocks = [
                functools.partial(
                    _apply, Block(c, i, attend=self.attend, parent=None), pos_BT, seg_BT
                )
                for i in range(period(c.placed.layers))
            ]
            stored = (self.variables["params"][f"layer_{i}"] for i in range(c.num_layers))
            x_BTD = apply_layers(
                blocks, [_cast(own, c.dtype) for own in stored], x_BTD, self.execution
            )
        if c.final_norm:
            x_BTD = learned_norm(self, c, "final", x_BTD)
        if c.head_transform:
            x_BTD = self._transformed(x_BTD)
        if not self.read_out:
            return x_BTD, None

        head = {"embedding_VD": embedding_VD}
        if not c.tied_head:
            head["head_VD"] = self.param("head_VD", normal_init(c.model_dim), embedding_VD.shape)
        if "head" in c.biases:
            head["head_bias_V"] = self.param("head_bias_V", nn.initializers.zeros, (c.vocab_size,))
        logits_BTV = readout(c, head, x_BTD)
        if cache is None:
            return logits_BTV, None
        layers, last = zip(*kept, strict=True)
        written = cache.filled + tokens_BT.shape[1]
        return logits_BTV, dataclasses.replace(cache, layers=layers, last=last, filled=written)

    def _transformed(self, x_BTD):
        """Returns x_BTD after the dense layer, activation and norm of `head_transform`."""
        c = self.config
        dense_DD = self.param("transform_DD", normal_init(c.model_dim), (c.model_dim,) * 2)
        x_BTD = token_einsum("BTD,DE->BTE", x_BTD, dense_DD.astype(c.dtype))
        x_BTD = activate(c.activation, add_bias(self, "transform_bias_D", x_BTD))
        return learned_norm(self, c, "transform", x_BTD)
