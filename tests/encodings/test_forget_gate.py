"""The forget gate, linear attention, annealed slopes and the temperatures of distance, against float64."""

from support.schemes import placed
import math

import jax
import jax.numpy as jnp
import numpy as np
from support import oracles
import pytest
from support import runs

from posenc_jax.attention import AttentionSettings, TokenSide, attend
from posenc_jax.attention.linear import CHUNK
from posenc_jax.checkpoints.manager import CheckpointManager
from posenc_jax.encodings import (
    Alibi,
    Forget,
    HeadContext,
    Rope,
    angles,
    cumulative_log_forget,
    parse,
    rotate,
)
from posenc_jax.encodings.learned_bias import Annealed
from posenc_jax.encodings.rope_scaling import Yarn
from posenc_jax.encodings.temperature import ScaleInvariant, YarnTemperature
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder, at_progress
from posenc_jax.training.sharding import make_mesh
from posenc_jax.training.step import state_builder

PLACE = HeadContext(heads=4, num_heads=4, head_dim=16, model_dim=32, train_length=64)
SEG = np.array([0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3])




def test_a_clock_begins_anew_at_every_document_whatever_came_before():
    ticks = -np.random.default_rng(0).exponential(size=(1, 12, 3)).astype(np.float32)
    ticks[0, :6] *= 1e6  # would cost the later documents all their digits if it were subtracted
    clock = cumulative_log_forget(jnp.asarray(ticks), jnp.asarray(SEG)[None])
    for i in range(12):
        want = ticks[0, [j for j in range(i + 1) if SEG[j] == SEG[i]]].astype(np.float64).sum(0)
        np.testing.assert_allclose(clock[0, i], want, rtol=1e-6)


