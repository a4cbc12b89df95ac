"""Published decoders as configurations of the one decoder, at their published size and small.

`preset("bloom")` is BLOOM 176B, and `preset("bloom", small=True)` the same switches at a size that
a laptop trains. Sizes are those of the papers and of the released config.json files.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from posenc_jax.model.config import ModelConfig
from posenc_jax.results.near_names import near_names

_LAYER = {"norm": "layer", "biases": ("qkv", "out", "mlp"), "norm_epsilon": 1e-5}
_LAYER_NO_BIAS = {"norm": "layer_no_bias", "norm_epsilon": 1e-5}
_LLAMA = {"activation": "swiglu", "tied_head": False}
_GEMMA = {"activation": "geglu", "norm": "rms_plus_one", "norm_position": "both"}
_SMALL = {
    "num_layers": 4,
    "model_dim": 64,
    "num_heads": 4,
    "head_dim": 16,
    "mlp_dim": 256,
    "train_length": 64,
    "vocab_size": 260,
}


@dataclasses.dataclass(frozen=True)
class System:
    """A published decoder.

    Attributes:
      source: paper or release. scheme: its position encoding, a line. shape: (layers, D, N, K, H,
        F, L, V). switches: fields of `ModelConfig` that differ from the usual ones. small_scheme:
        for a training length of 64, where windows and scalings must shrink. scaled: embeddings
        times sqrt(D), which Gemma rounds to bfloat16, the type of its weights. lacks: what the
        published model has and this configuration has not; "" for nothing.
    """

    source: str
    scheme: str
    shape: tuple[int, int, int, int, int, int, int, int]
    switches: dict
    small_scheme: str = ""
    scaled: bool = False
    lacks: str = ""


_YARN = "rope(base=1000000.0,stretch=yarn(factor=4.0,original={}))"
_GEMMA_2 = "rope+window(size={}),rope"
_GEMMA_3 = "5*(rope+window(size={})),rope(base=1000000.0,stretch=pi(factor=8.0))"
_SMOLLM_3 = "3*(rope(base=5000000.0)),nope"

SYSTEMS: dict[str, System] = {
    "transformer": System(
        "Vaswani et al. 2017, base",
        "sinusoidal",
        (6, 512, 8, 8, 64, 2048, 512, 37_000),
        _LAYER | {"activation": "relu", "norm_position": "post", "final_norm": False},
        scaled=True,
        lacks="the encoder, and attention to it",
    ),
    "gpt2": System(
        "Radford et al. 2019, 124M", "learned", (12, 768, 12, 12, 64, 3072, 1024, 50_257), _LAYER
    ),
    "roformer": System(
        "Su et al. 2021, base, as a language model",
        "rope(pairing=interleaved)",
        (12, 768, 12, 12, 64, 3072, 1536, 50_000),
        _LAYER
        | {
            "norm_position": "post",
            "final_norm": False,
            "embedding_norm": True,
            "head_transform": True,
            "activation": "gelu_exact",
            "biases": ("qkv", "out", "mlp", "head"),
            "norm_epsilon": 1e-12,
            "tied_head": False,
        },
        lacks="attention to later tokens, which the paper's encoder has",
    ),
    "alibi-247m": System(
        "Press et al. 2022, sec. 3, WikiText-103",
        "alibi",
        (16, 1024, 8, 8, 128, 4096, 512, 267_744),
        _LAYER | {"activation": "relu", "final_norm": False},
        scaled=True,
        lacks=(
            "the adaptive input and softmax of Baevski and Auli 2019: words past rank 20,000 have "
            "256 dims, those past 60,000 have 64, in clusters; here one tied table of 1024 dims "
            "serves all, and there are 476 million parameters, not 247"
        ),
    ),
    "alibi-1.3b": System(
        "Press et al. 2022, sec. 4.2",
        "alibi",
        (25, 2048, 16, 16, 128, 8192, 1024, 50_264),
        _LAYER | {"activation": "relu", "final_norm": False},
        scaled=True,
    ),
    "llama": System(
        "Touvron et al. 2023, 7B", "rope", (32, 4096, 32, 32, 128, 11_008, 2048, 32_000), _LLAMA
    ),
    "llama2": System(
        "Touvron et al. 2023b, 7B",
        "rope",
        (32, 4096, 32, 32, 128, 11_008, 4096, 32_000),
        _LLAMA | {"norm_epsilon": 1e-5},
    ),
    "llama3": System(
        "Grattafiori et al. 2024, 3.1 8B",
        "rope(base=500000.0,stretch=llama3(original=8192))",
        (32, 4096, 32, 8, 128, 14_336, 131_072, 128_256),
        _LLAMA | {"norm_epsilon": 1e-5},
        "rope(base=500000.0,stretch=llama3(original=8))",
    ),
    "mistral": System(
        "Jiang et al. 2023, 7B v0.1",
        "rope+window(size=4096)",
        (32, 4096, 32, 8, 128, 14_336, 32_768, 32_000),
        _LLAMA | {"norm_epsilon": 1e-5},
        "rope+window(size=16)",
    ),
    "mixtral": System(
        "Jiang et al. 2024, 8x7B",
        "rope(base=1000000.0)",
        (32, 4096, 32, 8, 128, 14_336, 32_768, 32_000),
        _LLAMA | {"norm_epsilon": 1e-5, "experts": 8, "experts_per_token": 2},
    ),
    "falcon-7b": System(
        "Almazrouei et al. 2023, 7B",
        "rope",
        (32, 4544, 71, 1, 64, 18_176, 2048, 65_024),
        _LAYER | {"parallel": "one_norm", "activation": "gelu_exact", "biases": ()},
    ),
    "falcon-40b": System(
        "Almazrouei et al. 2023, 40B",
        "rope",
        (60, 8192, 128, 8, 64, 32_768, 2048, 65_024),
        _LAYER | {"parallel": "two_norms", "activation": "gelu_exact", "biases": ()},
    ),
    "falcon-rw": System(
        "Penedo et al. 2023, RefinedWeb 1B",
        "alibi(staircase=true)",
        (24, 2048, 32, 32, 64, 8192, 2048, 50_304),
        _LAYER | {"activation": "gelu_exact"},
    ),
    "gpt-neox": System(
        "Black et al. 2022, 20B",
        "rope(dim=24)",
        (44, 6144, 64, 64, 96, 24_576, 2048, 50_432),
        _LAYER | {"parallel": "two_norms", "tied_head": False},
        "rope(dim=4)",
    ),
    "gpt-j": System(
        "Wang and Komatsuzaki 2021, 6B",
        "rope(dim=64,pairing=interleaved)",
        (28, 4096, 16, 16, 256, 16_384, 2048, 50_400),
        _LAYER | {"parallel": "one_norm", "biases": ("mlp", "head"), "tied_head": False},
        "rope(dim=4,pairing=interleaved)",
    ),
    "bloom": System(
        "Le Scao et al. 2022, 176B",
        "alibi",
        (70, 14_336, 112, 112, 128, 57_344, 2048, 250_880),
        _LAYER | {"embedding_norm": True},
    ),
    "mpt": System(
        "MosaicML 2023, 7B",
        "alibi",
        (32, 4096, 32, 32, 128, 16_384, 2048, 50_432),
        _LAYER_NO_BIAS | {"activation": "gelu_exact"},
    ),
    "palm": System(
        "Chowdhery et al. 2022, 540B",
        "rope(pairing=interleaved)",
        (118, 18_432, 48, 1, 256, 73_728, 2048, 256_000),
        _LAYER_NO_BIAS | {"parallel": "one_norm", "activation": "swiglu"},
        lacks="the pairing of its rotary dims, which is unpublished; this is Cohere's",
    ),
    "qwen2": System(
        "Yang et al. 2024, 7B with YaRN",
        _YARN.format(32_768),
        (28, 3584, 28, 4, 128, 18_944, 131_072, 152_064),
        _LLAMA | {"biases": ("qkv",)},
        _YARN.format(16),
    ),
    "qwen3": System(
        "Yang et al. 2025, 8B with YaRN",
        _YARN.format(32_768),
        (36, 4096, 32, 8, 128, 12_288, 131_072, 151_936),
        _LLAMA | {"qk_norm": True},
        _YARN.format(16),
    ),
    "gemma2": System(
        "Gemma Team 2024, 2B",
        _GEMMA_2.format(4096),
        (26, 2304, 8, 4, 256, 9216, 8192, 256_000),
        _GEMMA | {"attention_softcap": 50.0, "logit_softcap": 30.0},
        _GEMMA_2.format(16),
        scaled=True,
    ),
    "gemma3": System(
        "Gemma Team 2025, 4B",
        _GEMMA_3.format(1024),
        (34, 2560, 8, 4, 256, 10_240, 131_072, 262_208),
        _GEMMA | {"qk_norm": True},
        _GEMMA_3.format(16),
        scaled=True,
        lacks="the image encoder",
    ),
    "smollm3": System(
        "Bakouch et al. 2025, 3B",
        _SMOLLM_3,
        (36, 2048, 16, 4, 128, 11_008, 65_536, 128_256),
        {"activation": "swiglu"},
    ),
}


def preset(name: str, *, small: bool = False) -> ModelConfig:
    """Returns the configuration of a system in `SYSTEMS`.

    Five systems lack a part of the published model; their field `lacks` names it. Only for
    "alibi-247m", without adaptive input and softmax, does this change the probabilities of a
    language model.

    Args:
      small: 4 layers (6 for Gemma 3) of 64 dims, 64 tokens of context and 260 ids, with the kinds
        of heads of the published model.

    Raises:
      ValueError: an unknown name.
    """
    if name not in SYSTEMS:
        raise ValueError(f"unknown system {name!r}{near_names(name, SYSTEMS)}")
    system = SYSTEMS[name]
    names = (
        "num_layers",
        "model_dim",
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "mlp_dim",
        "train_length",
        "vocab_size",
    )
    shape = dict(zip(names, system.shape, strict=True))
    scheme = system.scheme
    if small:
        heads, kv_heads = shape["num_heads"], shape["num_kv_heads"]
        shape = _SMALL | {"num_kv_heads": 4 if kv_heads == heads else 1 if kv_heads == 1 else 2}
        shape["num_layers"] = 6 if name == "gemma3" else 4
        scheme = system.small_scheme or scheme
    usual = {
        "activation": "gelu",
        "qk_norm": False,
        "tied_head": True,
        "norm_epsilon": 1e-6,
        "dtype": "float32",
        "attention": "auto",
        "embedding_scale": _embedding_scale(system, shape["model_dim"]),
    }
    return ModelConfig(scheme=scheme, **usual | shape | system.switches)


def _embedding_scale(system: System, model_dim: int) -> float:
    if not system.scaled:
        return 1.0
    root = math.sqrt(model_dim)
    return float(np.asarray(root, jnp.bfloat16)) if "both" in system.switches.values() else root
