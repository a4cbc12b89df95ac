"""PyTorch reference of our decoder, from the same weights, and peer decoders of the same size.

The reference has fused attention (`scaled_dot_product_attention`), `F.linear`, `AdamW` and gradient
clipping, and optionally `torch.compile`. ALiBi is the dense bias that fused attention of PyTorch
takes. In bfloat16 the weights stay float32 under `torch.autocast`. It runs on the GPU if JAX does.
Importing this module needs PyTorch (extra: peers).
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch.nn import functional as F

from posenc_jax.bench import pytorch
from posenc_jax.encodings import alibi_slopes

SCHEMES = ("nope", "rope", "alibi", "rope+alibi")
Metrics = tuple[pytorch.Pending, pytorch.Pending]  # loss in nats, gradient norm


class TorchReference:
    """A training step: a call trains once and returns `Metrics` without waiting for them.

    Args:
      params: ours, as NumPy arrays. scheme: of `SCHEMES`. shape: num_layers, num_heads, head_dim
        and norm_epsilon of the model. tokens_BT, targets_BT: the batch. optimizer: beta1, beta2,
        epsilon, weight_decay and clip_norm. rates: learning rate of each update; later updates have
        the last one.
      dtype: "float32" or "bfloat16". compiled: whether to use `torch.compile`.

    Raises:
      ValueError: a scheme that the reference does not implement.
    """

    def __init__(
        self, params, scheme, shape, tokens_BT, targets_BT, optimizer, rates, dtype, compiled
    ):
        if scheme not in SCHEMES:
            raise ValueError(f"the PyTorch reference knows {', '.join(SCHEMES)}, not {scheme!r}")
        pytorch.match_jax_tf32()
        self._shape, self._rotates, self._dtype = shape, "rope" in scheme, getattr(torch, dtype)
        self._device = device = pytorch.device()
        self.weights = {
            n: t.to(device).requires_grad_() for n, t in _weights(params, shape).items()
        }
        self._tokens, self._targets = _batch(tokens_BT, targets_BT, device)
        T, h = self._tokens.shape[1], shape["head_dim"] // 2
        angle_Th = torch.arange(T)[:, None] * 10_000.0 ** (-torch.arange(h) / h)
        self._cos, self._sin = angle_Th.cos().to(device), angle_Th.sin().to(device)
        self._bias = None
        if "alibi" in scheme:
            self._bias = _alibi(T, shape["num_heads"]).to(device, self._dtype)
        self._rates, self._clip, self._done = rates, optimizer["clip_norm"], 0
        matrices = [w for w in self.weights.values() if w.ndim > 1]
        vectors = [w for w in self.weights.values() if w.ndim == 1]
        self._adam = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": optimizer["weight_decay"]},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=1.0,
            betas=(optimizer["beta1"], optimizer["beta2"]),
            eps=optimizer["epsilon"],
            fused=True,
        )
        self._loss = torch.compile(self.loss) if compiled else self.loss

    def __call__(self) -> Metrics:
        for group in self._adam.param_groups:
            group["lr"] = self._rates[min(self._done, len(self._rates) - 1)]
        with _cast(self._device, self._dtype):
            loss = self._loss(self._tokens, self._targets)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), self._clip)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)  # frees the gradients, as in our step
        self._done += 1
        return pytorch.Pending(loss.detach()), pytorch.Pending(norm)

    def loss(self, tokens, targets):
        """Returns the mean loss in nats."""
        w, N, H = self.weights, self._shape["num_heads"], self._shape["head_dim"]
        x = w["embedding"][tokens]
        B, T, _ = x.shape
        for i in range(self._shape["num_layers"]):
            normed = self._norm(x, w[f"{i}.attention_gain"])
            q, k, v = (
                F.linear(normed, w[f"{i}.{name}"]).view(B, T, N, H).transpose(1, 2)
                for name in ("query", "key", "value")
            )
            if self._rotates:
                q, k = self._turn(q), self._turn(k)
            mixed = F.scaled_dot_product_attention(
                q, k, v, attn_mask=self._bias, is_causal=self._bias is None
            )
            x = x + F.linear(mixed.transpose(1, 2).reshape(B, T, N * H), w[f"{i}.out"])
            normed = self._norm(x, w[f"{i}.mlp_gain"])
            hidden = F.silu(F.linear(normed, w[f"{i}.gate"])) * F.linear(normed, w[f"{i}.up"])
            x = x + F.linear(hidden, w[f"{i}.down"])
        logits = F.linear(self._norm(x, w["final_gain"]), w["embedding"])
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def _norm(self, x, gain):
        return F.rms_norm(x, gain.shape, gain, self._shape["norm_epsilon"])

    def _turn(self, x):
        a, b = x.chunk(2, dim=-1)
        turned = torch.cat([a * self._cos - b * self._sin, b * self._cos + a * self._sin], dim=-1)
        return turned.to(x.dtype)  # the tables are float32


def _cast(device: str, dtype: torch.dtype):
    return torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16)


def _batch(tokens_BT, targets_BT, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, targets = (torch.tensor(np.asarray(x)).long() for x in (tokens_BT, targets_BT))
    return tokens.to(device), targets.to(device)


def _weights(params: Mapping, shape: Mapping) -> dict[str, torch.Tensor]:
    """Returns our parameters in the layout of PyTorch: [out, in]."""

    def tensor(x, rows):
        return torch.tensor(np.asarray(x).reshape(rows, -1).T.copy())

    D = params["embedding_VD"].shape[1]
    weights = {
        "embedding": torch.tensor(np.asarray(params["embedding_VD"])),
        "final_gain": torch.tensor(np.asarray(params["final_gain_D"])),
    }
    for i in range(shape["num_layers"]):
        block = params[f"layer_{i}"]
        attention, mlp = block["attention"], block["mlp"]
        wide = shape["num_heads"] * shape["head_dim"]
        weights |= {
            f"{i}.attention_gain": torch.tensor(np.asarray(block["attention_gain_D"])),
            f"{i}.mlp_gain": torch.tensor(np.asarray(block["mlp_gain_D"])),
            f"{i}.query": tensor(attention["query_DNH"], D),
            f"{i}.key": tensor(attention["key_DKH"], D),
            f"{i}.value": tensor(attention["value_DKH"], D),
            f"{i}.out": tensor(attention["out_NHD"], wide),
            f"{i}.up": tensor(mlp["up_DF"], D),
            f"{i}.gate": tensor(mlp["gate_DF"], D),
            f"{i}.down": tensor(mlp["down_FD"], mlp["down_FD"].shape[0]),
        }
    return weights


def _alibi(length: int, heads: int) -> torch.Tensor:
    distance = torch.arange(length)[:, None] - torch.arange(length)[None]
    slope_N11 = torch.tensor(alibi_slopes(heads), dtype=torch.float32)[:, None, None]
    return torch.where(distance >= 0, -slope_N11 * distance, float("-inf"))[None]


def peer_steps(
    params, shape, vocab_size, tokens_BT, targets_BT, dtype
) -> dict[tuple[str, str], Callable[[], Callable[[], Metrics]]]:
    """Returns makers of the training steps of peer decoders, by (name, scheme).

    Llama of transformers has our architecture and gets our weights. BLOOM of transformers
    (LayerNorm, GELU, linear biases) and x-transformers have the same width, depth and heads, and
    their own weights.
    """
    pytorch.match_jax_tf32()
    device, kind = pytorch.device(), getattr(torch, dtype)
    tokens, targets = _batch(tokens_BT, targets_BT, device)

    def step(model, logits):
        model.to(device).train()
        adam = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)

        def run():
            with _cast(device, kind):
                loss = F.cross_entropy(logits(model).flatten(0, 1), targets.flatten())
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            adam.zero_grad(set_to_none=True)
            return pytorch.Pending(loss.detach()), pytorch.Pending(norm)

        return run

    def transformers_model(build):
        return step(build(params, shape, vocab_size, tokens.shape[1]), lambda m: m(tokens).logits)

    def x_transformers_model(**encoding):
        model = _x_transformer(params, shape, vocab_size, tokens.shape[1], **encoding)
        return step(model, lambda m: m(tokens))

    return {
        ("transformers, Llama", "rope"): lambda: transformers_model(llama),
        ("transformers, BLOOM", "alibi"): lambda: transformers_model(_bloom),
        ("x-transformers", "rope"): lambda: x_transformers_model(rotary_pos_emb=True),
        ("x-transformers", "alibi"): lambda: x_transformers_model(alibi_pos_bias=True),
    }


def llama(params, shape, vocab_size, length, use_cache=False):
    """Returns Llama of transformers with our weights, float32.

    Args:
      params, shape: as for `TorchReference`; keys may have fewer heads. vocab_size: V. length: most
        positions. use_cache: whether generation keeps keys and values.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, logging

    logging.set_verbosity_error()
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=shape["model_dim"],
            intermediate_size=_mlp_dim(params),
            num_hidden_layers=shape["num_layers"],
            num_attention_heads=shape["num_heads"],
            num_key_value_heads=params["layer_0"]["attention"]["key_DKH"].shape[1],
            head_dim=shape["head_dim"],
            rms_norm_eps=shape["norm_epsilon"],
            tie_word_embeddings=True,
            max_position_embeddings=length,
            attn_implementation="sdpa",
            use_cache=use_cache,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    ours = _weights(params, shape)
    named = {
        "model.embed_tokens.weight": "embedding",
        "model.norm.weight": "final_gain",
        "lm_head.weight": "embedding",
    }
    for i in range(shape["num_layers"]):
        at = f"model.layers.{i}"
        named |= {
            f"{at}.self_attn.{t}_proj.weight": f"{i}.{o}"
            for t, o in zip("qkvo", ("query", "key", "value", "out"), strict=True)
        }
        named |= {f"{at}.mlp.{o}_proj.weight": f"{i}.{o}" for o in ("up", "gate", "down")}
        named |= {
            f"{at}.input_layernorm.weight": f"{i}.attention_gain",
            f"{at}.post_attention_layernorm.weight": f"{i}.mlp_gain",
        }
    llama.load_state_dict({theirs: ours[name] for theirs, name in named.items()})
    return llama


def _bloom(_params, shape, vocab_size, _length):
    from transformers import BloomConfig, BloomForCausalLM, logging

    logging.set_verbosity_error()
    return BloomForCausalLM(
        BloomConfig(
            vocab_size=vocab_size,
            hidden_size=shape["model_dim"],
            n_layer=shape["num_layers"],
            n_head=shape["num_heads"],
            use_cache=False,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )


def _x_transformer(params, shape, vocab_size, length, **encoding):
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(
        dim=shape["model_dim"],
        depth=shape["num_layers"],
        heads=shape["num_heads"],
        attn_dim_head=shape["head_dim"],
        attn_flash=True,
        use_rmsnorm=True,
        ff_glu=True,
        ff_swish=True,
        ff_no_bias=True,
        ff_mult=_mlp_dim(params) / shape["model_dim"],
        **encoding,
    )
    return TransformerWrapper(
        num_tokens=vocab_size,
        max_seq_len=length,
        tie_embedding=True,
        use_abs_pos_emb=False,
        attn_layers=layers,
    )


def _mlp_dim(params) -> int:
    return params["layer_0"]["mlp"]["up_DF"].shape[1]
