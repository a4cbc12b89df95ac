"""The decoder in Flax Linen: modules own parameters and nothing else; the mathematics is outside.

Pre-norm, RMSNorm, grouped-query attention, SwiGLU or GELU, optional qk-norm, tied or untied head.
The model never asks which encoding it has: it hands queries, keys and positions to `attend`.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from posenc_jax.attention import LastToken, Shift, attend, running_clock, token_shift
from posenc_jax.encodings.rows import rows_at
from posenc_jax.model.cache import Cache, LayerCache, Reading, write_and_read
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.layers import Execution, carried, period
from posenc_jax.model.mesh import ROWS, laid, tokenwise


def rms_norm(x: jax.Array, gain: jax.Array, epsilon: float) -> jax.Array:
    """Returns x / rms(x) * gain over the last dim, in float32, cast back to x's dtype."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + epsilon)
    return (wide * jnp.expand_dims(gain, range(x.ndim - 1))).astype(x.dtype)


def _normal(fan_in: int):
    return nn.initializers.normal(fan_in**-0.5)


def _from_zero_to_one(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, shape)


class Attention(nn.Module):
    """Projects to queries, keys and values, attends under the layer's scheme, projects back."""

    config: ModelConfig
    index: int
    causal: bool
    attend: Callable = attend

    @nn.compact
    def __call__(self, x_BTD, pos_BT, seg_BT, cache: Cache | None):
        c, dtype = self.config, self.config.dtype
        layer = c.placed.layers[self.index]
        D, N, K, H = c.model_dim, c.num_heads, c.num_kv_heads, c.head_dim
        query_DNH = self.param("query_DNH", _normal(D), (D, N, H))
        key_DKH = self.param("key_DKH", _normal(D), (D, K, H))
        value_DKH = self.param("value_DKH", _normal(D), (D, K, H))
        out_NHD = self.param("out_NHD", _normal(N * H * 2 * c.num_layers), (N, H, D))
        scheme = self.param("scheme", layer.init) if _learns(layer) else {}

        q_BTNH = tokenwise("BTD,DNH->BTNH", x_BTD, query_DNH.astype(dtype))
        k_BTKH = tokenwise("BTD,DKH->BTKH", x_BTD, key_DKH.astype(dtype))
        v_BTKH = tokenwise("BTD,DKH->BTKH", x_BTD, value_DKH.astype(dtype))
        last = None
        if c.token_shift:
            before = None
            if cache is not None:
                before = cache.last[self.index]
                last = LastToken(k_BTKH[:, -1:], v_BTKH[:, -1:], seg_BT[:, -1:])
            k_BTKH, v_BTKH = token_shift(k_BTKH, v_BTKH, seg_BT, self._shift(), before)
        if c.qk_norm:
            gains = (
                self.param(f"{n}_gain_H", nn.initializers.ones, (H,)) for n in ("query", "key")
            )
            q_BTNH = rms_norm(q_BTNH, next(gains), c.norm_epsilon)
            k_BTKH = rms_norm(k_BTKH, next(gains), c.norm_epsilon)

        new = LayerCache(k_BTKH, v_BTKH, layer.ticks(scheme, x_BTD), pos_BT, seg_BT)
        sink_N = self.param("sink_N", nn.initializers.zeros, (N,)) if c.sink_logit else None
        kept, readings = None, (Reading(0, N, layer, scheme, new),)
        if cache is not None:
            kept, readings = write_and_read(cache, self.index, new, layer, scheme)
        count_BT = None if c.consecutive or cache is not None else keys_in_sight(seg_BT)
        pieces = []
        for first, stop, own, learned, keys in readings:
            q_clock_BTN = k_clock_BSN = None
            if own.gated:
                q_clock_BTN = k_clock_BSN = running_clock(keys.tick_BSN, keys.seg_BS)
                if cache is not None:
                    q_clock_BTN = jax.lax.dynamic_slice_in_dim(
                        k_clock_BSN, cache.filled, x_BTD.shape[1], axis=1
                    )
            pieces.append(
                self.attend(
                    q_BTNH if len(readings) == 1 else q_BTNH[:, :, first:stop],
                    keys.k_BSKH,
                    keys.v_BSKH,
                    own,
                    learned,
                    q_pos_BT=pos_BT,
                    k_pos_BS=keys.pos_BS,
                    q_seg_BT=seg_BT,
                    k_seg_BS=keys.seg_BS,
                    q_clock_BTN=q_clock_BTN,
                    k_clock_BSN=k_clock_BSN,
                    x_BTD=x_BTD,
                    sink_N=sink_N if sink_N is None else sink_N[first:stop],
                    q_count_BT=count_BT,
                    causal=self.causal,
                    window=c.window,
                    aligned=cache is None,
                    implementation=c.attention,
                )
            )
        o_BTNH = pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=2)
        if c.output_gate:
            gate_DNH = self.param("gate_DNH", _normal(D), (D, N, H))
            gate_BTNH = tokenwise("BTD,DNH->BTNH", x_BTD, gate_DNH.astype(dtype))
            o_BTNH = o_BTNH * jax.nn.sigmoid(gate_BTNH)
        return tokenwise("BTNH,NHD->BTD", o_BTNH, out_NHD.astype(dtype)), (kept, last)

    def _shift(self) -> Shift:
        """Two numbers for the keys and two for the values of every key/value head, which add up to one at first."""
        weights = []
        for of in ("key", "value"):
            now_K = self.param(f"{of}_now_K", _from_zero_to_one, (self.config.num_kv_heads,))
            before_K = self.param(f"{of}_before_K", lambda _, now_K=now_K: 1 - now_K)
            weights += [now_K, before_K]
        return Shift(*weights)


