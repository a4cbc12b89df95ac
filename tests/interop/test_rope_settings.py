"""RoPE settings of a config.json: every scaling of transformers, and rotations it cannot write."""

import numpy as np
import pytest
from posenc_jax.encodings.rotary import Xpos
from posenc_jax.interop import huggingface
from posenc_jax.interop.rope_settings import rope_parameters

LENGTH = 16  # original length of every scaling
ORIGINAL = {"original_max_position_embeddings": LENGTH}
SCALINGS = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, **ORIGINAL},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL},
    "longrope": {
        "factor": 4.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.5, 2.0, 3.0, 4.0],
        **ORIGINAL,
    },
    "proportional": {"partial_rotary_factor": 0.6},
}
SHAPE = {
    "vocab_size": 89,
    "hidden_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 6,
    "max_position_embeddings": LENGTH,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
GROUPED = SHAPE | {"num_key_value_heads": 2, "intermediate_size": 72}
GEMMA = GROUPED | {"head_dim": 8, "sliding_window": 16}
FAMILIES = {
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": 16},
    "mixtral": GROUPED | {"num_local_experts": 4, "head_dim": 8},
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 8},
    "gemma2": GEMMA,
    "gemma3_text": GEMMA
    | {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
    "smollm3": GROUPED,
    "cohere": GROUPED | {"logit_scale": 1.0},
    "falcon": SHAPE | {"num_kv_heads": 2, "new_decoder_architecture": True},
    "gpt_neox": SHAPE | {"num_attention_heads": 3, "intermediate_size": 72},
}


def settings_of(family, scaling):
    own = {"rope_type": scaling, "rope_theta": 10_000.0, **SCALINGS[scaling]}
    if family == "gpt_neox":
        own = {"partial_rotary_factor": 0.5} | own
    if family == "gemma3_text":
        plain = {"rope_type": "default", "rope_theta": 10_000.0}
        own = {"full_attention": own, "sliding_attention": plain}
    return FAMILIES[family] | {"rope_parameters": own}


@pytest.mark.interop
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_transformers_under_every_scaling(family, scaling, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from support.transformers_models import T, our_logits, random_model, random_tokens, their_logits

    assert set(SCALINGS) == {"default", *ROPE_INIT_FUNCTIONS}
    for seed in range(3):
        model = random_model(family, settings_of(family, scaling), seed)
        model.save_pretrained(tmp_path / str(seed))
        config, params, _ = huggingface.load(tmp_path / str(seed), longest=T)
        ids = random_tokens(config.vocab_size, seed)
        want = their_logits(model, ids)
        assert np.abs(want).max() > 0.5
        assert np.abs(our_logits(config, params, ids) - want).max() < 1e-4
    plain = random_model(family, settings_of(family, "default"), seed)
    apart = np.abs(their_logits(plain, ids) - want).max()
    assert (apart > 1e-2) == (scaling != "default")


def test_a_model_without_a_rotation_is_refused_in_words():
    with pytest.raises(ValueError, match="needs a rotation"):
        rope_parameters(None, 16)
    with pytest.raises(ValueError, match="transformers has no xpos"):
        rope_parameters(Xpos(), 16)
