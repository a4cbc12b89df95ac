"""The switches of published decoders against a float64 decoder written from their definitions."""

import dataclasses
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.attention import (
    AttentionSettings,
    KernelConditions,
    TokenSide,
    attend,
    choose_implementation,
)
from posenc_jax.costs.flops import hardware_flops, model_flops
from posenc_jax.encodings import HeadContext, parse, unparse
from posenc_jax.model.cache import empty_cache
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder
from posenc_jax.model.presets import SYSTEMS, preset
from posenc_jax.model.vision import VisionConfig

from support import oracles
from support.checkpoint_folders import random_parameters
from support.marks import thorough

T = 9
BASE = ModelConfig(
    scheme="nope", vocab_size=37, train_length=64, num_layers=2, model_dim=24, num_heads=4, num_kv_heads=2,
    head_dim=6, mlp_dim=20, activation="swiglu", qk_norm=False, tied_head=False, embedding_scale=1.5,
    norm_epsilon=1e-3, dtype="float32", attention="auto",
)  # fmt: skip
ERF = np.vectorize(math.erf)
GELU = lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))  # noqa: E731
ACTIVATIONS = {
    "swiglu": lambda x: x / (1 + np.exp(-x)),
    "geglu": GELU,
    "geglu_exact": lambda x: x * (1 + ERF(x / math.sqrt(2))) / 2,
    "gelu": GELU,
    "gelu_exact": lambda x: x * (1 + ERF(x / math.sqrt(2))) / 2,
    "gelu_quick": lambda x: x / (1 + np.exp(-1.702 * x)),
    "relu": lambda x: np.maximum(x, 0),
}


def normed(c, p, name, x):
    gain = p[f"{name}_gain_D"]
    if c.norm == "rms":
        return oracles.rms_norm(x, gain, c.norm_epsilon)
    if c.norm == "rms_plus_one":
        return oracles.rms_norm(x, 1 + gain, c.norm_epsilon)
    deviation = np.sqrt(
        ((x - x.mean(-1, keepdims=True)) ** 2).mean(-1, keepdims=True) + c.norm_epsilon
    )
    return (x - x.mean(-1, keepdims=True)) / deviation * gain + p.get(f"{name}_norm_bias_D", 0)


def attention(c, p, x):
    heads = []
    for which, letter in (("query", "N"), ("key", "K"), ("value", "K")):
        y = np.einsum("td,dnh->tnh", x, p[f"{which}_D{letter}H"])
        y = y + p.get(f"{which}_bias_{letter}H", 0)
        heads.append(np.clip(y, -c.clip_qkv, c.clip_qkv) if c.clip_qkv else y)
    q, k, v = heads
    if c.qk_norm:
        plus = 1 if c.norm == "rms_plus_one" else 0
        q, k = (
            oracles.rms_norm(y, plus + p[f"{name}_gain_H"], c.norm_epsilon)
            for y, name in ((q, "query"), (k, "key"))
        )
    out = np.zeros((len(x), c.num_heads, c.head_dim))
    for n in range(c.num_heads):
        kv = n // (c.num_heads // c.num_kv_heads)
        for i in range(len(x)):
            logits = np.array(
                [c.query_scale * q[i, n] @ k[j, kv] for j in range(i + 1)]
            ) / math.sqrt(c.head_dim)
            if c.attention_softcap:
                logits = c.attention_softcap * np.tanh(logits / c.attention_softcap)
            weights = np.exp(logits - logits.max())
            out[i, n] = weights / weights.sum() @ v[: i + 1, kv]
    return np.einsum("tnh,nhd->td", out, p["out_NHD"]) + p.get("out_bias_D", 0)


def dense(c, p, x, e=None):
    def of(name, dims):
        return p[f"{name}_{dims}"] if e is None else p[f"{name}_E{dims}"][e]

    act, up = ACTIVATIONS[c.activation], x @ of("up", "DF") + p.get("up_bias_F", 0)
    gated = f"gate_{'DF' if e is None else 'EDF'}" in p
    hidden = act(x @ of("gate", "DF") + p.get("gate_bias_F", 0)) * up if gated else act(up)
    return hidden @ of("down", "FD") + p.get("down_bias_D", 0)


