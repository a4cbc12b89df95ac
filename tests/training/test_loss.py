"""The loss in pieces of the vocabulary and the z-loss, against float64 NumPy and the plain path; on meshes
too.
"""

import collections
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from posenc_jax.model.decoder import Decoder
from posenc_jax.training.config import differences, from_sections
from posenc_jax.training.loss import summed_loss, token_losses
from posenc_jax.training.sharding import BATCH, make_mesh
from posenc_jax.training.step import make_step, state_builder

from support import runs

B, T, D, V = 2, 5, 12, 37


def inputs(dtype="float32", size=V):
    rng = np.random.default_rng(0)
    return (
        jnp.asarray(rng.normal(size=(B, T, D)), dtype),
        jnp.asarray(rng.normal(size=(size, D)), jnp.float32),
        jnp.asarray(rng.integers(0, size, (B, T)), jnp.int32),
        jnp.asarray(rng.integers(0, 3, (B, T)), jnp.float32),
    )


def objective(x_BTD, head_VD, targets_BT, weights_BT, **settings):
    loss = summed_loss(x_BTD, head_VD, targets_BT, weights_BT, **settings)
    return loss.nll + loss.z, loss


def ours(arrays, **settings):
    """((objective, sums), gradients of stream and head)"""
    run = jax.jit(
        jax.value_and_grad(functools.partial(objective, **settings), (0, 1), has_aux=True)
    )
    return run(*arrays)


def oracle(x_BTD, head_VD, targets_BT, weights_BT, z_loss, softcap=0.0):
    """Sums and gradients, token by token in float64."""
    x, head, weights = (np.asarray(a, np.float64) for a in (x_BTD, head_VD, weights_BT))
    nll, z, d_x, d_head = 0.0, 0.0, np.zeros_like(x), np.zeros_like(head)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            logits, target, weight = head @ x[b, t], int(targets_BT[b, t]), weights[b, t]
            slope = 1.0
            if softcap:
                slope = 1 / np.cosh(logits / softcap) ** 2
                logits = softcap * np.tanh(logits / softcap)
            top = logits.max()
            log_sum = top + math.log(np.exp(logits - top).sum())
            nll += weight * (log_sum - logits[target])
            z += weight * z_loss * log_sum**2
            d_logits = weight * (1 + 2 * z_loss * log_sum) * np.exp(logits - log_sum)
            d_logits[target] -= weight
            d_logits = d_logits * slope
            d_x[b, t] = head.T @ d_logits
            d_head += np.outer(d_logits, x[b, t])
    return nll, z, d_x, d_head


@pytest.mark.default_cases(4)
@pytest.mark.parametrize("z_loss", [0.0, 0.03])
@pytest.mark.parametrize(
    "chunks", [1, 2, 5, 37, 64]
)  # 37 divides by itself alone; 64 are more than ids
def test_loss_and_gradients_are_those_of_the_oracle_in_any_number_of_pieces(chunks, z_loss):
    arrays = inputs()
    (total, loss), (d_x, d_head) = ours(arrays, chunks=chunks, z_loss=z_loss)
    nll, z, want_x, want_head = oracle(*arrays, z_loss)
    np.testing.assert_allclose([loss.nll, loss.z, total], [nll, z, nll + z], rtol=1e-6)
    assert float(loss.weight) == float(arrays[3].sum())
    for found, want in ((d_x, want_x), (d_head, want_head)):
        assert np.linalg.norm(found - want) <= 1e-6 * np.linalg.norm(want)
    assert z_loss == 0 or z > 0.1


@pytest.mark.parametrize("chunks", [1, 5, 64])
def test_capped_logits_have_the_loss_and_gradients_of_the_oracle(chunks):
    arrays = inputs()
    settings = {"z_loss": 0.03, "softcap": 2.0}
    (_, loss), gradients = ours(arrays, chunks=chunks, **settings)
    nll, z, *want = oracle(*arrays, **settings)
    np.testing.assert_allclose([loss.nll, loss.z], [nll, z], rtol=1e-6)
    for found, expected in zip(gradients, want, strict=True):
        assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)
    assert abs(nll / oracle(*arrays, 0.03)[0] - 1) > 0.1  # the cap is felt


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pieces_have_the_gradients_of_the_whole_vocabulary(dtype):
    arrays = inputs(dtype)
    whole, pieces = (ours(arrays, chunks=n, z_loss=0.01) for n in (1, 4))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(pieces), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        # In bfloat16 the loop over pieces rounds the head's gradient once where XLA fuses the rounding away.
        bound = 1e-6 if dtype == "float32" else 2**-9
        assert np.linalg.norm(a - b) <= bound * np.linalg.norm(a)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("chunks", [1, 4])
