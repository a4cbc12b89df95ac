"""How a stack of layers is carried out: one by one or in a loop, and what of them waits for the backward pass.

Parameters stay stored layer by layer. What is computed does not change, up to rounding; compile time and
memory do.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import checkpoint_policies as policies

from posenc_jax.attention.kernels.remat_names import is_attention_residual

# What a layer keeps for its backward pass, from most to least; the rest is made again from what came in.
REMAT = {
    "none": None,
    "dots": policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable, is_attention_residual
    ),
    "attention": is_attention_residual,
    "full": policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class LayerExecution:
    """How layers are carried out.

    Attributes:
      scan: a loop over the layers compiles each different one once, in place of every one.
      remat: what each layer keeps, a name of `REMAT`: "none" of it is made again; "dots" keeps products
        with matrices and what attention's kernel needs; "attention" the latter alone; "full" makes all again.
    """

    scan: bool = False
    remat: str = "none"


def period(layers: Sequence) -> int:
    """Returns the number of layers after which they repeat; their number, where they never do."""
    return next(
        p for p in range(1, len(layers) + 1)
        if all(a == b for a, b in zip(layers, layers[p:], strict=False))
    )  # fmt: skip


def apply_layers(
    blocks: Sequence[Callable[[Any, jax.Array], jax.Array]],
    params: Sequence[Any],
    x_BTD: jax.Array,
    execution: LayerExecution,
) -> jax.Array:
    """Returns x_BTD after all layers.

    Args:
      blocks: one function (parameters, x_BTD) of each different layer; they are cycled.
      params: of every layer; those of equal layers have equal structure. A loop stacks them, so what is
        cast to a smaller dtype is better cast before.
    """
    p = len(blocks)
    if execution.remat != "none":
        # In a loop, forward and backward are loops of their own: no common subexpression can undo this.
        blocks = [
            jax.checkpoint(block, policy=REMAT[execution.remat], prevent_cse=not execution.scan)
            for block in blocks
        ]
    looped = len(params) // p * p if execution.scan else 0

    def turn(x_BTD, cycle):
        for block, own in zip(blocks, cycle, strict=True):
            x_BTD = block(own, x_BTD)
        return x_BTD, None

    if looped:
        cycles = [jax.tree.map(lambda *x: jnp.stack(x), *params[i:looped:p]) for i in range(p)]
        x_BTD, _ = jax.lax.scan(turn, x_BTD, cycles)
    for i in range(looped, len(params)):
        x_BTD = blocks[i % p](params[i], x_BTD)
    return x_BTD
