"""Llama and its relatives, with RMSNorm: Mistral, Mixtral, Qwen, Gemma, SmolLM3; and Cohere."""

import math

import ml_dtypes
import numpy as np

from posenc_jax.encodings import HeadGroup, Window
from posenc_jax.interop.family import (
    GATED,
    Fields,
    check_divides,
    layers_of,
    named,
    one_layer,
    rope_of,
    scheme_of,
)
from posenc_jax.interop.json_settings import JsonSettings
from posenc_jax.interop.rope_settings import RotaryShape, rope_parameters, rotation
from posenc_jax.model.config import ModelConfig

_LAYER_TYPES = {"full_attention": False, "sliding_attention": True}


def _fields(s: JsonSettings, longest: int, theta: float = 10_000.0, **defaults) -> Fields:
    """Returns what all families of this file read alike; every layer has the same rotation."""
    D, N = s.whole("hidden_size"), s.whole("num_attention_heads")
    H = s.whole("head_dim", defaults.get("head_dim", 0)) or check_divides(s, D, N)
    length, layers = (
        s.whole("max_position_embeddings", defaults.get("length", 2048)),
        s.layers("num_hidden_layers"),
    )
    shape = RotaryShape(H, length, theta, pairing=defaults.get("pairing", "half"), longest=longest)
    heads = HeadGroup(None if defaults.get("ropes") else rope_of(s, shape))
    name = "hidden_act"
    if "activation" in defaults and s.has("hidden_activation"):  # Gemma's, which overrides it
        s.forget("hidden_act")
        name = "hidden_activation"
    return {
        "scheme": scheme_of([heads] * layers),
        "train_length": length,
        "num_layers": layers,
        "model_dim": D,
        "num_heads": N,
        "num_kv_heads": s.whole("num_key_value_heads", N),
        "head_dim": H,
        "mlp_dim": s.whole("intermediate_size"),
        "activation": s.word(name, GATED, defaults.get("activation", "silu")),
        "tied_head": s.flag("tie_word_embeddings", defaults.get("tied", False)),
        "norm_epsilon": s.number(
            defaults.get("epsilon_name", "rms_norm_eps"), defaults.get("epsilon", 1e-6)
        ),
        "vocab_size": s.whole("vocab_size"),
    }


def _settings(c: ModelConfig) -> dict:
    """Returns what all families of this file write alike, without RoPE."""
    return {
        "hidden_size": c.model_dim,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "num_hidden_layers": c.num_layers,
        "intermediate_size": c.mlp_dim,
        "hidden_act": named(GATED, c.activation),
        "max_position_embeddings": c.train_length,
        "rms_norm_eps": c.norm_epsilon,
        "vocab_size": c.vocab_size,
        "tie_word_embeddings": c.tied_head,
    }


def _check_heads_divide(c: ModelConfig) -> None:
    """Raises ValueError where transformers refuses heads of a dim of their own."""
    if c.model_dim % c.num_heads:
        raise ValueError(
            f"has heads that divide the model dim, unlike {c.num_heads} of {c.model_dim}"
        )


def _rope(c: ModelConfig) -> dict:
    """Returns the RoPE object of the rotation that all layers with one share."""
    turns = {heads.rotation for heads in layers_of(c)} - {None}
    if len(turns) != 1:
        raise ValueError("has one rotation")
    return rope_parameters(turns.pop(), c.head_dim)


def _windowed(fields: Fields, window: int | None, sliding: list[bool]) -> Fields:
    """Returns the fields with a window on the layers that slide."""
    if len(sliding) != fields["num_layers"] or (window is None and any(sliding)):
        raise ValueError(
            f"{len(sliding)} layer types for {fields['num_layers']} layers, a window of {window}"
        )
    turn = fields["scheme"].layers[0][0].rotation
    limit = None if window is None else Window(window)
    heads = [HeadGroup(turn, window=limit if slides else None) for slides in sliding]
    return fields | {"scheme": scheme_of(heads)}


