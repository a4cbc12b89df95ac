"""How layers are carried out: in a loop or one by one, kept or made again, always the same numbers."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder
from posenc_jax.model.layer_stack import REMAT, LayerExecution, period

BASE = ModelConfig(
    scheme="rope+alibi", vocab_size=61, train_length=16, num_layers=2, model_dim=32, num_heads=4,
    num_kv_heads=2, head_dim=8, mlp_dim=48, activation="swiglu", qk_norm=True, tied_head=True,
    embedding_scale=1.0, norm_epsilon=1e-6, dtype="float32", attention="dense",
)  # fmt: skip


def tokens(config, rows=2, length=16):
    """Random tokens, their positions and two documents a row."""
    ids = jax.random.randint(jax.random.key(1), (rows, length), 0, config.vocab_size)
    places = jnp.broadcast_to(jnp.arange(length), ids.shape)
    half = (places >= length // 2).astype(jnp.int32)
    return ids, places - half * (length // 2), 1 + half


def some_params(decoder, read):
    """Random parameters of the decoder, different in every layer and leaf."""
    rng = np.random.default_rng(2)

    def drawn(x):
        spread = x.shape[0] ** -0.5 if x.ndim > 1 else 0.1
        return np.asarray(rng.normal(float(x.ndim < 2), spread, x.shape), np.float32)

    return jax.tree.map(drawn, jax.eval_shape(decoder.init, jax.random.key(0), *read)["params"])


def compiled(config, execution, rows=2):
    """(compiled loss and gradient, parameters)"""
    read = tokens(config, rows, config.train_length)
    decoder = Decoder(config, execution=execution)
    params = some_params(decoder, read)

    def loss(params):
        logits_BTV = decoder.apply({"params": params}, *read)[0]
        return jnp.mean(jax.nn.logsumexp(logits_BTV, axis=-1) - logits_BTV[..., 3])

    # Every program rounds where its text says, not where its fusions end.
    settings = {"xla_allow_excess_precision": False}
    return jax.jit(jax.value_and_grad(loss)).lower(params).compile(settings), params


def assert_same(a, b):
    """Loss and gradient differ by 1e-6 of themselves (Euclidean norm), no leaf by more than 5e-6 of
    itself.
    """
    assert jax.tree.structure(a) == jax.tree.structure(b)
    off, whole = 0.0, 0.0
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        name, x, y = jax.tree_util.keystr(path), np.float64(x), np.float64(y)
        assert np.linalg.norm(x) > 0, name
        assert np.linalg.norm(x - y) <= 5e-6 * np.linalg.norm(x), name
        if x.ndim:
            off, whole = off + ((x - y) ** 2).sum(), whole + (x**2).sum()
        else:
            np.testing.assert_allclose(y, x, rtol=1e-6 if name == "[0]" else 5e-6)
    assert off <= 1e-12 * whole


STACKS = {
    "one kind of layer": {},
    "two kinds and one left over": {"scheme": "rope+alibi,nope~logn", "num_layers": 5},
    "learned slopes and kernels": {"scheme": "kerple_log,slopes", "num_layers": 4},
    "a gate of the tokens": {"scheme": "forget"},
    "by blocks": {"attention": "blockwise"},
    "half precision": {"scheme": "rope+alibi,nope~logn", "dtype": "bfloat16", "num_layers": 4},
}


@pytest.mark.thorough
@pytest.mark.parametrize("changes", STACKS.values(), ids=STACKS)
def test_a_loop_over_the_layers_has_the_loss_and_the_gradient_of_one_after_the_other(changes):
    config = dataclasses.replace(BASE, **changes)
    assert 2 * period(config.placed.layers) <= config.num_layers
    (plain, params), (looped, _) = (
        compiled(config, LayerExecution(scan=scan)) for scan in (False, True)
    )
    assert "while(" in looped.as_text()
    assert_same(plain(params), looped(params))


def test_layers_repeat_after_as_many_as_differ():
    assert [period(x) for x in ("aaaa", "abab", "aba", "abc", "abca", "aab", "a")] == [
        1,
        2,
        2,
        3,
        3,
        3,
        1,
    ]


# ------------------------------------------------------------------------------------------------ remat

WORK = dataclasses.replace(
    BASE,
    num_layers=4,
    vocab_size=16,
    model_dim=32,
    num_heads=2,
    num_kv_heads=2,
    head_dim=32,
    mlp_dim=256,
    activation="gelu",
    train_length=128,
    attention="blockwise",
)


@pytest.mark.parametrize("scan", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.thorough
def test_a_policy_changes_memory_and_work_and_no_gradient(scan):
    memory, products, loops, results = [], [], [], []
    for remat in REMAT:
        program, params = compiled(WORK, LayerExecution(scan, remat), rows=4)
        memory.append(program.memory_analysis().temp_size_in_bytes)
        products.append(len(re.findall(r" dot\(", program.as_text())))
        loops.append(len(re.findall(r" while\(", program.as_text())))
        results.append(program(params))
    for other in results[1:]:
        assert_same(results[0], other)
    assert list(REMAT) == ["none", "dots", "attention", "full"]
    more = np.subtract(products, products[0])
    if not scan:  # the CPU's compiler joins some of the work again, and keeps no less
        assert 0 == more[1] < more[2] < more[3]
        return
    none, dots, attention, full = memory
    assert none > 2 * dots > 2 * 1.3 * attention > 2 * 1.3 * 1.05 * full
    # Queries, keys, values, out and up are multiplied again, by `full` two products of attention as well;
    # down is not: nobody reads it.
    assert more.tolist() == [0, 0, 5, 7]
    assert loops[0] == loops[1] == loops[2] < loops[3]