def mlp(c, p, x):
    if not c.experts:
        return dense(c, p, x)
    out = np.zeros_like(x)
    for t, row in enumerate(x):
        scores = row @ p["router_DE"]
        shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        chosen = np.argsort(-shares)[: c.experts_per_token]
        for e in chosen:
            out[t] += shares[e] / shares[chosen].sum() * dense(c, p, row[None], e)[0]
    return out


def block(c, p, x):
    if c.parallel != "none":
        y = normed(c, p, "attention", x)
        z = y if c.parallel == "one_norm" else normed(c, p, "mlp", x)
        return x + attention(c, p["attention"], y) + mlp(c, p["mlp"], z)
    for name, sublayer in (("attention", attention), ("mlp", mlp)):
        if c.norm_position == "post":
            x = normed(c, p, name, x + sublayer(c, p[name], x))
            continue
        y = normed(c, p, name, x)
        out = sublayer(c, p[name], y)
        if c.norm_position == "both":
            out = normed(c, p, f"{name}_post", out)
        x = (y if c.norm_position == "pre_normed_residual" else x) + out
    return x


def by_hand(c, params, tokens):
    p = oracles._float64(params)
    x = p["embedding_VD"][tokens] * c.embedding_scale
    if c.embedding_norm:
        x = normed(c, p, "embedding", x)
    for i in range(c.num_layers):
        x = block(c, p[f"layer_{i}"], x)
    if c.final_norm:
        x = normed(c, p, "final", x)
    if c.head_transform:
        x = normed(
            c,
            p,
            "transform",
            ACTIVATIONS[c.activation](x @ p["transform_DD"] + p["transform_bias_D"]),
        )
    logits = x @ p["embedding_VD" if c.tied_head else "head_VD"].T + p.get("head_bias_V", 0)
    return c.logit_softcap * np.tanh(logits / c.logit_softcap) if c.logit_softcap else logits


ALL_BIASES = ("qkv", "out", "mlp", "head")
CASES = {
    "plain": {},
    "layer norm": {"norm": "layer", "biases": ALL_BIASES},
    "layer norm without bias": {"norm": "layer_no_bias", "activation": "gelu_exact"},
    "one plus gain": {
        "norm": "rms_plus_one",
        "qk_norm": True,
        "norm_position": "both",
        "activation": "geglu",
    },
    "post": {
        "norm": "layer",
        "norm_position": "post",
        "final_norm": False,
        "activation": "relu",
        "tied_head": True,
    },
    "normed residual": {
        "norm": "layer",
        "norm_position": "pre_normed_residual",
        "embedding_norm": True,
    },
    "parallel": {"parallel": "one_norm", "biases": ("mlp", "head"), "activation": "gelu"},
    "parallel, two norms": {"parallel": "two_norms", "norm": "layer", "activation": "gelu_quick"},
    "experts": {"experts": 5, "experts_per_token": 2},
    "experts without gate": {"experts": 3, "experts_per_token": 3, "activation": "gelu_exact"},
    "softcaps": {"attention_softcap": 0.7, "logit_softcap": 3.0, "query_scale": 1.7},
    "clipped": {"clip_qkv": 0.3, "activation": "geglu_exact", "biases": ("qkv",)},
    "head transform": {
        "head_transform": True,
        "norm": "layer",
        "norm_position": "post",
        "biases": ALL_BIASES,
        "activation": "gelu_exact",
    },
}


def logits_of(config, params, tokens):
    row = (
        jnp.asarray(tokens)[None],
        jnp.arange(len(tokens))[None],
        jnp.ones((1, len(tokens)), jnp.int32),
    )
    return jax.jit(Decoder(config).apply)({"params": params}, *row)[0][0]


@pytest.mark.default_cases(4)
@pytest.mark.parametrize("name", CASES)
def test_a_decoder_with_switches_is_the_one_written_by_hand(name):
    config = dataclasses.replace(BASE, **CASES[name])
    params = random_parameters(config)
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, T)
    want = by_hand(config, params, tokens)
    np.testing.assert_allclose(
        logits_of(config, params, tokens), want, rtol=0, atol=2e-5 * np.abs(want).max()
    )