def test_the_forget_gate_equals_its_float64_loop_in_every_document():
    layer = placed("forget(start=match)").layers[0]
    params = jax.tree.map(lambda p: 3 * p, layer.init(jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (1, 12, 32))
    clock = cumulative_log_forget(layer.log_forget(params, x), jnp.asarray(SEG)[None])
    pos = jnp.zeros((1, 12), jnp.int32)
    bias = layer.bias(params, pos, pos, clock, clock)
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
    still = cumulative_log_forget(Forget(start=start).log_forget(params, jnp.zeros((1, 9, 32)), PLACE), jnp.ones((1, 9), int))  # fmt: skip
    np.testing.assert_allclose(still[0, 5] - still[0, 2], rest[0, :, 5, 2], rtol=1e-5)


def test_published_gates_start_at_one_half():
    rest = Forget().bias(Forget().init(jax.random.key(0), PLACE), jnp.array([[3]]), jnp.array([[1]]), PLACE)  # fmt: skip
    np.testing.assert_allclose(rest, 2 * math.log(0.5), rtol=1e-6)


def test_a_gated_scheme_without_clocks_is_refused_and_not_attended_at_rest():
    layer, pos = placed("forget").layers[0], jnp.arange(3)[None]
    q = jnp.ones((1, 3, 4, 16))
    with pytest.raises(ValueError, match="give queries and keys their cum_log_forget_BTN"):
        attend(q, q, q, layer, layer.init(jax.random.key(0)), TokenSide(pos, pos))  # fmt: skip


def test_a_gated_scheme_that_reads_both_ways_is_refused():
    layer, pos = placed("forget").layers[0], jnp.arange(3)[None]
    q, clock = jnp.ones((1, 3, 4, 16)), jnp.zeros((1, 3, 4))
    with pytest.raises(ValueError, match="needs causal=True"):
        attend(q, q, q, layer, layer.init(jax.random.key(0)), TokenSide(pos, pos, clock), settings=AttentionSettings(causal=False))  # fmt: skip


def model(line):
    config = ModelConfig(
        scheme=line, vocab_size=37, train_length=64, num_layers=2, model_dim=32, num_heads=4,
        num_kv_heads=4, head_dim=8, mlp_dim=48, activation="swiglu", qk_norm=True, tied_head=True,
        embedding_scale=1.0, norm_epsilon=1e-6, dtype="float32", attention="auto",
    )  # fmt: skip
    ones = jnp.ones((1, 4), jnp.int32)
    return config, Decoder(config).init(jax.random.key(0), ones, ones, ones)["params"]


def test_the_gate_is_learned_through_the_clocks():
    config, params = model("rope+forget")
    tokens = jnp.arange(9)[None]

    def loss(p):
        logits, _ = Decoder(config).apply({"params": p}, tokens, tokens, jnp.ones_like(tokens))
        return jnp.sin(logits).sum()

    grads = jax.jit(jax.grad(loss))(params)["layer_0"]["attention"]["scheme"]["0.bias"]
    assert all((np.abs(g) > 0).any() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("line", ["linear", "rope+linear", "rope(fraction=0.5)+linear"])
def test_linear_attention_equals_roformers_equation_19(line):
    layer = placed(line).layers[0]
    q, k, v = (np.random.default_rng(s).normal(size=(12, 4, 16)) for s in range(3))
    pos = np.array([0, 0, 0, 1, 2, 3, 0, 1, 2, 3, 9, 0])
    dims = {"linear": 0, "rope+linear": 16}.get(line, 8)
    want = oracles.linear_attention(
        q, k, v,
        visible=lambda i, j: SEG[i] == SEG[j] != 0 and pos[j] <= pos[i],
        turn=lambda x, i: oracles.rope_vector(x, pos[i], rotary_dim=dims),
    )  # fmt: skip
    at, seg = jnp.asarray(pos)[None], jnp.asarray(SEG)[None]
    for aligned in (False, True):
        got = attend(*(jnp.asarray(x, jnp.float32)[None] for x in (q, k, v)), layer, {}, TokenSide(at, seg), settings=AttentionSettings(aligned=aligned))  # fmt: skip
        np.testing.assert_allclose(got[0], want, atol=3e-5)


def test_linear_attention_in_order_carries_its_state_over_chunks_and_never_over_documents():
    layer, T = placed("rope+linear").layers[0], 3 * CHUNK + 5
    seg = np.r_[np.zeros(9), np.ones(2 * CHUNK - 3), np.full(T - 2 * CHUNK - 6, 2)].astype(int)
    pos = np.r_[np.zeros(9), np.arange(2 * CHUNK - 3), np.arange(T - 2 * CHUNK - 6)].astype(int)
    tensors = tuple(jax.random.normal(jax.random.key(s), (2, T, 4, 16)) for s in range(3))
    at, of = (jnp.asarray(np.stack([x, np.arange(T) if x is pos else np.ones(T, int)])) for x in (pos, seg))  # fmt: skip

    def run(tensors, aligned):
        return attend(*tensors, layer, {}, TokenSide(at, of), settings=AttentionSettings(aligned=aligned))  # fmt: skip

    np.testing.assert_allclose(run(tensors, True), run(tensors, False), atol=3e-5)
    a, b = (jax.grad(lambda t, how=how: jnp.sin(run(t, how)).sum())(tensors) for how in (True, False))  # fmt: skip
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-4)


def test_linear_attention_refuses_what_it_cannot_mean():
    for line, message in (
        ("linear+alibi", "neither a bias nor a temperature"),
        ("linear~logn", "neither a bias nor a temperature"),
        ("linear|rope", "share one form of attention"),
    ):
        with pytest.raises(ValueError, match=message):
            placed(line)
    with pytest.raises(ValueError, match="a second form"):
        parse("linear+linear")


def test_scale_invariant_temperature_and_bias_equal_the_paper_and_its_two_properties():
    layer = placed("log(c=2.0,t=10.0)~scale_invariant").layers[0]
    distance = np.array([0, 1, 5, 100, 10_000, 131_071])
    query, keys = jnp.array([[131_071]]), jnp.asarray(131_071 - distance)[None]
    tau, bias = layer.temperature({}, query, keys), layer.bias({}, query, keys)
    for s, d in enumerate(distance):
        factor, shift = oracles.scale_invariant(int(d), 10.0)
        np.testing.assert_allclose(tau[0, :, 0, s], factor, rtol=1e-6)
        np.testing.assert_allclose(bias[0, :, 0, s], shift, rtol=1e-6, atol=1e-6)
    # Gaussian content of unit variance: e^(m + a^2 / 2) summed over octaves is level far out.
    a, m = (np.array([oracles.scale_invariant(d, 10.0)[i] for d in range(1 << 15)]) for i in (0, 1))
    weight = np.exp(m + a**2 / 2)
    octaves = [weight[1 << e : 1 << (e + 1)].sum() for e in range(10, 15)]
    np.testing.assert_allclose(octaves, 10 * math.sqrt(math.e) * math.log(2), rtol=0.01)
    np.testing.assert_allclose(m + a**2, 1)  # what makes entropy grow slower than log t


def test_yarn_temperature_is_what_the_stretch_does_to_fully_rotated_content():
    q, k, v = (jax.random.normal(jax.random.key(s), (1, 7, 4, 16)) for s in range(3))
    pos, ones = jnp.arange(7)[None], jnp.ones((1, 7), jnp.int32)
    tokens = TokenSide(pos, ones)
    stretched = attend(q, k, v, placed("rope(stretch=yarn(factor=16.0))").layers[0], {}, tokens)
    angle = angles(pos, Rope(stretch=Yarn(factor=16.0)).frequencies(PLACE))
    turned = [rotate(x, angle, "half", 1.0) for x in (q, k)]
    plain, hot = (
        attend(*turned, v, placed(line).layers[0], {}, tokens)
        for line in ("nope", "nope~yarn_temperature(factor=16.0)")
    )
    np.testing.assert_allclose(stretched, hot, atol=2e-6)
    assert np.abs(stretched - plain).max() > 1e-2
    assert float(YarnTemperature(1.0).temperature({}, pos, pos, PLACE).max()) == 1.0


def test_the_scale_invariant_temperature_is_read_further_with_its_bias():
    assert ScaleInvariant(t=10.0).stretched(4.0) == ScaleInvariant(t=40.0)


def test_annealed_slopes_follow_their_schedule():
    part = Annealed(slopes="match", first=1.0, last=0.25, begin=0.5, end=0.75)
    params, pos = part.init(jax.random.key(0), PLACE), jnp.arange(5)[None]
    full = Alibi(slopes="match").bias({}, pos, pos, PLACE)
    for progress, share in ((0.0, 1.0), (0.5, 1.0), (0.6, 0.7), (0.75, 0.25), (1.0, 0.25)):
        there = part.scheduled(params, jnp.float32(progress), PLACE)
        np.testing.assert_allclose(part.bias(there, pos, pos, PLACE), share * full, rtol=1e-5)


def test_at_progress_reaches_every_layer_and_touches_nothing_else():
    config, params = model("rope+annealed(begin=0.0)|fire")
    half = at_progress(config, params, jnp.float32(0.5))
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), params, half)
    found = [jax.tree_util.keystr(path) for path, new in jax.tree_util.tree_leaves_with_path(changed) if new]  # fmt: skip
    assert found == [f"['layer_{i}']['attention']['scheme']['0.bias']['share']" for i in (0, 1)]


