"""What attention's kernels must keep for their backward pass, marked so that a remat policy can find it.

With their result and the logarithms of their softmax sums kept, no kernel runs its forward pass twice.
"""

import jax
from jax.ad_checkpoint import checkpoint_name

ATTENTION_NAME = "attention"  # of the results of kernels that can be given one
_UNNAMED = ("dot_product_attention_fwd_wrapper",)  # JAX's primitive around cuDNN takes no name


def name_residuals(tree):
    """Returns the arrays of `tree` as they are, marked with `ATTENTION_NAME`."""
    return jax.tree.map(lambda x: checkpoint_name(x, ATTENTION_NAME), tree)


def is_attention_residual(primitive, *arguments, **settings) -> bool:
    """Whether a value belongs to what attention keeps: a policy for `jax.checkpoint`."""
    named = jax.checkpoint_policies.save_only_these_names(ATTENTION_NAME)
    return primitive.name in _UNNAMED or named(primitive, *arguments, **settings)
