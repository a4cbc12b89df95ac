"""Floating point operations of a training step, by formula: a multiplication and an addition are
two.

Only matrix products count, as in the peak of a data sheet; in large models norms, softmax,
rotations and the optimizer add a few per cent. `model_flops` counts the mathematics (causal pairs
only, forward and twice that backward), for MFU. `hardware_flops` counts the work of the chosen
kernels and remat.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from posenc_jax.attention.attend import choose_implementation
from posenc_jax.attention.blockwise.cutoff import cutoff_windows
from posenc_jax.attention.blockwise.tiles import even_block
from posenc_jax.attention.kernels.bias_folding import SLOPE_LIMBS, slot_limbs
from posenc_jax.attention.mask import head_windows
from posenc_jax.encodings.scheme import PlacedLayer
from posenc_jax.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations of one training step, over all devices."""

    projections: float  # queries, keys, values, output and output gate
    mlp: float
    attention: float  # content logits and weighted values
    head: float  # logits over the vocabulary

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return self.projections + self.mlp + self.attention + self.head

    def times(self, factor: float) -> "Flops":
        """Returns every part times a factor."""
        return Flops(**{f.name: factor * getattr(self, f.name) for f in dataclasses.fields(self)})


@dataclasses.dataclass(frozen=True)
class KernelCost:
    """Cost of an attention kernel: tiles, padding of columns, products per pair in the backward."""

    q_block: int
    k_block: int
    multiple: int  # columns with a folded bias are padded to it; 0: no fold
    backward: int  # matrix products per pair; the forward has two


# The backward of all kernels computes the logits again: five products (Dao et al. 2022, alg. 4).
# Splash and our GPU kernel do it in two passes of four and three. Tiles of 512 are splash's;
# cuDNN's are not published.
_KERNELS = {
    "flash": KernelCost(128, 64, 0, 7),
    "cudnn": KernelCost(128, 128, 8, 5),
    "splash": KernelCost(512, 512, 128, 7),
    "blockwise": KernelCost(512, 256, 0, 5),
}
# Blockwise with parallel tiles: its backward has two passes too.
_SIDE_BY_SIDE = KernelCost(512, 512, 0, 7)


def model_flops(model: ModelConfig, rows: int, length: int) -> Flops:
    """Returns the FLOPs of the mathematics of a step: forward, and twice that backward."""
    H, attention = model.head_dim, 0.0
    for layer in model.placed.layers:
        windows_N = iter(head_windows(layer, model.window))
        for group in layer.groups:
            columns = H * (group.heads.rotation.columns_per_dim if group.heads.rotation else 1)
            for _ in range(group.context.heads):
                pairs = causal_pairs(length, next(windows_N))
                attention += 2 * (H + columns) * (pairs if layer.form is None else H * length)
    matrices = _matrices(model, rows * length, experts=model.experts_per_token or 1)
    return dataclasses.replace(matrices, attention=rows * attention).times(3)


def _matrices(c: ModelConfig, tokens: int, key_copies: int = 1, experts: int = 1) -> Flops:
    D, N, K, H = c.model_dim, c.num_heads, key_copies * c.num_kv_heads, c.head_dim
    projections = 2 * D * H * ((3 if c.output_gate else 2) * N + 2 * K) * c.num_layers
    mlp = 2 * D * c.mlp_dim * (3 if c.gated else 2) * c.num_layers * experts
    return Flops(tokens * projections, tokens * mlp, 0.0, tokens * 2 * D * c.vocab_size)


def causal_pairs(length: int, window: int | None) -> int:
    """Returns the number of (query, key) pairs of a row with a visible key."""
    reach = min(window or length, length)
    return reach * (reach + 1) // 2 + (length - reach) * reach


