"""Families before Llama, with LayerNorm: GPT-2, BLOOM, GPT-NeoX, GPT-J, Falcon, MPT, RoFormer."""

import math

from posenc_jax.encodings import Alibi, HeadGroup, Learned, Rope
from posenc_jax.interop.family import (
    PLAIN,
    Fields,
    bias_part,
    check_divides,
    multi_head,
    named,
    one_layer,
    rope_of,
    scheme_of,
)
from posenc_jax.interop.json_settings import JsonSettings
from posenc_jax.interop.rope_settings import RotaryShape, rope_parameters
from posenc_jax.model.config import ModelConfig

# GPT-2


def read_gpt2(s: JsonSettings, longest: int) -> Fields:
    """Reads GPT-2 (Radford et al. 2019): a learned table, LayerNorm, biases everywhere, tanh
    GELU.
    """
    D, N = s.whole("n_embd", 768), s.whole("n_head", 12)
    length, layers = s.whole("n_positions", 1024), s.layers("n_layer", 12)
    s.only(
        scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False
    )
    return {
        "scheme": scheme_of([HeadGroup()] * layers, Learned(size=length)),
        "train_length": length,
        "num_layers": layers,
        **multi_head(s, D, N),
        "mlp_dim": s.whole("n_inner", 4 * D),
        "norm": "layer",
        "activation": s.word("activation_function", PLAIN, "gelu_new"),
        "tied_head": s.flag("tie_word_embeddings", True),
        "biases": ("qkv", "out", "mlp"),
        "norm_epsilon": s.number("layer_norm_epsilon", 1e-5),
        "vocab_size": s.whole("vocab_size", 50257),
    }


def write_gpt2(c: ModelConfig) -> dict:
    """Writes the settings of `read_gpt2`."""
    if not isinstance(c.placed.absolute, Learned):
        raise ValueError("has a learned table of positions")
    return {
        "n_embd": c.model_dim,
        "n_head": c.num_heads,
        "n_layer": c.num_layers,
        "n_inner": c.mlp_dim,
        "n_positions": c.placed.longest(),
        "activation_function": named(PLAIN, c.activation),
        "layer_norm_epsilon": c.norm_epsilon,
        "vocab_size": c.vocab_size,
        "tie_word_embeddings": c.tied_head,
    }


# BLOOM


def read_bloom(s: JsonSettings, longest: int) -> Fields:
    """Reads BLOOM (BigScience 2022): ALiBi, and a LayerNorm behind the embedding."""
    D = s.whole("hidden_size", s.whole("n_embed", 64))
    N = s.whole("n_head", s.whole("num_attention_heads", 8))
    layers = s.layers("n_layer", s.layers("num_hidden_layers", 2))
    normed = s.flag("apply_residual_connection_post_layernorm", False)
    return {
        "scheme": scheme_of([HeadGroup(bias=Alibi())] * layers),
        "train_length": s.whole("seq_length", 2048),
        "num_layers": layers,
        **multi_head(s, D, N),
        "mlp_dim": 4 * D,
        "activation": "gelu",
        "norm": "layer",
        "norm_position": "pre_normed_residual" if normed else "pre",
        "embedding_norm": True,
        "tied_head": s.flag("tie_word_embeddings", True),
        "biases": ("qkv", "out", "mlp"),
        "norm_epsilon": s.number("layer_norm_epsilon", 1e-5),
        "vocab_size": s.whole("vocab_size", 250880),
    }


def write_bloom(c: ModelConfig) -> dict:
    """Writes the settings of `read_bloom`."""
    bias_part(c, Alibi)
    return {
        "hidden_size": c.model_dim,
        "n_head": c.num_heads,
        "n_layer": c.num_layers,
        "seq_length": c.train_length,
        "layer_norm_epsilon": c.norm_epsilon,
        "vocab_size": c.vocab_size,
        "tie_word_embeddings": c.tied_head,
        "apply_residual_connection_post_layernorm": c.norm_position == "pre_normed_residual",
    }


