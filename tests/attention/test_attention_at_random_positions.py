"""Attention and decoders at random positions against float64 and plain positions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.attention import (
    AttentionSettings,
    KernelConditions,
    OptionalInputs,
    TokenSide,
    attend,
)
from posenc_jax.attention.attend import choose_implementation
from posenc_jax.data.random_positions import RandomPositions
from posenc_jax.encodings import cumulative_log_forget, parse
from posenc_jax.model.attention_layer import visible_key_counts
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder

from support import oracles, schemes
from support.attention_inputs import qkv
from support.packed_rows import packed

L, SPAN, N, H = 16, 128, 4, 8


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
    clock = jax.jit(cumulative_log_forget)(ticks, seg) if layer.gated else None
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
        np.stack(
            [
                [oracles.rope_vector(x[0, t, n], pos[t]) if n < 2 else x[0, t, n] for n in range(N)]
                for t in range(L)
            ]
        )
        for x in (np.asarray(q, np.float64), np.asarray(k, np.float64))
    )
    want = oracles.attention(
        q_TNH,
        k_SNH,
        np.asarray(v[0], np.float64),
        lambda n, i, j: -slopes[n] * (pos[i] - pos[j]) if n < 2 else 0.0,
        lambda i, j: seg[i] == seg[j] and j <= i,
        lambda n, i: 1.0 if n < 2 else np.log(count[i]) / np.log(L),
    )
    got = attended(layer, {}, q, k, v, ticks, DRAWN, SEG)[0]
    np.testing.assert_allclose(got[:14], want[:14], atol=2e-6)


NEEDS_NO_DISTANCE = [
    "nope",
    "forget",
    "linear",
    "nope~yarn_temperature",
    *(
        line
        for line in schemes.ALONE
        if line.startswith("nope~") and not parse(line).layers[0][0].temperature.relative
    ),
]


@pytest.mark.default_cases(2)
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
    for line in schemes.some(pytest.mark.slow)
    if not any(part.columns(PLANE) for part in schemes.parts(line.values[0]))
]


@pytest.mark.default_cases(2, thorough=2)
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
    scheme="rope+alibi|nope~logn(clip=false)",
    vocab_size=37,
    train_length=L,
    num_layers=1,
    model_dim=32,
    num_heads=N,
    num_kv_heads=2,
    head_dim=H,
    mlp_dim=48,
    activation="swiglu",
    qk_norm=True,
    tied_head=True,
    embedding_scale=1.0,
    norm_epsilon=1e-6,
    dtype="float32",
    attention="auto",
    consecutive=False,
)


def logits(config, pos, seg):
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 37, seg.shape))
    params = jax.jit(Decoder(MODEL).init)(jax.random.key(3), tokens, pos, seg)["params"]
    return jax.jit(Decoder(config).apply)({"params": params}, tokens, pos, seg)[0]


@pytest.mark.thorough
def test_a_decoder_counts_keys_at_random_positions_and_reads_plain_ones_as_any_other():
    plain = dataclasses.replace(MODEL, consecutive=True)
    np.testing.assert_array_equal(logits(MODEL, PLAIN, SEG), logits(plain, PLAIN, SEG))
    assert np.abs(logits(MODEL, DRAWN, SEG) - logits(plain, DRAWN, SEG)).max() > 1e-3
    flat = {"scheme": "nope~logn(clip=false)"}
    counted = dataclasses.replace(MODEL, **flat)
    np.testing.assert_allclose(
        logits(counted, DRAWN, SEG)[:, :14], logits(counted, PLAIN, SEG)[:, :14], atol=1e-5
    )


@pytest.mark.default_cases(0, thorough=1)
@pytest.mark.parametrize("mesh", [{"data": 2, "model": 2}, {"data": 2, "sequence": 4}], ids=str)
def test_rows_and_tokens_split_over_devices_change_nothing(mesh):
    pos, seg = (jnp.concatenate([x, jnp.roll(x, 1, axis=0)]) for x in (DRAWN, SEG))
    want = logits(MODEL, pos, seg)
    from posenc_jax.training.sharding import make_mesh

    sizes = {"data": 1, "sequence": 1, "model": 1} | mesh
    grid = make_mesh(sizes["data"], sizes["model"], sequence_devices=sizes["sequence"])
    with jax.set_mesh(grid):
        batch_sharding = jax.NamedSharding(grid, jax.P("data", "sequence"))
        got = logits(MODEL, *(jax.device_put(x, batch_sharding) for x in (pos, seg)))
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
        with pytest.raises(
            ValueError, match="counts distances in slots, and positions are random; take"
        ):
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
        with pytest.raises(
            ValueError, match="counts distances in slots, and positions are random; take"
        ):
            choose(flat, 4096, 4096, kernel, random)
    q, k, v, ticks = tensors(L)
    with pytest.raises(
        ValueError, match="'flash' cannot serve this layer: it counts distances in slots"
    ):
        attended(flat, {}, q, k, v, ticks, DRAWN, SEG, window=16, implementation="flash")
    with pytest.raises(ValueError, match="positions are random"):
        dataclasses.replace(MODEL, scheme="rope", attention="flash", window=16)
    dense, tiled = (
        attended(flat, {}, q, k, v, ticks, DRAWN, SEG, window=16, implementation=how)
        for how in ("dense", "blockwise")
    )
    np.testing.assert_allclose(tiled, dense, atol=2e-6)
    free = attended(flat, {}, q, k, v, ticks, DRAWN, SEG, implementation="dense")
    assert np.abs(free - dense).max() > 1e-2  # 16 positions are fewer than 16 slots


def test_a_layer_that_would_need_both_counts_and_distances_is_refused():
    (layer,) = placed("nope~scale_invariant|nope~logn")
    with pytest.raises(ValueError, match="put them on separate layers"):
        attended(layer, {}, *tensors(L), DRAWN, SEG)
