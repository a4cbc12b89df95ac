"""Small random models of transformers, saved, loaded, exported and loaded again."""

import dataclasses
import warnings

import jax
import numpy as np
import pytest
from posenc_jax.interop import huggingface

from support.marks import thorough

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from support.transformers_models import (
        NEW,
        PROMPT,
        T,
        our_greedy,
        our_logits,
        random_model,
        random_tokens,
        their_greedy,
        their_logits,
    )

DIMS = {
    "vocab_size": 89,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 72,
}
GROUPED = DIMS | {"num_key_value_heads": 2, "max_position_embeddings": 64}
ODD = GROUPED | {"hidden_size": 54, "intermediate_size": 70, "head_dim": 10}
ROPE = {"rope_theta": 10_000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, **ROPE}
LONG = {
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.5, 2.0, 3.0, 4.0],
    "original_max_position_embeddings": 16,
}

# Family and settings of each model.
MODELS = {
    "gpt2": (
        "gpt2",
        {
            "vocab_size": 89,
            "n_positions": 64,
            "n_embd": 51,
            "n_layer": 2,
            "n_head": 3,
            "n_inner": 70,
        },
    ),
    "bloom": ("bloom", {"vocab_size": 89, "hidden_size": 48, "n_layer": 2, "n_head": 6}),
    "bloom-normed-residual": (
        "bloom",
        {
            "vocab_size": 89,
            "hidden_size": 48,
            "n_layer": 2,
            "n_head": 4,
            "apply_residual_connection_post_layernorm": True,
        },
    ),
    "gpt_neox": (
        "gpt_neox",
        DIMS | {"num_attention_heads": 2, "max_position_embeddings": 64, "hidden_act": "gelu_fast"},
    ),
    "gpt_neox-serial": (
        "gpt_neox",
        DIMS | {"num_attention_heads": 2, "use_parallel_residual": False, "attention_bias": False},
    ),
    "gptj": (
        "gptj",
        {
            "vocab_size": 89,
            "n_positions": 64,
            "n_embd": 48,
            "n_layer": 2,
            "n_head": 3,
            "rotary_dim": 6,
        },
    ),
    "falcon-multi-query": (
        "falcon",
        {"vocab_size": 89, "hidden_size": 56, "num_hidden_layers": 2, "num_attention_heads": 7},
    ),
    "falcon-grouped": (
        "falcon",
        {
            "vocab_size": 89,
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
        },
    ),
    "falcon-rw": (
        "falcon",
        {
            "vocab_size": 89,
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "alibi": True,
            "multi_query": False,
            "parallel_attn": False,
            "bias": True,
        },
    ),
    "mpt": (
        "mpt",
        {"vocab_size": 89, "d_model": 48, "n_heads": 6, "n_layers": 2, "max_seq_len": 64},
    ),
    "mpt-clipped": (
        "mpt",
        {
            "vocab_size": 89,
            "d_model": 48,
            "n_heads": 3,
            "n_layers": 2,
            "attn_config": {"clip_qkv": 0.3, "softmax_scale": 0.4},
        },
    ),
    "roformer": (
        "roformer",
        DIMS | {"is_decoder": True, "max_position_embeddings": 64, "hidden_dropout_prob": 0.0},
    ),
    "llama": ("llama", ODD),
    "llama-biased": (
        "llama",
        GROUPED | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "mistral": ("mistral", ODD | {"sliding_window": 16}),
    "mixtral": ("mixtral", GROUPED | {"num_local_experts": 4}),
    "qwen2": (
        "qwen2",
        GROUPED | {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", ODD | {"rope_parameters": YARN}),
    "gemma2": (
        "gemma2",
        ODD
        | {
            "sliding_window": 16,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 0.5,
            "final_logit_softcapping": 2.0,
            "num_hidden_layers": 3,
        },
    ),
    "gemma3": (
        "gemma3_text",
        ODD
        | {
            "sliding_window": 16,
            "num_hidden_layers": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "smollm3": (
        "smollm3",
        GROUPED | {"num_hidden_layers": 5, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "palm": (
        "cohere",
        GROUPED
        | {"num_key_value_heads": 1, "logit_scale": 1.0, "pad_token_id": 0, "eos_token_id": 2},
    ),
    # Every RoPE scaling, past the original length of 16 tokens.
    "linear": (
        "llama",
        GROUPED | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, **ROPE}},
    ),
    "dynamic": (
        "llama",
        GROUPED
        | {
            "max_position_embeddings": 16,
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, **ROPE},
        },
    ),
    "yarn": ("llama", GROUPED | {"rope_parameters": YARN | {"beta_fast": 16.0, "truncate": False}}),
    "yarn-mscale": (
        "llama",
        GROUPED | {"rope_parameters": YARN | {"mscale": 2.0, "mscale_all_dim": 0.5}},
    ),
    "yarn-factor": ("llama", GROUPED | {"rope_parameters": YARN | {"attention_factor": 1.7}}),
    "llama3": (
        "llama",
        GROUPED
        | {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
                **ROPE,
            }
        },
    ),
    "longrope": (
        "llama",
        GROUPED | {"rope_parameters": {"rope_type": "longrope", "factor": 4.0, **LONG, **ROPE}},
    ),
    "proportional": (
        "llama",
        GROUPED
        | {"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.6, **ROPE}},
    ),
}
PER_RUN = ("gpt2", "bloom", "gpt_neox", "falcon-grouped", "gemma2", "mixtral", "yarn")
ALL = [*PER_RUN, *thorough(*(name for name in MODELS if name not in PER_RUN))]
# Of scalings that follow the length: longest row that is read, and how many tokens are told by it.
SHORT = (16, 16 - PROMPT + 1)
SPANS = {
    "longrope": (SHORT, (T, NEW - SHORT[1])),
    "dynamic": (SHORT, *((length, 1) for length in range(17, PROMPT + NEW))),
}


def model_of(name, seed=0):
    family, settings = MODELS[name]
    return random_model(family, settings, seed)


@pytest.mark.parametrize("name", ALL)
def test_an_imported_model_gives_the_logits_and_tokens_of_transformers(name, tmp_path):
    for seed in range(3):
        model = model_of(name, seed)
        model.save_pretrained(tmp_path / str(seed))
        config, params, tokenizer = huggingface.load(tmp_path / str(seed), longest=T)
        assert tokenizer is None
        ids = random_tokens(config.vocab_size, seed)
        want = their_logits(model, ids)
        assert np.abs(want).max() > 0.5
        assert np.abs(our_logits(config, params, ids) - want).max() < 1e-4
    prompt = random_tokens(config.vocab_size, 9, batch=1, length=PROMPT)
    told = their_greedy(model, prompt, cached=name not in SPANS)
    got = []
    for length, count in SPANS.get(name, ((T, NEW),)):
        config, params, _ = huggingface.load(tmp_path / "2", longest=length)
        row = np.concatenate([prompt, told[None, : len(got)]], 1)
        got += our_greedy(config, params, row, count).tolist()
    np.testing.assert_array_equal(got, told)


@pytest.mark.parametrize("name", ALL)
def test_an_exported_model_is_transformers_again_and_comes_back_bit_for_bit(name, tmp_path):
    model = model_of(name)
    model.save_pretrained(tmp_path / "theirs")
    config, params, _ = huggingface.load(tmp_path / "theirs")
    huggingface.save(config, params, tmp_path / "ours")
    again, same, _ = huggingface.load(tmp_path / "ours")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, same, params)
    kind = type(model)
    back, report = kind.from_pretrained(
        tmp_path / "ours",
        dtype=torch.float32,
        attn_implementation=model.config._attn_implementation,
        output_loading_info=True,
    )
    assert not any(report[key] for key in ("unexpected_keys", "mismatched_keys"))
    unused = {
        "cls.predictions.bias",
        "roformer.encoder.embed_positions.weight",
    }  # not read, or made
    assert set(report["missing_keys"]) <= unused
    ids = random_tokens(config.vocab_size, 0)
    np.testing.assert_allclose(their_logits(back.eval(), ids), their_logits(model, ids), atol=1e-6)


def test_a_sharded_folder_is_the_whole_model(tmp_path):
    model = model_of("llama")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    config, params, _ = huggingface.load(tmp_path)
    ids = random_tokens(config.vocab_size, 0)
    assert np.abs(our_logits(config, params, ids) - their_logits(model, ids)).max() < 1e-4


def test_bfloat16_weights_are_widened_and_gemmas_factor_is_rounded_with_them(tmp_path):
    model = model_of("gemma2").bfloat16()
    model.save_pretrained(tmp_path)
    config, params, _ = huggingface.load(tmp_path)
    assert config.embedding_scale == float(torch.tensor(54**0.5).bfloat16()) != 54**0.5
    table = model.get_input_embeddings().weight.detach().float().numpy()
    np.testing.assert_array_equal(params["embedding_VD"], table)
    huggingface.save(config, params, tmp_path / "again")
    assert huggingface.load(tmp_path / "again").config == config
    rounded = dataclasses.replace(config, embedding_scale=7.0)
    with pytest.raises(ValueError, match="embedding_scale"):
        huggingface.save(rounded, params, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_a_roformer_with_another_table_of_positions_is_refused(tmp_path):
    model = model_of("roformer")
    with torch.no_grad():
        model.roformer.encoder.embed_positions.weight.mul_(1.1)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="table of positions"):
        huggingface.load(tmp_path)
