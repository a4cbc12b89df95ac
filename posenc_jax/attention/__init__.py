"""Attention under a positional scheme.

Needs jax and numpy alone. Start at :func:`attend`.
"""

from posenc_jax.attention.arguments import AttentionSettings, OptionalInputs, TokenSide
from posenc_jax.attention.attend import IMPLEMENTATIONS, attend, choose_implementation
from posenc_jax.attention.blockwise.api import BlockwiseSettings, blockwise_attention
from posenc_jax.attention.dense import dense_attention
from posenc_jax.attention.kernels.vendor import KernelConditions
from posenc_jax.attention.mask import visible
from posenc_jax.attention.ring.api import ring_attention, ring_hops
from posenc_jax.attention.sharding import cumulative_log_forget
from posenc_jax.attention.token_shift import LastToken, ShiftWeights, token_shift

__all__ = [
    "IMPLEMENTATIONS",
    "AttentionSettings",
    "BlockwiseSettings",
    "KernelConditions",
    "LastToken",
    "OptionalInputs",
    "ShiftWeights",
    "TokenSide",
    "attend",
    "blockwise_attention",
    "choose_implementation",
    "cumulative_log_forget",
    "dense_attention",
    "ring_attention",
    "ring_hops",
    "token_shift",
    "visible",
]
