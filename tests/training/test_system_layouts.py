"""Published systems on a mesh: every parameter has a layout, and the results are those of one device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.model.decoder import Decoder
from posenc_jax.model.presets import SYSTEMS, preset
from posenc_jax.training.config import from_sections
from posenc_jax.training.sharding import make_mesh, parameter_layout
from posenc_jax.training.step import _decayed, _hidden_matrices

from support.checkpoint_folders import random_parameters
from support.marks import thorough


def shapes_of(config):
    row = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    return jax.eval_shape(Decoder(config).init, jax.random.key(0), row, row, row)["params"]


@pytest.mark.default_cases(8)
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_parameter_of_a_preset_has_one_layout_and_biases_are_never_decayed(name):
    shapes = shapes_of(preset(name, small=True))
    parameter_layout(shapes, make_mesh(1, 1))
    decayed = jax.tree_util.tree_leaves_with_path(_decayed(shapes))
    for path, is_decayed in decayed:
        names = [key.key for key in path]
        vector = any(word in names[-1] for word in ("bias", "gain")) or "absolute" in names
        assert is_decayed != vector, names
    numbers = _hidden_matrices(shapes)
    assert all(
        numbers[f"layer_{i}"]["mlp"][name] is not None
        for i in range(4)
        for name in shapes[f"layer_{i}"]["mlp"]
        if name.startswith(("up_", "gate_", "down_")) and "bias" not in name
    )


@pytest.mark.thorough
@pytest.mark.parametrize(
    "axes", [{"model_devices": 2, "fsdp_devices": 2}, *thorough({"model_devices": 4})]
)
def test_experts_biases_and_norms_give_the_same_on_a_mesh(axes):
    mixtral = preset("mixtral", small=True)
    config = dataclasses.replace(
        mixtral,
        num_layers=2,
        norm="layer",
        norm_position="both",
        biases=("qkv", "out", "head"),
        parallel="none",
        embedding_norm=True,
        head_transform=True,
        attention_softcap=2.0,
        activation="geglu",
    )
    params = random_parameters(config)
    row = (
        jnp.arange(24).reshape(2, 12) % 11,
        jnp.tile(jnp.arange(12), (2, 1)),
        jnp.ones((2, 12), jnp.int32),
    )
    want, _ = jax.jit(Decoder(config).apply)({"params": params}, *row)
    mesh = make_mesh(1, **axes)
    with jax.set_mesh(mesh):
        laid = jax.tree.map(
            lambda x, spec: jax.device_put(x, jax.NamedSharding(mesh, spec)),
            params,
            parameter_layout(params, mesh),
        )
        got, _ = jax.jit(Decoder(config).apply)({"params": laid}, *row)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


def test_switches_are_settings_of_a_run_and_logits_with_a_bias_are_whole():
    model = {"norm": "layer", "biases": ["qkv", "head"], "parallel": "one_norm", "vocab_size": 300}
    run = from_sections({"model": model})
    assert run.model_config(260).vocab_size == 300
    assert run.architecture.biases == ("qkv", "head")
    assert from_sections({}).model_config(260).vocab_size == 260
    with pytest.raises(ValueError, match="vocab_size=300 is below the 301 ids"):
        run.model_config(301)
    for setting in ({"loss_chunks": 2}, {"model_devices": 2}):
        with pytest.raises(ValueError, match="needs whole logits"):
            from_sections({"model": model, "train": setting})
        capped = from_sections({"model": {"logit_softcap": 2.0}, "train": setting})
        assert capped.architecture.logit_softcap == 2
    with pytest.raises(ValueError, match="norm must be one of"):
        from_sections({"model": {"norm": "batch"}})
