"""Attention of one layer in Flax Linen: projections, qk-norm, token shift, cache, output gate."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from posenc_jax.attention import (
    AttentionSettings,
    LastToken,
    OptionalInputs,
    ShiftWeights,
    TokenSide,
    attend,
    cumulative_log_forget,
    token_shift,
)
from posenc_jax.model.activation_sharding import ROWS, reshard, token_einsum
from posenc_jax.model.array_module import ArrayModule
from posenc_jax.model.cache import Cache, CacheView, LayerCache, slot_order, update_cache
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.norms import gain_factor, gain_init, rms_norm


def normal_init(fan_in: int):
    """Returns the initializer of a projection: normal, variance 1 / fan_in."""
    return nn.initializers.normal(fan_in**-0.5)


def add_bias(module: nn.Module, name: str, x_BTx: jax.Array) -> jax.Array:
    """Returns x_BT... plus the parameter `name` of the remaining dims, initially zero."""
    bias = module.param(name, nn.initializers.zeros, x_BTx.shape[2:])
    return x_BTx + bias[None, None].astype(x_BTx.dtype)


def _uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, shape)


class Attention(ArrayModule):
    """Attention of one layer: the switches of `Architecture` around `attend`."""

    config: ModelConfig
    index: int
    causal: bool
    attend: Callable = attend

    @nn.compact
    def __call__(self, x_BTD, pos_BT, seg_BT, cache: Cache | None):
        c, dtype = self.config, self.config.dtype
        layer = c.placed.layers[self.index]
        D, N, K, H = c.model_dim, c.num_heads, c.num_kv_heads, c.head_dim
        query_DNH = self.param("query_DNH", normal_init(D), (D, N, H))
        key_DKH = self.param("key_DKH", normal_init(D), (D, K, H))
        value_DKH = self.param("value_DKH", normal_init(D), (D, K, H))
        out_NHD = self.param("out_NHD", normal_init(N * H * 2 * c.num_layers), (N, H, D))
        scheme = self.param("scheme", layer.init) if _learns(layer) else {}

        q_BTNH = token_einsum("BTD,DNH->BTNH", x_BTD, query_DNH.astype(dtype))
        k_BTKH = token_einsum("BTD,DKH->BTKH", x_BTD, key_DKH.astype(dtype))
        v_BTKH = token_einsum("BTD,DKH->BTKH", x_BTD, value_DKH.astype(dtype))
        if "qkv" in c.biases:
            q_BTNH = add_bias(self, "query_bias_NH", q_BTNH)
            k_BTKH = add_bias(self, "key_bias_KH", k_BTKH)
            v_BTKH = add_bias(self, "value_bias_KH", v_BTKH)
        if c.clip_qkv:
            q_BTNH, k_BTKH, v_BTKH = (
                jnp.clip(x, -c.clip_qkv, c.clip_qkv) for x in (q_BTNH, k_BTKH, v_BTKH)
            )
        last = None
        if c.token_shift:
            before = None
            if cache is not None:
                before = cache.last[self.index]
                last = LastToken(k_BTKH[:, -1:], v_BTKH[:, -1:], seg_BT[:, -1:])
            k_BTKH, v_BTKH = token_shift(k_BTKH, v_BTKH, seg_BT, self._shift(), before)
        if c.qk_norm:
            gains = (
                gain_factor(c, self.param(f"{n}_gain_H", gain_init(c), (H,)))
                for n in ("query", "key")
            )
            q_BTNH = rms_norm(q_BTNH, next(gains), c.norm_epsilon)
            k_BTKH = rms_norm(k_BTKH, next(gains), c.norm_epsilon)
        if c.query_scale != 1:
            q_BTNH = q_BTNH * c.query_scale

        new = LayerCache(k_BTKH, v_BTKH, layer.log_forget(scheme, x_BTD), pos_BT, seg_BT)
        sink_N = self.param("sink_N", nn.initializers.zeros, (N,)) if c.sink_logit else None
        kept = None
        views: tuple[CacheView, ...] = (CacheView(0, N, layer, scheme, new),)
        if cache is not None:
            kept, views = update_cache(cache, self.index, new, layer, scheme)
        count_BT = None if c.consecutive or cache is not None else visible_key_counts(seg_BT)
        settings = AttentionSettings(
            self.causal,
            c.window,
            cache is None,
            c.attention,
            c.attention_softcap,
            cache is not None,
        )
        pieces = []
        for first, stop, own, learned, stored in views:
            q_log_forget_BTN = k_log_forget_BSN = None  # cumulative
            if own.gated and stored.log_forget_BSN is not None:
                k_log_forget_BSN = cumulative_log_forget(stored.log_forget_BSN, stored.seg_BS)
                q_log_forget_BTN = k_log_forget_BSN
                if cache is not None:
                    q_log_forget_BTN = jax.lax.dynamic_slice_in_dim(
                        k_log_forget_BSN, cache.filled, x_BTD.shape[1], axis=1
                    )
            q_order_BT = k_order_BS = None
            if c.slot_order:
                filled, T = 0 if cache is None else cache.filled, x_BTD.shape[1]
                q_order_BT = filled + slot_order(pos_BT, T - 1)
                k_order_BS = slot_order(stored.pos_BS, filled + T - 1)
            out_BTNH = self.attend(
                q_BTNH if len(views) == 1 else q_BTNH[:, :, first:stop],
                stored.k_BSKH,
                stored.v_BSKH,
                own,
                learned,
                TokenSide(pos_BT, seg_BT, q_log_forget_BTN, q_order_BT),
                TokenSide(stored.pos_BS, stored.seg_BS, k_log_forget_BSN, k_order_BS),
                settings,
                OptionalInputs(x_BTD, count_BT, sink_N if sink_N is None else sink_N[first:stop]),
            )
            pieces.append(out_BTNH)
        o_BTNH = pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=2)
        if c.output_gate:
            gate_DNH = self.param("gate_DNH", normal_init(D), (D, N, H))
            gate_BTNH = token_einsum("BTD,DNH->BTNH", x_BTD, gate_DNH.astype(dtype))
            o_BTNH = o_BTNH * jax.nn.sigmoid(gate_BTNH)
        out_BTD = token_einsum("BTNH,NHD->BTD", o_BTNH, out_NHD.astype(dtype))
        if "out" in c.biases:
            out_BTD = add_bias(self, "out_bias_D", out_BTD)
        return out_BTD, (kept, last)

    def _shift(self) -> ShiftWeights:
        """Returns the learned factors, which initially add up to one."""
        weights = []
        for of in ("key", "value"):
            now_K = self.param(f"{of}_now_K", _uniform, (self.config.num_kv_heads,))
            before_K = self.param(f"{of}_before_K", lambda _, now_K=now_K: 1 - now_K)
            weights += [now_K, before_K]
        return ShiftWeights(*weights)


def visible_key_counts(seg_BT: jax.Array) -> jax.Array:
    """Returns count_BT, int: tokens of the document up to each token, itself included."""
    seg_BT = reshard(seg_BT, ROWS, None)
    before_BT = jnp.pad(seg_BT[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    slot_1T = jnp.arange(seg_BT.shape[1], dtype=jnp.int32)[None]
    first_BT = jax.lax.cummax(jnp.where(seg_BT != before_BT, slot_1T, 0), axis=1)
    return reshard(slot_1T - first_BT + 1, ROWS, "sequence")


def _learns(layer) -> bool:
    return any(part.learns for group in layer.groups for part in group.heads.parts())