def test_products_of_the_head_take_bfloat16_both_ways_and_round_no_more_than_it_does(chunks):
    x_BTD, head_VD, *rest = inputs("bfloat16")
    head_VD = head_VD.astype(jnp.bfloat16).astype(jnp.float32)  # what the cast would round away
    arrays = (x_BTD, head_VD, *rest)
    run = jax.grad(functools.partial(objective, chunks=chunks, z_loss=0.03), (0, 1), has_aux=True)
    run = jax.jit(run)
    products = re.findall(r"dot_general.*?: \((.*?), (.*?)\) ->", run.lower(*arrays).as_text())
    assert len(products) == (3 if chunks == 1 else 4)  # pieces make their logits twice
    assert all("bf16" in side for product in products for side in product)
    (d_x, d_head), loss = run(*arrays)
    nll, _, want_x, want_head = oracle(*arrays, 0.03)
    assert abs(loss.nll / nll - 1) < 1e-6  # logits are float32
    for found, want in ((d_x, want_x), (d_head, want_head)):
        assert np.linalg.norm(found - want) <= 2**-8 * np.linalg.norm(want)


def test_no_array_of_all_tokens_and_ids_exists_and_memory_falls():
    size, tokens = 4096, B * 64
    shapes = [
        jax.ShapeDtypeStruct(shape, kind)
        for shape, kind in (
            ((B, 64, D), "float32"),
            ((size, D), "float32"),
            ((B, 64), "int32"),
            ((B, 64), "float32"),
        )
    ]
    largest, memory = {}, {}
    for chunks in (1, 8):
        run = jax.grad(
            functools.partial(objective, chunks=chunks, z_loss=0.01), (0, 1), has_aux=True
        )
        program = jax.jit(run).lower(*shapes).compile()
        dims = re.findall(r"\w+\[([\d,]+)\]", program.as_text())
        largest[chunks] = max(math.prod(map(int, d.split(","))) for d in dims)
        memory[chunks] = program.memory_analysis().temp_size_in_bytes
    assert largest[1] == tokens * size
    assert largest[8] == max(tokens * size // 8, size * D)
    assert memory[8] < 0.5 * memory[1]


# ---------------------------------------------------------------------------------------- in the step


def batch(seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 256, (1, 8, 17), dtype=np.int32)
    ones = np.ones((1, 8, 16), np.int32)
    return {
        "tokens_BT": ids[..., :-1],
        "targets_BT": ids[..., 1:],
        "positions_BT": np.broadcast_to(np.arange(16, dtype=np.int32), ones.shape),
        "segments_BT": ones,
        "weights_BT": rng.integers(0, 2, ones.shape).astype(np.float32),
    }


def prepared(
    scheme="rope+alibi|nope~logn", data=1, fsdp=1, model=1, vocab_size=260, shape=None, **train
):
    """(mesh, step, state, batch on the mesh)"""
    config = runs.config(
        "unused",
        scheme,
        optimizer={"epsilon": 1e-3},
        model={"num_layers": 4, **(shape or {})},
        train={"data_devices": data, "fsdp_devices": fsdp, "model_devices": model, **train},
    )
    mesh, decoder = (
        make_mesh(data, model, fsdp_devices=fsdp),
        Decoder(config.model_config(vocab_size)),
    )
    with jax.set_mesh(mesh):
        state = state_builder(config, decoder, mesh)[0](jax.random.key(0))
    return (
        mesh,
        make_step(config, decoder),
        state,
        jax.device_put(batch(), jax.NamedSharding(mesh, BATCH)),
    )


def one_step(**settings):
    mesh, step, state, placed = prepared(**settings)
    with jax.set_mesh(mesh):
        state, metrics = step(state, placed)
    return {name: float(value) for name, value in metrics.items()}, jax.device_get(state["params"])


ALL = {"scan_layers": True, "remat": "attention", "loss_chunks": 3, "z_loss": 0.1}


MESHES = [
    {"fsdp": 4, "model": 2},
    pytest.param({"data": 2, "fsdp": 2, "model": 2}, marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def plain():
    return one_step(z_loss=0.1)


@pytest.mark.thorough
@pytest.mark.parametrize("axes", [{}, *MESHES], ids=str)
def test_a_step_with_every_setting_is_the_plain_one_on_one_device_and_on_a_mesh(plain, axes):
    (want, params), (found, others) = plain, one_step(**axes, **ALL)
    for name in ("loss", "z_loss", "grad_norm"):
        np.testing.assert_allclose(found[name], want[name], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-6)


@pytest.mark.thorough
def test_seeds_in_one_program_take_the_step_that_each_takes_alone():
    """As `training.together` does: the whole step under vmap."""
    mesh, step, state, placed = prepared(**ALL)
    other = jax.device_put(batch(1), placed["tokens_BT"].sharding)
    with jax.set_mesh(mesh):
        both = jax.tree.map(lambda *x: jnp.stack(x), (state, placed), (state, other))
        _, together = jax.jit(jax.vmap(step))(*both)
        alone = [step(jax.tree.map(jnp.copy, state), b)[1] for b in (placed, other)]
    for name in ("loss", "z_loss", "grad_norm"):
        np.testing.assert_allclose(together[name], [m[name] for m in alone], rtol=1e-5)
    assert abs(together["loss"][0] - together["loss"][1]) > 1e-3


@pytest.mark.thorough
def test_the_reported_loss_is_the_plain_one_and_z_loss_is_reported_when_it_is_on(plain):
    found, _ = one_step()
    assert found["loss"] == plain[0]["loss"]
    assert found["grad_norm"] != plain[0]["grad_norm"]
    assert plain[0]["z_loss"] > 0
    assert "z_loss" not in found


@pytest.mark.thorough
@pytest.mark.parametrize("chunks", [1, 3])
def test_devices_of_the_model_axis_share_the_vocabulary_and_no_logits_travel(chunks):
    """Vocabulary 1021 (prime), 2 x 16 tokens a device: an array of all ids and tokens would have 32 x
    1021.
    """
    mesh, step, state, placed = prepared(
        "rope", fsdp=4, model=2, vocab_size=1021, loss_chunks=chunks
    )
    with jax.set_mesh(mesh):
        text = step.lower(state, placed).compile().as_text()
    tokens, piece = 2 * 16, -(-1021 // (2 * chunks))
    logits = [
        d for d in re.findall(r"f32\[([\d,]+)\]", text) if d.split(",") == [str(tokens), str(piece)]
    ]
    assert logits
    sizes = {math.prod(map(int, d.split(","))) for d in re.findall(r"\w+\[([\d,]+)\]", text)}
    assert tokens * 1021 not in sizes
    assert tokens * 2 * chunks * piece not in sizes
    carried = re.findall(
        r"= \(?\w+\[([\d,]+)\].* (all-gather|all-reduce|all-to-all|reduce-scatter)(?:-start)?\(",
        text,
    )
    assert collections.Counter(kind for _, kind in carried)["all-to-all"] > 0
    assert all(
        str(piece) not in dims.split(",") or str(tokens) not in dims.split(",")
        for dims, _ in carried
    )


# --------------------------------------------------------------------------------------------- the door


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"remat": "some"},
            "config.train.remat must be one of none, dots, attention, full, not 'some'",
        ),
        ({"loss_chunks": 0}, r"config.train.loss_chunks must lie in [1, 4096], not 0"),
        ({"z_loss": -1.0}, "config.train.z_loss must lie in [0, 1000.0], not -1.0"),
        ({"z_loss": math.nan}, "config.train.z_loss must lie in [0, 1000.0], not nan"),
        (
            {"scan_layers": True},
            "config.train.scan_layers: the 3 layers of config.model.num_layers hold no two rounds of the 2",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(changes, words):
    model = {"scheme": "rope,nope", "num_layers": 3}
    from_sections({"model": model})
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        from_sections({"model": model, "train": changes})
    assert "\n" not in str(caught.value)


def test_how_a_step_is_carried_out_may_change_at_a_resume_and_what_it_minimises_may_not():
    one = from_sections({})
    how = {"scan_layers": True, "remat": "full", "loss_chunks": 4}
    assert differences(one, from_sections({"train": how})) == []
    assert differences(one, from_sections({"train": {"z_loss": 1e-4}})) == [
        "train.z_loss: 0.0 here, 0.0001 there"
    ]


def test_token_losses_are_those_of_optax():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 11)) * 5
    targets = jnp.array([[0, 10, 4], [3, 3, 9]])
    want = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    np.testing.assert_allclose(token_losses(logits, targets), want, rtol=1e-5)
