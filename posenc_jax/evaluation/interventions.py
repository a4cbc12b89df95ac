"""M12: what changes when one part of a trained model is taken away.

An intervention is a function from a model to a changed model, configuration and parameters. The
decoder knows nothing of it: it is given another scheme, another mask or other matrices.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from posenc_jax.encodings import HeadGroup, parse, unparse
from posenc_jax.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class ParameterizedModel:
    """A decoder that can be run: its configuration and its parameters."""

    config: ModelConfig
    params: dict


Intervention = Callable[[ParameterizedModel], ParameterizedModel]


def slopes_off(model: ParameterizedModel) -> ParameterizedModel:
    """Returns the model without any distance bias: every slope 0, every gate open.

    Raises:
      ValueError: the scheme has no bias.
    """
    return _without("bias", model)


def rotation_off(model: ParameterizedModel) -> ParameterizedModel:
    """Returns the model with queries and keys as projected (PoPE: their magnitudes), turned nowhere.

    Raises:
      ValueError: the scheme rotates nothing.
    """
    return _without("rotation", model)


def windowed(tokens: int) -> Intervention:
    """Returns the intervention that hides all keys at a distance of `tokens` or more."""
    return lambda model: dataclasses.replace(
        model, config=dataclasses.replace(model.config, window=tokens)
    )


def head_off(layer: int, head: int) -> Intervention:
    """Returns the intervention that takes a head out: its rows of the output projection become 0.

    Raises:
      ValueError: when applied to a model without such a head.
    """

    def ablated(model: ParameterizedModel) -> ParameterizedModel:
        c = model.config
        if not (0 <= layer < c.num_layers and 0 <= head < c.num_heads):
            raise ValueError(
                f"no head {layer}.{head}: the model has {c.num_layers} layers of {c.num_heads} heads"
            )
        name = f"layer_{layer}"
        block = model.params[name]
        out_NHD = jnp.asarray(block["attention"]["out_NHD"]).at[head].set(0.0)
        attention = {**block["attention"], "out_NHD": out_NHD}
        return ParameterizedModel(c, {**model.params, name: {**block, "attention": attention}})

    return ablated


def every_intervention(config: ModelConfig, train_length: int) -> dict[str, Intervention]:
    """Returns the interventions of M12 by the name that their rows carry."""
    found = {"slopes off": slopes_off, "rotation off": rotation_off, "window L": windowed(train_length)}  # fmt: skip
    for layer in range(config.num_layers):
        for head in range(config.num_heads):
            found[f"head:{layer}.{head} off"] = head_off(layer, head)
    return found


def _without(kind: str, model: ParameterizedModel) -> ParameterizedModel:
    scheme = parse(model.config.scheme)

    def bare(heads: HeadGroup) -> HeadGroup:
        part = getattr(heads, kind)
        return dataclasses.replace(heads, **{kind: part and part.switched_off()})

    layers = tuple(tuple(bare(heads) for heads in layer) for layer in scheme.layers)
    if layers == scheme.layers:
        raise ValueError(f"{model.config.scheme!r} has no {kind} to switch off")
    bare_scheme = unparse(dataclasses.replace(scheme, layers=layers))
    config = dataclasses.replace(model.config, scheme=bare_scheme)
    params = dict(model.params)
    for i, layer in enumerate(config.placed.layers):  # what the taken part had learned goes with it
        block = params[f"layer_{i}"]
        if "scheme" in block["attention"]:
            left = jax.eval_shape(layer.init, jax.random.key(0))
            kept = {name: block["attention"]["scheme"][name] for name in left}
            attention = {**block["attention"], "scheme": kept}
            params[f"layer_{i}"] = {**block, "attention": attention}
    return ParameterizedModel(config, params)