# GPT-NeoX


def read_neox(s: JsonSettings, longest: int) -> Fields:
    """Reads GPT-NeoX (Black et al. 2022): RoPE on a share of the dims, a parallel residual with
    two norms.
    """
    D, N = s.whole("hidden_size", 6144), s.whole("num_attention_heads", 64)
    H, length, layers = (
        check_divides(s, D, N),
        s.whole("max_position_embeddings", 2048),
        s.layers("num_hidden_layers", 44),
    )
    shape = RotaryShape(
        H,
        length,
        base=s.number("rotary_emb_base", 10_000.0),
        fraction=s.number("rotary_pct", 0.25),
        longest=longest,
    )
    own = ("qkv", "out") if s.flag("attention_bias", True) else ()
    return {
        "scheme": scheme_of([HeadGroup(rope_of(s, shape))] * layers),
        "train_length": length,
        "num_layers": layers,
        **multi_head(s, D, N),
        "mlp_dim": s.whole("intermediate_size", 24576),
        "norm": "layer",
        "biases": (*own, "mlp"),
        "activation": s.word("hidden_act", PLAIN, "gelu"),
        "tied_head": s.flag("tie_word_embeddings", False),
        "parallel": "two_norms" if s.flag("use_parallel_residual", True) else "none",
        "norm_epsilon": s.number("layer_norm_eps", 1e-5),
        "vocab_size": s.whole("vocab_size", 50432),
    }


def write_neox(c: ModelConfig) -> dict:
    """Writes the settings of `read_neox`."""
    return {
        "hidden_size": c.model_dim,
        "num_attention_heads": c.num_heads,
        "num_hidden_layers": c.num_layers,
        "intermediate_size": c.mlp_dim,
        "hidden_act": named(PLAIN, c.activation),
        "max_position_embeddings": c.train_length,
        "layer_norm_eps": c.norm_epsilon,
        "vocab_size": c.vocab_size,
        "tie_word_embeddings": c.tied_head,
        "attention_bias": "qkv" in c.biases,
        "use_parallel_residual": c.parallel == "two_norms",
        "rope_parameters": {"partial_rotary_factor": 1.0}
        | rope_parameters(one_layer(c).rotation, c.head_dim),
    }


# GPT-J


def read_gptj(s: JsonSettings, longest: int) -> Fields:
    """Reads GPT-J (Wang 2021): RoPE on interleaved pairs, a parallel residual with one norm."""
    D, N, layers = s.whole("n_embd", 4096), s.whole("n_head", 16), s.layers("n_layer", 28)
    H = check_divides(s, D, N)
    dim = s.whole("rotary_dim") if "rotary_dim" in s.values else 64
    rope = Rope(dim=0 if dim == H else dim, pairing="interleaved")
    return {
        "scheme": scheme_of([HeadGroup(rope)] * layers),
        "train_length": s.whole("n_positions", 2048),
        "num_layers": layers,
        **multi_head(s, D, N),
        "mlp_dim": s.whole("n_inner", 4 * D),
        "norm": "layer",
        "parallel": "one_norm",
        "activation": s.word("activation_function", PLAIN, "gelu_new"),
        "biases": ("mlp", "head"),
        "tied_head": s.flag("tie_word_embeddings", False),
        "norm_epsilon": s.number("layer_norm_epsilon", 1e-5),
        "vocab_size": s.whole("vocab_size", 50400),
    }


def write_gptj(c: ModelConfig) -> dict:
    """Writes the settings of `read_gptj`."""
    rope = one_layer(c).rotation
    if not isinstance(rope, Rope):
        raise ValueError("rotates interleaved pairs")
    return {
        "n_embd": c.model_dim,
        "n_head": c.num_heads,
        "n_layer": c.num_layers,
        "n_inner": c.mlp_dim,
        "n_positions": c.train_length,
        "rotary_dim": rope.dim or c.head_dim,
        "activation_function": named(PLAIN, c.activation),
        "layer_norm_epsilon": c.norm_epsilon,
        "vocab_size": c.vocab_size,
        "tie_word_embeddings": c.tied_head,
    }