def _layer_types(s: JsonSettings, usual: list[bool]) -> list[bool]:
    words = s.items("layer_types", str, None)
    if words is None:
        return usual
    if unknown := [word for word in words if word not in _LAYER_TYPES]:
        raise ValueError(f"{s.where}: layer_types holds {unknown[0]!r:.60}")
    return [_LAYER_TYPES[word] for word in words]


def _window_settings(c: ModelConfig) -> dict:
    """Returns layer_types and sliding_window of the layers' windows."""
    windows = [heads.window and heads.window.size for heads in layers_of(c)]
    sizes = set(windows) - {None}
    if len(sizes) > 1:
        raise ValueError("has one size of window")
    types = ["full_attention" if w is None else "sliding_attention" for w in windows]
    return {"layer_types": types, "sliding_window": sizes.pop() if sizes else None}


def read_llama(s: JsonSettings, longest: int) -> Fields:
    """Reads Llama 1 to 3 (Touvron et al. 2023): RoPE, RMSNorm, SwiGLU, grouped keys."""
    biases: tuple[str, ...] = ("qkv", "out") if s.flag("attention_bias", False) else ()
    biases += ("mlp",) if s.flag("mlp_bias", False) else ()
    return _fields(s, longest) | {"biases": biases}


def write_llama(c: ModelConfig) -> dict:
    """Writes the settings of `read_llama`."""
    _check_heads_divide(c)
    biases = {"attention_bias": "qkv" in c.biases, "mlp_bias": "mlp" in c.biases}
    return (
        _settings(c)
        | biases
        | {"rope_parameters": rope_parameters(one_layer(c).rotation, c.head_dim)}
    )


def read_mistral(s: JsonSettings, longest: int) -> Fields:
    """Reads Mistral (Jiang et al. 2023): Llama with a window on every layer."""
    fields = _fields(s, longest, length=4096 * 32)
    absent = "sliding_window" not in s.values
    window = 4096 if absent else s.whole("sliding_window", None)
    return _windowed(fields, window, [window is not None] * fields["num_layers"])


def write_mistral(c: ModelConfig) -> dict:
    """Writes the settings of `read_mistral`."""
    one_layer(c)
    return _settings(c) | {
        "sliding_window": _window_settings(c)["sliding_window"],
        "rope_parameters": _rope(c),
    }


def read_mixtral(s: JsonSettings, longest: int) -> Fields:
    """Reads Mixtral (Jiang et al. 2024): Mistral with experts."""
    fields = _fields(s, longest, 1e6, length=4096 * 32, epsilon=1e-5)
    window = s.whole("sliding_window", None)
    fields |= {
        "experts": s.whole("num_local_experts", 8),
        "experts_per_token": s.whole("num_experts_per_tok", 2),
    }
    return _windowed(fields, window, [window is not None] * fields["num_layers"])


def write_mixtral(c: ModelConfig) -> dict:
    """Writes the settings of `read_mixtral`."""
    experts = {"num_local_experts": c.experts, "num_experts_per_tok": c.experts_per_token}
    return write_mistral(c) | experts


def read_qwen2(s: JsonSettings, longest: int) -> Fields:
    """Reads Qwen2 (2024): Llama with biases of queries, keys and values."""
    return _qwen(s, _fields(s, longest, length=32768) | {"biases": ("qkv",)})


def read_qwen3(s: JsonSettings, longest: int) -> Fields:
    """Reads Qwen3 (2025): Llama with qk-norm."""
    biases = ("qkv", "out") if s.flag("attention_bias", False) else ()
    fields = _fields(s, longest, length=32768, head_dim=128)
    return _qwen(s, fields | {"qk_norm": True, "biases": biases})


def _qwen(s: JsonSettings, fields: Fields) -> Fields:
    used, window, first = (
        s.flag("use_sliding_window", False),
        s.whole("sliding_window", 4096),
        s.whole("max_window_layers", 28),
    )
    usual = [used and i >= first for i in range(fields["num_layers"])]
    return _windowed(fields, window, _layer_types(s, usual))


