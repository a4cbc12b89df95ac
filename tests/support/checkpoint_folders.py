"""Hugging Face folders of a small random model, written by hand and damaged in one place."""

import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder

SETTINGS = {
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 6,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
SHAPES = {
    "model.embed_tokens.weight": (11, 8), "model.norm.weight": (8,),
    "model.layers.0.input_layernorm.weight": (8,), "model.layers.0.post_attention_layernorm.weight": (8,),
    "model.layers.0.self_attn.q_proj.weight": (8, 8), "model.layers.0.self_attn.k_proj.weight": (4, 8),
    "model.layers.0.self_attn.v_proj.weight": (4, 8), "model.layers.0.self_attn.o_proj.weight": (8, 8),
    "model.layers.0.mlp.gate_proj.weight": (6, 8), "model.layers.0.mlp.up_proj.weight": (6, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 6),
}  # fmt: skip


def arrays(shapes=SHAPES, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def tensor_bytes(tensors):
    """(Header, data) of a safetensors file of float32 arrays."""
    header, data = {}, b""
    for name, array in tensors.items():
        start, data = len(data), data + array.tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [start, len(data)],
        }
    return header, data


def file_bytes(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def write_folder(folder, settings=SETTINGS, tensors=None):
    """A whole folder; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "model.safetensors").write_bytes(file_bytes(*tensor_bytes(tensors or arrays())))
    return folder


def write_shards(folder, settings=SETTINGS):
    """A whole folder of two files and an index."""
    write_folder(folder, settings)
    (folder / "model.safetensors").unlink()
    tensors = list(arrays().items())
    for k, part in enumerate((tensors[:5], tensors[5:])):
        (folder / f"part-{k}.safetensors").write_bytes(file_bytes(*tensor_bytes(dict(part))))
    weight_map = {name: f"part-{int(n >= 5)}.safetensors" for n, (name, _) in enumerate(tensors)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def random_parameters(config: ModelConfig, seed=0):
    """Parameters of a decoder, all of them random: no gain is 1 and no bias 0."""
    row = jnp.ones((1, 4), jnp.int32)
    tree = jax.eval_shape(Decoder(config).init, jax.random.key(0), row, row, row)["params"]
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    drawn = [
        (rng.normal(size=x.shape) * 0.3 + (x.ndim == 1) * 0.5).astype(np.float32) for x in leaves
    ]
    return jax.tree.unflatten(structure, drawn)