# Falcon


def read_falcon(s: JsonSettings, longest: int) -> Fields:
    """Reads Falcon (Almazrouei et al. 2023): RoPE or the staircase ALiBi, multi-query or grouped
    keys.
    """
    D = s.whole("hidden_size", 4544)
    N = s.whole("num_attention_heads", s.whole("n_head", 71))
    layers = s.layers("num_hidden_layers", s.layers("n_layer", 32))
    H, length = check_divides(s, D, N), s.whole("max_position_embeddings", 2048)
    grouped, multi_query = s.flag("new_decoder_architecture", False), s.flag("multi_query", True)
    groups = s.whole("num_kv_heads", s.whole("n_head_kv", N))
    parallel, norms = (
        s.flag("parallel_attn", True),
        s.whole("num_ln_in_parallel_attn", 2 if grouped else 1),
    )
    s.forget("num_ln_in_parallel_attn")
    if s.flag("alibi", False):
        s.forget("rope_theta", "rope_scaling", "rope_parameters")
        heads = HeadGroup(bias=Alibi(staircase=True))
    else:
        heads = HeadGroup(rope_of(s, RotaryShape(H, length, longest=longest)))
    return {
        "scheme": scheme_of([heads] * layers),
        "train_length": length,
        "num_layers": layers,
        "model_dim": D,
        "num_heads": N,
        "num_kv_heads": groups if grouped else 1 if multi_query else N,
        "head_dim": H,
        "mlp_dim": s.whole("ffn_hidden_size", 4 * D),
        "norm": "layer",
        "parallel": ("two_norms" if norms == 2 else "one_norm") if parallel else "none",
        "activation": s.word("activation", PLAIN, "gelu"),
        "biases": ("qkv", "out", "mlp") if s.flag("bias", False) else (),
        "tied_head": s.flag("tie_word_embeddings", True),
        "norm_epsilon": s.number("layer_norm_epsilon", 1e-5),
        "vocab_size": s.whole("vocab_size", 65024),
    }


def write_falcon(c: ModelConfig) -> dict:
    """Writes the settings of `read_falcon`."""
    heads = one_layer(c)
    grouped = c.parallel == "two_norms" or c.num_kv_heads not in (1, c.num_heads)
    own: dict = {"alibi": True}
    if heads.bias is None:
        own = {"alibi": False, "rope_parameters": rope_parameters(heads.rotation, c.head_dim)}
    return own | {
        "hidden_size": c.model_dim,
        "num_attention_heads": c.num_heads,
        "num_hidden_layers": c.num_layers,
        "num_kv_heads": c.num_kv_heads,
        "new_decoder_architecture": grouped,
        "multi_query": not grouped and c.num_kv_heads == 1,
        "parallel_attn": c.parallel != "none",
        "num_ln_in_parallel_attn": 2 if c.parallel == "two_norms" else 1,
        "ffn_hidden_size": c.mlp_dim,
        "max_position_embeddings": c.train_length,
        "bias": "qkv" in c.biases,
        "activation": named(PLAIN, c.activation),
        "layer_norm_epsilon": c.norm_epsilon,
        "vocab_size": c.vocab_size,
        "tie_word_embeddings": c.tied_head,
    }


# MPT


