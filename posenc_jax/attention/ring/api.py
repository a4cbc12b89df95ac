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
from posenc_jax.attention.blockwise.api import head_groups, joined
from posenc_jax.attention.blockwise.backward import pulled
from posenc_jax.attention.blockwise.forward import (
    meet,
    nothing,
    proof,
    sink_gradient,
    weighable,
    with_sink,
)
from posenc_jax.attention.blockwise.tiles import Floats, Places, Plan
from posenc_jax.attention.kernels.remat_names import kept
from posenc_jax.attention.ring.early_stop import Horizon
from posenc_jax.attention.sharding import Ring, per_shard, ring_of
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
    q_clock_BTN=None, k_clock_BSN=None, sink_N=None, causal=True, window=None, epsilon=cutoff.EXACT, blocks=None, lanes=None,
):  # fmt: skip
    ring = ring_of(q_BTNH)
    local = functools.partial(
        run, ring=ring, layer=layer, causal=causal, window=window, blocks=blocks, lanes=lanes,
        epsilon=epsilon / ring.size if causal else 0.0, devices=ring.size,
    )  # fmt: skip
    floats = (q_BTNH, k_BSKH, v_BSKH, (params, sink_N), q_clock_BTN, k_clock_BSN)
    places = (q_pos_BT, q_seg_BT, k_pos_BS, k_seg_BS)
    return per_shard(local, floats, places, ring=ring, out=out)


def _of_these_heads(floats, places, first_head, *, ring, outcome, **settings):
    groups = head_groups(floats, places, first_head, **settings)
    return outcome(ring, groups, floats)


def _attended(ring: Ring, groups, floats):
    return joined([_attention(group[0], ring, *group[1:]) for group in groups], floats)