def write_qwen2(c: ModelConfig) -> dict:
    """Writes the settings of `read_qwen2`."""
    windows = _window_settings(c)
    used = windows["sliding_window"] is not None
    return _settings(c) | windows | {"use_sliding_window": used, "rope_parameters": _rope(c)}


def write_qwen3(c: ModelConfig) -> dict:
    """Writes the settings of `read_qwen3`."""
    return write_qwen2(c) | {"attention_bias": "qkv" in c.biases}


def read_smollm3(s: JsonSettings, longest: int) -> Fields:
    """Reads SmolLM3 (2025): Llama without RoPE on every fourth layer."""
    fields = _fields(s, longest, 2e6, length=32768, tied=True)
    every, used, window = (
        s.whole("no_rope_layer_interval", 4),
        s.flag("use_sliding_window", False),
        s.whole("sliding_window", None),
    )
    usual = [int((i + 1) % every != 0) for i in range(fields["num_layers"])] if every else []
    turns = s.items("no_rope_layers", int, usual)
    if len(turns) != fields["num_layers"]:
        raise ValueError(
            f"{s.where}: no_rope_layers has {len(turns)} entries for {fields['num_layers']} layers"
        )
    sliding = _layer_types(s, [bool(used and window and not turn) for turn in turns])
    if any(sliding) and not (used and window):
        raise ValueError(
            f"{s.where}: layer_types slides without use_sliding_window and sliding_window"
        )
    rope = fields["scheme"].layers[0][0].rotation
    heads = [
        HeadGroup(rope if turn else None, window=Window(window) if slides else None)
        for turn, slides in zip(turns, sliding, strict=True)
    ]
    biases: tuple[str, ...] = ("qkv", "out") if s.flag("attention_bias", False) else ()
    biases += ("mlp",) if s.flag("mlp_bias", False) else ()
    return fields | {"scheme": scheme_of(heads), "biases": biases}


def write_smollm3(c: ModelConfig) -> dict:
    """Writes the settings of `read_smollm3`."""
    windows = _window_settings(c)
    return (
        _settings(c)
        | windows
        | {
            "no_rope_layers": [int(heads.rotation is not None) for heads in layers_of(c)],
            "use_sliding_window": windows["sliding_window"] is not None,
            "rope_parameters": _rope(c),
            "attention_bias": "qkv" in c.biases,
            "mlp_bias": "mlp" in c.biases,
        }
    )


def _gemma(s: JsonSettings, fields: Fields, caps: tuple) -> Fields:
    """Returns the fields that Gemma 2 and 3 share.

    The factor on embeddings is rounded to the dtype of the weights, as in training.
    """
    s.only(use_bidirectional_attention=False, attention_bias=False)
    scale = np.float32(math.sqrt(fields["model_dim"]))
    if s.values.get("torch_dtype", s.values.get("dtype")) in ("bfloat16", "float16"):
        kind = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
        scale = kind[s.values.get("torch_dtype", s.values.get("dtype"))](scale)
    named_caps = zip(("attn_logit_softcapping", "final_logit_softcapping"), caps, strict=True)
    attention, final = (
        s.number(name, 0.0) if name in s.values else usual for name, usual in named_caps
    )
    return fields | {
        "norm": "rms_plus_one",
        "norm_position": "both",
        "embedding_scale": float(scale),
        "query_scale": math.sqrt(fields["head_dim"] / s.number("query_pre_attn_scalar", 256)),
        "attention_softcap": attention,
        "logit_softcap": final,
    }


def read_gemma2(s: JsonSettings, longest: int) -> Fields:
    """Reads Gemma 2 (2024): softcaps, norms around each sublayer, windows on every other layer."""
    fields = _fields(
        s, longest, length=8192, tied=True, activation="gelu_pytorch_tanh", head_dim=256
    )
    usual = [i % 2 == 0 for i in range(fields["num_layers"])]
    fields = _windowed(fields, s.whole("sliding_window", 4096), _layer_types(s, usual))
    s.forget("cache_implementation")
    return _gemma(s, fields, (50.0, 30.0))


