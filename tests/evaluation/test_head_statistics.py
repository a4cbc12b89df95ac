"""Probes against walks over all pairs in float64, and against answers known in closed form."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.attention import attention_statistics
from posenc_jax.data.tokenizers import open_tokenizer
from posenc_jax.encodings import GatedBias, parse
from posenc_jax.encodings.analysis import retrieval_horizon
from posenc_jax.encodings.forget_gate import cumulative_log_forget
from posenc_jax.evaluation import head_statistics
from posenc_jax.tasks.filler import Filler
from posenc_jax.tasks.passkey_mqar import mqar, passkey

from support import oracles_probes as oracle
from support import schemes
from support.schemes import layer_of

N, K, H, L = 4, 2, 8, 32
T, FIRST = 36, 2  # 34 queries: a block and a bit
SOFTMAX = tuple(line for line in schemes.ALL if parse(line).layers[0][0].form is None)
QUICK = ("rope", "t5", "rope+forget(start=match)|nope~scale_invariant")
THOROUGH = (
    "nope",
    "alibi",
    "xpos",
    "fire",
    "forget",
    "nope~scale_invariant",
    "rope+alibi",
    "mixed|axial+alibi2d",
    "window",
    "pope",
)
EVERY = [
    pytest.param(
        line,
        marks=()
        if line in QUICK
        else pytest.mark.thorough
        if line in THOROUGH
        else pytest.mark.slow,
    )
    for line in SOFTMAX
]
LINEAR = tuple(line for line in schemes.ALL if parse(line).layers[0][0].form is not None)


placed = functools.partial(layer_of, head_dim=H, train_length=L)


def tensors(length=T, B=2, num_heads=N, num_kv_heads=K):
    keys = jax.random.split(jax.random.key(3), 3)
    q = 2 * jax.random.normal(keys[0], (B, length, num_heads, H))
    k = jax.random.normal(keys[1], (B, length, num_kv_heads, H))
    pos = jnp.broadcast_to(jnp.arange(length), (B, length))
    return q, k, pos, jax.random.normal(keys[2], (B, length, 32))


def prepared(line, rows=1):
    """(layer, params, q, k, pos, clock) of random tokens."""
    layer = placed(line)
    params = jax.tree.map(lambda x: x + 0.1, layer.init(jax.random.key(1)))
    q, k, pos, x = tensors(B=rows)
    ticks = layer.log_forget(params, x)
    clock = None if ticks is None else cumulative_log_forget(ticks, jnp.ones_like(pos))
    return layer, params, q, k, pos, clock


def pairs_of(layer, params, q, k, pos, clock):
    """(content_BNTS, bias_BNTS) by the equation, in float64 loops, from the layer's own parts."""
    turned_q = np.asarray(layer.rotate(params, q, pos, "query"))
    wide = jnp.stack([k[:, :, n * K // N] for n in range(N)], axis=2)
    turned_k = np.asarray(layer.rotate(params, wide, pos, "key"))
    tau = layer.temperature(params, pos, pos)
    tau = np.ones((1, N, 1, 1)) if tau is None else np.asarray(tau)
    tau = np.broadcast_to(tau, (len(q), N, pos.shape[1], pos.shape[1]))
    bias = layer.bias(params, pos, pos, clock, clock)
    bias = np.zeros(tau.shape) if bias is None else np.broadcast_to(np.asarray(bias), tau.shape)
    content = [
        oracle.contents(turned_q[b], turned_k[b], H, lambda n, i, j, b=b: tau[b, n, i, j])
        for b in range(len(q))
    ]
    return np.stack(content), bias.astype(np.float64)


def watch(layer, params, q, k, pos, clock, first=FIRST, sink=None, softcap=0.0):
    settings = {"sink_N": sink, "first": first, "softcap": softcap}
    run = jax.jit(
        lambda q, k, pos, clock: attention_statistics.attention_statistics(
            q, k, layer, params, pos_BT=pos, cum_log_forget_BTN=clock, **settings
        )
    )
    return jax.tree.map(np.asarray, run(q, k, pos, clock))


def windows_of(layer):
    """Keys that each head sees; all of them without a window."""
    return [T if w is None else w for w in layer.window_N]


@pytest.mark.default_cases(1, thorough=1)
@pytest.mark.parametrize("line", EVERY)
def test_streamed_sums_equal_a_walk_over_all_pairs(line):
    rows = 2 if line == "rope+alibi" else 1
    case = prepared(line, rows)
    found = watch(*case)
    content, bias = pairs_of(*case)
    for b in range(rows):
        want = oracle.watched(content[b], bias[b], FIRST, windows_of(case[0]))
        for name in ("weight", "content", "mean", "spread"):
            got = getattr(found, f"{name}_BNZ")[b]
            scale = max(1.0, np.abs(want[name]).max())
            np.testing.assert_allclose(got, want[name], rtol=2e-4, atol=2e-5 * scale, err_msg=name)
        for name in ("entropy", "sink"):
            got = getattr(found, f"{name}_BNQ")[b]
            np.testing.assert_allclose(got, want[name], rtol=1e-4, atol=2e-5, err_msg=name)
        for name, share in want["blind"].items():
            np.testing.assert_allclose(found.blind_BNQ[name][b], share, atol=1e-6)
    sums = head_statistics.merge_sums([found], FIRST)
    every = [
        (i - j, content[b, n, i, j] + bias[b, n, i, j])
        for n in (1,)
        for b in range(rows)
        for i in range(FIRST, T)
        for j in range(i + 1)
    ]
    assert head_statistics.relative_structure(sums)[1] == pytest.approx(
        oracle.relative_structure(every), abs=2e-4
    )


@pytest.mark.thorough
def test_a_softcap_caps_the_content_logits_and_no_bias():
    case, cap = prepared("rope+alibi"), 0.4
    found, plain = watch(*case, softcap=cap), watch(*case)
    content, bias = pairs_of(*case)
    want = oracle.watched(cap * np.tanh(content[0] / cap), bias[0], FIRST, windows_of(case[0]))
    for name in ("weight", "content", "mean", "spread"):
        scale = max(1.0, np.abs(want[name]).max())
        got = getattr(found, f"{name}_BNZ")[0]
        np.testing.assert_allclose(got, want[name], rtol=2e-4, atol=2e-5 * scale, err_msg=name)
    assert np.abs(found.weight_BNZ - plain.weight_BNZ).max() > 1e-2


@pytest.mark.thorough
def test_a_sink_takes_its_share_of_every_weight_and_counts_in_entropy_and_blindness():
    case, sink = prepared("rope+alibi"), np.array([3.0, 0.0, -2.0, 120.0], np.float32)
    found, plain = watch(*case, sink=jnp.asarray(sink)), watch(*case)
    content, bias = pairs_of(*case)
    want = oracle.watched(content[0], bias[0], FIRST, windows_of(case[0]), sink)
    for name in ("weight", "content", "mean", "spread"):
        scale = max(1.0, np.abs(want[name]).max())
        np.testing.assert_allclose(
            getattr(found, f"{name}_BNZ")[0], want[name], rtol=2e-4, atol=2e-5 * scale
        )
    for name in ("entropy", "sink"):
        got = getattr(found, f"{name}_BNQ")[0]
        np.testing.assert_allclose(got, want[name], rtol=1e-4, atol=2e-5)
    for name, share in want["blind"].items():
        np.testing.assert_allclose(found.blind_BNQ[name][0], share, atol=1e-6)
    assert found.blind_BNQ["float32"][0, 3].min() == 1  # all weights are zero beside 120 nats
    np.testing.assert_allclose(plain.weight_BNZ.sum(-1), T - FIRST, rtol=1e-5)
    assert (found.weight_BNZ.sum(-1)[0] < [0.9 * (T - FIRST), T - FIRST, T - FIRST, 1e-9]).all()

    query, key = [35, 30], [3, 30]
    got = chosen(case, query, key, jnp.asarray(sink))
    for n, a in np.ndindex(N, 2):
        here = (content[0, n, query[a]], bias[0, n, query[a]], query[a], key[a], T)
        weight, margin, _ = oracle.needle(*here, sinks=[sink[n]])
        assert got.weight_BNA[0, n, a] == pytest.approx(weight, rel=1e-3, abs=1e-6)
        assert got.margin_BNA[0, n, a] == pytest.approx(margin, abs=1e-3)
    np.testing.assert_array_equal(got.reach_BNA, chosen(case, query, key).reach_BNA)


@pytest.mark.parametrize("line", LINEAR)
def test_linear_attention_is_refused_in_words(line):
    q, k, pos, _ = tensors()
    layer = placed(line)
    with pytest.raises(ValueError, match="linear attention has no softmax"):
        attention_statistics.attention_statistics(
            q, k, layer, {}, pos_BT=pos, cum_log_forget_BTN=None, sink_N=None, first=0
        )
    with pytest.raises(ValueError, match="linear attention has no softmax"):
        attention_statistics.needle_statistics(
            q,
            k,
            layer,
            {},
            pos_BT=pos,
            cum_log_forget_BTN=None,
            sink_N=None,
            needles=(pos[:, :1], pos[:, :1]),
        )


def still(line, length, num_heads=N, first=0):
    """Sums of tokens without content: what the positions alone do."""
    layer = placed(line, num_heads=num_heads)
    zero = jnp.zeros((1, length, num_heads, H))
    pos = jnp.arange(length)[None]
    return layer, watch(layer, layer.init(jax.random.key(0)), zero, zero, pos, None, first)


def test_uniform_attention_has_entropy_ln_of_its_keys_and_a_sink_of_one_share():
    _, found = still("nope", 50)
    keys = np.arange(1, 51)
    np.testing.assert_allclose(found.entropy_BNQ[0], np.tile(np.log(keys), (N, 1)), atol=1e-6)
    np.testing.assert_allclose(found.sink_BNQ[0], np.tile(1 / keys, (N, 1)), rtol=1e-6)


def test_uniform_attention_spreads_over_octaves_by_their_width():
    _, found = still("nope", 64, first=63)
    sums = head_statistics.merge_sums([found], 63)
    for low, high in ((0, 1), (1, 2), (2, 4), (8, 16), (32, 64)):
        np.testing.assert_allclose(
            head_statistics.mass_between(sums, low, high), (high - low) / 64, rtol=1e-5
        )
    np.testing.assert_allclose(head_statistics.mean_distance(sums), 63 / 2, rtol=1e-5)


def test_alibi_without_content_looks_as_far_as_its_geometric_series():
    length = 200
    _, found = still("alibi", length, first=length - 1)
    sums = head_statistics.merge_sums([found], length - 1)
    for head, far in enumerate(head_statistics.mean_distance(sums)):
        slope = 2.0 ** (-8 * (head + 1) / N)
        x, n = math.exp(-slope), length
        want = x / (1 - x) - n * x**n / (1 - x**n)
        assert far == pytest.approx(want, rel=1e-4)
    np.testing.assert_allclose(head_statistics.monotonicity(sums), -1.0, atol=1e-12)
    np.testing.assert_allclose(head_statistics.relative_structure(sums), 1.0, atol=1e-6)


def test_blind_keys_are_those_past_the_smallest_number_of_the_dtype():
    length = 300
    _, found = still("alibi", length, num_heads=8, first=length - 1)
    steep = {name: share[0, 0, 0] * length for name, share in found.blind_BNQ.items()}
    # Slope 1/2: weight e^(-d/2) is 0 in float32 past d = 206, in bfloat16 past 184 (133 ln 2 * 2).
    assert steep["float32"] == pytest.approx(length - 207, abs=1e-3)
    assert steep["bfloat16"] == pytest.approx(length - 185, abs=1e-3)
    assert found.blind_BNQ["float32"][0, 1, 0] == 0


def test_kendall_is_the_sign_of_a_trend_and_nothing_for_a_flat_one():
    _, found = still("alibi|nope", 60, first=30)
    tau = head_statistics.monotonicity(head_statistics.merge_sums([found], 30))
    np.testing.assert_allclose(tau[:2], -1.0, atol=1e-12)


def chosen(case, query, key, sink=None):
    layer, params, q, k, pos, clock = case
    query, key = (jnp.asarray(x)[None] for x in (query, key))
    run = jax.jit(
        lambda q, k, pos, clock, query, key: attention_statistics.needle_statistics(
            q,
            k,
            layer,
            params,
            pos_BT=pos,
            cum_log_forget_BTN=clock,
            sink_N=sink,
            needles=(query, key),
        )
    )
    return jax.tree.map(np.asarray, run(q, k, pos, clock, query, key))


@pytest.mark.parametrize("line", EVERY)
def test_needles_equal_one_query_at_a_time(line):
    case = prepared(line)
    query, key = [35, 30, 17], [3, 30, 9]
    found = chosen(case, query, key)
    content, bias = pairs_of(*case)
    for b, n, a in np.ndindex(1, N, 3):
        here = (
            content[b, n, query[a]],
            bias[b, n, query[a]],
            query[a],
            key[a],
            windows_of(case[0])[n],
        )
        weight, margin, reach = oracle.needle(*here)
        assert found.weight_BNA[b, n, a] == pytest.approx(weight, rel=1e-3, abs=1e-6)
        assert found.margin_BNA[b, n, a] == pytest.approx(margin, abs=1e-3)
        off = oracle.needle(here[0] + 1e-4 * (np.arange(T) == key[a]), *here[1:])[2]
        assert found.reach_BNA[b, n, a] in {
            reach,
            off,
        }  # an edge within rounding may fall either way


def test_a_planted_margin_reaches_as_far_as_predicted_and_no_further():
    length, margin = 200, 6.0
    distance_B = np.arange(1, length - 1, 3)
    B = len(distance_B)
    key_BA = (length - 1 - distance_B)[:, None]
    k = jnp.zeros((B, length, N, H))
    k = k.at[np.arange(B), key_BA[:, 0], :, 0].set(margin * math.sqrt(H))
    q = jnp.zeros((B, length, N, H)).at[:, :, :, 0].set(1.0)
    found = attention_statistics.needle_statistics(
        q,
        k,
        placed("alibi"),
        {},
        pos_BT=jnp.tile(jnp.arange(length), (B, 1)),
        cum_log_forget_BTN=None,
        sink_N=None,
        needles=(jnp.full((B, 1), length - 1), jnp.asarray(key_BA)),
    )
    np.testing.assert_allclose(found.margin_BNA, margin, rtol=1e-4)
    reaches = []
    for n in range(N):
        predicted = retrieval_horizon(-(2.0 ** (-8 * (n + 1) / N)) * np.arange(length), margin)
        assert set(np.asarray(found.reach_BNA)[:, n, 0]) == {predicted}
        held_B = np.asarray(found.weight_BNA)[:, n, 0] >= 0.5
        np.testing.assert_array_equal(held_B, distance_B <= predicted)
        reaches.append(predicted)
    assert 0 < min(reaches) < max(reaches) < length


@pytest.mark.parametrize("task", ["passkey", "mqar"])
def test_the_needles_place_holds_the_token_that_its_query_must_predict(task):
    tokenizer = open_tokenizer("bytes")
    filler = Filler(None, tokenizer, corpus=False)
    settings = {"split": "test", "seed": 1, "index": 4, "length": 200}
    if task == "passkey":
        instance = passkey(tokenizer, filler, **settings)
    else:
        instance = mqar(tokenizer, filler, **settings, pairs=5)
    query_A, key_A = head_statistics.needle_positions(instance)
    assert len(query_A) == 5
    np.testing.assert_array_equal(instance.tokens[query_A + 1], instance.tokens[key_A])
    assert (key_A < instance.answers[0].start - 2).all()
    assert query_A[-1] == len(instance.tokens) - 2


def test_measured_reach_and_agreement_count_what_was_held():
    found = head_statistics.NeedleHeads(
        distance_A=np.array([5, 20, 80]),
        weight_NA=np.array([[0.9, 0.6, 0.1], [0.1, 0.2, 0.3]]),
        margin_NA=np.zeros((2, 3)),
        reach_NA=np.array([[30, 30, 30], [-1, 25, -1]]),
    )
    assert head_statistics.measured_reach(found).tolist() == [20, -1]
    assert head_statistics.agreement(found).tolist() == [1.0, pytest.approx(2 / 3)]


@pytest.mark.parametrize(("line", "partner"), [("rope", 4), ("rope(pairing=interleaved)", 1)])
def test_rotary_planes_are_read_off_the_rotation(line, partner):
    layer = placed(line)
    for pairs in head_statistics.rotary_planes(layer, {}, H):
        waves = [2 * math.pi * 10_000 ** (2 * i / H) for i in range(H // 2)]
        np.testing.assert_allclose([p["wavelength"] for p in pairs], waves, rtol=1e-4)
        assert pairs[0]["dims"] == (0, partner)


@pytest.mark.thorough
def test_frequency_use_is_the_share_of_norms_and_unrotated_dims_stand_last():
    layer = placed("rope(fraction=0.5)|nope")
    planes = head_statistics.rotary_planes(layer, {}, H)
    q, k, pos, _ = tensors(B=1)
    q = q.at[:, :, 0].set(0.0).at[:, :, 0, 1].set(3.0).at[:, :, 0, 6].set(1.0)
    k = k.at[:, :, 0].set(0.0).at[:, :, 0, 1].set(2.0).at[:, :, 0, 6].set(1.0)
    sums = head_statistics.merge_sums([watch(layer, {}, q, k, pos, None)], FIRST)
    use = head_statistics.frequency_use(sums, planes)
    np.testing.assert_allclose(use[0], [0, 6 / 7, 1 / 7], atol=1e-6)  # dims (0,2), (1,3), rest
    np.testing.assert_allclose(use[2], [1.0])  # no rotation: all of it unrotated
    assert [len(x) for x in use] == [3, 3, 1, 1]


def test_heads_on_several_devices_are_watched_like_heads_on_one():
    case = prepared("rope+alibi|nope~logn", rows=2)
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    layout = jax.NamedSharding(mesh, jax.P("data", None, "model", None))
    layer, params, q, k, pos, clock = case
    spread = (layer, params, *(jax.device_put(x, layout) for x in (q, k)), pos, clock)
    for one, many in zip(
        jax.tree.leaves(watch(*case)), jax.tree.leaves(watch(*spread)), strict=True
    ):
        np.testing.assert_allclose(many, one, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_memory_grows_with_the_length_and_not_with_its_square():
    layer = placed("rope+alibi")

    def peak(length):
        q, k, pos, _ = tensors(length, B=1)
        run = jax.jit(
            lambda *a: attention_statistics.attention_statistics(
                a[0], a[1], layer, {}, pos_BT=a[2], cum_log_forget_BTN=None, sink_N=None, first=0
            )
        )
        return run.lower(q, k, pos).compile().memory_analysis().temp_size_in_bytes

    assert peak(4096) < 2.5 * peak(2048) < 4 * N * 2048 * 2048  # less than one T x S array


def test_the_quick_schemes_are_among_all():
    assert {*QUICK, *THOROUGH} <= set(SOFTMAX)


def test_gates_are_part_of_what_is_watched():
    gated = [line for line in SOFTMAX if any(isinstance(p, GatedBias) for p in schemes.parts(line))]
    assert gated
    case = prepared(gated[0])
    assert case[-1] is not None
