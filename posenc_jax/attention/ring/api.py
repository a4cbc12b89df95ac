"""Ring attention: the tokens of a row lie on several devices, and keys travel until they cannot matter.

Every device keeps its queries. Keys, values, their positions, segments and clocks go from device to device
along one axis of the mesh (Liu et al. 2023, Ring Attention); a device attends to the keys it holds by
blocks, and what rows have found is carried on as one result and the logarithm of one softmax sum, float32.
The transfer to the next device is started before the keys at hand are read, so that both can go on at once.

The ring of a key/value head ends at its cut-off (`posenc_jax.attention.ring.early_stop`): all devices take as many
hops as the one that needs most, so that collectives inside the loop are met by all. Heads of one group
that have no proof go around together, as far as anything is in sight.

The backward pass begins with the keys that the forward pass ended with and walks home: the gradients of
keys travel with them and arrive where they belong with the last hop. Memory is O(T / devices): a second copy
of the keys, and nothing of size T x S.

Dims beside those of tiles: X heads that go around together, one after another; R devices of the ring.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from posenc_jax.attention.blockwise import cutoff
from posenc_jax.attention.blockwise.api import concatenate_heads, head_groups
from posenc_jax.attention.blockwise.backward import blockwise_backward
from posenc_jax.attention.blockwise.forward import (
    add_sink,
    blockwise_forward,
    finite_lse,
    initial_state,
    sink_gradient,
    tail_mass_table,
)
from posenc_jax.attention.blockwise.tiles import BlockwiseConfig, Operands, TokenPositions
from posenc_jax.attention.kernels.remat_names import name_residuals
from posenc_jax.attention.ring.early_stop import EarlyStop
from posenc_jax.attention.sharding import Ring, find_ring, per_shard
from posenc_jax.encodings.base import Params
from posenc_jax.encodings.scheme import PlacedLayer


def ring_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    layer: PlacedLayer,
    params: Params,
    **where,
) -> jax.Array:
    """Returns what `blockwise_attention` returns, of queries whose dim T is split over an axis of the mesh.

    Any positions and segments are served. Arguments as for `blockwise_attention`; `epsilon` is shared
    evenly among the devices of the ring, so that all that is left out stays below it.
    """
    run = functools.partial(_of_these_heads, outcome=_attended)
    return _around(run, "BTNH", q_BTNH, k_BSKH, v_BSKH, layer, params, **where)


def ring_hops(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    layer: PlacedLayer,
    params: Params,
    **where,
) -> jax.Array:
    """Returns hops_N: how many times the keys of each query head are passed on in `ring_attention`."""
    run = functools.partial(_of_these_heads, outcome=_counted)
    return _around(run, "N", q_BTNH, k_BSKH, v_BSKH, layer, params, **where)


def _around(
    run, out, q_BTNH, k_BSKH, v_BSKH, layer, params, *, q_pos_BT, k_pos_BS, q_seg_BT, k_seg_BS,
    q_cum_log_forget_BTN=None, k_cum_log_forget_BSN=None, sink_N=None, causal=True, window=None, epsilon=cutoff.EXACT_EPSILON, blocks=None, lanes=None,
):  # fmt: skip
    ring = find_ring(q_BTNH)
    local = functools.partial(
        run, ring=ring, layer=layer, causal=causal, window=window, blocks=blocks, lanes=lanes,
        epsilon=epsilon / ring.size if causal else 0.0, devices=ring.size,
    )  # fmt: skip
    operands = (
        q_BTNH,
        k_BSKH,
        v_BSKH,
        (params, sink_N),
        q_cum_log_forget_BTN,
        k_cum_log_forget_BSN,
    )
    positions = (q_pos_BT, q_seg_BT, k_pos_BS, k_seg_BS)
    return per_shard(local, operands, positions, ring=ring, out=out)


def _of_these_heads(operands, positions, first_head, *, ring, outcome, **settings):
    groups = head_groups(operands, positions, first_head, **settings)
    return outcome(ring, groups, operands)


def _attended(ring: Ring, groups, operands):
    return concatenate_heads([_attention(group[0], ring, *group[1:]) for group in groups], operands)


def _counted(ring: Ring, groups, _floats):
    pieces = []
    for config, own, positions, sink_N in groups:
        hops_X = _forward(config, ring, own, positions, sink_N)[1][-2]
        pieces.append(jnp.repeat(hops_X, own.q_BNTH.shape[1] // len(hops_X)))
    return jnp.concatenate(pieces)


class HeldKeys(NamedTuple):
    """The keys that a device holds, wherever they are at home; the clock is of the heads that read them."""

    k_BKSH: jax.Array
    v_BKSH: jax.Array
    cum_log_forget_BSN: jax.Array | None
    pos_BS: jax.Array
    seg_BS: jax.Array


def _passed(ring: Ring, tree, step: int):
    """Returns what came from the neighbour when all devices pass a tree on by `step`."""
    to = [(r, (r + step) % ring.size) for r in range(ring.size)]
    return jax.tree.map(lambda x: lax.ppermute(x, ring.axis, to), tree)


class _Bundle:
    """Heads of a group that go around together: how they are cut out, and their side of a meeting."""

    def __init__(self, config: BlockwiseConfig, operands: Operands, positions: TokenPositions):
        self.config, self.operands, self.positions = config, operands, positions
        together = config.tile_heads > 1 or not cutoff.has_tail_bound(config.layer, operands.params)
        self.count = 1 if together else operands.k_BKSH.shape[1]
        self.heads = operands.q_BNTH.shape[1] // self.count

    def cut(self, x_BNx):
        """Returns x_XBNx of an array of all heads of the group, here or of the keys."""
        B, N, *rest = x_BNx.shape
        return x_BNx.reshape(B, self.count, N // self.count, *rest).swapaxes(0, 1)

    def whole(self, x_XBNx):
        X, B, N, *rest = x_XBNx.shape
        return x_XBNx.swapaxes(0, 1).reshape(B, X * N, *rest)

    def first(self, x):
        return self.positions.first_head + x * self.heads

    def narrow(self, cum_log_forget_BSN, x):
        """Returns the clocks of the heads of bundle x."""
        if cum_log_forget_BSN is None:
            return None
        return lax.dynamic_slice_in_dim(cum_log_forget_BSN, self.first(x), self.heads, axis=2)

    def wide(self, cum_log_forget_BSN, x):
        """Returns clocks of all heads of the layer, zero but for those of bundle x."""
        if cum_log_forget_BSN is None:
            return None
        blank = jnp.zeros(self.operands.k_cum_log_forget_BSN.shape, cum_log_forget_BSN.dtype)
        return lax.dynamic_update_slice_in_dim(blank, cum_log_forget_BSN, self.first(x), axis=2)

    def own(self, x, k_BKSH, v_BKSH) -> HeldKeys:
        cum_log_forget_BSN = self.narrow(self.operands.k_cum_log_forget_BSN, x)
        return HeldKeys(
            k_BKSH, v_BKSH, cum_log_forget_BSN, self.positions.k_pos_BS, self.positions.k_seg_BS
        )

    def operands_of(self, x, q_BNTH, held: HeldKeys) -> tuple[Operands, TokenPositions]:
        """Returns what blocks are cut from when the queries of bundle x meet the keys held."""
        cum_log_forget_BSN = self.wide(held.cum_log_forget_BSN, x)
        operands = Operands(
            q_BNTH,
            held.k_BKSH,
            held.v_BKSH,
            self.operands.params,
            self.operands.q_cum_log_forget_BTN,
            cum_log_forget_BSN,
        )
        positions = self.positions._replace(
            k_pos_BS=held.pos_BS, k_seg_BS=held.seg_BS, first_head=self.first(x)
        )
        return operands, positions


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(
    config: BlockwiseConfig,
    ring: Ring,
    operands: Operands,
    positions: TokenPositions,
    sink_N: jax.Array | None,
) -> jax.Array:
    return _forward(config, ring, operands, positions, sink_N)[0]


def _forward(
    config: BlockwiseConfig,
    ring: Ring,
    operands: Operands,
    positions: TokenPositions,
    sink_N: jax.Array | None,
):
    tail_table, bundle = (
        tail_mass_table(config, operands.params),
        _Bundle(config, operands, positions),
    )
    early_stop = EarlyStop.gather_ranges(config, ring, operands, positions, tail_table)

    def forward_bundle(_, one):
        x, q_BNTH, k_BKSH, v_BKSH, norm_BKR, lse_BNT = one
        needed = functools.partial(early_stop.hops_needed, bundle.first(x), q_BNTH, norm_BKR)

        def read(h, held, softmax_state, stop_RBNI):
            softmax_state, stop_BNI = blockwise_forward(
                config, *bundle.operands_of(x, q_BNTH, held), tail_table, softmax_state
            )
            return softmax_state, stop_RBNI.at[h].set(stop_BNI)

        def hop(carry):
            h, last, held, softmax_state, stop_RBNI = carry
            arriving = _passed(ring, held, 1)
            softmax_state, stop_RBNI = read(h, held, softmax_state, stop_RBNI)
            if tail_table is not None:
                last = needed(h + 1, softmax_state.lse_BNT)
            return h + 1, last, arriving, softmax_state, stop_RBNI

        floats_x, _ = bundle.operands_of(x, q_BNTH, own := bundle.own(x, k_BKSH, v_BKSH))
        softmax_state = initial_state(floats_x.q_BNTH, floats_x.v_BKSH)._replace(lse_BNT=lse_BNT)
        blocks = (
            *softmax_state.lse_BNT.shape[:2],
            softmax_state.lse_BNT.shape[2] // config.q_block,
        )
        stop_RBNI = jnp.zeros((ring.size, *blocks), jnp.int32)
        start = (
            jnp.int32(0),
            needed(jnp.int32(0), softmax_state.lse_BNT),
            own,
            softmax_state,
            stop_RBNI,
        )
        h, _, held, softmax_state, stop_RBNI = lax.while_loop(lambda c: c[0] < c[1], hop, start)
        softmax_state, stop_RBNI = read(h, held, softmax_state, stop_RBNI)
        return None, (softmax_state, held, h, stop_RBNI)

    norm_BKR = early_stop.norm_BKR(operands.k_BKSH.shape[1])
    start_BNT = add_sink(initial_state(operands.q_BNTH, operands.v_BKSH), sink_N).lse_BNT
    arrays = (operands.q_BNTH, operands.k_BKSH, operands.v_BKSH, norm_BKR, start_BNT)
    every = (jnp.arange(bundle.count), *map(bundle.cut, arrays))
    _, (softmax_state, far, hops_X, stop_XRBNI) = lax.scan(forward_bundle, None, every)
    out_BNTH, lse_BNT = map(bundle.whole, softmax_state)
    saved = name_residuals((out_BNTH, finite_lse(lse_BNT), far, hops_X, stop_XRBNI))
    return saved[0], (operands, positions, sink_N, *saved)


def _backward(config: BlockwiseConfig, ring: Ring, residuals, d_out_BNTH: jax.Array):
    operands, positions, sink_N, out_BNTH, lse_BNT, far, hops_X, stop_XRBNI = residuals
    bundle = _Bundle(config, operands, positions)
    delta_BNT = (d_out_BNTH * out_BNTH).sum(-1)

    def zeros(tree):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), tree)

    def backward_bundle(shared, one):
        x, q_BNTH, far, hops, stop_RBNI, *rows = one
        d_params, d_q_cum_log_forget_BTN, d_k_cum_log_forget_BSN = shared

        def add_gradients(h, held, grads):
            met, where = bundle.operands_of(x, q_BNTH, held)
            grads = grads._replace(k_cum_log_forget_BSN=bundle.wide(grads.k_cum_log_forget_BSN, x))
            grads = blockwise_backward(config, met, where, rows, stop_RBNI[h], grads)
            return grads._replace(k_cum_log_forget_BSN=bundle.narrow(grads.k_cum_log_forget_BSN, x))

        def hop(carry):
            h, held, grads = carry
            nearer = _passed(ring, held, -1)
            grads = add_gradients(h, held, grads)
            d_k, d_v, d_cum_log_forget = _passed(
                ring, (grads.k_BKSH, grads.v_BKSH, grads.k_cum_log_forget_BSN), -1
            )
            return (
                h - 1,
                nearer,
                grads._replace(k_BKSH=d_k, v_BKSH=d_v, k_cum_log_forget_BSN=d_cum_log_forget),
            )

        blank = zeros((q_BNTH, far.k_BKSH, far.v_BKSH, far.cum_log_forget_BSN))
        grads = Operands(*blank[:3], d_params, d_q_cum_log_forget_BTN, blank[3])
        start = (hops, far, grads)
        h, held, grads = lax.while_loop(lambda carry: carry[0] > 0, hop, start)
        grads = add_gradients(h, held, grads)
        if d_k_cum_log_forget_BSN is not None:
            d_k_cum_log_forget_BSN += bundle.wide(grads.k_cum_log_forget_BSN, x)
        shared = (grads.params, grads.q_cum_log_forget_BTN, d_k_cum_log_forget_BSN)
        return shared, (grads.q_BNTH, grads.k_BKSH, grads.v_BKSH)

    rows = map(bundle.cut, (d_out_BNTH, lse_BNT, delta_BNT))
    every = (jnp.arange(bundle.count), bundle.cut(operands.q_BNTH), far, hops_X, stop_XRBNI, *rows)
    shared = zeros((operands.params, operands.q_cum_log_forget_BTN, operands.k_cum_log_forget_BSN))
    shared, by_bundle = lax.scan(backward_bundle, shared, every)
    grads = Operands(*map(bundle.whole, by_bundle), *shared)
    grads = jax.tree.map(lambda d, x: d.astype(x.dtype), grads, operands)
    return grads, None, sink_gradient(sink_N, lse_BNT, delta_BNT)


_attention.defvjp(_forward, _backward)
