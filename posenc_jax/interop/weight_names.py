"""Names of tensors in checkpoints of transformers, with the parameters that they hold.

{i} is the layer, {e} the expert. Of the alternatives a|b, an import uses the first name that the
checkpoint has, and an export writes the one of `Family.alternative`. Rules of parameters that a
model does not have are left out.
"""

from posenc_jax.interop.weight_layouts import (
    PLUS_TYPE,
    SAME,
    STACKED,
    Rule,
    WeightLayout,
    conv1d,
    linear,
    qkv_groups,
    qkv_thirds,
)

_QKV = tuple(f"attention/{name}" for name in ("query_DNH", "key_DKH", "value_DKH"))
_QKV_BIASES = tuple(
    f"attention/{name}" for name in ("query_bias_NH", "key_bias_KH", "value_bias_KH")
)
_OUT, _OUT_BIAS = "attention/out_NHD", "attention/out_bias_D"


def _one(theirs: str, ours: str, layout: WeightLayout = SAME) -> Rule:
    return Rule((theirs,), (ours,), layout)


def _norm(theirs: str, ours: str) -> list[Rule]:
    weight, bias = (
        "|".join(f"{name}.{what}" for name in theirs.split("|")) for what in ("weight", "bias")
    )
    return [_one(weight, f"{ours}_gain_D"), _one(bias, f"{ours}_norm_bias_D")]


def _linear(theirs: str, ours: str, bias: str, inputs: int = 1) -> list[Rule]:
    return [_one(f"{theirs}.weight", ours, linear(inputs)), _one(f"{theirs}.bias", bias)]


def _conv1d(theirs: str, ours: str, bias: str, inputs: int = 1) -> list[Rule]:
    return [_one(f"{theirs}.weight", ours, conv1d(inputs)), _one(f"{theirs}.bias", bias)]


def _separate_qkv(pattern: str) -> list[Rule]:
    """Returns the rules of three layers, named by "q", "k" and "v"."""
    rules = []
    for letter, weight, bias in zip("qkv", _QKV, _QKV_BIASES, strict=True):
        name = pattern.format(letter, i="{i}")
        rules += [_one(f"{name}.weight", weight, linear()), _one(f"{name}.bias", bias, conv1d(0))]
    return rules


def _fused_qkv(name: str, order, **settings) -> list[Rule]:
    weight = order(1, **settings)
    return [Rule((f"{name}.weight",), _QKV, weight), Rule((f"{name}.bias",), _QKV_BIASES, order(0))]


GPT2 = (
    _one("transformer.wte.weight", "embedding_VD"),
    _one("transformer.wpe.weight", "absolute/table_LD"),
    *_norm("transformer.h.{i}.ln_1", "attention"),
    *_fused_qkv("transformer.h.{i}.attn.c_attn", qkv_thirds, transposed=True),
    *_conv1d("transformer.h.{i}.attn.c_proj", _OUT, _OUT_BIAS, 2),
    *_norm("transformer.h.{i}.ln_2", "mlp"),
    *_conv1d("transformer.h.{i}.mlp.c_fc", "mlp/up_DF", "mlp/up_bias_F"),
    *_conv1d("transformer.h.{i}.mlp.c_proj", "mlp/down_FD", "mlp/down_bias_D"),
    *_norm("transformer.ln_f", "final"),
    _one("lm_head.weight", "head_VD"),
)


def _neox_blocks(block: str, attention: str) -> list[Rule]:
    """Returns the rules of layers whose modules are named as in Megatron."""
    return [
        *_fused_qkv(f"{block}.{attention}.query_key_value", qkv_groups),
        *_linear(f"{block}.{attention}.dense", _OUT, _OUT_BIAS, 2),
        *_linear(f"{block}.mlp.dense_h_to_4h", "mlp/up_DF", "mlp/up_bias_F"),
        *_linear(f"{block}.mlp.dense_4h_to_h", "mlp/down_FD", "mlp/down_bias_D"),
    ]


NEOX = (
    _one("gpt_neox.embed_in.weight", "embedding_VD"),
    *_neox_blocks("gpt_neox.layers.{i}", "attention"),
    *_norm("gpt_neox.layers.{i}.input_layernorm", "attention"),
    *_norm("gpt_neox.layers.{i}.post_attention_layernorm", "mlp"),
    *_norm("gpt_neox.final_layer_norm", "final"),
    _one("embed_out.weight|lm_head.weight", "head_VD"),
)
BLOOM = (
    _one("transformer.word_embeddings.weight", "embedding_VD"),
    *_norm("transformer.word_embeddings_layernorm", "embedding"),
    *_neox_blocks("transformer.h.{i}", "self_attention"),
    *_norm("transformer.h.{i}.input_layernorm", "attention"),
    *_norm("transformer.h.{i}.post_attention_layernorm", "mlp"),
    *_norm("transformer.ln_f", "final"),
    _one("lm_head.weight", "head_VD"),
)


def _llama_blocks(block: str) -> list[Rule]:
    return [
        *_separate_qkv(f"{block}.self_attn.{{}}_proj"),
        *_linear(f"{block}.self_attn.o_proj", _OUT, _OUT_BIAS, 2),
        _one(f"{block}.self_attn.q_norm.weight", "attention/query_gain_H"),
        _one(f"{block}.self_attn.k_norm.weight", "attention/key_gain_H"),
        *_linear(f"{block}.mlp.gate_proj", "mlp/gate_DF", "mlp/gate_bias_F"),
        *_linear(f"{block}.mlp.up_proj", "mlp/up_DF", "mlp/up_bias_F"),
        *_linear(f"{block}.mlp.down_proj", "mlp/down_FD", "mlp/down_bias_D"),
    ]


