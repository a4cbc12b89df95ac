"""Random positions in training: the draws, the batches they stand in, and attention that reads them."""

from support.attention_inputs import qkv
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from support import oracles
import pytest
from support import runs
from support import schemes

from posenc_jax.attention import (
    AttentionSettings,
    KernelConditions,
    OptionalInputs,
    TokenSide,
    attend,
)
from posenc_jax.attention.attend import choose_implementation
from posenc_jax.data.packing import Document, pack
from posenc_jax.data.random_positions import RandomPositions
from posenc_jax.encodings import cumulative_log_forget, parse
from posenc_jax.model.blocks import visible_key_counts
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder
from posenc_jax.training.inputs import open_inputs, training_batches

L, SPAN, N, H = 16, 128, 4, 8


def packed(*lengths, size=L):
    documents = [Document(np.arange(n, dtype=np.int32), np.ones(n)) for n in lengths]
    return pack(documents, size, 99)


def test_every_document_has_a_rising_draw_of_its_own_and_nothing_else_changes():
    example = packed(9, 5)
    seen = set()
    for row in range(50):
        drawn = RandomPositions(SPAN, seed=3)(row, example)
        assert drawn.keys() == example.keys()
        for name in example.keys() - {"positions_T"}:
            assert drawn[name] is example[name]
        positions_T = drawn["positions_T"]
        assert positions_T.dtype == example["positions_T"].dtype
        for document in (positions_T[:9], positions_T[9:14]):
            assert (np.diff(document) > 0).all()
            assert document[0] >= 0
            assert document[-1] < SPAN
            seen.add(tuple(document))
        assert (positions_T[14:] == 0).all()
    assert len(seen) == 100


def test_all_sets_of_positions_are_equally_likely():
    found = [tuple(RandomPositions(4, 0)(row, packed(2, size=2))["positions_T"]) for row in range(6000)]  # fmt: skip
    counts = {pair: found.count(pair) for pair in itertools.combinations(range(4), 2)}
    assert sum(counts.values()) == 6000
    # 1000 each, standard deviation 29.
    assert max(abs(count - 1000) for count in counts.values()) < 4 * 29
    # The mean of the i-th of n sorted draws from [0, S) is (i + 1)(S + 1)/(n + 1) - 1.
    many = np.stack([RandomPositions(SPAN, 1)(row, packed(L))["positions_T"] for row in range(2000)])  # fmt: skip
    want = np.arange(1, L + 1) * (SPAN + 1) / (L + 1) - 1
    assert np.abs(many.mean(0) - want).max() < 4 * many.std(0).max() / 2000**0.5


def test_a_draw_is_a_function_of_seed_and_row():
    one = RandomPositions(SPAN, 0)(7, packed(L))["positions_T"].tolist()
    assert one == RandomPositions(SPAN, 0)(7, packed(L))["positions_T"].tolist()
    assert one != RandomPositions(SPAN, 0)(8, packed(L))["positions_T"].tolist()
    assert one != RandomPositions(SPAN, 1)(7, packed(L))["positions_T"].tolist()
    assert RandomPositions(L, 0)(7, packed(L))["positions_T"].tolist() == list(range(L))
    with pytest.raises(ValueError, match="a document of 16 tokens has no 16 different positions"):
        RandomPositions(L - 1, 0)(7, packed(L))


def test_positions_that_int32_does_not_hold_are_refused():
    far = RandomPositions(2**31 - 1, 0)(7, packed(L))["positions_T"]
    assert (np.diff(far) > 0).all()
    assert far.min() >= 0
    assert far.max() > 2**30
    for span in (2**31, 2**40, 0):
        with pytest.raises(ValueError, match=f"1 to 2,147,483,647 of them .int32., not from {span:,}$"):  # fmt: skip
            RandomPositions(span, 0)


def batches_of(data_dir, k, steps=(0, 6), process=(0, 1), **data):
    config = runs.config(data_dir, "rope", data={"random_positions": k, "retrieval_share": 0.5} | data)  # fmt: skip
    feed = training_batches(config, open_inputs(config), first_step=steps[0], process_index=process[0], process_count=process[1])  # fmt: skip
    return [batch for _, batch in zip(range(*steps), feed, strict=False)]


