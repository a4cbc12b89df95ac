"""The key/value cache of decoding. Keys are stored unrotated and rotated when they are read.

Cached keys therefore stay valid when frequencies change between two calls (dynamic NTK, LongRoPE's
two lists), and positions are arbitrary.

Heads with a window or a steep bias give no weight to tokens far back and need not store them.
`required_slots` returns how many of the last tokens each head group needs; `empty_cache` then gives
it a ring buffer of that size, in which a new token replaces the oldest one.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.attention import LastToken
from posenc_jax.attention.blockwise import cutoff
from posenc_jax.attention.mask import head_windows
from posenc_jax.encodings.base import Params
from posenc_jax.encodings.scheme import PlacedLayer
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.norms import gain_factor


class LayerCache(NamedTuple):
    """Keys and values in S slots with positions and segments; log_forget_BSN for a forget gate
    (`layer.gated`).

    Unused slots have segment 0. A layer has one of these, or one per head group.
    """

    k_BSKH: jax.Array
    v_BSKH: jax.Array
    log_forget_BSN: jax.Array | None
    pos_BS: jax.Array
    seg_BS: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The caches of all layers.

    Attributes:
      layers: per layer, one `LayerCache`, or one per head group.
      last: per layer, the last token for `ModelConfig.token_shift`; None without it.
      filled: number of tokens written so far.
      slots: number of tokens in all. longest_call: largest number of tokens per call.
    """

    layers: tuple[tuple[LayerCache, ...], ...]
    last: tuple[LastToken | None, ...]
    filled: jax.Array
    slots: int = dataclasses.field(metadata={"static": True})
    longest_call: int = dataclasses.field(metadata={"static": True})


class CacheView(NamedTuple):
    """The keys that query heads `first` to `stop` attend to, and a layer of only these heads."""

    first: int
    stop: int
    layer: PlacedLayer
    params: Params
    kept: LayerCache


