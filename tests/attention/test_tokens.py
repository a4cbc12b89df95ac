"""Padding and positions: what nobody may read changes neither a result nor a gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.attention import (
    AttentionSettings,
    OptionalInputs,
    ShiftWeights,
    TokenSide,
    attend,
    cumulative_log_forget,
    token_shift,
)
from posenc_jax.attention.tokens import integer_side, readable_keys

from support import oracles, schemes
from support.attention_inputs import qkv
from support.emulated_kernels import cudnn_by_xla
from support.marks import thorough

N, K, H = 4, 4, 16
LEFT, REAL, RIGHT = 5, 16, 3  # slots: padding, two documents, padding
T = LEFT + REAL + RIGHT
POS = np.r_[0:9, 0:7][None]
SEG = np.repeat([1, 2], [9, 7])[None]
MANY = "rope+t5&kerple_power|pope+fire~ssmax|rope+forget~scale_invariant|xpos+slopes~adaptive_ssmax"


def layer_of(line):
    return schemes.placed(line, model_dim=N * H).layers[0]


def real_arrays():
    """q, k, v, the cotangent, log-forget and projected tokens of the real tokens."""
    q, k, v, aim, raw, x = qkv(1, REAL, N, K, H, (1, REAL, N, H), (1, REAL, N), (1, REAL, N * H))
    return q, k, v, aim, -jax.nn.softplus(raw), x


def padded(x, value):
    """x with `value` in the slots of padding."""
    whole = np.full((1, T, *x.shape[2:]), value, np.asarray(x).dtype)
    whole[:, LEFT : LEFT + REAL] = x
    return whole


@functools.cache
def program(line, implementation, aligned, dtype="float32"):
    """The result and the gradients of all arrays; `aim` is the cotangent. dtype: of q, k and v."""
    layer = layer_of(line)

    def run(q, k, v, aim, log_forget, x, pos, seg):
        def attended(q, k, v, log_forget, x, params):
            cum = cumulative_log_forget(log_forget, seg) if layer.gated else None
            optional = OptionalInputs(x if layer.tempered_by_tokens else None)
            how = AttentionSettings(aligned=aligned, implementation=implementation)
            q, k, v = (x.astype(dtype) for x in (q, k, v))
            return attend(q, k, v, layer, params, TokenSide(pos, seg, cum), None, how, optional)

        params = layer.init(jax.random.key(7))
        out, transpose = jax.vjp(attended, q, k, v, log_forget, x, params)
        return out, transpose(aim.astype(out.dtype))

    return jax.jit(run)


def assert_padding_never_matters(line, implementation, aligned=False, error=4e-6, dtype="float32"):
    """Any values at padding give the bits that zeros give, and the real tokens those of a row without."""
    run, arrays = program(line, implementation, aligned, dtype), real_arrays()

    def found(*inputs):
        return jax.device_get(jax.tree.map(lambda x: x.astype("float32"), run(*inputs)))

    want, (*want_tokens, want_params) = found(*arrays, POS, SEG)
    assert all(np.isfinite(x).all() for x in (want, *want_tokens))
    seg = padded(SEG, 0)
    zeros = found(*(padded(x, 0) for x in arrays), padded(POS, 0), seg)
    for value, positions in (
        (np.nan, (np.cumsum(seg != 0, 1) - 1) * (seg == 0)),  # -1, as from a mask
        (np.inf, (np.arange(T) - LEFT)[None]),  # negative on the left
        (-np.inf, np.where(np.arange(T) % 2, -(2**31), 2**31 - 1)[None]),
    ):
        pos = np.where(seg != 0, padded(POS, 0), positions).astype(np.int32)
        same = found(*(padded(x, value) for x in arrays), pos, seg.astype(np.int32))
        jax.tree.map(np.testing.assert_array_equal, same, zeros)
        got, (*tokens, params) = same
        for mine, theirs in zip((got, *tokens), (want, *want_tokens), strict=True):
            scale = max(np.abs(theirs).max(), 1e-3)
            real = mine[:, LEFT : LEFT + REAL]
            np.testing.assert_allclose(real, theirs, rtol=0, atol=error * scale)
            assert not np.delete(mine, np.s_[LEFT : LEFT + REAL], axis=1).any()
        for mine, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(want_params), strict=True):
            np.testing.assert_allclose(
                mine, theirs, rtol=0, atol=error * max(np.abs(theirs).max(), 1)
            )


@pytest.mark.default_cases(1, thorough=1)
@pytest.mark.parametrize(
    ("line", "implementation", "aligned"),
    [
        (MANY, "dense", False),
        ("rope+alibi|rope+forget", "blockwise", False),
        ("rope+linear", "auto", True),
        *thorough(
            (MANY, "blockwise", False),
            ("rope+linear", "auto", False),
            ("rope+alibi|nope~logn", "blockwise", True),
        ),
    ],
)
def test_padding_may_hold_anything(line, implementation, aligned):
    assert_padding_never_matters(line, implementation, aligned)


@pytest.mark.slow
@pytest.mark.parametrize("line", schemes.some(pytest.mark.thorough))
def test_padding_of_every_scheme_may_hold_anything(line):
    assert_padding_never_matters(line, "auto", aligned=True)


@pytest.mark.parametrize(
    ("kernel", "dtype", "error"),
    [
        ("cudnn", "bfloat16", 3e-2),  # its fold is ours; its arithmetic is done by XLA
        *thorough(("flash", "float32", 2e-2), ("splash", "float32", 2e-2)),  # interpreted
    ],
)
def test_padding_in_a_kernel_may_hold_anything(kernel, dtype, error, monkeypatch):
    cudnn_by_xla(monkeypatch)
    line = "rope+slopes|nope~logn"  # the gradient of a slope is a sum over all slots
    assert_padding_never_matters(line, kernel, aligned=True, error=error, dtype=dtype)


@pytest.mark.thorough
def test_padding_on_a_ring_may_hold_anything():
    """Eight devices with three slots each; the last holds padding alone."""
    mesh = jax.make_mesh((8,), ("sequence",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        split, layer = jax.P(None, "sequence"), layer_of("rope+slopes|rope+forget")
        pos, where = (
            jax.device_put(x.astype(np.int32), split) for x in (padded(POS, -7), padded(SEG, 0))
        )

        def run(q, k, v, aim, log_forget):
            def attended(q, k, v, log_forget, params):
                side = TokenSide(pos, where, cumulative_log_forget(log_forget, where))
                return attend(q, k, v, layer, params, side)

            params = layer.init(jax.random.key(7))
            out, transpose = jax.vjp(attended, q, k, v, log_forget, params)
            return out, *transpose(aim)

        compiled = jax.jit(run)
        *bad, good = (
            jax.device_get(
                compiled(*(jax.device_put(padded(x, value), split) for x in real_arrays()[:5]))
            )
            for value in (np.nan, np.inf, 0.0)
        )
    for one in bad:
        jax.tree.map(np.testing.assert_array_equal, one, good)
    alone = program("rope+slopes|rope+forget", "dense", False)(*real_arrays(), POS, SEG)
    np.testing.assert_allclose(good[0][:, LEFT : LEFT + REAL], alone[0], rtol=0, atol=4e-6)


@pytest.mark.parametrize("implementation", ["dense", *thorough("blockwise")])
def test_keys_that_no_query_sees_may_hold_anything(implementation):
    """Keys later than every query, of other documents, or before every window."""
    layer = layer_of("rope+alibi")
    q, k, v = qkv(1, 2, N, K, H, S=7)
    queries = TokenSide(jnp.array([[6, 7]]), jnp.array([[2, 2]]))
    keys = TokenSide(jnp.array([[5, 6, 3, 7, 8, 1, 6]]), jnp.array([[1, 2, 2, 2, 2, 2, 3]]))
    how = AttentionSettings(window=4, implementation=implementation)

    @jax.jit
    def run(k, v):
        out, transpose = jax.vjp(lambda *x: attend(*x, layer, {}, queries, keys, how), q, k, v)
        return out, *transpose(jnp.ones_like(out))

    assert readable_keys(queries, keys, how).tolist() == [
        [False, True, True, True, False, False, False]
    ]
    unread = np.array([0, 4, 5, 6])
    for value in (jnp.nan, jnp.inf):
        for mine, theirs in zip(
            run(*(x.at[:, unread].set(value) for x in (k, v))), run(k, v), strict=True
        ):
            np.testing.assert_array_equal(mine, theirs)


def test_positions_and_segments_of_any_integer_type_are_read_alike():
    layer, (q, k, v) = layer_of("alibi"), qkv(1, 9, N, K, H)
    pos, seg, how = np.arange(9)[None], np.ones((1, 9)), AttentionSettings(causal=False)
    run = jax.jit(lambda *tokens: attend(q, k, v, layer, {}, TokenSide(*tokens), settings=how))
    want = run(pos.astype(np.int32), seg.astype(np.int32))
    for dtype in ("uint8", "uint32"):
        got = run(pos.astype(dtype), seg.astype(dtype))
        np.testing.assert_array_equal(got, want)
    side = integer_side(TokenSide(np.arange(3, dtype=np.int8)[None], np.ones((1, 3), bool)))
    assert (side.pos_BT.dtype, side.seg_BT.dtype) == (jnp.int32, jnp.int32)
    assert side.seg_BT.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(
    ("pos", "seg", "said"),
    [
        (
            np.arange(3.0),
            np.ones(3, int),
            r"positions must be whole numbers \(int32\), not float64",
        ),
        (np.arange(3), np.ones(3), r"segments must be whole numbers \(int32\), not float64"),
        (np.arange(3) + 2**31, np.ones(3, int), "from 2,147,483,648 to 2,147,483,650"),
        ([0, 1, 1], [1, 1, 1], "row 0: slots 1 and 2 of document 1 both have position 1"),
        ([0, 1, 0], [2, 2, 2], "row 0: slots 0 and 2 of document 2 both have position 0"),
    ],
)
def test_positions_that_leak_or_do_not_fit_are_refused(pos, seg, said):
    layer, (q, k, v) = layer_of("alibi"), qkv(1, 3, N, K, H)
    with pytest.raises(ValueError, match=said):
        attend(q, k, v, layer, {}, TokenSide(np.asarray(pos)[None], np.asarray(seg)[None]))


@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
def test_causality_by_slots_lets_positions_repeat(implementation):
    """Three patches at each position, in the order of their slots, against a float64 loop."""
    layer, (q, k, v) = layer_of("alibi"), qkv(1, 12, N, K, H)
    pos, slot = np.arange(12)[None] // 3, np.arange(12, dtype=np.int32)[None]
    seg = np.repeat([1, 2], [7, 5])[None]
    side = TokenSide(*(x.astype(np.int32) for x in (pos, seg)), order_BT=slot)
    how = AttentionSettings(implementation=implementation)
    got = jax.jit(lambda *x: attend(*x, layer, {}, side, settings=how))(q, k, v)
    slopes = oracles.alibi_slopes(N)
    want = oracles.attention(
        *(np.asarray(x[0], np.float64) for x in (q, k, v)),
        bias=lambda n, i, j: -slopes[n] * abs(int(pos[0, i] - pos[0, j])),
        visible=lambda i, j: seg[0, i] == seg[0, j] and j <= i,
        tau=lambda n, i: 1.0,
    )
    np.testing.assert_allclose(got[0], want, rtol=0, atol=2e-6)


def test_an_order_belongs_to_both_sides():
    layer, (q, k, v) = layer_of("alibi"), qkv(1, 3, N, K, H)
    pos, seg = np.arange(3)[None], np.ones((1, 3), int)
    sides = TokenSide(pos, seg, order_BT=pos), TokenSide(pos, seg)
    with pytest.raises(ValueError, match="to both the queries and the keys, or to neither"):
        attend(q, k, v, layer, {}, *sides)


def test_kernels_that_count_slots_refuse_an_order_of_its_own():
    layer, (q, k, v) = layer_of("alibi"), qkv(1, 3, N, K, H, dtype=jnp.bfloat16)
    pos, how = np.arange(3)[None], AttentionSettings(aligned=True, implementation="flash")
    with pytest.raises(ValueError, match="it counts distances in slots"):
        attend(q, k, v, layer, {}, TokenSide(pos, pos + 1 > 0, order_BT=pos), settings=how)


def test_a_distance_of_two_to_the_31_keeps_its_sign_off():
    """A query at -2^31 and padding at 0: int32 does not hold the absolute value."""
    layer = layer_of("kerple_log")
    bias = layer.bias(layer.init(jax.random.key(0)), np.int32([[-(2**31)]]), np.int32([[0]]))
    assert np.isfinite(bias).all()


def test_the_weights_of_a_token_shift_get_no_gradient_from_padding():
    k, v = (x[:, :6] for x in qkv(1, 6, N, K, H)[1:])
    seg = jnp.array([[0, 1, 1, 2, 2, 0]])
    bad = [x.at[:, jnp.array([0, 5])].set(jnp.nan) for x in (k, v)]

    @jax.jit
    def gradients(k, v):
        def total(*weights):
            pair = token_shift(k, v, seg, ShiftWeights(*weights))
            return sum((x[:, 1:5] ** 2).sum() for x in pair)

        return jax.grad(total, argnums=(0, 1, 2, 3))(*(jnp.full(K, 0.5),) * 4)

    for mine, theirs in zip(gradients(*bad), gradients(k, v), strict=True):
        np.testing.assert_array_equal(mine, theirs)
