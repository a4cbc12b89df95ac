"""Execution of the layer stack: unrolled or as a scan, and the remat policy of each layer.

Both store the parameters per layer and give the same results up to rounding; compile time and
memory differ.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import checkpoint_policies as policies

from posenc_jax.attention.kernels.remat_names import is_attention_residual

# Remat policies, from most to least memory: what a layer saves for its backward pass. The rest is
# recomputed.
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
    """How the layers are executed.

    Attributes:
      scan: a scan over the layers, which compiles each different layer once.
      remat: a key of `REMAT`: "none" recomputes nothing; "dots" saves products with matrices and
        the residuals of attention; "attention" saves only the latter; "full" saves nothing and
        recomputes all.
    """

    scan: bool = False
    remat: str = "none"


def period(layers: Sequence) -> int:
    """Returns the smallest period of the sequence of layers; their number if they do not repeat."""
    return next(
        p
        for p in range(1, len(layers) + 1)
        if all(a == b for a, b in zip(layers, layers[p:], strict=False))
    )


def apply_layers(
    blocks: Sequence[Callable[[Any, jax.Array], jax.Array]],
    params: Sequence[Any],
    x_BTD: jax.Array,
    execution: LayerExecution,
) -> jax.Array:
    """Returns x_BTD after all layers.

    Args:
      blocks: one function (parameters, x_BTD) per layer of a period; the functions are cycled.
      params: parameters of every layer; equal layers have parameters of equal structure. A scan
        stacks the parameters, so cast them to a smaller dtype before.
    """
    p = len(blocks)
    if execution.remat != "none":
        # In a scan, forward and backward are separate loops, so common subexpressions cannot undo
        # remat.
        blocks = [
            jax.checkpoint(block, policy=REMAT[execution.remat], prevent_cse=not execution.scan)
            for block in blocks
        ]
    looped = len(params) // p * p if execution.scan else 0

    def apply_period(x_BTD, period_params):
        for block, own in zip(blocks, period_params, strict=True):
            x_BTD = block(own, x_BTD)
        return x_BTD, None

    if looped:
        stacked = [jax.tree.map(lambda *x: jnp.stack(x), *params[i:looped:p]) for i in range(p)]
        x_BTD, _ = jax.lax.scan(apply_period, x_BTD, stacked)
    for i in range(looped, len(params)):
        x_BTD = blocks[i % p](params[i], x_BTD)
    return x_BTD
