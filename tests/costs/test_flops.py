"""FLOPs of a step against loops over tokens and against XLA's count."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from posenc_jax.costs import flops
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder
from posenc_jax.model.layer_stack import LayerExecution

N, K, H, L, T = 4, 2, 16, 64, 41


def config_of(line, **changes):
    return ModelConfig(
        scheme=line, vocab_size=37, train_length=L, num_layers=2, model_dim=32, num_heads=N, num_kv_heads=K,
        head_dim=8, mlp_dim=48, activation="swiglu", qk_norm=False, tied_head=True, embedding_scale=1.0,
        norm_epsilon=1e-6, dtype="float32", attention="blockwise",
    ) if not changes else dataclasses.replace(config_of(line), **changes)  # fmt: skip


def test_flops_count_the_pairs_that_heads_see():
    def pairs(length, size):
        return sum(min(i + 1, size) for i in range(length))

    wide = flops.model_flops(config_of("window(size=L/8)|nope,nope"), 3, 100)
    seen = 2 * pairs(100, 8) + 6 * pairs(100, 100)
    assert wide.attention == 3 * 3 * 4 * 8 * seen
    narrow = flops.model_flops(config_of("window(size=L/8)|nope,nope", window=5), 3, 100)
    assert narrow.attention == 3 * 3 * 4 * 8 * 8 * pairs(100, 5)
    for path in ("blockwise", "flash"):
        model = config_of("window(size=512)", attention=path)
        half, whole = (flops.hardware_flops(model, 1, n, "cpu").attention for n in (8192, 16_384))
        assert 1.9 < whole / half < 2.1
        free = flops.hardware_flops(config_of("nope", attention=path), 1, 16_384, "cpu").attention
        assert whole < free / 7  # whole tiles


SHAPE = {
    "vocab_size": 7,
    "train_length": 6,
    "num_layers": 3,
    "model_dim": 8,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 4,
    "mlp_dim": 10,
    "activation": "swiglu",
    "qk_norm": False,
    "tied_head": True,
    "embedding_scale": 1.0,
    "norm_epsilon": 1e-6,
    "dtype": "float32",
    "attention": "dense",
}


def model(scheme="rope", **changes):
    return ModelConfig(scheme=scheme, **{**SHAPE, **changes})


# ----------------------------------------------------------------------------------------------- FLOPs


def counted_by_hand(c, rows, length, window=None):
    """Multiplications and additions of the matrix products of one step, token by token and pair by pair."""
    total = dict.fromkeys(("projections", "mlp", "attention", "head"), 0.0)
    matrices = 3 if c.activation == "swiglu" else 2
    for _row in range(rows):
        for query in range(length):
            total["head"] += 2 * c.vocab_size * c.model_dim
            for _layer in range(c.num_layers):
                for heads in (c.num_heads, c.num_kv_heads, c.num_kv_heads, c.num_heads):
                    total["projections"] += 2 * c.model_dim * heads * c.head_dim
                total["mlp"] += matrices * 2 * c.model_dim * c.mlp_dim
                for key in range(query + 1):
                    if window is None or query - key < window:
                        total["attention"] += c.num_heads * (2 * c.head_dim + 2 * c.head_dim)
    return {
        name: 3 * n for name, n in total.items()
    }  # backward: by each of a product's two factors


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@pytest.mark.parametrize("window", [None, 4])
def test_flops_are_those_counted_token_by_token(activation, window):
    c = model(activation=activation, window=window)
    assert dataclasses.asdict(flops.model_flops(c, 2, 6)) == counted_by_hand(c, 2, 6, window)


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("remat", ["none", "dots", "attention", "full"])
@pytest.mark.parametrize("untied", [False, True])
def test_flops_are_near_what_xla_counts_of_a_model_without_loops(untied, remat):
    c = model(
        vocab_size=512,
        model_dim=128,
        num_heads=4,
        num_kv_heads=4,
        head_dim=32,
        mlp_dim=512,
        tied_head=not untied,
    )
    decoder, rows, length = Decoder(c, execution=LayerExecution(remat=remat)), 2, 64
    ids = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    params = jax.eval_shape(decoder.init, jax.random.key(0), ids, ids, ids)

    def loss(params, tokens, pos, seg):
        return jax.nn.logsumexp(decoder.apply(params, tokens, pos, seg)[0], axis=-1).sum()

    text = jax.jit(jax.value_and_grad(loss)).lower(params, ids, ids, ids)
    counted = text.cost_analysis()["flops"]
    ours = flops.hardware_flops(c, rows, length, "cpu", remat=remat).total
    assert ours <= counted <= 1.1 * ours  # XLA counts norms, rotations and softmax as well


def test_what_is_made_again_is_counted_again_and_a_kernel_that_keeps_its_result_is_not():
    for attention, keeps in (("dense", False), ("blockwise", True)):
        c = model(attention=attention)
        plain, dots, kept, full = (
            flops.hardware_flops(c, 2, 6, "cpu", remat=r)
            for r in ("none", "dots", "attention", "full")
        )
        forward = plain.attention * (1 / 3 if attention == "dense" else 2 / 7)
        assert full.attention == pytest.approx(plain.attention + forward)
        assert dots.attention == kept.attention == (plain if keeps else full).attention
        assert (dots.projections, dots.mlp) == (plain.projections, plain.mlp)
        for made_again in (kept, full):
            assert made_again.projections == 4 / 3 * plain.projections
            assert made_again.mlp == pytest.approx(
                (3 + 2 / 3) / 3 * plain.mlp
            )  # up and gate, not down
        twice = flops.hardware_flops(c, 2, 6, "cpu", head_again=True)
        assert twice == dataclasses.replace(plain, head=4 / 3 * plain.head)


def test_devices_that_each_project_to_all_key_heads_count_them_each():
    c = model()
    alone, copied = (flops.hardware_flops(c, 2, 6, "cpu", key_copies=n) for n in (1, 4))
    assert alone.projections == counted_by_hand(c, 2, 6)["projections"]
    keys_and_values = 2 * 6 * 3 * 2 * 2 * 8 * 2 * 4  # rows, tokens, layers; two matrices of D, K, H
    assert copied == dataclasses.replace(
        alone, projections=alone.projections + 3 * 3 * keys_and_values
    )


def test_dense_attention_multiplies_every_pair_and_blocks_those_of_their_tiles():
    dense, blocks = model(), model(attention="blockwise")
    assert flops.hardware_flops(dense, 1, 6, "cpu").attention == 3 * 3 * 4 * 4 * 4 * 6 * 6
    tiles = (
        3 * 4 * (7 / 2) * 4 * 4 * 6 * 6
    )  # one tile; backward makes the logits again: 5 products for 2
    assert flops.hardware_flops(blocks, 1, 6, "cpu").attention == tiles


def test_tiles_are_those_that_hold_a_pair_in_reach():
    for length, reach, q_block, k_block in (
        (64, 64, 16, 8),
        (64, 10, 16, 8),
        (128, 1, 32, 32),
        (96, 40, 32, 16),
    ):
        held = {
            (q // q_block, k // k_block)
            for q in range(length)
            for k in range(q + 1)
            if q - k < reach
        }
        assert flops.tile_pairs(length, reach, q_block, k_block) == len(held) * q_block * k_block


def test_a_steep_bias_ends_the_work_of_its_heads_and_a_kernel_with_a_fold_pays_for_its_columns():
    shape = {
        "attention": "blockwise",
        "train_length": 4096,
        "qk_norm": True,
        "head_dim": 64,
        "num_heads": 8,
        "num_kv_heads": 8,
        "dtype": "bfloat16",
    }
    flat, steep = (
        flops.hardware_flops(model(s, **shape), 1, 4096, "cpu") for s in ("rope", "rope+alibi")
    )
    assert steep.attention < 0.8 * flat.attention
    assert flops.model_flops(model("rope", **shape), 1, 4096) == flops.model_flops(
        model("rope+alibi", **shape), 1, 4096
    )
    # Side by side on a GPU: seven products a pair in all backward, not five, and tiles of 512 x 512.
    c = model("rope", **shape)
    pairs = 3 * 8 * flops.tile_pairs(4096, 4096, 512, 512)
    assert flops.hardware_flops(c, 1, 4096, "gpu").attention == pairs * 2 * 64 * (2 + 7)
    for device, kernel, columns in (("gpu", "cudnn", 72), ("tpu", "splash", 128)):
        c = model("rope+alibi", **shape | {"attention": kernel})
        pairs = (
            3 * 8 * flops.tile_pairs(4096, 4096, *((128, 128) if device == "gpu" else (512, 512)))
        )
        values = 72 if device == "gpu" else 64
        again = (
            3 * 2 * columns + 2 * 2 * values
            if device == "gpu"
            else 4 * 2 * columns + 3 * 2 * values
        )
        want = pairs * (2 * columns + 2 * values + again)
        assert flops.hardware_flops(c, 1, 4096, device).attention == want
    ours = [model(s, **shape | {"attention": "flash"}) for s in ("rope", "rope+alibi")]
    flat, steep = (flops.hardware_flops(c, 1, 4096, "gpu").attention for c in ours)
    assert flat == 3 * 8 * flops.tile_pairs(4096, 4096, 128, 64) * 2 * 64 * (2 + 7)
    assert steep < 0.8 * flat