def read_mpt(s: JsonSettings, longest: int) -> Fields:
    """Reads MPT (MosaicML 2023): ALiBi, norms and projections without bias."""
    D, N, layers = s.whole("d_model", 2048), s.whole("n_heads", 16), s.layers("n_layers", 24)
    H, own = check_divides(s, D, N), s.section("attn_config") or JsonSettings({}, s.where)
    own.only(
        attn_type="multihead_attention",
        alibi=True,
        prefix_lm=False,
        qk_ln=False,
        attn_uses_sequence_id=False,
    )
    own.forget("attn_impl", "model_type")
    exponent, scale = (
        own.number("alibi_bias_max", 8.0),
        own.number("softmax_scale", 1 / math.sqrt(H)),
    )
    clip = own.number("clip_qkv", 0.0)
    own.finish()
    s.only(expansion_ratio=4, logit_scale=None, no_bias=True)
    s.word("norm_type", dict.fromkeys(("low_precision_layernorm", "layernorm")), "layernorm")
    s.forget("learned_pos_emb", "embedding_fraction", "init_config", "ffn_config")
    return {
        "scheme": scheme_of([HeadGroup(bias=Alibi(max_exponent=exponent))] * layers),
        "train_length": s.whole("max_seq_len", 2048),
        "num_layers": layers,
        **multi_head(s, D, N),
        "mlp_dim": 4 * D,
        "norm": "layer_no_bias",
        "activation": "gelu_exact",
        "query_scale": scale * math.sqrt(H),
        "clip_qkv": clip,
        "tied_head": s.flag("tie_word_embeddings", True),
        "norm_epsilon": s.number("layer_norm_epsilon", 1e-5),
        "vocab_size": s.whole("vocab_size", 50368),
    }


def write_mpt(c: ModelConfig) -> dict:
    """Writes the settings of `read_mpt`."""
    part = bias_part(c, Alibi)
    if part.max_exponent != 8:
        raise ValueError("has slopes of exponent 8 alone: transformers ignores alibi_bias_max")
    own = {"alibi": True, "clip_qkv": c.clip_qkv or None}
    if c.query_scale != 1:
        own["softmax_scale"] = c.query_scale / math.sqrt(c.head_dim)
    return {
        "d_model": c.model_dim,
        "n_heads": c.num_heads,
        "n_layers": c.num_layers,
        "max_seq_len": c.train_length,
        "attn_config": own,
        "layer_norm_epsilon": c.norm_epsilon,
        "vocab_size": c.vocab_size,
        "tie_word_embeddings": c.tied_head,
    }


# RoFormer, as a causal language model


def read_roformer(s: JsonSettings, longest: int) -> Fields:
    """Reads RoFormer (Su et al. 2021) as a causal decoder: RoPE, post-norm, a transformed head."""
    D, N = s.whole("hidden_size", 768), s.whole("num_attention_heads", 12)
    layers = s.layers("num_hidden_layers", 12)
    if not s.flag("is_decoder", False):
        raise ValueError(f"{s.where}: is_decoder is not true: this RoFormer sees later tokens")
    s.only(rotary_value=False, add_cross_attention=False, embedding_size=D)
    s.forget("type_vocab_size", "tie_word_embeddings")
    rope = Rope(pairing="interleaved")
    return {
        "scheme": scheme_of([HeadGroup(rope)] * layers),
        "train_length": s.whole("max_position_embeddings", 1536),
        "num_layers": layers,
        **multi_head(s, D, N),
        "mlp_dim": s.whole("intermediate_size", 3072),
        "norm": "layer",
        "norm_position": "post",
        "final_norm": False,
        "embedding_norm": True,
        "head_transform": True,
        "tied_head": False,
        "activation": s.word("hidden_act", PLAIN, "gelu"),
        "biases": ("qkv", "out", "mlp", "head"),
        "norm_epsilon": s.number("layer_norm_eps", 1e-12),
        "vocab_size": s.whole("vocab_size", 50000),
    }


def write_roformer(c: ModelConfig) -> dict:
    """Writes the settings of `read_roformer`."""
    return {
        "hidden_size": c.model_dim,
        "num_attention_heads": c.num_heads,
        "num_hidden_layers": c.num_layers,
        "intermediate_size": c.mlp_dim,
        "hidden_act": named(PLAIN, c.activation),
        "is_decoder": True,
        "max_position_embeddings": c.train_length,
        "layer_norm_eps": c.norm_epsilon,
        "type_vocab_size": 1,
        "vocab_size": c.vocab_size,
        "tie_word_embeddings": False,
    }
