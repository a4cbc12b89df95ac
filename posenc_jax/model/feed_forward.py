"""Feed-forward layers in Flax Linen: an MLP, gated or not, and a mixture of such experts."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from posenc_jax.model.activation_sharding import token_einsum
from posenc_jax.model.array_module import ArrayModule
from posenc_jax.model.attention_layer import add_bias, normal_init
from posenc_jax.model.config import ModelConfig


@jax.custom_vjp
def swiglu(gate, x):
    """Returns silu(gate) * x (Shazeer 2020); the backward pass recomputes silu."""
    return jax.nn.silu(gate) * x


def _gated_forward(gate, x):
    return swiglu(gate, x), (gate, x)


def _gated_backward(inputs, d_out):
    gate, x, d = (y.astype(jnp.float32) for y in (*inputs, d_out))
    open_ = jax.nn.sigmoid(gate)
    d_gate = d * x * open_ * (1 + gate * (1 - open_))
    return d_gate.astype(inputs[0].dtype), (d * gate * open_).astype(inputs[1].dtype)


swiglu.defvjp(_gated_forward, _gated_backward)


def activate(name: str, x: jax.Array) -> jax.Array:
    """Returns the non-linearity of a key of `posenc_jax.model.config.ACTIVATIONS` without gate."""
    if name.endswith("_quick"):
        return x * jax.nn.sigmoid(1.702 * x)  # Hendrycks and Gimpel 2016, sec. 2
    if name == "relu":
        return jax.nn.relu(x)
    return jax.nn.gelu(x, approximate=not name.endswith("_exact"))


def _hidden(config: ModelConfig, up_BTF: jax.Array, gate_BTF: jax.Array | None) -> jax.Array:
    if gate_BTF is None:
        return activate(config.activation, up_BTF)
    if config.activation == "swiglu":
        return swiglu(gate_BTF, up_BTF)
    return activate(config.activation, gate_BTF) * up_BTF  # Shazeer 2020, GEGLU


class Mlp(ArrayModule):
    """The feed-forward layer: up, activation, down; gated activations have a third matrix."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD):
        c, dtype = self.config, self.config.dtype
        D, F = c.model_dim, c.mlp_dim
        up_DF = self.param("up_DF", normal_init(D), (D, F))
        down_FD = self.param("down_FD", normal_init(F * 2 * c.num_layers), (F, D))
        up_BTF, gate_BTF = token_einsum("BTD,DF->BTF", x_BTD, up_DF.astype(dtype)), None
        if "mlp" in c.biases:
            up_BTF = add_bias(self, "up_bias_F", up_BTF)
        if c.gated:
            gate_DF = self.param("gate_DF", normal_init(D), (D, F))
            gate_BTF = token_einsum("BTD,DF->BTF", x_BTD, gate_DF.astype(dtype))
            if "mlp" in c.biases:
                gate_BTF = add_bias(self, "gate_bias_F", gate_BTF)
        hidden_BTF = _hidden(c, up_BTF, gate_BTF)
        out_BTD = token_einsum("BTF,FD->BTD", hidden_BTF, down_FD.astype(dtype))
        return add_bias(self, "down_bias_D", out_BTD) if "mlp" in c.biases else out_BTD


class Experts(ArrayModule):
    """A mixture of experts without capacity limits (Jiang et al. 2024, Mixtral, sec. 2.1).

    Every expert computes every token, and a token's `experts_per_token` largest router weights,
    renormalised, add up the results; the others weigh zero. The cost is that of all experts.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD):
        c, dtype = self.config, self.config.dtype
        D, F, E = c.model_dim, c.mlp_dim, c.experts
        router_DE = self.param("router_DE", normal_init(D), (D, E))
        up_EDF = self.param("up_EDF", normal_init(D), (E, D, F))
        gate_EDF = self.param("gate_EDF", normal_init(D), (E, D, F)) if c.gated else None
        down_EFD = self.param("down_EFD", normal_init(F * 2 * c.num_layers), (E, F, D))
        score_BTE = token_einsum("BTD,DE->BTE", x_BTD, router_DE.astype(dtype))
        weight_BTE = expert_weights(score_BTE, c.experts_per_token).astype(dtype)
        out_BTD: jax.Array | int = 0
        for e in range(E):
            up_BTF = token_einsum("BTD,DF->BTF", x_BTD, up_EDF[e].astype(dtype))
            gate_BTF = None
            if gate_EDF is not None:
                gate_BTF = token_einsum("BTD,DF->BTF", x_BTD, gate_EDF[e].astype(dtype))
            hidden_BTF = _hidden(c, up_BTF, gate_BTF) * weight_BTE[:, :, e : e + 1]
            out_BTD += token_einsum("BTF,FD->BTD", hidden_BTF, down_EFD[e].astype(dtype))
        return out_BTD


def expert_weights(score_BTE: jax.Array, per_token: int) -> jax.Array:
    """Returns weight_BTE: a softmax, its `per_token` largest renormalised, others 0; float32."""
    share_BTE = jax.nn.softmax(score_BTE.astype(jnp.float32), -1)
    _, chosen_BTU = jax.lax.top_k(share_BTE, per_token)
    one_hot_BTUE = jax.nn.one_hot(chosen_BTU, share_BTE.shape[-1], dtype=share_BTE.dtype)
    share_BTE = share_BTE * one_hot_BTUE.sum(2)
    return share_BTE / share_BTE.sum(-1, keepdims=True)
