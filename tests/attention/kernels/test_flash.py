"""Our kernel for GPUs, emulated: against a float64 loop, its first blocks against their proof, its edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.attention import TokenSide, dense_attention, visible
from posenc_jax.attention.blockwise.cutoff import EXACT_EPSILON, bias_by_distance, log_tail_mass
from posenc_jax.attention.kernels import flash
from posenc_jax.attention.kernels.flash import (
    BiasTable,
    first_relevant_slots,
    first_visible_slots,
    flash_attention,
)
from posenc_jax.attention.kernels.flash_programs import (
    TileConfig,
    TileConfigs,
    power_of_two_parts,
    tile_configs,
)
from posenc_jax.encodings import parse

from support.attention_inputs import qkv

B, T, N, K, H = 2, 600, 4, 2, 16
SLOPES = np.array([1.0, 0.25, 1 / 64, 0.0], np.float32)
SEG = np.stack([np.repeat([0, 1, 4, 2, 0], [7, 201, 300, 85, 7]), np.repeat([3], [T])]).astype(
    np.int32
)


def tensors(seed=0, scale=1.0):
    return [scale * x for x in qkv(B, T, N, K, H, (B, T, N, H), seed=seed)]


def by_hand(q, k, v, bias_NZ, seg, window=None):
    """Attention in float64, one row at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for b, n, r in np.ndindex(B, N, T):
        cols = np.flatnonzero((seg[b] == seg[b, r]) & (np.arange(T) <= r))
        cols = cols[r - cols < (window or T)]
        if seg[b, r] == 0:
            continue
        logits = (
            k[b, cols, n // (N // K)] @ q[b, r, n] / np.sqrt(H)
            + np.asarray(bias_NZ, np.float64)[n, r - cols]
        )
        weight = np.exp(logits - logits.max())
        out[b, r, n] = weight / weight.sum() @ v[b, cols, n // (N // K)]
    return out


LINEAR = -SLOPES[:, None] * np.arange(T)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("window", [None, 70])
def test_it_is_attention_over_documents_and_padding(window):
    q, k, v, _ = tensors()
    got = np.asarray(flash_attention(q, k, v, jnp.asarray(SLOPES), jnp.asarray(SEG), window))
    np.testing.assert_allclose(got, by_hand(q, k, v, LINEAR, SEG, window), rtol=0, atol=5e-6)
    assert not got[SEG == 0].any()


@pytest.mark.thorough
def test_every_shape_of_tiles_gives_the_same_and_the_same_gradients():
    q, k, v, aim = tensors()

    def outcome(tiles):
        def total(q, k, v, slopes):
            out = flash_attention(q, k, v, slopes, jnp.asarray(SEG), 70, tiles=tiles)
            return (out * aim).sum(), out

        grads, out = jax.grad(total, (0, 1, 2, 3), has_aux=True)(q, k, v, jnp.asarray(SLOPES))
        return out, *grads

    wide, tall = TileConfig(32, 128, 4, 2), TileConfig(128, 32, 4, 2)
    want = outcome(tile_configs(H))
    for tiles in (TileConfigs(wide, tall, wide), TileConfigs(tall, wide, tall)):
        assert tiles != tile_configs(H)
        for mine, theirs in zip(outcome(tiles), want, strict=True):
            atol = 5e-6 * max(1.0, float(jnp.abs(theirs).max()))
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=atol)


@pytest.mark.default_cases(0, thorough=1)
@pytest.mark.parametrize(("width", "cut"), [(80, [64, 16]), (112, [64, 32, 16]), (50, [])])
def test_heads_of_any_width_are_worked_on_in_powers_of_two(width, cut):
    if cut:
        assert [x.stop - x.start for x in power_of_two_parts(width)] == cut
        assert [x.start for x in power_of_two_parts(width)] == list(np.cumsum([0, *cut[:-1]]))
    shapes = [(1, 150, heads, width) for heads in (N, K, K, N)]
    q, k, v, aim = (
        jax.random.normal(key, s)
        for key, s in zip(jax.random.split(jax.random.key(3), 4), shapes, strict=True)
    )
    seg = jnp.asarray(np.repeat([[2, 5]], [60, 90], axis=1).astype(np.int32))
    slopes = jnp.asarray(SLOPES)

    def flash(q, k, v, slopes):
        out = flash_attention(q, k, v, slopes, seg)
        return (out * aim).sum(), out

    def definition(q, k, v, slopes):
        pos = jnp.arange(150, dtype=jnp.int32)[None]
        bias = -slopes[None, :, None, None] * (pos[:, None, :, None] - pos[:, None, None, :])
        k, v = (jnp.repeat(x, N // K, axis=2) for x in (k, v))
        out = dense_attention(
            q, k, v, bias, visible(TokenSide(pos, seg), TokenSide(pos, seg), causal=True)
        )
        return (out * aim).sum(), out

    mine, theirs = (
        jax.grad(f, (0, 1, 2, 3), has_aux=True)(q, k, v, slopes) for f in (flash, definition)
    )
    for got, want in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        atol = 5e-6 * max(1.0, float(jnp.abs(want).max()))
        np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def test_a_row_whose_places_float32_does_not_hold_is_refused():
    row = jax.ShapeDtypeStruct((1, 2**24 + 1, 1, 16), jnp.bfloat16)
    seg = jax.ShapeDtypeStruct(row.shape[:2], jnp.int32)
    with pytest.raises(ValueError, match="16777217 tokens"):
        jax.eval_shape(flash_attention, row, row, row, jax.ShapeDtypeStruct((1,), jnp.float32), seg)


def test_columns_that_a_tensor_core_cannot_multiply_are_refused():
    with pytest.raises(ValueError, match="heads of 50 columns, not a multiple of 16"):
        power_of_two_parts(50)


def table_of(line, length=T):
    layer = (
        parse(line)
        .place(num_layers=1, num_heads=N, head_dim=H, model_dim=N * H, train_length=64)
        .layers[0]
    )
    return BiasTable(bias_by_distance(layer, {}, length), log_tail_mass(layer, {}, length))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("line", ["log", "capped", "2*power|2*alibi"])
def test_any_bias_of_the_distance_is_looked_up(line):
    q, k, v, _ = tensors()
    table = table_of(line)
    got = flash_attention(q, k, v, table, jnp.asarray(SEG))
    np.testing.assert_allclose(got, by_hand(q, k, v, table.bias_NZ, SEG), rtol=0, atol=5e-6)


def test_gradients_are_those_of_the_loop_by_differences():
    q, k, v, aim = tensors()
    seg = jnp.asarray(SEG)

    def total(q, k, v, slopes):
        return (flash_attention(q, k, v, slopes, seg) * aim).sum()

    grads = jax.jit(jax.grad(total, (0, 1, 2, 3)))(q, k, v, jnp.asarray(SLOPES))
    arrays = [np.asarray(x, np.float64) for x in (q, k, v, SLOPES)]
    rng = np.random.default_rng(0)

    def exact(q, k, v, slopes):
        bias = -slopes[:, None] * np.arange(T)
        return (by_hand(q, k, v, bias, SEG) * np.asarray(aim, np.float64)).sum()

    for index, grad in enumerate(grads):
        along = rng.standard_normal(arrays[index].shape)
        if index == 3:
            along *= SLOPES  # a head of slope 0 stays where it is
        moved = [
            [x + sign * 1e-5 * along if i == index else x for i, x in enumerate(arrays)]
            for sign in (1, -1)
        ]
        slope = (exact(*moved[0]) - exact(*moved[1])) / 2e-5
        np.testing.assert_allclose((np.asarray(grad, np.float64) * along).sum(), slope, rtol=2e-4)


def first_slots(q, k, bias, seg, epsilon=EXACT_EPSILON):
    """The first slot of every block of queries, lengths a multiple of the largest block."""
    low = first_visible_slots(jnp.asarray(seg), None)
    return np.asarray(
        first_relevant_slots(
            q, k, bias, low, epsilon, 1 / np.sqrt(H), tile_configs(H).forward.q_block
        )
    )


def padded(*arrays):
    behind = -T % max(128, *(size for tiling in tile_configs(H) for size in tiling[:2]))
    return [np.pad(x, [(0, behind if i == 1 else 0) for i in range(np.ndim(x))]) for x in arrays]


def against_each_other():
    """Queries that want what lies before slot 300 as much as can be, and as little what lies after; one row
    in 64 alone does.
    """
    loud = np.sqrt(30 * np.sqrt(H))  # content logits of 30 and -30
    e = np.zeros(H)
    e[3] = loud
    q, k = np.tile(e, (B, T, N, 1)), np.tile(e, (B, T, K, 1))
    q[0, 7::64] *= -1
    q[1] *= -1
    k[:, :300] *= -1
    return jnp.asarray(q, jnp.float32), jnp.asarray(k, jnp.float32)


@pytest.mark.parametrize(
    "kind", ["plain", "loud far keys", "adversarial", "table", "adversarial table"]
)
def test_what_is_left_out_weighs_less_than_epsilon_and_much_is(kind):
    q, k, _, _ = tensors(scale=2.0)
    bias, bias_NZ = jnp.asarray(SLOPES), LINEAR
    if kind == "loud far keys":
        k = k.at[:, :40].multiply(20)
    if "adversarial" in kind:
        q, k = against_each_other()
    if kind == "adversarial table":
        bias_NZ = LINEAR - 9.0  # a constant changes no weight, and the own key has it too
        bias = BiasTable(jnp.asarray(bias_NZ, jnp.float32), log_tail_of(bias_NZ))
    if kind == "table":
        bias = table_of("capped")
        bias = BiasTable(3 * bias.bias_NZ, log_tail_of(3 * np.asarray(bias.bias_NZ)))
        bias_NZ = np.asarray(bias.bias_NZ)
    q, k, seg = padded(q, k, np.full_like(SEG, 1))
    seg[:, T:] = 0
    start_BNI = first_slots(q, k, bias, seg)
    t = tile_configs(H).forward.q_block
    for b, n, r in np.ndindex(B, N, T):
        start = start_BNI[b, n, r // t]
        logits = k[b, : r + 1, n // (N // K)].astype(np.float64) @ q[b, r, n] / np.sqrt(H)
        logits += np.asarray(bias_NZ, np.float64)[n, r - np.arange(r + 1)]
        weight = np.exp(logits - logits.max())
        assert weight[:start].sum() <= EXACT_EPSILON * weight.sum()
    if kind == "plain":  # the steep head reads a block or two, the flat one all
        assert (start_BNI[:, 0, (T - 1) // t] > T - 3 * t).all()
        assert (start_BNI[:, 3] == 0).all()


def log_tail_of(bias_NZ):
    """`cutoff.log_tail_mass` of a table, by NumPy."""
    entries = range(-(-bias_NZ.shape[1] // 64) + 1)
    with np.errstate(divide="ignore"):
        return jnp.asarray(
            np.stack(
                [np.log(np.exp(bias_NZ[:, 64 * e :].astype(np.float64)).sum(1)) for e in entries], 1
            ),
            jnp.float32,
        )


def test_a_document_begins_a_row_of_blocks_and_a_window_ends_it():
    (seg,) = padded(SEG)
    low = np.asarray(first_visible_slots(jnp.asarray(seg), None))[:, 0]
    for b, r in np.ndindex(B, T):
        want = r + 1 if SEG[b, r] == 0 else np.flatnonzero(SEG[b] == SEG[b, r])[0]
        assert low[b, r] == want
    narrow = np.asarray(first_visible_slots(jnp.asarray(seg), 50))[:, 0]
    want = np.maximum(low, np.arange(seg.shape[1])[None] - 49)
    np.testing.assert_array_equal(narrow[seg != 0], want[seg != 0])


def test_the_first_slot_in_sight_never_falls_from_row_to_row():
    """What the keys' program takes for granted where it leaves the mask out."""
    rng = np.random.default_rng(0)
    for window in (None, 1, 2, 64, 129):
        pieces = [
            np.repeat(rng.integers(0, 4, 256), rng.choice([1, 2, 7, 64, 65], 256))[:256]
            for _ in range(32)
        ]
        low = np.asarray(
            first_visible_slots(jnp.asarray(np.stack(pieces).astype(np.int32)), window)
        )[:, 0]
        assert (np.diff(low, axis=1) >= 0).all()


def test_nothing_cut_is_cut_to_the_last_bits():
    q, k, v, _ = tensors()
    slopes, seg = jnp.asarray(SLOPES), jnp.asarray(SEG)
    cut, whole = (flash_attention(q, k, v, slopes, seg, epsilon=e) for e in (EXACT_EPSILON, 0.0))
    np.testing.assert_allclose(cut, whole, rtol=0, atol=1e-6)
    q, k, seg = padded(q, k, SEG)
    assert (first_slots(q, k, slopes, seg, 0.0) <= first_slots(q, k, slopes, seg)).all()


def test_a_nan_comes_out_wherever_it_went_in():
    q, k, v, _ = tensors()
    k = k.at[1, 5].set(jnp.nan)
    got = np.asarray(flash_attention(q, k, v, jnp.asarray(SLOPES), jnp.asarray(SEG)))
    assert np.isnan(got[1, 5:]).all()  # steep heads too: a proof is none with a NaN in it
    assert not np.isnan(got[0]).any()


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("spoilt", ["key", "value"])
def test_a_nan_of_a_document_is_not_in_the_gradients_of_what_its_rows_do_not_see(spoilt):
    """Documents and padding share tiles here: a weight of zero times a NaN is a NaN."""
    q, k, v, aim = tensors()
    if spoilt == "key":
        k = k.at[0, 250].set(jnp.nan)
    else:
        v = v.at[0, 550].set(jnp.nan)

    def total(q, k, v):
        return (flash_attention(q, k, v, jnp.asarray(SLOPES), jnp.asarray(SEG)) * aim).sum()

    d_q, d_k, d_v = jax.grad(total, (0, 1, 2))(q, k, v)
    if spoilt == "key":
        assert np.isnan(d_k[0, SEG[0] == 4]).any()
        assert np.isfinite(d_k[0, SEG[0] != 4]).all()
        assert np.isfinite(d_v[0, SEG[0] != 4]).all()
    else:
        assert np.isnan(d_q[0, SEG[0] == 2]).any()
        assert not d_q[0, SEG[0] == 0].any()


def test_it_repeats_itself_and_a_block_of_queries_of_padding_costs_nothing():
    seg = np.zeros_like(SEG)
    seg[0, :10] = 1
    q, k, v, _ = tensors()
    got = np.asarray(flash_attention(q, k, v, jnp.asarray(SLOPES), jnp.asarray(seg)))
    assert not got[1].any()
    assert got[0, :10].any(axis=(1, 2)).all()
    assert not got[0, 10:].any()
    q, k, seg = padded(q, k, seg)
    start = first_slots(q, k, jnp.asarray(SLOPES), seg)
    assert (start[1] >= np.arange(start.shape[2]) * tile_configs(H).forward.q_block).all()


def test_tiles_of_queries_and_keys_may_differ_between_its_programs():
    first, t, s = np.array([[[0, 100, 300, 290]]]), 128, 64
    end = np.asarray(flash._readers(jnp.asarray(first), t, s, 512))
    for j in range(8):
        readers = [i for i in range(4) if first[0, 0, i] // s <= j]
        assert end[0, 0, j] == max(readers) + 1
    np.testing.assert_array_equal(
        flash._coarser(jnp.asarray(first), 128, 64, 512)[0, 0], [0, 0, 100, 100, 300, 300, 290, 290]
    )
    np.testing.assert_array_equal(flash._coarser(jnp.asarray(first), 128, 256, 512)[0, 0], [0, 290])