def _llama(*blocks: Rule) -> tuple[Rule, ...]:
    return (
        _one("model.embed_tokens.weight", "embedding_VD"),
        *_llama_blocks("model.layers.{i}"),
        *blocks,
        *_norm("model.norm", "final"),
        _one("lm_head.weight", "head_VD"),
    )


LLAMA = _llama(
    *_norm("model.layers.{i}.input_layernorm", "attention"),
    *_norm("model.layers.{i}.post_attention_layernorm", "mlp"),
)
COHERE = _llama(*_norm("model.layers.{i}.input_layernorm", "attention"))
MIXTRAL = (
    *LLAMA,
    _one("model.layers.{i}.block_sparse_moe.gate.weight", "mlp/router_DE", linear()),
    _one("model.layers.{i}.block_sparse_moe.experts.{e}.w1.weight", "mlp/gate_EDF", STACKED),
    _one("model.layers.{i}.block_sparse_moe.experts.{e}.w2.weight", "mlp/down_EFD", STACKED),
    _one("model.layers.{i}.block_sparse_moe.experts.{e}.w3.weight", "mlp/up_EDF", STACKED),
)
GEMMA = _llama(
    *_norm("model.layers.{i}.input_layernorm", "attention"),
    *_norm("model.layers.{i}.post_attention_layernorm", "attention_post"),
    *_norm("model.layers.{i}.pre_feedforward_layernorm", "mlp"),
    *_norm("model.layers.{i}.post_feedforward_layernorm", "mlp_post"),
)
GPTJ = (
    _one("transformer.wte.weight", "embedding_VD"),
    *_norm("transformer.h.{i}.ln_1", "attention"),
    *_separate_qkv("transformer.h.{i}.attn.{}_proj"),
    *_linear("transformer.h.{i}.attn.out_proj", _OUT, _OUT_BIAS, 2),
    *_linear("transformer.h.{i}.mlp.fc_in", "mlp/up_DF", "mlp/up_bias_F"),
    *_linear("transformer.h.{i}.mlp.fc_out", "mlp/down_FD", "mlp/down_bias_D"),
    *_norm("transformer.ln_f", "final"),
    _one("lm_head.weight", "head_VD"),
    _one("lm_head.bias", "head_bias_V"),
)
# Falcon with one norm per layer, with two after one another, and with two side by side.
FALCON = (
    _one("transformer.word_embeddings.weight", "embedding_VD"),
    *_neox_blocks("transformer.h.{i}", "self_attention"),
    *_norm("transformer.h.{i}.input_layernorm|transformer.h.{i}.ln_attn", "attention"),
    *_norm("transformer.h.{i}.post_attention_layernorm|transformer.h.{i}.ln_mlp", "mlp"),
    *_norm("transformer.ln_f", "final"),
    _one("lm_head.weight", "head_VD"),
)
MPT = (
    _one("transformer.wte.weight", "embedding_VD"),
    *_norm("transformer.blocks.{i}.norm_1", "attention"),
    *_fused_qkv("transformer.blocks.{i}.attn.Wqkv", qkv_thirds),
    *_linear("transformer.blocks.{i}.attn.out_proj", _OUT, _OUT_BIAS, 2),
    *_norm("transformer.blocks.{i}.norm_2", "mlp"),
    *_linear("transformer.blocks.{i}.ffn.up_proj", "mlp/up_DF", "mlp/up_bias_F"),
    *_linear("transformer.blocks.{i}.ffn.down_proj", "mlp/down_FD", "mlp/down_bias_D"),
    *_norm("transformer.norm_f", "final"),
    _one("lm_head.weight", "head_VD"),
)
_LAYER = "roformer.encoder.layer.{i}"
ROFORMER = (
    Rule(
        (
            "roformer.embeddings.word_embeddings.weight",
            "roformer.embeddings.token_type_embeddings.weight",
        ),
        ("embedding_VD",),
        PLUS_TYPE,
    ),
    *_norm("roformer.embeddings.LayerNorm", "embedding"),
    *(
        rule
        for name, weight, bias in zip(("query", "key", "value"), _QKV, _QKV_BIASES, strict=True)
        for rule in (
            _one(f"{_LAYER}.attention.self.{name}.weight", weight, linear()),
            _one(f"{_LAYER}.attention.self.{name}.bias", bias, conv1d(0)),
        )
    ),
    *_linear(f"{_LAYER}.attention.output.dense", _OUT, _OUT_BIAS, 2),
    *_norm(f"{_LAYER}.attention.output.LayerNorm", "attention"),
    *_linear(f"{_LAYER}.intermediate.dense", "mlp/up_DF", "mlp/up_bias_F"),
    *_linear(f"{_LAYER}.output.dense", "mlp/down_FD", "mlp/down_bias_D"),
    *_norm(f"{_LAYER}.output.LayerNorm", "mlp"),
    *_linear("cls.predictions.transform.dense", "transform_DD", "transform_bias_D"),
    *_norm("cls.predictions.transform.LayerNorm", "transform"),
    _one("cls.predictions.decoder.weight|roformer.embeddings.word_embeddings.weight", "head_VD"),
    _one("cls.predictions.decoder.bias|cls.predictions.bias", "head_bias_V"),
)
