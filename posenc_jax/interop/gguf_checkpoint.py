"""GGUF files of Llama-like models as our decoder's parameters: names and row order of llama.cpp
undone.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from posenc_jax.encodings.rope_scaling import Llama3
from posenc_jax.encodings.rotary import inverse_frequencies
from posenc_jax.interop import tokenizer_json
from posenc_jax.interop.gguf_file import GgufFile
from posenc_jax.interop.huggingface import Loaded, read_config, read_parameters
from posenc_jax.interop.json_settings import JsonSettings
from posenc_jax.results.near_names import near_names

# Architecture -> whether llama.cpp keeps the rows of q and k in pairs (2i, 2i + 1). The family of
# transformers has the same name, and its rows lie half a head apart.
PAIRED_ROWS = {"llama": True, "qwen2": False, "qwen3": False}
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_OF_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FACTORS = "rope_freqs.weight"  # of Llama 3.1: original frequencies over those of the model
_LLAMA3: dict[str, Any] = {"low": 1.0, "high": 4.0, "original": 8192}


class RenamedTensor(NamedTuple):
    """A tensor under its name in transformers, read when it is asked for.

    heads: of a projection whose rows are put back; 0: none. dtype: after dequantising.
    """

    file: GgufFile
    name: str
    heads: int
    dtype: str = "F32"

    @property
    def path(self) -> Path:
        """The file."""
        return self.file.path

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in NumPy's order."""
        return self.file.tensors[self.name].shape

    def read(self) -> np.ndarray:
        """Returns the array, float32; ValueError as `GgufFile.array`."""
        array = self.file.array(self.name)
        return half_split_rows(array, self.heads) if self.heads else array


def half_split_rows(array: np.ndarray, heads: int) -> np.ndarray:
    """Returns rows in which pair i of each head is (i, i + H/2), from rows with pairs (2i, 2i +
    1).
    """
    pairs = array.reshape(heads, -1, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


def load(path: Path | str, longest: int = 0) -> Loaded:
    """Returns the checkpoint in a GGUF file; tensors are dequantised one at a time.

    Args:
      longest: as for `posenc_jax.interop.huggingface.load`. tokenizer: None where the file has no
        vocabulary.

    Raises:
      ValueError: in one line, anything that is not understood, damaged or missing.
    """
    file = GgufFile(Path(path))
    settings = settings_of(file)
    stored = {
        _renamed(name, file): RenamedTensor(file, name, _paired_heads(name, settings))
        for name in file.tensors
        if name != _FACTORS
    }
    family, config = read_config(settings, str(path), stored, longest)
    params = read_parameters(family, config, stored)
    tokenizer = None
    if "tokenizer.ggml.model" in file.metadata:
        tokenizer = tokenizer_json.of_gguf(file.metadata, config.vocab_size, str(path))
    return Loaded(config, params, tokenizer)


def settings_of(file: GgufFile) -> dict:
    """Returns the settings of a GGUF file as a config.json of transformers would say them.

    Raises:
      ValueError: an architecture or a setting that is not known here, or sizes that do not fit.
    """
    kind, where = file.metadata.get("general.architecture"), str(file.path)
    if kind not in PAIRED_ROWS:
        raise ValueError(
            f"{where}: the architecture {kind!r:.60} is not "
            f"read{near_names(str(kind), PAIRED_ROWS)}"
        )
    own = {
        key.removeprefix(f"{kind}."): v
        for key, v in file.metadata.items()
        if key.startswith(f"{kind}.")
    }
    s = JsonSettings(own, where)
    table = file.tensors.get("token_embd.weight")
    if table is None:
        raise ValueError(f"{where} has no tensor 'token_embd.weight'")
    D, N = s.whole("embedding_length"), s.whole("attention.head_count")
    K = s.whole("attention.head_count_kv", N)
    H = s.whole("attention.key_length", D // max(N, 1))
    if min(D, N, K, H) < 1:
        raise ValueError(f"{where}: a size is 0: embedding {D}, heads {N} and {K}, head dim {H}")
    layers = s.whole("block_count")
    if not 1 <= layers <= len(file.tensors):
        raise ValueError(
            f"{where}: block_count is {layers}, and there are {len(file.tensors)} tensors"
        )
    s.only(
        **{
            "attention.value_length": H,
            "rope.dimension_count": H,
            "vocab_size": table.shape[0],
            "expert_count": 0,
            "expert_used_count": 0,
        }
    )
    base = s.number("rope.freq_base", 10_000.0)
    settings = {
        "model_type": kind,
        "vocab_size": table.shape[0],
        "hidden_size": D,
        "num_attention_heads": N,
        "num_key_value_heads": K,
        "head_dim": H,
        "num_hidden_layers": layers,
        "intermediate_size": s.whole("feed_forward_length"),
        "hidden_act": "silu",
        "max_position_embeddings": s.whole("context_length"),
        "rms_norm_eps": s.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": {"rope_theta": base} | _scaling(s, file, base, H),
    }
    s.finish()
    return settings


def _scaling(s: JsonSettings, file: GgufFile, base: float, head_dim: int) -> dict:
    kinds = {"none": "default", "linear": "linear", "yarn": "yarn"}
    kind = s.word("rope.scaling.type", kinds, "none")
    factor, original = (
        s.number("rope.scaling.factor", 1.0),
        s.whole("rope.scaling.original_context_length", 0),
    )
    s.forget("rope.scaling.finetuned")  # says only that the model was trained so
    if _FACTORS in file.tensors:
        if kind != "default":
            raise ValueError(f"{s.where}: {_FACTORS} and rope.scaling.type {kind!r} at once")
        return _llama3(file, base, head_dim)
    if kind == "linear":
        return {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        return {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}
    return {"rope_type": "default"}


def _llama3(file: GgufFile, base: float, head_dim: int) -> dict:
    """Returns the scaling of Llama 3.1 whose factors the file holds; ValueError for other
    factors.
    """
    factors_h = file.array(_FACTORS).ravel()
    factor = float(factors_h.max())
    freq_h = inverse_frequencies(head_dim, base)
    scaled_h = Llama3(factor=max(factor, 1.0), **_LLAMA3).frequencies(freq_h, base, 0)
    if factors_h.shape != freq_h.shape or not np.allclose(freq_h / scaled_h, factors_h, rtol=1e-4):
        raise ValueError(f"{file.path}: {_FACTORS} holds other factors than those of Llama 3.1")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LLAMA3["low"],
        "high_freq_factor": _LLAMA3["high"],
        "original_max_position_embeddings": _LLAMA3["original"],
    }


def _renamed(name: str, file: GgufFile) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.{kind}"
    block, _, rest = stem.partition(".")
    number, _, rest = rest.partition(".")
    if block != "blk" or not number.isdigit() or rest not in _OF_LAYER:
        raise ValueError(
            f"{file.path}: tensor {name!r:.80} has no place in a "
            f"{file.metadata['general.architecture']}"
        )
    return f"model.layers.{number}.{_OF_LAYER[rest]}.{kind}"


def _paired_heads(name: str, settings: dict) -> int:
    if not PAIRED_ROWS[settings["model_type"]]:
        return 0
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    which = heads.get(name.split(".")[2]) if name.count(".") == 3 else None
    return settings[which] if which else 0