def test_cached_decoding_gives_the_logits_of_the_whole_row():
    config = dataclasses.replace(
        BASE,
        scheme="rope+window(size=4),rope",
        norm="layer",
        biases=ALL_BIASES,
        parallel="two_norms",
        attention_softcap=0.7,
        logit_softcap=3.0,
        query_scale=1.3,
        embedding_norm=True,
    )
    params, model = random_parameters(config), Decoder(config)
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, T)
    want = logits_of(config, params, tokens)
    cache, step = empty_cache(config, 1, T), jax.jit(model.apply)
    for t, token in enumerate(tokens):
        one = jnp.full((1, 1), token), jnp.full((1, 1), t), jnp.ones((1, 1), jnp.int32)
        logits, cache = step({"params": params}, *one, cache)
        np.testing.assert_allclose(logits[0, 0], want[t], rtol=0, atol=2e-5)


@pytest.mark.parametrize("line", ["alibi", *thorough("rope~scale_invariant")])
def test_a_softcap_is_the_same_in_dense_and_blockwise_attention_with_gradients(line):
    layer = (
        parse(line)
        .place(num_layers=1, num_heads=4, head_dim=8, model_dim=32, train_length=64)
        .layers[0]
    )
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, aim = (
        3 * jax.random.normal(key, (1, 600, n, 8))
        for key, n in zip(keys, (4, 2, 2, 4), strict=True)
    )
    side = TokenSide(jnp.arange(600)[None], jnp.ones((1, 600), jnp.int32))

    def both(implementation, softcap):
        settings = AttentionSettings(implementation=implementation, softcap=softcap)

        def total(q, k, v):
            out = attend(q, k, v, layer, layer.init(keys[0]), side, settings=settings)
            return (out * aim).sum(), out

        grads, out = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(q, k, v)
        return out, *grads

    dense_, blockwise = both("dense", 2.0), both("blockwise", 2.0)
    for got, want, uncapped in zip(blockwise, dense_, both("dense", 0.0), strict=True):
        size = np.abs(want).max()
        assert np.abs(want - uncapped).max() > 0.05 * size
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * size)


def test_kernels_and_linear_attention_refuse_a_softcap_in_words():
    layer = (
        parse("alibi")
        .place(num_layers=1, num_heads=4, head_dim=16, model_dim=64, train_length=64)
        .layers[0]
    )
    for kernel in ("flash", "cudnn", "splash"):
        with pytest.raises(ValueError, match=f"{kernel}.*softcap"):
            choose_implementation(
                layer, 64, 64, kernel, KernelConditions(16, "bfloat16", softcap=True)
            )
    with pytest.raises(ValueError, match="attention_softcap to 0"):
        dataclasses.replace(BASE, scheme="rope,linear", attention_softcap=2.0)
    capped = dataclasses.replace(BASE, dtype="bfloat16", attention_softcap=2.0)
    assert capped.attention_paths(4096, device="gpu")[0].startswith("blockwise")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "batch"}, "model.norm"),
        ({"norm_position": "middle"}, "model.norm_position"),
        ({"parallel": "both"}, "model.parallel"),
        ({"parallel": "one_norm", "norm_position": "post"}, "model.norm_position to pre"),
        ({"biases": ("query",)}, "model.biases"),
        ({"biases": ("mlp", "mlp")}, "model.biases"),
        ({"experts": 4}, "experts_per_token"),
        ({"experts_per_token": 2}, "experts_per_token"),
        ({"experts": 4, "experts_per_token": 5}, "experts_per_token"),
        ({"experts": 4, "experts_per_token": 2, "biases": ("mlp",)}, "experts have none"),
        ({"query_scale": 0.0}, "query_scale"),
        ({"clip_qkv": -1.0}, "clip_qkv"),
        ({"logit_softcap": math.nan}, "logit_softcap"),
    ],
)
def test_switches_that_do_not_fit_are_refused_with_their_field(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BASE, **changes)