def test_a_row_of_a_run_has_the_same_draw_after_a_restart_and_on_any_number_of_hosts(data_dir):
    whole, plain = batches_of(data_dir, 8), batches_of(data_dir, 0)
    for a, b in zip(whole, plain, strict=True):
        assert not np.array_equal(a["positions_BT"], b["positions_BT"])
        assert a["positions_BT"].max() < 8 * 32
        for name in a.keys() - {"positions_BT"}:
            np.testing.assert_array_equal(a[name], b[name])
    assert max(a["positions_BT"].max() for a in whole) > 4 * 32
    later = batches_of(data_dir, 8, steps=(4, 6), threads=5)
    halves = [batches_of(data_dir, 8, process=(p, 2)) for p in range(2)]
    for step, batch in enumerate(whole):
        both = np.concatenate([half[step]["positions_BT"] for half in halves])
        np.testing.assert_array_equal(batch["positions_BT"], both)
        if step >= 4:
            np.testing.assert_array_equal(batch["positions_BT"], later[step - 4]["positions_BT"])


# Attention.


def placed(line):
    shape = {"num_layers": len(parse(line).layers), "head_dim": H, "train_length": L}
    return schemes.placed(line, **shape).layers


SEG = jnp.array([[1] * 9 + [2] * 5 + [0] * 2])
DRAWN = jnp.asarray(RandomPositions(SPAN, 5)(0, packed(9, 5))["positions_T"])[None]
PLAIN = jnp.asarray(packed(9, 5)["positions_T"])[None]


def tensors(T):
    q, k, v, gates = qkv(1, T, N, N, H, (1, T, N))
    return q, k, v, -jax.nn.softplus(gates)


X_BTD = jax.random.normal(jax.random.key(8), (1, 256, 32))


def attended(layer, params, q, k, v, ticks, pos, seg, **settings):
    clock = cumulative_log_forget(ticks, seg) if layer.gated else None
    count = settings.pop("count_BT", visible_key_counts(seg))
    x_BTD = settings.pop("x_BTD", X_BTD[:, : q.shape[1]])
    settings = AttentionSettings(**{"aligned": True} | settings)
    optional = OptionalInputs(x_BTD, count)
    tokens = TokenSide(pos, seg, clock)
    return attend(q, k, v, layer, params, tokens, settings=settings, optional=optional)


def test_it_is_the_float64_loop_with_positions_for_distances_and_tokens_for_keys_in_sight():
    (layer,) = placed("rope+alibi|nope~logn(clip=false)")
    q, k, v, ticks = tensors(L)
    pos, count, seg = np.asarray(DRAWN[0]), [*range(1, 10), *range(1, 6), 1, 2], np.asarray(SEG[0])
    slopes = oracles.alibi_slopes(2)  # of the heads that carry the bias
    q_TNH, k_SNH = (
        np.stack([[oracles.rope_vector(x[0, t, n], pos[t]) if n < 2 else x[0, t, n] for n in range(N)] for t in range(L)])
        for x in (np.asarray(q, np.float64), np.asarray(k, np.float64))
    )  # fmt: skip
    want = oracles.attention(
        q_TNH, k_SNH, np.asarray(v[0], np.float64),
        lambda n, i, j: -slopes[n] * (pos[i] - pos[j]) if n < 2 else 0.0,
        lambda i, j: seg[i] == seg[j] and j <= i,
        lambda n, i: 1.0 if n < 2 else np.log(count[i]) / np.log(L),
    )  # fmt: skip
    got = attended(layer, {}, q, k, v, ticks, DRAWN, SEG)[0]
    np.testing.assert_allclose(got[:14], want[:14], atol=2e-6)


NEEDS_NO_DISTANCE = [
    "nope", "forget", "linear", "nope~yarn_temperature",
    *(line for line in schemes.ALONE if line.startswith("nope~") and not parse(line).layers[0][0].temperature.relative),
]  # fmt: skip


@pytest.mark.parametrize("line", NEEDS_NO_DISTANCE)
def test_a_scheme_without_distances_gives_the_same_numbers_at_any_rising_positions(line):
    (layer,) = placed(line)
    params, arrays = layer.init(jax.random.key(1)), tensors(L)
    plain = attended(layer, params, *arrays, PLAIN, SEG, count_BT=None)
    drawn = attended(layer, params, *arrays, DRAWN, SEG)
    np.testing.assert_allclose(drawn[:, :14], plain[:, :14], atol=1e-6)


