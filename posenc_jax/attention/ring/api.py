"""Ring attention (Liu et al. 2023): tokens are split over devices, and keys are passed around.

Every device keeps its queries. Keys, values, their positions, segments and cumulative log-forget
move from device to device along one axis of the mesh. A device attends blockwise to the keys that
it holds and carries the online softmax state in float32. The transfer to the next device starts
before the current keys are read, so that both overlap.

The ring of a key/value head stops at its cut-off (`posenc_jax.attention.ring.early_stop`). All
devices make the number of hops of the device that needs most, so that all take part in every
collective. Heads of a group without a cut-off go around together, as far as any key is visible.

The backward pass starts with the keys that the forward pass ended with and goes around in reverse.
The gradients of the keys travel with them and arrive at the device of origin with the last hop.
Memory is O(T / devices): each device holds a second copy of its keys and no array of size T x S.

Dims beside the dims of tiles: X bundles of heads, one after another; R devices of the ring.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from posenc_jax.attention.arguments import TokenSide
from posenc_jax.attention.blockwise import cutoff
from posenc_jax.attention.blockwise.api import (
    DEFAULT_SETTINGS,
    BlockwiseSettings,
    concatenate_heads,
    head_groups,
    shard_arguments,
)
from posenc_jax.attention.blockwise.backward import blockwise_backward
from posenc_jax.attention.blockwise.forward import (
    add_sink,
    blockwise_forward,
    finite_lse,
    initial_state,
    sink_gradient,
    tail_mass_table,
)
from posenc_jax.attention.blockwise.tiles import BlockwiseConfig, Operands, TokenSides
from posenc_jax.attention.kernels.remat_names import name_residuals
from posenc_jax.attention.ring.early_stop import EarlyStop
from posenc_jax.attention.sharding import Ring, find_ring, per_shard
from posenc_jax.encodings.base import Params
from posenc_jax.encodings.scheme import PlacedLayer


def _ring_of(q_BTNH: jax.Array) -> Ring:
    ring = find_ring(q_BTNH)
    if ring is None:
        raise ValueError("ring attention needs tokens that are split over an axis of the mesh")
    return ring


def ring_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    layer: PlacedLayer,
    params: Params,
    queries: TokenSide,
    keys: TokenSide,
    settings: BlockwiseSettings = DEFAULT_SETTINGS,
    sink_N: jax.Array | None = None,
) -> jax.Array:
    """Returns `blockwise_attention` of arrays whose tokens are split over an axis of the mesh.

    The arguments are those of `blockwise_attention`. `epsilon` is divided equally among the devices
    of the ring.
    """
    ring = _ring_of(q_BTNH)

    def local(operands, positions, first_head):
        groups = head_groups(operands, positions, first_head, layer, settings, ring.size)
        pieces = [_attention(config, ring, *arrays) for config, *arrays in groups]
        return concatenate_heads(pieces, operands)

    arrays = shard_arguments(q_BTNH, k_BSKH, v_BSKH, (params, sink_N), queries, keys)
    return per_shard(local, *arrays, ring=ring)


def ring_hops(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    layer: PlacedLayer,
    params: Params,
    queries: TokenSide,
    keys: TokenSide,
    settings: BlockwiseSettings = DEFAULT_SETTINGS,
    sink_N: jax.Array | None = None,
) -> jax.Array:
    """Returns hops_N: the number of hops that `ring_attention` makes for each query head."""
    ring = _ring_of(q_BTNH)

    def local(operands, positions, first_head):
        pieces = []
        for config, own, at, sink_G in head_groups(
            operands, positions, first_head, layer, settings, ring.size
        ):
            hops_X = _forward(config, ring, own, at, sink_G)[1][-2]
            pieces.append(jnp.repeat(hops_X, own.q_BNTH.shape[1] // len(hops_X)))
        return jnp.concatenate(pieces)

    arrays = shard_arguments(q_BTNH, k_BSKH, v_BSKH, (params, sink_N), queries, keys)
    return per_shard(local, *arrays, ring=ring, out="N")


class HeldKeys(NamedTuple):
    """The keys on this device at one hop, with the log-forget of the heads that read them."""

    k_BKSH: jax.Array
    v_BKSH: jax.Array
    tokens: TokenSide


def _passed(ring: Ring, tree, step: int):
    """Returns the arrays of the device `step` places before (collective)."""
    to = [(r, (r + step) % ring.size) for r in range(ring.size)]
    return jax.tree.map(lambda x: lax.ppermute(x, ring.axis, to), tree)


class _Bundle:
    """The bundles of heads of a group: the heads of one bundle go around the ring together."""

    def __init__(self, config: BlockwiseConfig, operands: Operands, sides: TokenSides):
        self.config, self.operands, self.sides = config, operands, sides
        together = config.tile_heads > 1 or not cutoff.has_tail_bound(config.layer)
        self.count = 1 if together else operands.k_BKSH.shape[1]
        self.heads = operands.q_BNTH.shape[1] // self.count

    def cut(self, x_BNx):
        """Returns x_XBNx from x_BNx, an array of all query heads or key heads of the group."""
        B, N, *rest = x_BNx.shape
        return x_BNx.reshape(B, self.count, N // self.count, *rest).swapaxes(0, 1)

    def whole(self, x_XBNx):
        X, B, N, *rest = x_XBNx.shape
        return x_XBNx.swapaxes(0, 1).reshape(B, X * N, *rest)

    def first(self, x):
        return self.sides.first_head + x * self.heads

    def narrow(self, cum_log_forget_BSN, x):
        """Returns the cumulative log-forget of the heads of bundle x."""
        if cum_log_forget_BSN is None:
            return None
        return lax.dynamic_slice_in_dim(cum_log_forget_BSN, self.first(x), self.heads, axis=2)

    def wide(self, cum_log_forget_BSN, x):
        """Returns the cumulative log-forget of all heads of the layer, zero outside bundle x."""
        every = self.operands.k_cum_log_forget_BSN
        if cum_log_forget_BSN is None or every is None:
            return None
        blank = jnp.zeros(every.shape, cum_log_forget_BSN.dtype)
        return lax.dynamic_update_slice_in_dim(blank, cum_log_forget_BSN, self.first(x), axis=2)

    def own(self, x, k_BKSH, v_BKSH) -> HeldKeys:
        cum_log_forget_BSN = self.narrow(self.operands.k_cum_log_forget_BSN, x)
        tokens = self.sides.keys._replace(cum_log_forget_BTN=cum_log_forget_BSN)
        return HeldKeys(k_BKSH, v_BKSH, tokens)

    def operands_of(self, x, q_BNTH, held: HeldKeys) -> tuple[Operands, TokenSides]:
        """Returns the operands and token sides of the queries of bundle x and the keys held."""
        cum_log_forget_BSN = self.wide(held.tokens.cum_log_forget_BTN, x)
        operands = Operands(
            q_BNTH,
            held.k_BKSH,
            held.v_BKSH,
            self.operands.params,
            self.operands.q_cum_log_forget_BTN,
            cum_log_forget_BSN,
        )
        keys = held.tokens._replace(cum_log_forget_BTN=None)
        sides = self.sides._replace(keys=keys, first_head=self.first(x))
        return operands, sides


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(
    config: BlockwiseConfig,
    ring: Ring,
    operands: Operands,
    sides: TokenSides,
    sink_N: jax.Array | None,
) -> jax.Array:
    return _forward(config, ring, operands, sides, sink_N)[0]


def _forward(
    config: BlockwiseConfig,
    ring: Ring,
    operands: Operands,
    sides: TokenSides,
    sink_N: jax.Array | None,
):
    tail_table, bundle = (
        tail_mass_table(config, operands.params),
        _Bundle(config, operands, sides),
    )
    early_stop = EarlyStop.gather_ranges(config, ring, operands, sides, tail_table)

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
    return saved[0], (operands, sides, sink_N, *saved)


def _backward(config: BlockwiseConfig, ring: Ring, residuals, d_out_BNTH: jax.Array):
    operands, sides, sink_N, out_BNTH, lse_BNT, far, hops_X, stop_XRBNI = residuals
    bundle = _Bundle(config, operands, sides)
    delta_BNT = (d_out_BNTH * out_BNTH).sum(-1)

    def zeros(tree):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), tree)

    def backward_bundle(shared, one):
        x, q_BNTH, far, hops, stop_RBNI, *rows = one
        d_params, d_q_cum_log_forget_BTN, d_k_cum_log_forget_BSN = shared

        def add_gradients(h, held, grads):
            operands_x, positions_x = bundle.operands_of(x, q_BNTH, held)
            grads = grads._replace(k_cum_log_forget_BSN=bundle.wide(grads.k_cum_log_forget_BSN, x))
            grads = blockwise_backward(config, operands_x, positions_x, rows, stop_RBNI[h], grads)
            return grads._replace(k_cum_log_forget_BSN=bundle.narrow(grads.k_cum_log_forget_BSN, x))

        def hop(carry):
            h, held, grads = carry
            arriving = _passed(ring, held, -1)
            grads = add_gradients(h, held, grads)
            d_k, d_v, d_cum_log_forget = _passed(
                ring, (grads.k_BKSH, grads.v_BKSH, grads.k_cum_log_forget_BSN), -1
            )
            return (
                h - 1,
                arriving,
                grads._replace(k_BKSH=d_k, v_BKSH=d_v, k_cum_log_forget_BSN=d_cum_log_forget),
            )

        d_q, d_k, d_v, d_forget = zeros(
            (q_BNTH, far.k_BKSH, far.v_BKSH, far.tokens.cum_log_forget_BTN)
        )
        grads = Operands(d_q, d_k, d_v, d_params, d_q_cum_log_forget_BTN, d_forget)
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
