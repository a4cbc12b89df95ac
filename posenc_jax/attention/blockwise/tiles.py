"""Tiles of attention: slices of the arrays for one block of queries and one block of keys.

In a tile T and S are one block of queries and one of keys, and G are its heads; in `Operands` T and
S are all tokens. I counts blocks of queries, J blocks of keys, X the different windows.
"""

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from posenc_jax.attention.arguments import TokenSide
from posenc_jax.attention.dense import MASK_VALUE, capped
from posenc_jax.attention.mask import visible, window_array
from posenc_jax.encodings.base import Params
from posenc_jax.encodings.scheme import PlacedLayer


@dataclasses.dataclass(frozen=True)
class BlockwiseConfig:
    """The static part of blockwise attention of one head group."""

    layer: PlacedLayer  # of one head group; the whole layer where heads are split over devices
    queries_per_kv: int  # query heads per key/value head
    tile_heads: int  # heads of a tile: all heads of the group, or 1
    q_block: int
    k_block: int
    at_once: int  # largest number of key blocks that the forward pass reads together
    parallel_tiles: int  # largest number of tiles that run in parallel
    cutoff_entries: int  # length of the cut-off table, equal to the number of key slots
    window_N: tuple[int | None, ...]  # of the heads of the layer; None: no window
    causal: bool
    epsilon: float  # share of a row's softmax sum that the cut-off may leave out; 0 turns it off
    softcap: float = 0.0  # of content logits; 0: none

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The X different windows of the heads."""
        return tuple(dict.fromkeys(self.window_N))

    def window_of(self, head: jax.Array, heads: int) -> int | jax.Array | None:
        """Returns window_G of the layer's heads from `head` on; one value if all are equal."""
        if len(self.windows) == 1:
            return self.windows[0]
        return lax.dynamic_slice_in_dim(window_array(self.window_N), head, heads)

    def over_windows(self, x_XBI: jax.Array, head: jax.Array, reduce: Callable) -> jax.Array:
        """Returns x_BI: `reduce` (min or max) over the windows of the tile's heads, from `head`."""
        if len(self.windows) == 1:
            return x_XBI[0]
        which_N = jnp.array([self.windows.index(window) for window in self.window_N])
        return reduce(x_XBI[lax.dynamic_slice_in_dim(which_N, head, self.tile_heads)], axis=0)

    def tile_counts(self, operands: "Operands") -> tuple[int, int, int]:
        """Returns the numbers of sequences, of groups of `tile_heads` heads and of query blocks."""
        B, N, T, _ = operands.q_BNTH.shape
        return B, N // self.tile_heads, T // self.q_block


class Operands(NamedTuple):
    """The arrays with gradients, padded to whole blocks.

    H is the head dim of values and results; rotated queries and keys may have more columns. The
    cumulative log-forget covers all heads of `config.layer`.
    """

    q_BNTH: jax.Array
    k_BKSH: jax.Array
    v_BKSH: jax.Array
    params: Params
    q_cum_log_forget_BTN: jax.Array | None
    k_cum_log_forget_BSN: jax.Array | None

    @property
    def root_H(self) -> float:
        """The square root of the head dim, by which logits are divided."""
        return math.sqrt(self.v_BKSH.shape[-1])


class TokenSides(NamedTuple):
    """The token sides of queries and keys, padded like `Operands`; padding has segment 0."""

    queries: TokenSide
    keys: TokenSide
    first_head: jax.Array  # index in the layer of this device's first head; 0 if it holds all heads