PLANE = placed("nope")[0].groups[0].context
LINES = [
    line
    for line in schemes.some(pytest.mark.thorough)
    if not any(part.columns(PLANE) for part in schemes.parts(line.values[0]))
]


@pytest.mark.parametrize("line", LINES)
def test_packed_documents_equal_separate_ones_at_random_positions(line):
    for layer in placed(line):
        params, (q, k, v, ticks) = layer.init(jax.random.key(1)), tensors(L)
        whole = attended(layer, params, q, k, v, ticks, DRAWN, SEG)
        for part in (slice(0, 9), slice(9, 14)):
            own = (x[:, part] for x in (q, k, v, ticks))
            ones = jnp.ones((1, part.stop - part.start), jnp.int32)
            alone = attended(layer, params, *own, DRAWN[:, part], ones, x_BTD=X_BTD[:, part])
            np.testing.assert_allclose(whole[:, part], alone, atol=2e-6)


LONG = 192


@functools.cache
def long_row():
    """A long row of three documents over eight times as many positions."""
    example = packed(100, 60, 28, size=LONG)
    drawn = RandomPositions(8 * LONG, 2)(0, example)["positions_T"]
    return jnp.asarray(drawn)[None], jnp.asarray(example["segments_T"])[None]


@pytest.mark.parametrize(
    "line",
    [
        "alibi(slopes=match)",
        pytest.param("rope+alibi|nope~logn", marks=pytest.mark.thorough),
        pytest.param("rope+capped|forget", marks=pytest.mark.thorough),
    ],
)
def test_blocks_that_end_early_lose_nothing_and_have_the_gradients_of_the_definition(line):
    (layer,), (pos, seg) = placed(line), long_row()
    q, k, v, ticks = tensors(LONG)
    k = k.at[0, 1].mul(40.0)  # a key far back that outweighs its distance
    params = layer.init(jax.random.key(1))

    def of(implementation):
        def run(*arrays):
            return attended(layer, params, *arrays, pos, seg, implementation=implementation)

        out, vjp = jax.vjp(jax.jit(run), q, k, v, ticks)
        return out, vjp(jnp.sin(jnp.arange(out.size)).reshape(out.shape))

    (want, want_grads), (got, grads) = of("dense"), of("blockwise")
    np.testing.assert_allclose(got, want, atol=2e-6)
    for w, g in zip(want_grads, grads, strict=True):
        np.testing.assert_allclose(g, w, atol=1e-5 * max(1.0, np.abs(w).max()))


MODEL = ModelConfig(
    scheme="rope+alibi|nope~logn(clip=false)", vocab_size=37, train_length=L, num_layers=1, model_dim=32, num_heads=N,
    num_kv_heads=2, head_dim=H, mlp_dim=48, activation="swiglu", qk_norm=True, tied_head=True,
    embedding_scale=1.0, norm_epsilon=1e-6, dtype="float32", attention="auto", consecutive=False,
)  # fmt: skip


def logits(config, pos, seg):
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 37, seg.shape))
    params = Decoder(MODEL).init(jax.random.key(3), tokens, pos, seg)["params"]
    return jax.jit(Decoder(config).apply)({"params": params}, tokens, pos, seg)[0]


def test_a_decoder_counts_keys_at_random_positions_and_reads_plain_ones_as_any_other():
    plain = dataclasses.replace(MODEL, consecutive=True)
    np.testing.assert_array_equal(logits(MODEL, PLAIN, SEG), logits(plain, PLAIN, SEG))
    assert np.abs(logits(MODEL, DRAWN, SEG) - logits(plain, DRAWN, SEG)).max() > 1e-3
    flat = {"scheme": "nope~logn(clip=false)"}
    counted = dataclasses.replace(MODEL, **flat)
    np.testing.assert_allclose(logits(counted, DRAWN, SEG)[:, :14], logits(counted, PLAIN, SEG)[:, :14], atol=1e-5)  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("mesh", [{"data": 2, "sequence": 4}, {"data": 2, "model": 2}], ids=str)