def _counted(ring: Ring, groups, _floats):
    pieces = []
    for plan, own, places, sink_N in groups:
        hops_X = _forward(plan, ring, own, places, sink_N)[1][-2]
        pieces.append(jnp.repeat(hops_X, own.q_BNTH.shape[1] // len(hops_X)))
    return jnp.concatenate(pieces)


class Held(NamedTuple):
    """The keys that a device holds, wherever they are at home; the clock is of the heads that read them."""

    k_BKSH: jax.Array
    v_BKSH: jax.Array
    clock_BSN: jax.Array | None
    pos_BS: jax.Array
    seg_BS: jax.Array


def _passed(ring: Ring, tree, step: int):
    """Returns what came from the neighbour when all devices pass a tree on by `step`."""
    to = [(r, (r + step) % ring.size) for r in range(ring.size)]
    return jax.tree.map(lambda x: lax.ppermute(x, ring.axis, to), tree)


class _Bundle:
    """Heads of a group that go around together: how they are cut out, and their side of a meeting."""

    def __init__(self, plan: Plan, floats: Floats, places: Places):
        self.plan, self.floats, self.places = plan, floats, places
        together = plan.tile_heads > 1 or not cutoff.provable(plan.layer, floats.params)
        self.count = 1 if together else floats.k_BKSH.shape[1]
        self.heads = floats.q_BNTH.shape[1] // self.count

    def cut(self, x_BNx):
        """Returns x_XBNx of an array of all heads of the group, here or of the keys."""
        B, N, *rest = x_BNx.shape
        return x_BNx.reshape(B, self.count, N // self.count, *rest).swapaxes(0, 1)

    def whole(self, x_XBNx):
        X, B, N, *rest = x_XBNx.shape
        return x_XBNx.swapaxes(0, 1).reshape(B, X * N, *rest)

    def first(self, x):
        return self.places.first_head + x * self.heads

    def narrow(self, clock_BSN, x):
        """Returns the clocks of the heads of bundle x."""
        if clock_BSN is None:
            return None
        return lax.dynamic_slice_in_dim(clock_BSN, self.first(x), self.heads, axis=2)

    def wide(self, clock_BSN, x):
        """Returns clocks of all heads of the layer, zero but for those of bundle x."""
        if clock_BSN is None:
            return None
        blank = jnp.zeros(self.floats.k_clock_BSN.shape, clock_BSN.dtype)
        return lax.dynamic_update_slice_in_dim(blank, clock_BSN, self.first(x), axis=2)

    def own(self, x, k_BKSH, v_BKSH) -> Held:
        clock_BSN = self.narrow(self.floats.k_clock_BSN, x)
        return Held(k_BKSH, v_BKSH, clock_BSN, self.places.k_pos_BS, self.places.k_seg_BS)

    def meeting(self, x, q_BNTH, held: Held) -> tuple[Floats, Places]:
        """Returns what blocks are cut from when the queries of bundle x meet the keys held."""
        clock_BSN = self.wide(held.clock_BSN, x)
        floats = Floats(
            q_BNTH, held.k_BKSH, held.v_BKSH, self.floats.params, self.floats.q_clock_BTN, clock_BSN
        )
        places = self.places._replace(
            k_pos_BS=held.pos_BS, k_seg_BS=held.seg_BS, first_head=self.first(x)
        )
        return floats, places


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(
    plan: Plan, ring: Ring, floats: Floats, places: Places, sink_N: jax.Array | None
) -> jax.Array:
    return _forward(plan, ring, floats, places, sink_N)[0]


def _forward(plan: Plan, ring: Ring, floats: Floats, places: Places, sink_N: jax.Array | None):
    proven, bundle = proof(plan, floats.params), _Bundle(plan, floats, places)
    horizon = Horizon.seen_from_here(plan, ring, floats, places, proven)

    def walk(_, one):
        x, q_BNTH, k_BKSH, v_BKSH, norm_BKR, lse_BNT = one
        needed = functools.partial(horizon.needed, bundle.first(x), q_BNTH, norm_BKR)

        def read(h, held, found, stop_RBNI):
            found, stop_BNI = meet(plan, *bundle.meeting(x, q_BNTH, held), proven, found)
            return found, stop_RBNI.at[h].set(stop_BNI)

        def hop(carry):
            h, last, held, found, stop_RBNI = carry
            arriving = _passed(ring, held, 1)
            found, stop_RBNI = read(h, held, found, stop_RBNI)
            if proven is not None:
                last = needed(h + 1, found.lse_BNT)
            return h + 1, last, arriving, found, stop_RBNI

        floats_x, _ = bundle.meeting(x, q_BNTH, own := bundle.own(x, k_BKSH, v_BKSH))
        found = nothing(floats_x.q_BNTH, floats_x.v_BKSH)._replace(lse_BNT=lse_BNT)
        blocks = (*found.lse_BNT.shape[:2], found.lse_BNT.shape[2] // plan.q_block)
        stop_RBNI = jnp.zeros((ring.size, *blocks), jnp.int32)
        start = (jnp.int32(0), needed(jnp.int32(0), found.lse_BNT), own, found, stop_RBNI)
        h, _, held, found, stop_RBNI = lax.while_loop(lambda c: c[0] < c[1], hop, start)
        found, stop_RBNI = read(h, held, found, stop_RBNI)
        return None, (found, held, h, stop_RBNI)

    norm_BKR = horizon.norm_BKR(floats.k_BKSH.shape[1])
    start_BNT = with_sink(nothing(floats.q_BNTH, floats.v_BKSH), sink_N).lse_BNT
    arrays = (floats.q_BNTH, floats.k_BKSH, floats.v_BKSH, norm_BKR, start_BNT)
    every = (jnp.arange(bundle.count), *map(bundle.cut, arrays))
    _, (found, far, hops_X, stop_XRBNI) = lax.scan(walk, None, every)
    out_BNTH, lse_BNT = map(bundle.whole, found)
    walked = kept((out_BNTH, weighable(lse_BNT), far, hops_X, stop_XRBNI))
    return walked[0], (floats, places, sink_N, *walked)


def _backward(plan: Plan, ring: Ring, residuals, d_out_BNTH: jax.Array):
    floats, places, sink_N, out_BNTH, lse_BNT, far, hops_X, stop_XRBNI = residuals
    bundle = _Bundle(plan, floats, places)
    pull_BNT = (d_out_BNTH * out_BNTH).sum(-1)

    def zeros(tree):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), tree)

    def walk(shared, one):
        x, q_BNTH, far, hops, stop_RBNI, *rows = one
        d_params, d_q_clock_BTN, d_k_clock_BSN = shared

        def give(h, held, grads):
            met, where = bundle.meeting(x, q_BNTH, held)
            grads = grads._replace(k_clock_BSN=bundle.wide(grads.k_clock_BSN, x))
            grads = pulled(plan, met, where, rows, stop_RBNI[h], grads)
            return grads._replace(k_clock_BSN=bundle.narrow(grads.k_clock_BSN, x))

        def hop(carry):
            h, held, grads = carry
            nearer = _passed(ring, held, -1)
            grads = give(h, held, grads)
            d_k, d_v, d_clock = _passed(ring, (grads.k_BKSH, grads.v_BKSH, grads.k_clock_BSN), -1)
            return h - 1, nearer, grads._replace(k_BKSH=d_k, v_BKSH=d_v, k_clock_BSN=d_clock)

        blank = zeros((q_BNTH, far.k_BKSH, far.v_BKSH, far.clock_BSN))
        grads = Floats(*blank[:3], d_params, d_q_clock_BTN, blank[3])
        start = (hops, far, grads)
        h, held, grads = lax.while_loop(lambda carry: carry[0] > 0, hop, start)
        grads = give(h, held, grads)
        if d_k_clock_BSN is not None:
            d_k_clock_BSN += bundle.wide(grads.k_clock_BSN, x)
        shared = (grads.params, grads.q_clock_BTN, d_k_clock_BSN)
        return shared, (grads.q_BNTH, grads.k_BKSH, grads.v_BKSH)

    rows = map(bundle.cut, (d_out_BNTH, lse_BNT, pull_BNT))
    every = (jnp.arange(bundle.count), bundle.cut(floats.q_BNTH), far, hops_X, stop_XRBNI, *rows)
    shared = zeros((floats.params, floats.q_clock_BTN, floats.k_clock_BSN))
    shared, by_bundle = lax.scan(walk, shared, every)
    grads = Floats(*map(bundle.whole, by_bundle), *shared)
    grads = jax.tree.map(lambda d, x: d.astype(x.dtype), grads, floats)
    return grads, None, sink_gradient(sink_N, lse_BNT, pull_BNT)


_attention.defvjp(_forward, _backward)
