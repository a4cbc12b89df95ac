"""Names for the residuals of attention kernels, so that a remat policy can save them.

When the result and the logarithms of the softmax sums are saved, no kernel runs its forward pass
twice.
"""

import jax
from jax.ad_checkpoint import checkpoint_name

ATTENTION_NAME = "attention"  # checkpoint name of the residuals
# JAX's primitive for cuDNN attention, which takes no name.
_UNNAMED = ("dot_product_attention_fwd_wrapper",)


def name_residuals(tree):
    """Returns the arrays of `tree` with the checkpoint name `ATTENTION_NAME`."""
    return jax.tree.map(lambda x: checkpoint_name(x, ATTENTION_NAME), tree)


def is_attention_residual(primitive, *arguments, **settings) -> bool:
    """Whether a value is a residual of attention: a policy for `jax.checkpoint`."""
    named = jax.checkpoint_policies.save_only_these_names(ATTENTION_NAME)
    return primitive.name in _UNNAMED or named(primitive, *arguments, **settings)