@pytest.mark.parametrize(
    "changes", [{"logit_softcap": 1.0}, {"final_norm": False}, {"biases": ("head",)}]
)
def test_an_image_encoder_refuses_switches_of_a_language_head(changes):
    with pytest.raises(ValueError, match="image encoder"):
        VisionConfig(dataclasses.replace(BASE, **changes), patch_size=2, channels=1)


@pytest.mark.default_cases(8)
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_preset_has_its_published_number_of_parameters(name):
    """In millions, within 3 %; of the papers, or counted from the released weights."""
    millions = {
        "transformer": 38, "gpt2": 124, "roformer": 163, "alibi-247m": 476, "alibi-1.3b": 1363, "llama": 6738,
        "llama2": 6738, "llama3": 8030, "mistral": 7242, "mixtral": 46_703, "falcon-7b": 6922,
        "falcon-40b": 41_303, "falcon-rw": 1312, "gpt-neox": 20_554, "gpt-j": 6051, "bloom": 176_247,
        "mpt": 6649, "palm": 540_350, "qwen2": 7616, "qwen3": 8191, "gemma2": 2614, "gemma3": 3880,
        "smollm3": 3075,
    }  # fmt: skip
    config = preset(name)
    one, two = (_count(dataclasses.replace(config, num_layers=n * _period(config))) for n in (1, 2))
    layers = config.num_layers / _period(config)
    assert (one + (layers - 1) * (two - one)) / 1e6 == pytest.approx(millions[name], rel=0.03)
    small = preset(name, small=True)
    shape = (
        "num_layers",
        "model_dim",
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "mlp_dim",
        "train_length",
        "vocab_size",
        "scheme",
        "embedding_scale",
    )
    alike = {field: getattr(config, field) for field in shape}
    assert dataclasses.replace(small, **alike) == config


def _period(config):
    return len(config.parsed_scheme.layers)


def _count(config):
    row = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0), row, row, row)
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def test_experts_cost_all_of_them_and_count_as_those_that_a_token_uses():
    one = dataclasses.replace(BASE, experts=0)
    four = dataclasses.replace(BASE, experts=4, experts_per_token=2)
    assert model_flops(four, 2, T).mlp == 2 * model_flops(one, 2, T).mlp
    assert hardware_flops(four, 2, T, "cpu").mlp == 4 * hardware_flops(one, 2, T, "cpu").mlp


def test_an_unknown_preset_is_named_with_its_neighbours():
    with pytest.raises(ValueError, match="did you mean 'bloom'"):
        preset("blom")


def test_the_staircase_is_falcons_rounding_and_no_function_of_distance():
    part = parse("alibi(staircase=true)").layers[0][0].bias
    place = HeadContext(heads=4, num_heads=4, head_dim=16, model_dim=64, train_length=64)
    pos = np.array([0, 1, 255, 257, 700, 1001])
    got = part.bias({}, jnp.asarray(pos)[None], jnp.asarray(pos)[None], place)[0]

    def rounded(x):  # to 8 significant bits, ties to even
        fraction, exponent = math.frexp(x)
        return math.ldexp(round(fraction * 256), exponent - 8)

    for n, slope in enumerate(oracles.alibi_slopes(4)):
        step = [rounded(rounded(slope) * rounded(j)) / 4 for j in pos]
        np.testing.assert_allclose(
            got[n], np.array(step)[None] - np.array(step)[:, None], rtol=1e-6
        )
    assert rounded(257) == 256
    assert part.linear_slope_N({}, place) is None
    assert not part.relative
    assert parse("alibi").layers[0][0].bias.relative
    assert unparse(parse("alibi(staircase=true)")) == "alibi(staircase=true)"


def test_the_page_names_what_every_preset_lacks():
    page = (Path(__file__).parents[2] / "docs" / "importing.md").read_text()
    table = page.partition("| preset | what it lacks |")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(.+?)` \| (.+?) \|$", table, re.MULTILINE))
    lacking = {name: system.lacks for name, system in SYSTEMS.items() if system.lacks}
    assert "alibi-247m" in lacking
    assert set(rows) == set(lacking)
    assert all(lacking[name].startswith(words) for name, words in rows.items())