def keys_in_sight(seg_BT: jax.Array) -> jax.Array:
    """Returns count_BT, int: tokens of its document up to each token, itself among them; documents stand together."""
    seg_BT = laid(seg_BT, ROWS, None)
    before_BT = jnp.pad(seg_BT[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    slot_1T = jnp.arange(seg_BT.shape[1], dtype=jnp.int32)[None]
    first_BT = jax.lax.cummax(jnp.where(seg_BT != before_BT, slot_1T, 0), axis=1)
    return laid(slot_1T - first_BT + 1, ROWS, "sequence")


def _learns(layer) -> bool:
    return any(part.learns for group in layer.groups for part in group.heads.parts())


@jax.custom_vjp
def gated(gate, x):
    """Returns silu(gate) * x (Shazeer 2020, SwiGLU); its gradient is made again from the two, so that nothing else is kept."""
    return jax.nn.silu(gate) * x


def _gated_forward(gate, x):
    return gated(gate, x), (gate, x)


def _gated_backward(inputs, d_out):
    gate, x, d = (y.astype(jnp.float32) for y in (*inputs, d_out))
    open_ = jax.nn.sigmoid(gate)
    d_gate = d * x * open_ * (1 + gate * (1 - open_))
    return d_gate.astype(inputs[0].dtype), (d * gate * open_).astype(inputs[1].dtype)


gated.defvjp(_gated_forward, _gated_backward)


class Mlp(nn.Module):
    """SwiGLU or GELU feed-forward block."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD):
        c, dtype = self.config, self.config.dtype
        D, F = c.model_dim, c.mlp_dim
        up_DF = self.param("up_DF", _normal(D), (D, F))
        down_FD = self.param("down_FD", _normal(F * 2 * c.num_layers), (F, D))
        hidden_BTF = tokenwise("BTD,DF->BTF", x_BTD, up_DF.astype(dtype))
        if c.activation == "swiglu":
            gate_DF = self.param("gate_DF", _normal(D), (D, F))
            gate_BTF = tokenwise("BTD,DF->BTF", x_BTD, gate_DF.astype(dtype))
            hidden_BTF = gated(gate_BTF, hidden_BTF)
        else:
            hidden_BTF = jax.nn.gelu(hidden_BTF)
        return tokenwise("BTF,FD->BTD", hidden_BTF, down_FD.astype(dtype))


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and beside the residual stream."""

    config: ModelConfig
    index: int
    causal: bool = True
    attend: Callable = attend

    @nn.compact
    def __call__(self, x_BTD, pos_BT, seg_BT, cache):
        c = self.config
        ones = nn.initializers.ones
        normed = rms_norm(
            x_BTD, self.param("attention_gain_D", ones, (c.model_dim,)), c.norm_epsilon
        )
        attention = Attention(c, self.index, self.causal, self.attend, name="attention")
        out_BTD, kept = attention(normed, pos_BT, seg_BT, cache)
        x_BTD = x_BTD + out_BTD
        normed = rms_norm(x_BTD, self.param("mlp_gain_D", ones, (c.model_dim,)), c.norm_epsilon)
        return x_BTD + Mlp(c, name="mlp")(normed), kept


def _apply(block: Block, pos_BT, seg_BT, params, x_BTD):
    return block.apply({"params": params}, x_BTD, pos_BT, seg_BT, None)[0]


def _cast(params, dtype: str):
    """A block's parameters as it uses them: matrices in `dtype`, gains and what a scheme learns as they are."""

    def cast(path, x):
        learned = any(key.key == "scheme" for key in path)
        return x if learned or x.ndim == 1 else x.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def at_progress(config: ModelConfig, params, progress: jax.Array):
    """Returns a decoder's parameters with those that follow a schedule set to a share of training.

    Most schemes have none and get their parameters back as they are.
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
    """Returns logits_BTV, float32, of a normed stream."""
    return tokenwise(
        "BTD,VD->BTV", x_BTD, head_VD.astype(config.dtype), preferred_element_type=jnp.float32
    )


class Decoder(nn.Module):
    """Tokens, positions and segments in, logits out.

    ``apply({"params": p}, tokens_BT, pos_BT, seg_BT)`` returns (logits_BTV float32, None); with a
    cache, (logits_BTV, cache) where the cache also holds the T tokens just read. The caller keeps
    track of free slots: writing past the last one is not an error the program can raise.
    Without a cache, tokens stand in the order of their positions and those of a document together, which
    linear attention and the forget gate rely on. Without `read_out` the normed stream x_BTD comes out in
    place of the logits; `readout` turns a piece of it into logits.

    `attend` is called for the layers in order and may be replaced by a function of the same arguments:
    a probe sees so what each layer's attention sees. `execution` is for passes without a cache, and may
    call it once for several layers.
    """

    config: ModelConfig
    read_out: bool = True
    attend: Callable = attend
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, tokens_BT, pos_BT, seg_BT, cache: Cache | None = None):
        c = self.config
        embedding_VD = self.param("embedding_VD", _normal(c.model_dim), (c.vocab_size, c.model_dim))
        tokens_BT, pos_BT, seg_BT = (laid(x, ROWS, "sequence") for x in (tokens_BT, pos_BT, seg_BT))
        # The table's D is split over "model": looked up so, then gathered into the stream.
        table_VD = laid(embedding_VD, None, "model")
        rows_BTD = rows_at(table_VD, tokens_BT, "promise_in_bounds")
        x_BTD = laid(rows_BTD, ROWS, "sequence", None) * c.embedding_scale
        absolute = c.placed.absolute
        if absolute is not None:
            learned = self.param("absolute", c.placed.init_absolute) if absolute.learns else {}
            x_BTD = x_BTD + c.placed.embed(learned, pos_BT)
        x_BTD = x_BTD.astype(c.dtype)

        kept = []
        if cache is not None or self.execution == Execution() or self.is_initializing():
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
            x_BTD = carried(blocks, [_cast(own, c.dtype) for own in stored], x_BTD, self.execution)
        gain_D = self.param("final_gain_D", nn.initializers.ones, (c.model_dim,))
        x_BTD = rms_norm(x_BTD, gain_D, c.norm_epsilon)
        if not self.read_out:
            return x_BTD, None

        head_VD = embedding_VD
        if not c.tied_head:
            head_VD = self.param("head_VD", _normal(c.model_dim), embedding_VD.shape)
        logits_BTV = readout(c, head_VD, x_BTD)
        if cache is None:
            return logits_BTV, None
        layers, last = zip(*kept, strict=True)
        written = cache.filled + tokens_BT.shape[1]
        return logits_BTV, dataclasses.replace(cache, layers=layers, last=last, filled=written)