class Tile:
    """One block of queries of one sequence and G heads.

    It slices the arrays for its queries and for any key block, and adds to slices of gradients.

    Attributes:
      b: index of the sequence. i: index of the query block. kv, kv_heads: first key head and their
        number.
      n: first head, among this device's heads. head: the same head, among the layer's heads.
    """

    def __init__(
        self, config: BlockwiseConfig, operands: Operands, sides: TokenSides, index: jax.Array
    ):
        _B, N, T, _ = operands.q_BNTH.shape
        G, q_blocks = config.tile_heads, T // config.q_block
        self.config, self.operands, self.sides = config, operands, sides
        self.b, rest = index // (N // G * q_blocks), index % (N // G * q_blocks)
        self.n, self.i = rest // q_blocks * G, rest % q_blocks
        self.kv, self.kv_heads = self.n // config.queries_per_kv, max(G // config.queries_per_kv, 1)
        self.kv_G = (self.n + jnp.arange(G)) // config.queries_per_kv
        self.head = self.n + sides.first_head

    def later_half(self) -> "Tile":
        """Returns the tile of the later half of the queries."""
        half = copy.copy(self)
        half.config = dataclasses.replace(self.config, q_block=self.config.q_block // 2)
        half.i = 2 * self.i + 1
        return half

    def queries(self, x_BNTx):
        """Returns the tile's heads and queries, float32."""
        at = (self.b, self.n, self.i * self.config.q_block) + (0,) * (x_BNTx.ndim - 3)
        size = (1, self.config.tile_heads, self.config.q_block, *x_BNTx.shape[3:])
        return lax.dynamic_slice(x_BNTx, at, size)[0].astype(jnp.float32)

    def keys(self, x_BKSH, j, blocks=1):
        """Returns the key blocks from j on for every head of the tile, float32."""
        size = (1, self.kv_heads, blocks * self.config.k_block, x_BKSH.shape[-1])
        x_KSH = lax.dynamic_slice(x_BKSH, (self.b, self.kv, j * self.config.k_block, 0), size)[0]
        x_KSH = x_KSH.astype(jnp.float32)
        return jnp.repeat(x_KSH, self.config.tile_heads // self.kv_heads, axis=0)

    def add_to_keys(self, x_BKHS, j, d_GHS):
        """Returns x_BKHS with d_GHS added to key block j, summed per key head."""
        d_KHS = self.by_key_head(d_GHS)
        at = (self.b, self.kv, 0, j * self.config.k_block)
        old_1KHS = lax.dynamic_slice(x_BKHS, at, (1, *d_KHS.shape))
        return lax.dynamic_update_slice(x_BKHS, old_1KHS + d_KHS[None], at)

    def by_key_head(self, d_Gxx):
        """Returns d_Kxx, summed over the query heads of each key head."""
        return d_Gxx.reshape(self.kv_heads, -1, *d_Gxx.shape[1:]).sum(1)

    def sequence_slice(self, x_BTx, start, size):
        """Returns x_Tx, `size` slots from `start` of the tile's sequence."""
        rest = x_BTx.shape[2:]
        return lax.dynamic_slice(x_BTx, (self.b, start, *(0 for _ in rest)), (1, size, *rest))[0]

    def query_slice(self, x_BTx):
        return self.sequence_slice(x_BTx, self.i * self.config.q_block, self.config.q_block)

    def key_slice(self, x_BSx, j, blocks):
        return self.sequence_slice(x_BSx, j * self.config.k_block, blocks * self.config.k_block)

    def cum_log_forget(self, x_TN):
        """Returns x_GT, the heads of the tile."""
        return lax.dynamic_slice_in_dim(x_TN, self.head, self.config.tile_heads, axis=1).T

    def add_to_sequence(self, x_BTN, index, d_TN):
        """Returns x_BTN with d_TN added to block `index`; None stays None."""
        if x_BTN is None:
            return None
        at = (self.b, index * d_TN.shape[0], 0)
        old_1TN = lax.dynamic_slice(x_BTN, at, (1, *d_TN.shape))
        return lax.dynamic_update_slice(x_BTN, old_1TN + d_TN[None], at)

    def content(self, q_GTH, k_GSH):
        """Returns the content logits of the tile."""
        return dot(q_GTH, k_GSH, 2, 2) / self.operands.root_H

    def logit_inputs(self, j, blocks=1):
        """Returns the other inputs of `logits_function`: parameters, and log-forget sums of both
        sides.
        """
        operands = self.operands
        if operands.q_cum_log_forget_BTN is None:
            return operands.params, None, None
        q_cum_log_forget_TN = self.query_slice(operands.q_cum_log_forget_BTN)
        return (
            operands.params,
            q_cum_log_forget_TN,
            self.key_slice(operands.k_cum_log_forget_BSN, j, blocks),
        )

    def logits_function(self, j, blocks=1):
        """Returns the function from content logits and `logit_inputs` to the tile's logits."""
        layer, sides, heads = self.config.layer, self.sides, self.config.tile_heads
        window = self.config.window_of(self.head, heads)
        if isinstance(window, jax.Array):
            window = window[:, None, None]
        queries = jax.tree.map(lambda x_BT: self.query_slice(x_BT)[None], sides.queries)
        keys = jax.tree.map(lambda x_BS: self.key_slice(x_BS, j, blocks)[None], sides.keys)

        def own(x_1NTS):
            return lax.dynamic_slice_in_dim(x_1NTS[0], self.head, heads, axis=0)

        def tile_logits(content_GTS, params, q_cum_log_forget_TN, k_cum_log_forget_SN):
            tau_1NTS = layer.temperature(params, queries.pos_BT, keys.pos_BT)
            # A temperature of the query alone is already multiplied into q.
            if tau_1NTS is not None and tau_1NTS.shape[-1] != 1:
                content_GTS = content_GTS * own(tau_1NTS)
            logits_GTS = capped(content_GTS, self.config.softcap)
            log_forget = (
                None if x is None else x[None] for x in (q_cum_log_forget_TN, k_cum_log_forget_SN)
            )
            bias_1NTS = layer.bias(params, queries.pos_BT, keys.pos_BT, *log_forget)
            if bias_1NTS is not None:
                logits_GTS = logits_GTS + own(bias_1NTS)
            mask_GTS = visible(queries, keys, causal=self.config.causal, window=window)
            return jnp.where(mask_GTS, logits_GTS, MASK_VALUE)

        return tile_logits


def visible_blocks(config: BlockwiseConfig, sides: TokenSides) -> tuple[jax.Array, jax.Array]:
    """Returns first_XBI, end_XBI: for window X, no query of block I may attend to a key block
    outside of [first, end).

    It compares the ranges of the blocks' positions and segments; padding does not count.
    """

    def extremes(x_BT, seg_BT, block):
        least, most = np.iinfo(np.int32).min, np.iinfo(np.int32).max
        x_BIt, live_BIt = (y.reshape(y.shape[0], -1, block) for y in (x_BT, seg_BT != 0))
        return jnp.where(live_BIt, x_BIt, most).min(-1), jnp.where(live_BIt, x_BIt, least).max(-1)

    (q_pos, q_seg, q_order), (k_pos, k_seg, k_order) = (
        [extremes(x, side.seg_BT, block) for x in (side.pos_BT, side.seg_BT, side.causal_BT)]
        for side, block in ((sides.queries, config.q_block), (sides.keys, config.k_block))
    )
    (q_seg_low, q_seg_high), (q_low, q_high) = ([x[:, :, None] for x in y] for y in (q_seg, q_pos))
    (k_seg_low, k_seg_high), (k_low, k_high) = ([x[:, None, :] for x in y] for y in (k_seg, k_pos))
    may_see_BIJ = (q_seg_low <= k_seg_high) & (k_seg_low <= q_seg_high)
    if config.causal:
        may_see_BIJ &= k_order[0][:, None, :] <= q_order[1][:, :, None]
    may_see_XBIJ = jnp.stack(
        [
            may_see_BIJ if w is None else may_see_BIJ & (q_low - k_high < w) & (k_low - q_high < w)
            for w in config.windows  # all-padding blocks overflow, but may_see_BIJ is False there
        ]
    )
    J = may_see_BIJ.shape[-1]
    end_XBI = jnp.where(may_see_XBIJ, jnp.arange(1, J + 1), 0).max(-1)
    first_XBI = jnp.where(may_see_XBIJ, jnp.arange(J), J).min(-1)
    return jnp.minimum(first_XBI, end_XBI), end_XBI


def earlier_half_end(config: BlockwiseConfig, sides: TokenSides) -> jax.Array | None:
    """Returns end_XBI for the earlier half of the queries of block I, at most the end of the whole
    block.

    If q_block is at least 2 k_block, the earlier half sees no key of the last key block on the
    causal diagonal, and this end leaves that block out. None if tiles run in parallel (there it
    would cost more than it saves), without causality, or if q_block is odd.
    """
    if config.parallel_tiles > 1 or not config.causal or config.q_block % 2:
        return None
    halved = dataclasses.replace(config, q_block=config.q_block // 2)
    _, half_XBI = visible_blocks(halved, sides)
    return jnp.minimum(half_XBI[..., ::2], visible_blocks(config, sides)[1])


def dot(a, b, a_dim: int, b_dim: int) -> jax.Array:
    """Returns the product of two stacks of matrices, float32, summed over the given dims."""
    return lax.dot_general(
        a, b, (((a_dim,), (b_dim,)), ((0,), (0,))), preferred_element_type=jnp.float32
    )


def even_block(length: int, most: int) -> int:
    """Returns the block size that cuts `length` evenly into the fewest blocks of at most `most`.

    Sizes of 8 or more are then rounded up to a multiple of 8, which may exceed `most` if that is no
    multiple of 8.
    """
    size = -(-length // -(-length // most))
    return size if size < 8 else -(-size // 8) * 8


def pad(x: jax.Array, axis: int, block: int) -> jax.Array:
    """Returns x padded with zeros along `axis` to whole blocks."""
    missing = -x.shape[axis] % block
    if not missing:
        return x
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])
