"""The families of transformers that are read and written: one `Family` per model_type."""

from posenc_jax.interop import classic_families as classic
from posenc_jax.interop import llama_families as llama
from posenc_jax.interop import weight_names as names
from posenc_jax.interop.family import Family

_FREQUENCIES = r".*rotary_emb\.inv_freq"
_MASKS = (r".*attention\.(masked_)?bias", r".*attn\.(masked_)?bias", _FREQUENCIES)

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            "gpt2",
            "GPT2LMHeadModel",
            classic.read_gpt2,
            classic.write_gpt2,
            names.GPT2,
            "transformer.",
            _MASKS,
        ),
        Family(
            "bloom",
            "BloomForCausalLM",
            classic.read_bloom,
            classic.write_bloom,
            names.BLOOM,
            "transformer.",
        ),
        Family(
            "gpt_neox",
            "GPTNeoXForCausalLM",
            classic.read_neox,
            classic.write_neox,
            names.NEOX,
            "gpt_neox.",
            _MASKS,
        ),
        Family(
            "gptj",
            "GPTJForCausalLM",
            classic.read_gptj,
            classic.write_gptj,
            names.GPTJ,
            "transformer.",
            _MASKS,
        ),
        Family(
            "falcon",
            "FalconForCausalLM",
            classic.read_falcon,
            classic.write_falcon,
            names.FALCON,
            "transformer.",
            (_FREQUENCIES,),
            lambda c: int(c.parallel == "two_norms"),
        ),
        Family(
            "mpt", "MptForCausalLM", classic.read_mpt, classic.write_mpt, names.MPT, "transformer."
        ),
        Family(
            "roformer",
            "RoFormerForCausalLM",
            classic.read_roformer,
            classic.write_roformer,
            names.ROFORMER,
            "roformer.",
            (r".*embed_positions\.weight", r"cls\.predictions\.bias"),
        ),
        Family(
            "llama",
            "LlamaForCausalLM",
            llama.read_llama,
            llama.write_llama,
            names.LLAMA,
            "model.",
            (_FREQUENCIES,),
        ),
        Family(
            "mistral",
            "MistralForCausalLM",
            llama.read_mistral,
            llama.write_mistral,
            names.LLAMA,
            "model.",
        ),
        Family(
            "mixtral",
            "MixtralForCausalLM",
            llama.read_mixtral,
            llama.write_mixtral,
            names.MIXTRAL,
            "model.",
        ),
        Family(
            "qwen2", "Qwen2ForCausalLM", llama.read_qwen2, llama.write_qwen2, names.LLAMA, "model."
        ),
        Family(
            "qwen3", "Qwen3ForCausalLM", llama.read_qwen3, llama.write_qwen3, names.LLAMA, "model."
        ),
        Family(
            "smollm3",
            "SmolLM3ForCausalLM",
            llama.read_smollm3,
            llama.write_smollm3,
            names.LLAMA,
            "model.",
        ),
        Family(
            "gemma2",
            "Gemma2ForCausalLM",
            llama.read_gemma2,
            llama.write_gemma2,
            names.GEMMA,
            "model.",
        ),
        Family(
            "gemma3_text",
            "Gemma3ForCausalLM",
            llama.read_gemma3,
            llama.write_gemma3,
            names.GEMMA,
            "model.",
        ),
        Family(
            "cohere",
            "CohereForCausalLM",
            llama.read_cohere,
            llama.write_cohere,
            names.COHERE,
            "model.",
        ),
    )
}