def _write_gemma(c: ModelConfig) -> dict:
    _check_heads_divide(c)
    settings = _settings(c) | _window_settings(c)
    settings["hidden_activation"] = settings.pop("hidden_act")
    scalar = c.head_dim / c.query_scale**2
    scale = np.float32(math.sqrt(c.model_dim))
    rounded = float(scale) != c.embedding_scale
    return (
        settings
        | {
            "query_pre_attn_scalar": round(scalar)
            if abs(scalar - round(scalar)) < 1e-6 * scalar
            else scalar,
            "attn_logit_softcapping": c.attention_softcap or None,
            "final_logit_softcapping": c.logit_softcap or None,
        }
        | ({"torch_dtype": "bfloat16"} if rounded else {})
    )


def write_gemma2(c: ModelConfig) -> dict:
    """Writes the settings of `read_gemma2`."""
    return _write_gemma(c) | {"rope_parameters": _rope(c)}


def read_gemma3(s: JsonSettings, longest: int) -> Fields:
    """Reads Gemma 3 (2025): qk-norm, and RoPE of two bases, by the kind of layer."""
    fields = _fields(
        s, longest, length=131072, tied=True, activation="gelu_pytorch_tanh", head_dim=256, ropes=2
    )
    every = s.whole("sliding_window_pattern", s.whole("_sliding_window_pattern", 6))
    usual = [bool((i + 1) % every) for i in range(fields["num_layers"])]
    window, sliding = s.whole("sliding_window", 4096), _layer_types(s, usual)
    shape = RotaryShape(fields["head_dim"], fields["train_length"], longest=longest)
    older, newer = s.section("rope_scaling"), s.section("rope_parameters")
    theta = {
        "full_attention": s.number("rope_theta", 1e6),
        "sliding_attention": s.number("rope_local_base_freq", 10_000.0),
    }
    turns = {}
    for word, slides in _LAYER_TYPES.items():
        own = newer.section(word) if newer is not None else None
        if older is not None and not slides:
            own = older
        base = RotaryShape(shape.head_dim, shape.length, theta[word], longest=longest)
        turns[slides] = rotation(own, base)
    if newer is not None:
        newer.finish()
    heads = [HeadGroup(turns[one], window=Window(window) if one else None) for one in sliding]
    s.only(attn_logit_softcapping=None)
    return _gemma(s, fields | {"scheme": scheme_of(heads), "qk_norm": True}, (0.0, 0.0))


def write_gemma3(c: ModelConfig) -> dict:
    """Writes the settings of `read_gemma3`."""
    ropes = {}
    for heads in layers_of(c):
        word = "full_attention" if heads.window is None else "sliding_attention"
        own = rope_parameters(heads.rotation, c.head_dim)
        if ropes.setdefault(word, own) != own:
            raise ValueError("has one rotation per kind of layer")
    return _write_gemma(c) | {"rope_parameters": ropes}


def read_cohere(s: JsonSettings, longest: int) -> Fields:
    """Reads Cohere's Command R (2024), which PaLM resembles: LayerNorm and residual in parallel."""
    fields = _fields(
        s,
        longest,
        5e5,
        length=8192,
        tied=True,
        pairing="interleaved",
        epsilon_name="layer_norm_eps",
        epsilon=1e-5,
    )
    s.only(use_qk_norm=False)
    if s.number("logit_scale", 0.0625) != 1:
        raise ValueError(f"{s.where}: logit_scale is not 1; multiply the final norm's gain by it")
    biases = ("qkv", "out") if s.flag("attention_bias", False) else ()
    return fields | {"norm": "layer_no_bias", "parallel": "one_norm", "biases": biases}


def write_cohere(c: ModelConfig) -> dict:
    """Writes the settings of `read_cohere`."""
    settings = _settings(c) | {
        "layer_norm_eps": c.norm_epsilon,
        "logit_scale": 1.0,
        "use_qk_norm": False,
    }
    del settings["rms_norm_eps"]
    return settings | {
        "attention_bias": "qkv" in c.biases,
        "rope_parameters": rope_parameters(one_layer(c).rotation, c.head_dim),
    }
