"""Interventions (M12): functions from a trained model to one with a part switched off.

They change the configuration or the parameters; the decoder's code is the same.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from posenc_jax.encodings import HeadGroup
from posenc_jax.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class ParameterizedModel:
    """A decoder's configuration and its parameters."""

    config: ModelConfig
    params: dict


Intervention = Callable[[ParameterizedModel], ParameterizedModel]


def slopes_off(model: ParameterizedModel) -> ParameterizedModel:
    """Returns the model without any distance bias; ValueError for a scheme without one."""
    return _without("bias", model)


def rotation_off(model: ParameterizedModel) -> ParameterizedModel:
    """Returns the model without rotation (PoPE: magnitudes stay); ValueError without one."""
    return _without("rotation", model)


def windowed(tokens: int) -> Intervention:
    """Returns the intervention that masks all keys at a distance of `tokens` or more."""
    return lambda model: dataclasses.replace(
        model, config=dataclasses.replace(model.config, window=tokens)
    )


def head_off(layer: int, head: int) -> Intervention:
    """Returns the intervention that zeros a head's output; ValueError without such a head."""

    def ablated(model: ParameterizedModel) -> ParameterizedModel:
        c = model.config
        if not (0 <= layer < c.num_layers and 0 <= head < c.num_heads):
            raise ValueError(
                f"no head {layer}.{head}: the model has {c.num_layers} layers of {c.num_heads} "
                "heads"
            )
        name = f"layer_{layer}"
        block = model.params[name]
        out_NHD = jnp.asarray(block["attention"]["out_NHD"]).at[head].set(0.0)
        attention = {**block["attention"], "out_NHD": out_NHD}
        return ParameterizedModel(c, {**model.params, name: {**block, "attention": attention}})

    return ablated


def every_intervention(config: ModelConfig, train_length: int) -> dict[str, Intervention]:
    """Returns the interventions of M12 by the name that their rows carry."""
    whole_model = {
        "slopes off": slopes_off,
        "rotation off": rotation_off,
        "window L": windowed(train_length),
    }
    return whole_model | {
        f"head:{layer}.{head} off": head_off(layer, head)
        for layer in range(config.num_layers)
        for head in range(config.num_heads)
    }


def _without(kind: str, model: ParameterizedModel) -> ParameterizedModel:
    scheme = model.config.parsed_scheme

    def bare(heads: HeadGroup) -> HeadGroup:
        part = getattr(heads, kind)
        return dataclasses.replace(heads, **{kind: part and part.switched_off()})

    layers = tuple(tuple(bare(heads) for heads in layer) for layer in scheme.layers)
    if layers == scheme.layers:
        raise ValueError(f"{model.config.scheme_line!r} has no {kind} to switch off")
    config = dataclasses.replace(model.config, scheme=dataclasses.replace(scheme, layers=layers))
    params = dict(model.params)
    for i, layer in enumerate(config.placed.layers):  # the parameters of the removed part go too
        block = params[f"layer_{i}"]
        if "scheme" in block["attention"]:
            remaining = jax.eval_shape(layer.init, jax.random.key(0))
            kept = {name: block["attention"]["scheme"][name] for name in remaining}
            attention = {**block["attention"], "scheme": kept}
            params[f"layer_{i}"] = {**block, "attention": attention}
    return ParameterizedModel(config, params)
