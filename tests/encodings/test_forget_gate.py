"""The forget gate and its cumulative log-forget against float64 loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.attention import AttentionSettings, TokenSide, attend
from posenc_jax.encodings import Alibi, Forget, HeadContext, cumulative_log_forget
from posenc_jax.model.decoder import Decoder

from support import oracles
from support.decoders import model
from support.schemes import placed

PLACE = HeadContext(heads=4, num_heads=4, head_dim=16, model_dim=32, train_length=64)


SEG = np.array([0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3])


def test_a_clock_begins_anew_at_every_document_whatever_came_before():
    ticks = -np.random.default_rng(0).exponential(size=(1, 12, 3)).astype(np.float32)
    ticks[0, :6] *= 1e6  # would cost the later documents all their digits if it were subtracted
    clock = np.asarray(jax.jit(cumulative_log_forget)(jnp.asarray(ticks), jnp.asarray(SEG)[None]))
    for i in range(12):
        want = ticks[0, [j for j in range(i + 1) if SEG[j] == SEG[i]]].astype(np.float64).sum(0)
        np.testing.assert_allclose(clock[0, i], want, rtol=1e-6)


def test_the_forget_gate_equals_its_float64_loop_in_every_document():
    layer = placed("forget(start=match)").layers[0]
    params = jax.tree.map(lambda p: 3 * p, layer.init(jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (1, 12, 32))
    clock = jax.jit(cumulative_log_forget)(layer.log_forget(params, x), jnp.asarray(SEG)[None])
    pos = jnp.zeros((1, 12), jnp.int32)
    bias = np.asarray(layer.bias(params, pos, pos, clock, clock))
    p = {k: np.asarray(v, np.float64) for k, v in params["0.bias"].items()}
    gate = np.asarray(x[0], np.float64) @ p["gate_DN"] + p["gate_bias_N"]
    logs = np.vectorize(oracles.log_sigmoid)(gate)
    for n, i, j in np.ndindex(4, 12, 12):
        if SEG[i] == SEG[j] and j <= i:
            want = oracles.forget_bias(logs[:, n], i, j)
            assert float(bias[0, n, i, j]) == pytest.approx(want, rel=2e-6, abs=1e-5)


@pytest.mark.parametrize(("start", "slopes"), [("standard", "standard"), ("match", "match")])
def test_gates_at_rest_are_alibi_with_the_slopes_they_start_from(start, slopes):
    pos = jnp.arange(9)[None]
    params = Forget(start=start).init(jax.random.key(0), PLACE)
    rest = Forget(start=start).bias(params, pos, pos, PLACE)
    np.testing.assert_allclose(rest, Alibi(slopes=slopes).bias({}, pos, pos, PLACE), rtol=1e-5)
    still = cumulative_log_forget(
        Forget(start=start).log_forget(params, jnp.zeros((1, 9, 32)), PLACE), jnp.ones((1, 9), int)
    )
    np.testing.assert_allclose(still[0, 5] - still[0, 2], rest[0, :, 5, 2], rtol=1e-5)


def test_published_gates_start_at_one_half():
    rest = Forget().bias(
        Forget().init(jax.random.key(0), PLACE), jnp.array([[3]]), jnp.array([[1]]), PLACE
    )
    np.testing.assert_allclose(rest, 2 * math.log(0.5), rtol=1e-6)


def test_a_gated_scheme_without_clocks_is_refused_and_not_attended_at_rest():
    layer, pos = placed("forget").layers[0], jnp.arange(3)[None]
    q = jnp.ones((1, 3, 4, 16))
    with pytest.raises(ValueError, match="give queries and keys their cum_log_forget_BTN"):
        attend(q, q, q, layer, layer.init(jax.random.key(0)), TokenSide(pos, pos))


def test_a_gated_scheme_that_reads_both_ways_is_refused():
    layer, pos = placed("forget").layers[0], jnp.arange(3)[None]
    q, clock = jnp.ones((1, 3, 4, 16)), jnp.zeros((1, 3, 4))
    with pytest.raises(ValueError, match="needs causal=True"):
        attend(
            q,
            q,
            q,
            layer,
            layer.init(jax.random.key(0)),
            TokenSide(pos, pos, clock),
            settings=AttentionSettings(causal=False),
        )


@pytest.mark.thorough
def test_the_gate_is_learned_through_the_clocks():
    config, params = model("rope+forget")
    tokens = jnp.arange(9)[None]

    def loss(p):
        logits, _ = Decoder(config).apply({"params": p}, tokens, tokens, jnp.ones_like(tokens))
        return jnp.sin(logits).sum()

    grads = jax.jit(jax.grad(loss))(params)["layer_0"]["attention"]["scheme"]["0.bias"]
    assert all((np.abs(g) > 0).any() for g in jax.tree.leaves(grads))
