"""The decoder against a float64 one, and the properties that every scheme must keep through it."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.encodings.backend import assume_backend
from posenc_jax.evaluation.capture import capture_qk
from posenc_jax.evaluation.scorer import DecoderModel, _scored
from posenc_jax.model.cache import empty_cache
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder
from posenc_jax.model.feed_forward import swiglu

from support import oracles, schemes
from support.decoder_of_scheme import BASE, assert_same, model, of_scheme, row


@pytest.mark.parametrize("changes", [{}, {"num_kv_heads": 4, "qk_norm": False, "tied_head": False}])
def test_decoder_equals_the_float64_reference_under_rope_and_alibi(changes):
    _config, params, apply = model("rope+alibi", **changes)
    tokens, pos, seg = row(11)
    slopes = oracles.alibi_slopes(4)

    def attention(layer, q, k, v):
        turned = [
            np.stack([[oracles.rope_vector(z[t, n], t) for n in range(4)] for t in range(11)])
            for z in (q, k)
        ]
        return oracles.attention(
            *turned, v, lambda n, i, j: -slopes[n] * (i - j), lambda i, j: j <= i
        )

    want = oracles.decoder_logits(params, np.asarray(tokens[0]), 4, attention)
    np.testing.assert_allclose(apply(params, tokens, pos, seg)[0][0], want, atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("line", schemes.some(pytest.mark.slow, few=schemes.FEWER))
def test_a_token_is_moved_by_every_visible_input_and_by_no_future_one(line):
    config, params, _ = of_scheme(line)
    tokens, pos, seg = row(9)

    def logit(embedding_BTD, t):
        # Tokens as their own embedding rows, so that the gradient reaches every input place.
        table = jnp.concatenate([params["embedding_VD"], embedding_BTD[0]])
        wide = dataclasses.replace(config, vocab_size=len(table), tied_head=False)
        p = params | {
            "embedding_VD": table,
            "head_VD": jnp.ones_like(table) * jnp.arange(len(table))[:, None],
        }
        out, _ = Decoder(wide).apply({"params": p}, config.vocab_size + pos, pos, seg)
        return (out[0, t] * jnp.sin(jnp.arange(len(table)))).sum()

    embedding = params["embedding_VD"][tokens]
    moved = np.abs(jax.jit(jax.grad(logit))(embedding, 5)).sum(-1)[0]
    assert (moved[:6] > 0).all()
    np.testing.assert_array_equal(moved[6:], 0)


@pytest.mark.parametrize("line", schemes.some(pytest.mark.thorough, few=schemes.FEWER))
def test_cached_decoding_equals_prefill_whole_and_in_chunks(line):
    config, params, apply = of_scheme(line)
    tokens, pos, seg = row(12)
    whole, _ = apply(params, tokens, pos, seg)
    cache, out, start = empty_cache(config, 1, 16), [], 0
    for size in (5, 5, 1, 1):
        part = slice(start, start + size)
        logits, cache = apply(params, tokens[:, part], pos[:, part], seg[:, part], cache)
        out.append(logits)
        start += size
    assert_same(jnp.concatenate(out, 1), whole)


@pytest.mark.parametrize("line", schemes.some(pytest.mark.thorough, few=schemes.FEWER))
def test_packed_documents_equal_separate_ones(line):
    _, params, apply = of_scheme(line)
    tokens, _, _ = row(12)
    pos = jnp.array([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 0]])
    seg = jnp.array([[1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0]])
    packed, _ = apply(params, tokens, pos, seg)
    for a, b in ((0, 5), (5, 10)):
        alone, _ = apply(
            params, tokens[:, a:b], jnp.arange(b - a)[None], jnp.ones((1, b - a), jnp.int32)
        )
        assert_same(packed[:, a:b], alone)


@pytest.mark.parametrize("line", schemes.some(pytest.mark.slow, few=schemes.FEWER))
def test_left_padding_changes_nothing(line):
    _, params, apply = of_scheme(line)
    tokens, pos, seg = row(5)
    padded = jnp.pad(tokens, ((0, 0), (7, 0)), constant_values=5)
    place = jnp.maximum(jnp.arange(12) - 7, 0)[None]
    out, _ = apply(params, padded, place, (jnp.arange(12) >= 7).astype(jnp.int32)[None])
    assert_same(out[:, 7:], apply(params, tokens, pos, seg)[0])


def test_a_gate_has_the_gradient_of_its_definition():
    gate, x, d = (np.random.default_rng(i).normal(0, 4, (3, 50)) for i in range(3))

    def definition(gate, x):
        return gate / (1 + np.exp(-gate)) * x

    out, pull = jax.vjp(swiglu, *(jnp.asarray(y, jnp.float32) for y in (gate, x)))
    np.testing.assert_allclose(out, definition(gate, x), rtol=1e-5, atol=1e-6)
    for i, grad in enumerate(pull(jnp.asarray(d, jnp.float32))):
        moved = [[y + sign * 1e-6 * (i == n) for n, y in enumerate((gate, x))] for sign in (1, -1)]
        want = d * (definition(*moved[0]) - definition(*moved[1])) / 2e-6
        np.testing.assert_allclose(grad, want, rtol=1e-5, atol=1e-5)
    low = jax.vjp(swiglu, *(jnp.asarray(y, jnp.bfloat16) for y in (gate, x)))[1](
        jnp.asarray(d, jnp.bfloat16)
    )
    assert all(grad.dtype == jnp.bfloat16 for grad in low)


def test_bfloat16_compute_keeps_float32_parameters_and_logits():
    _, params, apply = model("rope+alibi")
    low = Decoder(dataclasses.replace(BASE, scheme="rope+alibi", dtype="bfloat16"))
    tokens, pos, seg = row(9)
    made = jax.jit(low.init)(jax.random.key(3), tokens, pos, seg)["params"]
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(made))
    logits, _ = jax.jit(low.apply)({"params": params}, tokens, pos, seg)
    assert logits.dtype == jnp.float32
    high = apply(params, tokens, pos, seg)[0]
    assert 0 < np.abs(logits - high).max() < 0.15 * np.abs(high).max()


KNOBS = {
    "scheme": "alibi", "num_layers": 1, "model_dim": 16, "num_heads": 2, "num_kv_heads": 4,
    "head_dim": 4, "mlp_dim": 16, "activation": "gelu", "qk_norm": False, "tied_head": False,
    "embedding_scale": 2.0, "norm_epsilon": 0.5, "dtype": "bfloat16", "vocab_size": 30, "window": 3,
    "output_gate": True, "sink_logit": True, "token_shift": True, "norm": "layer",
    "norm_position": "post", "parallel": "one_norm", "final_norm": False, "embedding_norm": True,
    "biases": ("qkv", "out"), "query_scale": 2.0, "clip_qkv": 0.5, "attention_softcap": 1.0,
    "logit_softcap": 1.0, "experts": 4, "experts_per_token": 3, "head_transform": True,
}  # fmt: skip


@pytest.mark.default_cases(3)
@pytest.mark.parametrize("knob", [f.name for f in dataclasses.fields(ModelConfig)])
def test_every_field_of_the_model_changes_its_output(knob):
    if knob == "attention":
        pytest.skip("the choice of kernel may change nothing but rounding: the test below")
    if knob == "consecutive":
        pytest.skip("it may change nothing at plain positions: tests/data/test_random_positions.py")
    if knob == "slot_order":
        pytest.skip("it changes nothing where positions rise: tests/model/test_slot_order.py")
    if knob == "train_length":
        one, two = (
            dataclasses.replace(BASE, scheme="rope(base=match)", train_length=n) for n in (64, 32)
        )
    elif knob.startswith("experts"):
        one = dataclasses.replace(BASE, experts=8, experts_per_token=2)
        two = dataclasses.replace(one, **{knob: KNOBS[knob]})
    else:
        one, two = BASE, dataclasses.replace(BASE, **{knob: KNOBS[knob]})
    assert one != two
    tokens, pos, seg = row(8)
    tokens = tokens % 30  # ids that both vocabularies have
    outs = []
    for config in (one, two):
        params = Decoder(config).init(jax.random.key(0), tokens, pos, seg)["params"]
        params = jax.tree_util.tree_map_with_path(
            lambda path, p: p + 0.5 if "_bias_" in path[-1].key else p, params
        )  # a new bias is zero
        outs.append(Decoder(config).apply({"params": params}, tokens, pos, seg)[0])
    assert outs[0].shape != outs[1].shape or not np.allclose(*outs, atol=1e-6)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("line", ["rope+alibi|nope~logn", "rope+forget"])
def test_the_choice_of_kernel_changes_a_decoder_by_no_more_than_rounding(line):
    config, params, apply = model(line)
    rival = Decoder(dataclasses.replace(config, attention="blockwise"))
    tokens, pos, seg = row(20)
    got, _ = jax.jit(rival.apply)({"params": params}, tokens, pos, seg)
    assert_same(got, apply(params, tokens, pos, seg)[0])
    assert config.attention_paths(20) == ["dense (20 x 20 logits are few)"]
    assert rival.config.attention_paths(20) == ["blockwise (requested)"]
    assert config.attention_paths(4096)[0].startswith("blockwise (4096 x 4096 logits are many")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheme": "rope", "head_dim": 7}, "head dim 7 is odd"),
        ({"num_heads": 6, "num_kv_heads": 4}, "does not divide"),
        ({"activation": "tanh"}, "activation"),
        ({"dtype": "float16"}, "dtype"),
        ({"attention": "flashy"}, "attention"),
        ({"attention": "blockwise", "scheme": "rope,linear"}, "linear attention takes"),
        ({"num_layers": 0}, "num_layers"),
        ({"embedding_scale": math.nan}, "embedding_scale"),
        ({"scheme": "rope|alibi|nope"}, "4 heads do not divide"),
    ],
)
def test_a_decoder_that_cannot_be_is_refused_with_its_field(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BASE, **changes)


@pytest.mark.parametrize("seen_by", ["scores", "probes"])
def test_what_measures_asks_a_device_that_rounds_factors_for_whole_float32_products(seen_by):
    rows = jax.ShapeDtypeStruct((2, 16), jnp.int32)
    shapes = jax.eval_shape(Decoder(BASE).init, jax.random.key(0), *([rows] * 3))["params"]
    if seen_by == "scores":
        measure, count = functools.partial(_scored, DecoderModel(BASE), None), 4
    else:
        measure, count = functools.partial(capture_qk, BASE, reduce=lambda *seen: seen[1].sum()), 2
    for device in ("cpu", "gpu", "tpu"):
        with assume_backend(device):
            program = str(jax.make_jaxpr(functools.partial(measure))(shapes, *([rows] * count)))
        products = re.findall(r"dot_general\[.*?\]\s", program, re.DOTALL)
        assert len(products) > 10
        for product in products:
            assert ("HIGHEST" in product) == (device != "cpu"), product


def test_a_model_trained_through_any_kernel_is_measured_in_float32():
    """cuDNN takes no float32, and a record must name the path that was taken, not that of training."""
    _, params, _ = model("nope")
    rows = row(8)
    want = DecoderModel(BASE).stream(params, *rows, None)
    for kernel in ("flash", "cudnn"):
        trained = dataclasses.replace(BASE, attention=kernel, dtype="bfloat16")
        np.testing.assert_array_equal(DecoderModel(trained).stream(params, *rows, None), want)
    auto = dataclasses.replace(BASE, dtype="bfloat16")
    assert auto.attention_paths(2000, device="gpu")[0].startswith("flash")
    assert auto.measured.attention_paths(2000, device="gpu")[0].startswith("blockwise")
    assert dataclasses.replace(BASE, attention="blockwise").measured.attention == "blockwise"