def test_rows_and_tokens_split_over_devices_change_nothing(mesh):
    pos, seg = (jnp.concatenate([x, jnp.roll(x, 1, axis=0)]) for x in (DRAWN, SEG))
    want = logits(MODEL, pos, seg)
    from posenc_jax.training.sharding import make_mesh

    sizes = {"data": 1, "sequence": 1, "model": 1} | mesh
    grid = make_mesh(sizes["data"], sizes["model"], sequence_devices=sizes["sequence"])
    with jax.set_mesh(grid):
        rows = jax.NamedSharding(grid, jax.P("data", "sequence"))
        got = logits(MODEL, jax.device_put(pos, rows), jax.device_put(seg, rows))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_kernels_that_count_in_slots_serve_what_reads_no_distance_and_refuse_the_rest():
    slots = KernelConditions(head_dim=64, dtype="bfloat16")
    choose = functools.partial(choose_implementation, device="gpu")
    random = dataclasses.replace(slots, consecutive=False)
    flat, biased = placed("rope")[0], placed("rope+alibi")[0]
    for layer in (flat, biased):
        assert choose(layer, 4096, 4096, "auto", slots).name == "flash"
    assert choose(flat, 4096, 4096, "auto", random).name == "flash"
    path = choose(biased, 4096, 4096, "auto", random)
    assert path.name == "blockwise"
    assert "positions are random" in path.why
    for kernel in ("flash", "cudnn", "splash"):
        with pytest.raises(ValueError, match="counts distances in slots, and positions are random; take"):  # fmt: skip
            choose(biased, 4096, 4096, kernel, random)


def test_kernels_that_count_in_slots_refuse_the_models_window_and_auto_goes_by_blocks():
    slots, (flat,) = KernelConditions(64, "bfloat16", window=16), placed("rope")
    choose = functools.partial(choose_implementation, device="gpu")
    random = dataclasses.replace(slots, consecutive=False)
    assert choose(flat, 4096, 4096, "flash", slots).name == "flash"
    path = choose(flat, 4096, 4096, "auto", random)
    assert path.name == "blockwise"
    assert "positions are random" in path.why
    for kernel in ("flash", "cudnn", "splash"):
        with pytest.raises(ValueError, match="counts distances in slots, and positions are random; take"):  # fmt: skip
            choose(flat, 4096, 4096, kernel, random)
    q, k, v, ticks = tensors(L)
    with pytest.raises(ValueError, match="'flash' cannot serve this layer: it counts distances in slots"):  # fmt: skip
        attended(flat, {}, q, k, v, ticks, DRAWN, SEG, window=16, implementation="flash")
    with pytest.raises(ValueError, match="positions are random"):
        dataclasses.replace(MODEL, scheme="rope", attention="flash", window=16)
    dense, tiled = (attended(flat, {}, q, k, v, ticks, DRAWN, SEG, window=16, implementation=how) for how in ("dense", "blockwise"))  # fmt: skip
    np.testing.assert_allclose(tiled, dense, atol=2e-6)
    free = attended(flat, {}, q, k, v, ticks, DRAWN, SEG, implementation="dense")
    assert np.abs(free - dense).max() > 1e-2  # 16 positions are fewer than 16 slots


@pytest.mark.parametrize(
    ("scheme", "changes", "message"),
    [
        ("rope", {"data": {"random_positions": -1}}, r"config.data.random_positions must lie in \[0, "),
        ("learned(size=64)", {"data": {"random_positions": 8}}, r"random_positions=8 draws from 256 positions, and 'learned\(size=64\)' has 64"),
        ("axial", {"data": {"random_positions": 2}}, "random_positions=2: 'axial' takes positions as cells of a grid"),
        ("rope+alibi", {"data": {"random_positions": 8}, "model": {"attention": "flash"}}, "positions are random"),
        ("rope", {"data": {"random_positions": 2**20}, "train": {"length": 2048}}, "random_positions=1048576 at config.train.length=2048 draws from 2,147,483,648 positions, and int32 holds 2,147,483,647"),
    ],
)  # fmt: skip
def test_what_cannot_read_random_positions_is_refused_at_the_door(scheme, changes, message):
    with pytest.raises(ValueError, match=message):
        runs.config("unused", scheme, **changes)


def test_a_layer_that_would_need_both_counts_and_distances_is_refused():
    (layer,) = placed("nope~scale_invariant|nope~logn")
    with pytest.raises(ValueError, match="put them on separate layers"):
        attended(layer, {}, *tensors(L), DRAWN, SEG)
