"""RoPE settings of a config.json: rotations that transformers cannot write."""

import pytest
from posenc_jax.encodings.rotary import Xpos
from posenc_jax.interop.rope_settings import rope_parameters


def test_a_model_without_a_rotation_is_refused_in_words():
    with pytest.raises(ValueError, match="needs a rotation"):
        rope_parameters(None, 16)
    with pytest.raises(ValueError, match="transformers has no xpos"):
        rope_parameters(Xpos(), 16)
