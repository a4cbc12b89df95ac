"""Base of the families of transformers: reader, writer and tensors of each, and shared helpers.

A configuration can be exported to a family if reading what the writer wrote gives the same
configuration, so no switch can be lost.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posenc_jax.encodings import HeadGroup, Learned, Scheme, Window
from posenc_jax.encodings.base import Absolute, Rotation
from posenc_jax.interop.json_settings import JsonSettings
from posenc_jax.interop.rope_settings import RotaryShape, canonical_rotation, rotation
from posenc_jax.interop.weight_layouts import Rule
from posenc_jax.model.config import ModelConfig

GATED = {"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu": "geglu_exact"}
PLAIN = {
    "gelu": "gelu_exact",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_fast": "gelu",
    "gelu_python": "gelu_exact",
    "quick_gelu": "gelu_quick",
    "relu": "relu",
}
Fields = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of decoders in transformers.

    Attributes:
      model_type, model_class: as in config.json. read: returns the fields of a `ModelConfig` from
        (settings, longest sequence in tokens). write: returns config.json of a configuration, or
        raises ValueError.
      rules: the tensors; rules of parameters that a configuration does not have are left out.
      base: the prefix of the model without its head; checkpoints of that part alone leave it out.
      unused: patterns of tensors that hold no parameter, such as masks.
      alternative: which name an export writes where a rule has several.
    """

    model_type: str
    model_class: str
    read: Callable[[JsonSettings, int], Fields]
    write: Callable[[ModelConfig], dict]
    rules: Sequence[Rule]
    base: str
    unused: tuple[str, ...] = ()
    alternative: Callable[[ModelConfig], int] = lambda config: 0


def config_of(fields: Fields) -> ModelConfig:
    """Returns the configuration of a reader's fields, with our usual settings for the rest."""
    usual: Fields = {
        "qk_norm": False,
        "tied_head": True,
        "embedding_scale": 1.0,
        "dtype": "float32",
        "attention": "auto",
    }
    return ModelConfig(**usual | fields)


def scheme_of(layers: Sequence[HeadGroup], absolute: Absolute | None = None) -> Scheme:
    """Returns the scheme of these layers, cycled with their smallest period."""
    period = next(
        p
        for p in range(1, len(layers) + 1)
        if all(layer == layers[i % p] for i, layer in enumerate(layers))
    )
    return Scheme(tuple((layer,) for layer in layers[:period]), absolute)


def canonical(config: ModelConfig) -> ModelConfig:
    """Returns an equal configuration in which every number of the scheme is written out.

    dtype and attention, which are choices of a run, get their usual values.
    """
    placed, groups = config.placed, []
    for layer in placed.layers:
        own = []
        for group in layer.groups:
            heads, context = group.heads, group.context
            window = heads.window and Window(heads.window.tokens(context))
            turn = canonical_rotation(heads.rotation, config.head_dim, context.train_length)
            share = heads.share if len(layer.groups) > 1 else 1
            own.append(dataclasses.replace(heads, rotation=turn, window=window, share=share))
        groups.append(tuple(own))
    absolute = placed.absolute
    if isinstance(absolute, Learned):
        absolute = Learned(size=absolute.longest(placed.whole), offset=absolute.offset)
    scheme = Scheme(tuple(groups), absolute)
    if config.window is not None:
        raise ValueError("transformers has no window of a run beside the model's own")
    return dataclasses.replace(
        config,
        scheme=scheme,
        dtype="float32",
        attention="auto",
        consecutive=True,
        biases=tuple(sorted(config.biases)),
    )


def layers_of(config: ModelConfig) -> list[HeadGroup]:
    """Returns the one head group of every layer.

    Raises:
      ValueError: several groups on a layer, or a part that no model of transformers has.
    """
    layers = []
    for layer in canonical(config).parsed_scheme.layers:
        if len(layer) > 1:
            raise ValueError(
                "transformers has no model whose heads differ in their position encoding"
            )
        parts = {"temperature": layer[0].temperature, "form of attention": layer[0].form}
        for what, part in parts.items():
            if part is not None:
                raise ValueError(f"transformers has no {what} like {type(part).__name__}")
        layers.append(layer[0])
    return layers


def one_layer(config: ModelConfig) -> HeadGroup:
    """Returns the head group that all layers share; ValueError where they differ."""
    layers = layers_of(config)
    if len(set(layers)) > 1:
        raise ValueError("layers differ in their position encoding")
    return layers[0]


def bias_part(config: ModelConfig, kind: type):
    """Returns the bias of all layers, of one kind; ValueError for another."""
    part = one_layer(config).bias
    if not isinstance(part, kind):
        raise ValueError(f"has no {kind.__name__}")
    return part


def named(table: Mapping[str, str], activation: str) -> str:
    """Returns the first name that `table` gives an activation; ValueError without one."""
    for name, ours in table.items():
        if ours == activation:
            return name
    raise ValueError(f"has no activation {activation}")


def rope_of(s: JsonSettings, shape: RotaryShape) -> Rotation:
    """Returns the rotation of all layers, from `rope_parameters` or from older settings."""
    shape = dataclasses.replace(
        shape,
        base=s.number("rope_theta", shape.base),
        fraction=s.number("partial_rotary_factor", shape.fraction),
        original=s.whole("original_max_position_embeddings", shape.original),
    )
    older, newer = s.section("rope_scaling"), s.section("rope_parameters")
    if older is not None and newer is not None and older.values != newer.values:
        raise ValueError(f"{s.where}: rope_scaling and rope_parameters disagree")
    return rotation(newer or older, shape)


def check_divides(s: JsonSettings, model_dim: int, num_heads: int) -> int:
    """Returns the head dim; ValueError where the heads do not divide the model dim."""
    if not num_heads or model_dim % num_heads:
        raise ValueError(f"{s.where}: {num_heads} heads do not divide a model dim of {model_dim}")
    return model_dim // num_heads


def multi_head(s: JsonSettings, model_dim: int, num_heads: int) -> Fields:
    """Returns the fields of attention whose every head has keys of its own."""
    return {
        "model_dim": model_dim,
        "num_heads": num_heads,
        "num_kv_heads": num_heads,
        "head_dim": check_divides(s, model_dim, num_heads),
    }
