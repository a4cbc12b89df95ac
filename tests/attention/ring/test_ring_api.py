"""Ring attention: the numbers of one device, as many hops as can matter, and nothing of size T x T."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.attention import (
    AttentionSettings,
    BlockwiseSettings,
    KernelConditions,
    OptionalInputs,
    TokenSide,
    attend,
    choose_implementation,
    cumulative_log_forget,
    ring_hops,
)
from posenc_jax.attention.blockwise.cutoff import cutoff_windows
from posenc_jax.encodings import cumulative_log_forget as running_clock_of_one_device

from support import schemes
from support.attention_inputs import qkv
from support.marks import slow
from support.schemes import layer_of

N, K, H, L, DEVICES = 4, 2, 16, 64, 8
LONG = 1024  # tokens, 128 on a device
AXES = ("data", "sequence", "model")


def mesh_of(data=1, sequence=DEVICES, model=1):
    explicit = (jax.sharding.AxisType.Explicit,) * 3
    return jax.make_mesh((data, sequence, model), AXES, axis_types=explicit)


placed = functools.partial(layer_of, num_layers=2)


def one_document(T, B=1):
    return jnp.broadcast_to(jnp.arange(T)[None], (B, T)), jnp.ones((B, T), int)


def two_rows(T):
    """Positions and segments: one document; and four that end anywhere, padded on both sides."""
    cuts = (
        0,
        2,
        T // 5,
        T // 5 + 3,
        2 * T // 3,
        T - T // 6,
        T,
    )  # the last device holds nothing else
    lengths = [b - a for a, b in itertools.pairwise(cuts)]
    seg = np.repeat([0, 1, 2, 3, 4, 0], lengths)
    pos = np.concatenate([np.arange(n) for n in lengths])
    return jnp.array([np.arange(T), pos]), jnp.array([np.ones(T, int), seg])


def tensors(layer, T, B=2, kv_heads=K, size=1.0):
    q, k, v, gates = qkv(B, T, layer.num_heads, kv_heads, H, (B, T, layer.num_heads))
    params = layer.init(jax.random.split(jax.random.key(0), 5)[4])
    return q * size, k * size, v, -0.1 * jax.nn.softplus(gates), params


def tokens_of(layer, ticks, pos, seg):
    return TokenSide(pos, seg, cumulative_log_forget(ticks, seg) if layer.gated else None)


@functools.cache
def forward_and_gradients(layer, implementation, **settings):
    def run(pull, *arrays):
        def attended(q, k, v, ticks, params):
            tokens = tokens_of(layer, ticks, *arrays[5:])
            optional = OptionalInputs(schemes.projected_from(layer, arrays[5].shape))
            how = AttentionSettings(implementation=implementation, **settings)
            return attend(q, k, v, layer, params, tokens, settings=how, optional=optional)

        out, vjp = jax.vjp(attended, *arrays[:5])
        return out, vjp(pull)

    return jax.jit(run)


def laid(mesh, q, k, v, ticks, params, pos, seg):
    heads, rows = jax.P("data", "sequence", "model", None), jax.P("data", "sequence")
    keys = heads if k.shape[2] % mesh.shape["model"] == 0 else jax.P(*rows, None, None)
    layouts = (heads, keys, keys, jax.P(*rows, None), jax.P(), rows, rows)
    return [
        jax.device_put(x, jax.NamedSharding(mesh, spec))
        for x, spec in zip((q, k, v, ticks, params, pos, seg), layouts, strict=True)
    ]


def on(mesh, function, pull, arrays):
    with jax.set_mesh(mesh):
        pull = jax.device_put(pull, jax.NamedSharding(mesh, jax.P("data", "sequence", "model")))
        return function(pull, *laid(mesh, *arrays))


def assert_same(want, got):
    np.testing.assert_allclose(got[0], want[0], atol=1e-6)
    for w, g in zip(*map(jax.tree.leaves, (want[1], got[1])), strict=True):
        np.testing.assert_allclose(g, w, atol=1e-5 * max(1.0, np.abs(w).max()))


@functools.cache
def counter(layer, window):
    def count(q, k, v, ticks, params, pos, seg):
        tokens, settings = tokens_of(layer, ticks, pos, seg), BlockwiseSettings(window=window)
        return ring_hops(q, k, v, layer, params, tokens, tokens, settings)

    return jax.jit(count)


def hops(layer, arrays, window=None):
    """Hops of every query head of arrays that lie over eight devices."""
    mesh = mesh_of()
    with jax.set_mesh(mesh):
        return np.asarray(counter(layer, window)(*laid(mesh, *arrays)))


@pytest.mark.parametrize(
    ("line", "mesh", "settings"),
    [
        ("rope+slopes~logn", {"data": 2, "sequence": 2, "model": 2}, {}),
        pytest.param(
            "rope+window(size=9)|slopes+window(size=30)",
            {"sequence": 4, "model": 2},
            {"window": 20},
            marks=pytest.mark.thorough,
        ),
        *slow(
            ("rope+window(size=1)|t5+window(size=9)", {"sequence": 4, "model": 2}, {"kv_heads": 1}),
            ("window(size=9)|forget+window(size=30)", {}, {}),
            (
                "pope(start=uniform)+slopes&log|rope~ssmax",
                {"data": 2, "sequence": 2, "model": 2},
                {},
            ),
            ("pope+alibi~adaptive_ssmax", {"sequence": 4, "model": 2}, {"kv_heads": 1}),
            ("rope+slopes|nope~logn", {"data": 2, "sequence": 2, "model": 2}, {}),
            ("rope+slopes|nope~logn", {"data": 2, "sequence": 4}, {}),
            ("alibi", {}, {}),
            ("rope+alibi", {"sequence": 4, "model": 2}, {"kv_heads": 1}),
            ("rope+alibi|nope~logn", {"sequence": 4, "model": 2}, {}),
            ("fire|kerple_log", {"data": 2, "sequence": 4}, {}),
            ("t5|power", {}, {}),
            ("capped|log~scale_invariant", {}, {}),
            ("forget", {}, {}),
            ("rope+forget(start=match)|alibi", {"sequence": 4, "model": 2}, {"kv_heads": 4}),
            ("slopes|rope~logn", {}, {"heads": 6, "kv_heads": 3}),
            ("2*alibi|1*sandwich", {}, {"heads": 6, "kv_heads": 2}),
            ("rope+alibi|kerple_power", {}, {"window": 9}),
            ("rope+alibi|nope", {}, {"causal": False, "window": 20}),
        ),
    ],
    ids=str,
)
def test_rows_split_over_devices_change_nothing(line, mesh, settings):
    sizes = {name: settings.pop(name) for name in ("heads", "kv_heads") if name in settings}
    layer = placed(line, num_heads=sizes.get("heads", N))
    arrays = (*tensors(layer, 72, kv_heads=sizes.get("kv_heads", K)), *two_rows(72))
    pull = jax.random.normal(jax.random.key(9), arrays[0].shape)
    want = forward_and_gradients(layer, "dense", **settings)(pull, *arrays)
    assert_same(
        want, on(mesh_of(**mesh), forward_and_gradients(layer, "auto", **settings), pull, arrays)
    )


@pytest.fixture(scope="module")
def alibi():
    """(layer, arrays, pull, compiled): a long row over eight devices; content counts little."""
    layer = placed("alibi")
    arrays = (*tensors(layer, LONG, B=1, kv_heads=N, size=0.1), *one_document(LONG))
    pull = jax.random.normal(jax.random.key(9), arrays[0].shape)
    lower = forward_and_gradients(layer, "auto").lower
    return layer, arrays, pull, on(mesh_of(), lambda *x: lower(*x).compile(), pull, arrays)


def test_a_steep_head_ends_its_ring_early_and_nothing_is_lost(alibi):
    layer, arrays, pull, compiled = alibi
    found, here = hops(layer, arrays), LONG // DEVICES
    content = np.linalg.norm(arrays[0], axis=-1).max() * np.linalg.norm(arrays[1], axis=-1).max()
    window_N = cutoff_windows(layer, {}, content / np.sqrt(H), LONG)
    published_N = np.minimum(-(-(window_N - 1) // here), DEVICES - 1)
    assert list(window_N > here) == [False, True, True, True]
    assert list(found) == [1, 3, DEVICES - 1, DEVICES - 1]
    assert (found <= published_N).all()
    want = forward_and_gradients(layer, "dense")(pull, *arrays)
    assert_same(want, on(mesh_of(), compiled, pull, arrays))


def test_one_large_key_far_away_is_still_found(alibi):
    layer, (q, k, v, *rest), pull, compiled = alibi
    q, k = q.at[0, -1, 0].set(1.0), k.at[0, 3, 0].set(100.0)
    arrays = (q, k, v, *rest)  # logit 400, less a quarter of 1,020 tokens
    assert list(hops(layer, arrays)) == [DEVICES - 1, 3, DEVICES - 1, DEVICES - 1]
    want = forward_and_gradients(layer, "dense")(pull, *arrays)
    np.testing.assert_allclose(want[0][0, -1, 0], v[0, 3, 0], atol=1e-6)  # it takes all the weight
    assert_same(want, on(mesh_of(), compiled, pull, arrays))


def test_a_key_gets_its_gradient_from_rows_that_see_it_and_no_other(alibi):
    _, arrays, pull, compiled = alibi
    row = 300
    _, (_, d_k, d_v, *_) = on(mesh_of(), compiled, jnp.zeros_like(pull).at[:, row].set(1.0), arrays)
    for grad in (np.asarray(d_k), np.asarray(d_v)):
        assert (grad[:, row + 1 :] == 0).all()
        assert (grad[:, row - 150 : row + 1] != 0).any(-1).all()


def test_keys_travel_and_are_gathered_nowhere(alibi):
    text = alibi[-1].as_text()
    floats = 1 * (LONG // DEVICES) * H  # of one key/value head on one device
    passed = re.findall(r"= \(?f32\[([\d,]+)\]\S* collective-permute", text)
    assert floats in {np.prod([int(n) for n in dims.split(",")]) for dims in passed}
    for dims in re.findall(r"= \(?\w+\[([\d,]+)\]\S* (?:all-gather|all-to-all)", text):
        assert np.prod([int(n) for n in dims.split(",")]) <= DEVICES * N
    here = LONG // DEVICES
    for dims in re.findall(r"\w+\[([\d,]+)\]", text):
        sizes = [int(n) for n in dims.split(",")]
        assert sizes.count(LONG) + sizes.count(here) < 2 or LONG not in sizes


@pytest.mark.thorough
def test_flat_heads_go_as_far_as_anything_is_in_sight():
    layer = placed("nope")
    here = LONG // DEVICES
    arrays = tensors(layer, LONG, B=1)
    whole, slots = one_document(LONG), jnp.arange(LONG)[None]
    packed = [(slots % n, 1 + slots // n) for n in (here, here + 1)]
    assert list(hops(layer, (*arrays, *whole))) == [DEVICES - 1] * 4
    assert list(hops(layer, (*arrays, *packed[0]))) == [0] * 4
    assert list(hops(layer, (*arrays, *packed[1]))) == [1] * 4
    assert list(hops(layer, (*arrays, *whole), window=here + 1)) == [1] * 4
    assert list(hops(layer, (*arrays, *whole), window=here + 2)) == [2] * 4


@pytest.mark.thorough
def test_a_ring_ends_where_the_window_of_a_head_does():
    here = LONG // DEVICES
    layer = placed(f"2*window(size={here + 1})|1*alibi+window(size={2 * here + 2})|1*nope")
    arrays = (*tensors(layer, LONG, B=1, kv_heads=N), *one_document(LONG))
    assert list(hops(layer, arrays)) == [1, 1, 3, DEVICES - 1]
    assert list(hops(layer, arrays, window=here + 1)) == [1] * 4


@pytest.mark.thorough
def test_bfloat16_goes_around_with_float32_sums():
    layer = placed("rope+alibi")
    *arrays, ticks, params = tensors(layer, 72)
    narrow = [x.astype(jnp.bfloat16) for x in arrays]
    wide = [x.astype(jnp.float32) for x in narrow]
    rest = (ticks, params, *two_rows(72))
    pull = jax.random.normal(jax.random.key(9), arrays[0].shape).astype(jnp.bfloat16)
    run = forward_and_gradients(layer, "auto")
    out, (*grads, _, _) = on(mesh_of(), run, pull, (*narrow, *rest))
    want, (*want_grads, _, _) = forward_and_gradients(layer, "dense")(
        pull.astype(jnp.float32), *wide, *rest
    )
    for got, exact in zip((out, *grads), (want, *want_grads), strict=True):
        assert got.dtype == jnp.bfloat16
        # q and k are rounded once more when they are turned, and the result at the end.
        error = np.linalg.norm(np.asarray(got, np.float64) - exact) / np.linalg.norm(exact)
        assert error < 2**-8


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("tokens", [72, 1024])  # a chunk has 64 tokens, a device 9 or 128
@pytest.mark.parametrize("mesh", [{}, {"data": 2, "sequence": 2, "model": 2}], ids=str)
def test_linear_attention_tells_sums_over_devices_and_no_keys(mesh, tokens):
    layer = placed("rope+linear")
    arrays = (*tensors(layer, tokens), *two_rows(tokens))
    pull = jax.random.normal(jax.random.key(9), arrays[0].shape)
    want = forward_and_gradients(layer, "dense", aligned=True)(pull, *arrays)
    run = forward_and_gradients(layer, "auto", aligned=True)
    assert_same(want, on(mesh_of(**mesh), run, pull, arrays))
    if mesh:
        return
    text = on(mesh_of(), lambda *x: run.lower(*x).compile(), pull, arrays).as_text()
    told = re.findall(r"= \(?f32\[([\d,]+)\]\S* (?:all-gather|all-reduce|collective-permute)", text)
    assert (
        max(np.prod([int(n) for n in dims.split(",")]) for dims in told) == DEVICES * 2 * N * H * H
    )


@pytest.mark.parametrize("line", ["alibi", *slow(("forget",))])
def test_keys_out_of_order_are_all_read(line):
    layer = placed(line)
    q, k, v, ticks, params = tensors(layer, LONG, B=1, kv_heads=N, size=0.1)
    pos, seg = one_document(LONG)
    if line == "forget":
        assert hops(layer, (q, k, v, 10 * ticks, params, pos, seg)).max() < DEVICES - 1
    pos = pos.at[:, 5].set(6).at[:, 6].set(5)
    assert list(hops(layer, (q, k, v, 10 * ticks, params, pos, seg))) == [DEVICES - 1] * 4


def test_a_clock_runs_on_over_devices():
    seg = two_rows(72)[1]
    seg = jnp.concatenate([seg, jnp.ones_like(seg), jnp.repeat(jnp.arange(1, 9), 9)[None]])
    ticks = -jax.random.uniform(jax.random.key(0), (5, 72, 3))
    pull = jax.random.normal(jax.random.key(1), ticks.shape)

    def run(clock, ticks, pull):
        out, vjp = jax.vjp(lambda t: clock(t, seg), ticks)
        return out, vjp(pull)[0]

    want = jax.jit(lambda *x: run(running_clock_of_one_device, *x))(ticks, pull)
    mesh = mesh_of()
    with jax.set_mesh(mesh):
        split = jax.NamedSharding(mesh, jax.P(None, "sequence", None))
        seg = jax.device_put(seg, jax.NamedSharding(mesh, jax.P(None, "sequence")))
        got = jax.jit(lambda *x: run(cumulative_log_forget, *x))(
            *jax.device_put((ticks, pull), split)
        )
    for w, g in zip(want, got, strict=True):
        np.testing.assert_allclose(g, w, atol=2e-5)
    assert np.abs(want[0]).max() > 20  # a document over all devices


@pytest.mark.parametrize(
    ("line", "implementation", "words"),
    [
        ("rope+linear", "dense", "by 'auto' alone"),
        ("alibi", "dense", "must be 'auto' or 'blockwise', not 'dense'"),
        ("alibi", "cudnn", "not 'cudnn'"),
    ],
)
def test_what_cannot_go_around_is_refused(line, implementation, words):
    with pytest.raises(ValueError, match=f"lie on 4 devices.*{words}"):
        choose_implementation(
            placed(line),
            64,
            64,
            implementation,
            KernelConditions(head_dim=H, dtype="float32"),
            sequence=4,
        )