@pytest.mark.thorough
def test_training_fades_annealed_slopes_by_its_schedule_and_a_checkpoint_keeps_the_share(tmp_path, data_dir):  # fmt: skip
    line = "rope+annealed(begin=0.0,end=1.0,last=0.25)"
    config = runs.config(data_dir, scheme=line, train={"steps": 4, "save_every": 1, "keep": 9, "data_devices": 1})  # fmt: skip
    runs.finished(config, tmp_path / "x")
    model, mesh = Decoder(config.model_config(260)), make_mesh(1, 1)
    with jax.set_mesh(mesh), CheckpointManager(tmp_path / "x", 9) as checkpoints:
        _, shapes = state_builder(config, model, mesh)
        for step in (1, 2, 4):
            scheme = checkpoints.restore(step, shapes)["params"]["layer_1"]["attention"]["scheme"]
            np.testing.assert_allclose(scheme["0.bias"]["share"], 1 - 0.75 * step / 4, rtol=1e-6)


def test_rope_with_every_bias_is_rope_plus_that_bias():
    """Composition: the parts of a sum are the parts alone, for any rotation with any bias."""
    from posenc_jax.encodings import REGISTRY, Bias, Rotation

    pos = jnp.array([[0, 1, 5, 40]])
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 16))
    rotations = [n for n, p in REGISTRY.items() if issubclass(p, Rotation)]
    biases = [n for n, p in REGISTRY.items() if issubclass(p, Bias)]
    assert len(rotations) > 4 < len(biases)
    for rotation in rotations:
        for bias in biases:
            both, one, two = (placed(line).layers[0] for line in (f"{rotation}+{bias}", rotation, bias))  # fmt: skip
            params = both.init(jax.random.key(5))
            part = {k: v for k, v in params.items() if k == "0.rotation"}
            np.testing.assert_array_equal(both.rotate(params, x, pos, "key"), one.rotate(part, x, pos, "key"))  # fmt: skip
            part = {k: v for k, v in params.items() if k == "0.bias"}
            np.testing.assert_array_equal(both.bias(params, pos, pos), two.bias(part, pos, pos))
