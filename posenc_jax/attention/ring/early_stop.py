"""Early stop of the ring: the number of hops after which no row needs more keys.

At the start, every device sends the others a few numbers about its keys: the ranges of segments
and positions, the last key, the largest norm. From these each device computes whether any of its
queries sees a key on another device, and, by the bound of
`posenc_jax.attention.blockwise.cutoff`, whether those keys can still change the result.

Dims: R devices of the ring, in the order of the tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from posenc_jax.attention.arguments import TokenSide
from posenc_jax.attention.blockwise import cutoff
from posenc_jax.attention.blockwise.tiles import BlockwiseConfig, Operands, TokenSides
from posenc_jax.attention.sharding import Ring


class KeyRanges(NamedTuple):
    """The ranges of the keys of each device, without padding."""

    seg_low_BR: jax.Array
    seg_high_BR: jax.Array
    pos_low_BR: jax.Array
    pos_high_BR: jax.Array
    first_pos_BR: jax.Array  # of the first key where `ordered_BR`; its segment is the lowest
    last_pos_BR: jax.Array
    ordered_BR: jax.Array


class EarlyStop(NamedTuple):
    """The key ranges and tail bounds of all devices."""

    config: BlockwiseConfig
    ring: Ring
    operands: Operands
    sides: TokenSides
    ranges: KeyRanges
    tail: cutoff.TailBounds | None

    @classmethod
    def gather_ranges(
        cls,
        config: BlockwiseConfig,
        ring: Ring,
        operands: Operands,
        sides: TokenSides,
        tail_table: tuple[jax.Array | None] | None,
    ) -> "EarlyStop":
        """Returns the ranges and bounds of all devices (collective)."""
        ranges, tail = _key_ranges(sides.keys), None

        def gathered(x, dim):
            return lax.all_gather(x, ring.axis, axis=dim, tiled=True)

        if tail_table is not None:  # one block per device: bounds of the keys before its end
            own = cutoff.tail_bounds(
                *tail_table,
                config.cutoff_entries,
                operands.k_BKSH,
                sides.queries,
                sides.keys._replace(cum_log_forget_BTN=operands.k_cum_log_forget_BSN),
                operands.k_BKSH.shape[2],
            )
            tail = cutoff.TailBounds(
                own.table_NE,
                gathered(own.norm_BKJ[:, :, 1:], 2),
                gathered(own.seg_BJ[:, 1:], 1),
                gathered(own.pos_BJ[:, 1:], 1),
                None
                if own.cum_log_forget_BJN is None
                else gathered(own.cum_log_forget_BJN[:, 1:], 1),
                gathered(own.sure_J[1:], 0),
            )
        ranges = KeyRanges(*(gathered(x_B[:, None], 1) for x_B in ranges))
        if tail is not None and tail.table_NE is not None:
            # The table must reach from every query here to every key there.
            pos_BT, seg_BT = sides.queries[:2]
            furthest = jnp.where(seg_BT != 0, pos_BT, np.iinfo(np.int32).min).max()
            nearest_R = jnp.minimum(ranges.pos_low_BR.min(0), furthest)
            tail = tail._replace(
                sure_J=tail.sure_J & (furthest - nearest_R < config.cutoff_entries)
            )
        return cls(config, ring, operands, sides, ranges, tail)

    def norm_BKR(self, kv_heads: int) -> jax.Array:
        """Returns the largest key norm on every device; zeros without a bound."""
        if self.tail is None:
            return jnp.zeros((self.ranges.ordered_BR.shape[0], kv_heads, self.ring.size))
        return self.tail.norm_BKJ

    def hops_needed(
        self,
        first_head: jax.Array,
        q_BNTH: jax.Array,
        norm_BKR: jax.Array,
        least: jax.Array,
        lse_BNT: jax.Array,
    ) -> jax.Array:
        """Returns the number of hops, at least `least`, after which no device needs more
        (collective).

        Args:
          first_head: index of the first head in the config's layer. q_BNTH, norm_BKR: of one bundle
            of heads.
          lse_BNT: ln of the softmax sums over the keys read so far.
        """
        here, size = lax.axis_index(self.ring.axis), self.ring.size
        q_norm_BNT = jnp.sqrt((q_BNTH.astype(jnp.float32) ** 2).sum(-1)) / self.operands.root_H

        def further(r, most):
            hops = (here - r) % size
            needs = self._needs(r, first_head, q_norm_BNT, norm_BKR, lse_BNT)
            return jnp.where(needs & (hops > most), hops, most)

        most = lax.fori_loop(0, size, further, least)
        return lax.pmax(most, self.ring.everywhere)

    def _needs(self, r, first_head, q_norm_BNT, norm_BKR, lse_BNT):
        sides, tail = self.sides, self.tail
        sees_BNT = self._sees(r, first_head, q_norm_BNT.shape[1])
        if tail is None:
            return sees_BNT.any()
        kv_N = jnp.arange(q_norm_BNT.shape[1]) // (q_norm_BNT.shape[1] // norm_BKR.shape[1])
        own = tail._replace(norm_BKJ=norm_BKR)
        cum_log_forget_BNT = self.operands.q_cum_log_forget_BTN
        if cum_log_forget_BNT is not None:
            heads = q_norm_BNT.shape[1]
            cum_log_forget_BNT = lax.dynamic_slice_in_dim(
                cum_log_forget_BNT, first_head, heads, 2
            ).swapaxes(1, 2)

        def of_row(b, rows, lse_NT):
            return cutoff.exceeds_epsilon(
                own,
                b,
                first_head,
                kv_N,
                r,
                rows,
                lse_NT,
                self.operands.k_BKSH.shape[2],
                self.config.epsilon,
            )

        rows = cutoff.QueryRows(q_norm_BNT, *sides.queries[:2], cum_log_forget_BNT)
        matters_BNT = jax.vmap(of_row)(jnp.arange(len(lse_BNT)), rows, lse_BNT)
        return (matters_BNT & sees_BNT).any()

    def _sees(self, r, first_head, heads):
        """Returns sees_BNT: False only where the row certainly sees no key of device r."""
        ranges = KeyRanges(*(x_BR[:, r][:, None] for x_BR in self.ranges))
        pos_BT, seg_BT = self.sides.queries[:2]
        near_BT = (ranges.seg_low_BR <= seg_BT) & (seg_BT <= ranges.seg_high_BR) & (seg_BT != 0)
        exact_BT = jnp.ones_like(near_BT)  # tighter conditions where keys are ordered
        if self.config.causal:
            near_BT &= ranges.pos_low_BR <= pos_BT
            exact_BT &= (ranges.seg_low_BR < seg_BT) | (ranges.first_pos_BR <= pos_BT)
        window = self.config.window_of(first_head, heads)
        if window is None:
            return (near_BT & (exact_BT | ~ranges.ordered_BR))[:, None]
        window_1N1 = jnp.reshape(jnp.asarray(window), (1, -1, 1))
        past_BT = jnp.maximum(pos_BT - ranges.pos_high_BR, ranges.pos_low_BR - pos_BT)
        near_BNT = near_BT[:, None] & (past_BT[:, None] < window_1N1)
        latest_BNT = (pos_BT - ranges.last_pos_BR)[:, None] < window_1N1
        exact_BNT = exact_BT[:, None] & ((ranges.seg_high_BR > seg_BT)[:, None] | latest_BNT)
        return near_BNT & (exact_BNT | ~ranges.ordered_BR[:, None])


def _key_ranges(keys: TokenSide) -> KeyRanges:
    pos_BS, seg_BS = keys[:2]
    least, most = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    live_BS = seg_BS != 0
    before_BS, ordered_BS = cutoff.key_order(pos_BS, seg_BS)
    ends_B2 = jnp.stack([live_BS.argmax(1), jnp.maximum(before_BS[:, -1], 0)], axis=1)
    first_B, last_B = jnp.take_along_axis(pos_BS, ends_B2, axis=1).T
    (seg_low_B, seg_high_B), (pos_low_B, pos_high_B) = (
        (jnp.where(live_BS, x_BS, most).min(1), jnp.where(live_BS, x_BS, least).max(1))
        for x_BS in (seg_BS, pos_BS)
    )
    seg_and_pos = (seg_low_B, seg_high_B, pos_low_B, pos_high_B)
    return KeyRanges(*seg_and_pos, first_B, last_B, ordered_BS.all(1))
