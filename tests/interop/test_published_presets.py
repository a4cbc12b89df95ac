"""Presets that transformers has: random models of the same switches give the same logits and tokens.

`test_huggingface.py` compares settings of transformers. Here a preset says what transformers builds,
at its small shape and at an odd one.

Thorough: two models are built for every preset.
"""

import dataclasses
import math
import warnings

import jax
import numpy as np
import pytest
from posenc_jax.interop import huggingface
from posenc_jax.interop.family import canonical
from posenc_jax.model.presets import SYSTEMS, preset

pytestmark = [pytest.mark.interop, pytest.mark.thorough, pytest.mark.filterwarnings("ignore")]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from support.transformers_models import (
        PROMPT,
        our_greedy,
        our_logits,
        random_model,
        random_tokens,
        their_greedy,
        their_logits,
    )

NO_FAMILY = ("transformer", "alibi-247m", "alibi-1.3b")
NAMES = [name for name in SYSTEMS if name not in NO_FAMILY]
# May have heads of more dims in all than the model dim.
FREE = ("llama", "llama2", "llama3", "mistral", "mixtral", "qwen3", "gemma2", "gemma3", "smollm3")
WIDE_MLP = ("bloom", "mpt")  # always four times the model dim
PERIOD = {"gemma3": 6, "smollm3": 4}  # layers after which windows and rotations repeat; else 2
KEY_HEADS = {4: 6, 2: 2, 1: 1}  # of four heads, and of six


def shaped(name, shape):
    """The small preset with a period of layers; "odd": one layer more, and 6 heads of 10 dims."""
    layers = PERIOD.get(name, 2)
    config = dataclasses.replace(preset(name, small=True), num_layers=layers)
    if shape == "odd":
        D = 48 if name in FREE else 60
        config = dataclasses.replace(
            config,
            num_layers=layers + 1,
            model_dim=D,
            num_heads=6,
            num_kv_heads=KEY_HEADS[config.num_kv_heads],
            head_dim=10,
            mlp_dim=4 * D if name in WIDE_MLP else 68,  # PyTorch multiplies experts in rows of four
            vocab_size=89,
        )
    if SYSTEMS[name].scaled:  # by sqrt(D), rounded like the weights, which are float32 here
        scale = float(np.float32(math.sqrt(config.model_dim)))
        config = dataclasses.replace(config, embedding_scale=scale)
    return config


def of_transformers(config, seed):
    """What transformers builds from our config.json, every weight random."""
    family, settings = huggingface.export_settings(config)
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    del settings["model_type"], settings["architectures"]
    return random_model(family.model_type, special | settings, seed)


@pytest.mark.parametrize("shape", ["small", "odd"])
@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_the_model_of_transformers(name, shape, tmp_path):
    config = shaped(name, shape)
    for seed in range(3):
        model = of_transformers(config, seed)
        model.save_pretrained(tmp_path / str(seed))
        read, params, _ = huggingface.load(tmp_path / str(seed))
        assert canonical(read) == canonical(config)
        ids = random_tokens(config.vocab_size, seed)
        want = their_logits(model, ids)
        assert np.abs(want).max() > 0.5
        assert np.abs(our_logits(config, params, ids) - want).max() < 1e-4
        prompt = ids[:1, :PROMPT]
        told = their_greedy(model, prompt)
        np.testing.assert_array_equal(our_greedy(config, params, prompt), told)
    huggingface.save(config, params, tmp_path / "ours")
    again, same, _ = huggingface.load(tmp_path / "ours")
    assert canonical(again) == canonical(config)
    jax.tree.map(np.testing.assert_array_equal, same, params)
    attention = model.config._attn_implementation
    back = type(model).from_pretrained(
        tmp_path / "ours", dtype=torch.float32, attn_implementation=attention
    )
    np.testing.assert_allclose(their_logits(back.eval(), ids), want, atol=1e-6)