def hardware_flops(
    model: ModelConfig,
    rows: int,
    length: int,
    device: str,
    *,
    sequence: int = 1,
    key_copies: int = 1,
    remat: str = "none",
    head_again: bool = False,
) -> Flops:
    """Returns the FLOPs of a step on "cpu", "gpu" or "tpu", with the kernels that `auto` chooses
    there.

    Blockwise attention counts whole tiles within the cut-off window of a biased head. Before
    training this window is known under qk-norm only, at its initial gain.

    Args:
      sequence: devices that the tokens of a row are split over.
      key_copies: devices that each project to all key heads (`activation_sharding.key_heads_axis`).
      remat: as `posenc_jax.model.layer_stack.REMAT`. The backward pass does not repeat the last
        product of a layer, which only the next layer reads.
      head_again: the backward pass computes the vocabulary logits again (`loss.is_chunked`).
    """
    forward = _matrices(model, rows * length, key_copies, model.experts or 1)
    again = remat in ("attention", "full")
    down = forward.mlp / (3 if model.gated else 2)
    return Flops(
        projections=(3 + again) * forward.projections,
        mlp=3 * forward.mlp + again * (forward.mlp - down),
        attention=sum(
            rows * _attention(model, layer, length, device, sequence, remat)
            for layer in model.placed.layers
        ),
        head=(3 + head_again) * forward.head,
    )


def _attention(
    c: ModelConfig, layer: PlacedLayer, length: int, device: str, sequence: int, remat: str
) -> float:
    forward, backward, keeps = _kernel(c, layer, length, device, sequence)
    again = remat == "full" or (remat != "none" and not keeps)
    return forward * (1 + again) + backward


def _kernel(
    c: ModelConfig, layer: PlacedLayer, length: int, device: str, sequence: int
) -> tuple[float, float, bool]:
    """Returns the FLOPs of both passes, and whether remat can keep the kernel's residuals."""
    path = choose_implementation(
        layer, length, length, c.attention, c.kernel_conditions, device=device, sequence=sequence
    ).name
    N, H = c.num_heads, c.head_dim
    columns = layer.columns_per_dim * H
    if path not in _KERNELS:
        forward = 2 * N * (H + columns) * (H * length if path == "linear" else length**2)
        return forward, 2 * forward, False
    kernel = _SIDE_BY_SIDE if (path, device) == ("blockwise", "gpu") else _KERNELS[path]
    if kernel.multiple:
        extra = SLOPE_LIMBS * len(slot_limbs(length)[1]) + 1 + (2 if path == "cudnn" else 0)
        columns += extra + -(columns + extra) % kernel.multiple
    reach_N = [min(window or length, length) for window in head_windows(layer, c.window)]
    if path in ("blockwise", "flash") and c.consecutive:
        reach_N = [min(a, b) for a, b in zip(reach_N, bias_windows(c, layer, length), strict=True)]
    tiles = sum(tile_pairs(length, reach, kernel.q_block, kernel.k_block) for reach in reach_N)
    logits = 2 * columns
    values = 2 * (columns if path in ("cudnn", "flash") else H)  # one head dim for q, k and v
    again = {5: 3 * logits + 2 * values, 7: 4 * logits + 3 * values}[kernel.backward]
    return tiles * (logits + values), tiles * again, True


def tile_pairs(length: int, reach: int, q_most: int, k_most: int) -> int:
    """Returns the pairs in all tiles with a visible key less than `reach` away from a query."""
    q_block, k_block = even_block(length, q_most), even_block(length, k_most)
    pairs = 0
    for first in range(0, length, q_block):
        last = min(first + q_block, length) - 1
        tiles = last // k_block - max(first - reach + 1, 0) // k_block + 1
        pairs += tiles * q_block * k_block
    return pairs


def bias_windows(c: ModelConfig, layer: PlacedLayer, length: int) -> Sequence[int]:
    """Returns each head's cut-off window at the start of training; `length` if unknown."""
    params, bound = layer.init(jax.random.key(0)), math.inf
    if c.qk_norm and not layer.tempered_by_tokens:
        rotations = [(g.heads.rotation, g.context) for g in layer.groups if g.heads.rotation]
        grown = max(
            (rotation.amplitude(context) ** 2 for rotation, context in rotations), default=1.0
        )
        bound = math.sqrt(c.head_dim) * _largest_temperature(layer, params, length) * grown
    return [int(n) for n in cutoff_windows(layer, params, bound, length)]


def _largest_temperature(layer: PlacedLayer, params, length: int) -> float:
    last = jnp.full((1, 1), length - 1, jnp.int32)
    tau = layer.temperature(params, last, jnp.zeros((1, 1), jnp.int32))
    return 1.0 if tau is None else max(1.0, float(jnp.abs(tau).max()))