def empty_cache(
    config: ModelConfig,
    batch: int,
    slots: int,
    kept: tuple[tuple[int, ...], ...] | None = None,
    longest_call: int | None = None,
) -> Cache:
    """Returns a cache of `slots` tokens for `batch` rows.

    Args:
      kept: from `required_slots` for the same `slots` and `longest_call`; None: all tokens are
        kept.
      longest_call: largest number of tokens per call; None: any number.
    """
    longest_call = longest_call or slots
    kept = kept or ((slots,),) * config.num_layers

    def blank(size, kv_heads, num_heads):
        zeros_BSKH = jnp.zeros((batch, size, kv_heads, config.head_dim), config.dtype)
        zeros_BS = jnp.zeros((batch, size), jnp.int32)
        log_forget_BSN = None
        if num_heads is not None:
            log_forget_BSN = jnp.zeros((batch, size, num_heads), jnp.float32)
        return LayerCache(zeros_BSKH, zeros_BSKH, log_forget_BSN, zeros_BS, zeros_BS)

    layers = []
    for layer, sizes in zip(config.placed.layers, kept, strict=True):
        if len(sizes) == 1:
            gated = config.num_heads if layer.gated else None
            layers.append((blank(sizes[0], config.num_kv_heads, gated),))
        else:
            share = config.num_heads // config.num_kv_heads
            pieces = zip(sizes, layer.groups, strict=True)
            layers.append(tuple(blank(s, g.context.heads // share, None) for s, g in pieces))
    last = None
    if config.token_shift:
        zeros_B1KH = jnp.zeros((batch, 1, config.num_kv_heads, config.head_dim), config.dtype)
        last = LastToken(zeros_B1KH, zeros_B1KH, jnp.zeros((batch, 1), jnp.int32))
    zero = jnp.zeros((), jnp.int32)
    return Cache(tuple(layers), (last,) * config.num_layers, zero, slots, longest_call)


def required_slots(
    config: ModelConfig,
    params,
    slots: int,
    longest_call: int,
    epsilon: float = cutoff.EXACT_EPSILON,
) -> tuple[tuple[int, ...], ...]:
    """Returns, per layer and head group, the slots that lose no more than `epsilon` of a row's
    weight.

    Tokens before a window, the head group's or the model's, are never read, whatever epsilon is. To
    drop tokens by their bias, a bound on the content logits is needed before the tokens are known:
    qk-norm gives one, its gains times sqrt(H), times the temperature and the amplitude of the
    rotation. Without such a bound, for heads without a decreasing bias and for a temperature that
    depends on tokens, all visible tokens are kept. A layer with a forget gate keeps all tokens,
    because its sums run over all tokens. Tokens must be in the order of their positions; under
    `ModelConfig.slot_order` any order is allowed, and all tokens are kept.

    Args:
      params: of the decoder, concrete.
      slots: total number of tokens.
      longest_call: largest number of tokens per call; the first query of a call still needs its
        window after the last token of the call has been written.
    """
    if config.slot_order:
        return ((slots,),) * config.num_layers
    kept = []
    for i, layer in enumerate(config.placed.layers):
        attention, bound = params[f"layer_{i}"]["attention"], math.inf
        if config.qk_norm and epsilon:
            gains = (gain_factor(config, attention[f"{n}_gain_H"]) for n in ("query", "key"))
            bound = config.query_scale * math.sqrt(config.head_dim)
            bound *= math.prod(float(jnp.abs(gain_H).max()) for gain_H in gains)
        kept.append(
            _slots_of_layer(
                layer, attention.get("scheme", {}), config, bound, slots, longest_call, epsilon
            )
        )
    return tuple(kept)


def _slots_of_layer(layer, scheme, config, bound, slots, longest_call, epsilon) -> tuple[int, ...]:
    share = config.num_heads // config.num_kv_heads
    apart = all(group.first % share == 0 for group in layer.groups)
    own = any(g.heads.rotation is not None and g.heads.rotation.per_head for g in layer.groups)
    if layer.gated or layer.form is not None:
        return (slots,)
    sizes, seen_N = [], head_windows(layer, config.window)
    for g, group in enumerate(layer.groups):
        alone, learned = cutoff.single_group_layer(layer, scheme, g)
        most = math.inf
        if bound < math.inf and not own:
            most = bound * _most_temperature(alone, learned, slots)
            if group.heads.rotation is not None:
                most *= group.heads.rotation.amplitude(group.context) ** 2
        ends_N = cutoff.cutoff_windows(alone, learned, most, seen_N[group.first] or slots, epsilon)
        sizes.append(min(int(ends_N.max()) + longest_call - 1, slots))
    if own or not apart or min(sizes) == slots:
        return (max(sizes),)
    return tuple(sizes)


def _most_temperature(layer: PlacedLayer, params: Params, slots: int) -> float:
    """Returns the largest tau over `slots` positions, over all keys of the last query and over all
    queries.

    Infinite if it depends on the tokens.
    """
    if layer.tempered_by_tokens:
        return math.inf
    every, last, first = jnp.arange(slots)[None], jnp.array([[slots - 1]]), jnp.array([[0]])
    taus = (layer.temperature(params, last, every), layer.temperature(params, every, first))
    return max((float(jnp.abs(tau).max()) for tau in taus if tau is not None), default=1.0)


def update_cache(
    cache: Cache, index: int, new: LayerCache, layer: PlacedLayer, params: Params
) -> tuple[tuple[LayerCache, ...], tuple[CacheView, ...]]:
    """Returns the caches of layer `index` with the new tokens written, and the view of each head
    group.

    Args:
      new: the T new tokens, with all heads.

    Raises:
      ValueError: more tokens than `longest_call`.
    """
    old, T = cache.layers[index], new.pos_BS.shape[1]
    if cache.longest_call < T:
        raise ValueError(f"{T} tokens in one call; this cache takes at most {cache.longest_call}")
    if len(old) == 1:
        kept = jax.tree.map(lambda x, y: _written(cache, x, y), old[0], new)
        return (kept,), (CacheView(0, layer.num_heads, layer, params, kept),)
    share = layer.num_heads // new.k_BSKH.shape[2]
    pieces, views = [], []
    for g, (group, piece) in enumerate(zip(layer.groups, old, strict=True)):
        mine = slice(group.first // share, group.stop // share)
        own = new._replace(k_BSKH=new.k_BSKH[:, :, mine], v_BSKH=new.v_BSKH[:, :, mine])
        pieces.append(jax.tree.map(lambda x, y: _written(cache, x, y), piece, own))
        alone, learned = cutoff.single_group_layer(layer, params, g)
        views.append(CacheView(group.first, group.stop, alone, learned, pieces[-1]))
    return tuple(pieces), tuple(views)


def slot_order(pos_BS: jax.Array, last: jax.Array | int) -> jax.Array:
    """Returns order_BS, int32: the number of the token in each slot, in the order of writing.

    Args:
      pos_BS: of S slots that are written cyclically; only its shape and sharding are used.
      last: number of the token that was written last, counted from 0.
    """
    slot_1S = jnp.arange(pos_BS.shape[1], dtype=jnp.int32)[None]
    return jnp.zeros_like(pos_BS) + (last - (last - slot_1S) % pos_BS.shape[1])


def _written(cache: Cache, slots_BS: jax.Array, new_BT: jax.Array) -> jax.Array:
    """Returns slots_BS... with new_BT... written after the filled slots, cyclically."""
    S, T = slots_BS.shape[1], new_BT.shape[1]
    new_BT = new_BT.astype(slots_BS.dtype)
    if cache.slots > S:
        return slots_BS.at[:, (cache.filled + np.arange(T)) % S].set(new_BT)
    start = (0, cache.filled) + (0,) * (slots_BS.ndim - 2)
    return jax.lax.dynamic_update_slice(slots_BS, new_BT, start)
