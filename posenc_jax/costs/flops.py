"""Floating point operations of a training step, by formula: a multiplication and an addition are two.

Counted are matrix products, which is what the peak of a data sheet is about; norms, softmax, rotations and
the optimizer are under a few per cent of them at any size worth planning. Two numbers: `model_flops`, what the
mathematics asks for (causal pairs only, forward and twice that backward), which is what an MFU divides; and
`hardware_flops`, what the chosen kernels and remat do.
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

    projections: float  # queries, keys, values, out, and the gate of what comes out
    mlp: float
    attention: float  # content logits and weighted values
    head: float  # logits over the vocabulary

    @property
    def total(self) -> float:
        """All of them."""
        return self.projections + self.mlp + self.attention + self.head

    def times(self, factor: float) -> "Flops":
        """Returns every part times a factor."""
        return Flops(**{f.name: factor * getattr(self, f.name) for f in dataclasses.fields(self)})


@dataclasses.dataclass(frozen=True)
class KernelCost:
    """What a way of attention multiplies: columns of queries and keys; products, of a forward's two, per pair."""

    q_block: int
    k_block: int
    multiple: int  # of the columns of a fold; 0: none
    backward: int  # products of one pair


# Backward, the vendor kernels and ours make the logits again: five products (Dao et al. 2022, alg. 4), which
# splash and our kernel for GPUs do in two passes of four and three. Tiles of 512 are splash's; cuDNN's are not published.
_KERNELS = {
    "flash": KernelCost(128, 64, 0, 7),
    "cudnn": KernelCost(128, 128, 8, 5),
    "splash": KernelCost(512, 512, 128, 7),
    "blockwise": KernelCost(512, 256, 0, 5),
}
# Blockwise where tiles are worked on side by side: its backward goes over the tiles twice too.
_SIDE_BY_SIDE = KernelCost(512, 512, 0, 7)


def model_flops(model: ModelConfig, rows: int, length: int) -> Flops:
    """Returns what a step over `rows` sequences asks for: forward, and twice that backward."""
    H, attention = model.head_dim, 0.0
    for layer in model.placed.layers:
        windows_N = iter(head_windows(layer, model.window))
        for group in layer.groups:
            columns = H * (group.heads.rotation.columns_per_dim if group.heads.rotation else 1)
            for _ in range(group.context.heads):
                pairs = causal_pairs(length, next(windows_N))
                attention += 2 * (H + columns) * (pairs if layer.form is None else H * length)
    return dataclasses.replace(_matrices(model, rows * length), attention=rows * attention).times(3)


def _matrices(c: ModelConfig, tokens: int, key_copies: int = 1) -> Flops:
    D, N, K, H = c.model_dim, c.num_heads, key_copies * c.num_kv_heads, c.head_dim
    projections = 2 * D * H * ((3 if c.output_gate else 2) * N + 2 * K) * c.num_layers
    mlp = 2 * D * c.mlp_dim * (3 if c.activation == "swiglu" else 2) * c.num_layers
    return Flops(tokens * projections, tokens * mlp, 0.0, tokens * 2 * D * c.vocab_size)


def causal_pairs(length: int, window: int | None) -> int:
    """Returns the number of (query, key) pairs of a row in which the key is in sight."""
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
    """Returns what a step multiplies on "cpu", "gpu" or "tpu", with the kernels that `auto` takes there.

    Attention by blocks is counted in whole tiles, up to the window beyond which a biased head provably
    needs none; that window is known before training under qk-norm only, at its initial gain.

    Args:
      sequence: devices that the tokens of a row lie on.
      key_copies: devices that each project to all key heads (`model.mesh.key_heads_axis`).
      remat: as `posenc_jax.model.layer_stack.REMAT`. Of a layer made again the last product is not: only the
        next layer reads it.
      head_again: the backward pass makes the logits over the vocabulary again (`loss.in_pieces`).
    """
    forward = _matrices(model, rows * length, key_copies)
    again = remat in ("attention", "full")
    down = forward.mlp / (3 if model.activation == "swiglu" else 2)
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
    """Returns the operations of both passes, and whether the kernel says what it must keep."""
    path = choose_implementation(
        layer, length, length, c.attention, head_dim=c.head_dim, dtype=c.dtype, device=device,
        sequence=sequence, sink=c.sink_logit, consecutive=c.consecutive, window=c.window,
    ).name  # fmt: skip
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
    values = 2 * (columns if path in ("cudnn", "flash") else H)  # they want one head dim for all
    # Of the backward products those with keys or queries have their columns, those with values have values'.
    again = {5: 3 * logits + 2 * values, 7: 4 * logits + 3 * values}[kernel.backward]
    return tiles * (logits + values), tiles * again, True


def tile_pairs(length: int, reach: int, q_most: int, k_most: int) -> int:
    """Returns the pairs in the tiles that hold a key in sight and less than `reach` away from a query."""
    q_block, k_block = even_block(length, q_most), even_block(length, k_most)
    pairs = 0
    for first in range(0, length, q_block):
        last = min(first + q_block, length) - 1
        tiles = last // k_block - max(first - reach + 1, 0) // k_block + 1
        pairs += tiles * q_block * k_block
    return pairs


def bias_windows(c: ModelConfig, layer: PlacedLayer, length: int) -> Sequence[int]:
    """Returns the window of each head at the start of training; `length` where there is none to know."""
    params, bound = layer.init(jax.random.key(0)), math.inf
    if c.qk_norm and not layer.tempered_by_tokens:
        rotations = [(g.heads.rotation, g.context) for g in layer.groups if g.heads.rotation]
        grown = max((rotation.amplitude(place) ** 2 for rotation, place in rotations), default=1.0)
        bound = math.sqrt(c.head_dim) * _hottest(layer, params, length) * grown
    return [int(n) for n in cutoff_windows(layer, params, bound, length)]


def _hottest(layer: PlacedLayer, params, length: int) -> float:
    last = jnp.full((1, 1), length - 1, jnp.int32)
    tau = layer.temperature(params, last, jnp.zeros((1, 1), jnp.int32))
    return 1.0 if tau is None else max(1.0, float(jnp.abs(tau).max()))
