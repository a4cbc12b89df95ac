"""PoPE against its equation in float64, and what a layer does with queries wider than its values."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.attention import (
    AttentionSettings,
    BlockwiseSettings,
    KernelConditions,
    TokenSide,
    attend,
    choose_implementation,
)
from posenc_jax.attention.blockwise.api import blockwise_attention
from posenc_jax.attention.blockwise.cutoff import cutoff_windows
from posenc_jax.costs.flops import model_flops
from posenc_jax.encodings import HeadContext, extend_length, parse
from posenc_jax.encodings.pope import Pope
from posenc_jax.evaluation.head_statistics import rotary_planes
from posenc_jax.evaluation.interventions import ParameterizedModel, rotation_off
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder, at_progress

from support import oracles, schemes
from support.attention_inputs import qkv

N, H, L = 4, 8, 64
POS = np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 70, 71, 90])
SEG = np.array([1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2])
PLACE = HeadContext(heads=N, num_heads=N, head_dim=H, model_dim=32, train_length=L)


layer_of = functools.partial(schemes.layer_of, head_dim=H)


def tensors(K=N, T=12):
    return qkv(1, T, N, K, H)


def attended(layer, params, q, k, v, **how):
    pos, seg = jnp.asarray(POS)[None], jnp.asarray(SEG)[None]
    return attend(q, k, v, layer, params, TokenSide(pos, seg), settings=AttentionSettings(**how))


def by_loop(delta_NH, slopes, q, k, v, plain=()):
    """Softmax over the equation's logits; heads in `plain` have the product of q and k instead."""
    out = np.zeros(q.shape)
    for n, i in np.ndindex(N, len(POS)):
        keys = [j for j in range(len(POS)) if SEG[i] == SEG[j] and POS[j] <= POS[i]]
        z = np.array(
            [
                (
                    q[i, n] @ k[j, n] / math.sqrt(H)
                    if n in plain
                    else oracles.pope_logit(q[i, n], k[j, n], POS[i], POS[j], delta_NH[n])
                )
                - slopes[n] * (POS[i] - POS[j])
                for j in keys
            ]
        )
        w = np.exp(z - z.max())
        out[i, n] = (w / w.sum()) @ v[keys, n]
    return out


@pytest.mark.default_cases(1, thorough=1)
@pytest.mark.parametrize("how", ["dense", "blockwise"])
@pytest.mark.parametrize("K", [4, 2, 1])
def test_pope_equals_its_equation_forward_and_in_gradients(how, K):
    layer = layer_of("pope(start=uniform)")
    params, arrays = layer.init(jax.random.key(5)), tensors(K)
    assert params["0.rotation"]["delta_NH"].shape == (N, H)
    got = attended(layer, params, *arrays, implementation=how)

    def loop(delta_NH, q, k, v):
        wide = (np.repeat(x, N // K, axis=1) for x in (k, v))
        return by_loop(delta_NH, [0.0] * N, q, *wide)

    exact = [
        np.asarray(x, np.float64)
        for x in (params["0.rotation"]["delta_NH"], *(x[0] for x in arrays))
    ]
    np.testing.assert_allclose(got[0], loop(*exact), atol=3e-6)

    def total(delta_NH, q, k, v):
        own = {"0.rotation": {"delta_NH": delta_NH}}
        return jnp.sin(attended(layer, own, q[None], k[None], v[None], implementation=how)).sum()

    grads = jax.jit(jax.grad(total, (0, 1, 2, 3)))(*(jnp.asarray(x, jnp.float32) for x in exact))
    rng = np.random.default_rng(0)
    for which, grad in enumerate(grads):  # along a direction in each argument alone
        direction, moved = rng.normal(size=grad.shape), []
        for step in (1e-5, -1e-5):
            at = list(exact)
            at[which] = at[which] + step * direction
            moved.append(np.sin(loop(*at)).sum())
        slope = (moved[0] - moved[1]) / 2e-5
        assert float((np.asarray(grad, np.float64) * direction).sum()) == pytest.approx(
            slope, rel=1e-4, abs=1e-5
        )
        assert abs(slope) > 1e-3


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("how", ["dense", "blockwise"])
def test_heads_beside_it_keep_their_own_logits_and_scale(how):
    layer, arrays = layer_of("pope+alibi|nope"), tensors()
    got = attended(layer, layer.init(jax.random.key(5)), *arrays, implementation=how)
    exact = (np.asarray(x[0], np.float64) for x in arrays)
    slopes = [*oracles.alibi_slopes(2), 0.0, 0.0]
    np.testing.assert_allclose(
        got[0], by_loop(np.zeros((N, H)), slopes, *exact, plain=(2, 3)), atol=3e-6
    )


def test_shifts_stay_in_the_queries_so_that_keys_are_shared():
    layer = layer_of("pope(start=uniform)+alibi")
    assert layer.shares_keys(1)
    assert not layer_of("mixed").shares_keys(1)
    params, (q, *_) = layer.init(jax.random.key(5)), tensors()
    pos = jnp.asarray(POS)[None]
    turned = layer.rotate(params, q[:, :, :1], pos, "key")
    assert turned.shape == (1, 12, 1, 2 * H)
    np.testing.assert_allclose(
        turned[..., :H] ** 2 + turned[..., H:] ** 2, jax.nn.softplus(q[:, :, :1]) ** 2, rtol=1e-5
    )


@pytest.mark.thorough
def test_shifts_start_at_zero_or_anywhere_and_are_put_back_after_every_update():
    zero, uniform = (
        Pope(start=s).init(jax.random.key(0), PLACE)["delta_NH"] for s in ("zero", "uniform")
    )
    np.testing.assert_array_equal(zero, 0)
    assert -2 * math.pi <= uniform.min() < -6 < -0.3 < uniform.max() <= 0
    out = {"delta_NH": jnp.array([[0.4, -1.0, -7.0]])}
    back = Pope().scheduled(out, jnp.float32(0.1), PLACE)["delta_NH"]
    np.testing.assert_allclose(back, [[0.0, -1.0, -2 * math.pi]], rtol=1e-6)
    config, params = model("pope")
    moved = jax.tree.map(lambda x: x + 0.5, params)
    scheme = at_progress(config, moved, jnp.float32(0.5))["layer_1"]["attention"]["scheme"]
    np.testing.assert_array_equal(scheme["0.rotation"]["delta_NH"], 0)


def model(line, **changes):
    config = ModelConfig(
        scheme=line, vocab_size=37, train_length=L, num_layers=2, model_dim=32, num_heads=N,
        num_kv_heads=N, head_dim=H, mlp_dim=48, activation="swiglu", qk_norm=True, tied_head=True,
        embedding_scale=1.0, norm_epsilon=1e-6, dtype="float32", attention="auto",
    )  # fmt: skip
    config = dataclasses.replace(config, **changes)
    ones = jnp.ones((1, 4), jnp.int32)
    return config, jax.jit(Decoder(config).init)(jax.random.key(0), ones, ones, ones)["params"]


def test_switched_off_it_leaves_magnitudes_and_no_place():
    config, params = model("pope(start=uniform)+alibi")
    off = rotation_off(ParameterizedModel(config, params))
    assert off.config.scheme_line == "pope(start=uniform,phases=false)+alibi"
    layer = off.config.placed.layers[0]
    assert layer.columns_per_dim == 1
    q = tensors()[0]
    far = layer.rotate({}, q, jnp.full((1, 12), 99), "query")
    np.testing.assert_allclose(far, jax.nn.softplus(q), rtol=1e-6)
    tokens = jnp.arange(5)[None]
    logits, _ = jax.jit(Decoder(off.config).apply)(
        {"params": off.params}, tokens, tokens, jnp.ones_like(tokens)
    )
    assert np.isfinite(logits).all()


def test_every_dim_has_a_wavelength_of_its_own_also_under_a_stretch():
    theta = Pope().frequencies(PLACE)
    np.testing.assert_allclose(theta, [10_000 ** (-c / H) for c in range(H)], rtol=1e-12)
    layer = layer_of("pope(start=uniform)|rope")
    planes = rotary_planes(layer, layer.init(jax.random.key(1)), H)
    np.testing.assert_allclose([p["wavelength"] for p in planes[0]], 2 * np.pi / theta, rtol=2e-3)
    assert [p["dims"] for p in planes[1]] == [(c,) for c in range(H)]
    assert [p["dims"] for p in planes[2]] == [(c, c + H // 2) for c in range(H // 2)]
    further = extend_length(parse("pope+alibi"), "pi:4", length=256, train_length=L)
    ((heads,),) = further.layers
    np.testing.assert_allclose(heads.rotation.frequencies(PLACE), theta / 4)
    with pytest.raises(ValueError, match="cannot take a second one"):
        extend_length(further, "yarn:4", length=256, train_length=L)


def test_kernels_that_cannot_hold_its_columns_refuse_in_words():
    layer = layer_of("pope")
    ask = functools.partial(choose_implementation, layer, 1024, 1024)
    assert ask("auto", KernelConditions(64, "bfloat16"), device="gpu").name == "flash"
    for kernel, head_dim in (("flash", 96), ("cudnn", 128)):
        with pytest.raises(
            ValueError, match=f"{2 * head_dim} columns of turned queries .*exceed"
        ) as caught:
            ask(kernel, KernelConditions(head_dim, "bfloat16"))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="linear attention turns features in place"):
        layer_of("pope+linear")
    for line, words in (
        ("pope(start=random)", "pope: start must be one of"),
        ("pope(base=-1)", "pope: base must be"),
    ):
        with pytest.raises(ValueError, match=words):
            layer_of(line)


def test_logits_are_counted_at_twice_the_products_and_values_at_one():
    plain, wide, half = (
        model_flops(model(line)[0], 1, 64) for line in ("rope", "pope", "rope|pope")
    )
    assert wide.attention == pytest.approx(1.5 * plain.attention)
    assert half.attention == pytest.approx(1.25 * plain.attention)
    assert wide.projections == plain.projections


@pytest.mark.thorough
def test_a_steep_bias_ends_the_work_early_and_nothing_is_missed():
    """Keys that shout from beyond the window of the others: the proof reads norms of turned keys."""
    T, line = 640, "pope+alibi(factor=0.02)"
    layer = layer_of(line)
    params, (q, k, v) = layer.init(jax.random.key(5)), tensors(T=T)
    k = k.at[:, 40:60].mul(60.0)
    pos, ones = jnp.arange(T)[None], jnp.ones((1, T), jnp.int32)
    tokens = TokenSide(pos, ones)
    turned = [layer.rotate(params, x, pos, side) for x, side in ((q, "query"), (k, "key"))]
    cut, whole = (
        blockwise_attention(*turned, v, layer, params, tokens, tokens, settings)
        for settings in (BlockwiseSettings(blocks=(64, 32), epsilon=e) for e in (2.0**-24, 0.0))
    )
    np.testing.assert_allclose(cut, whole, atol=2e-6)
    assert cutoff_windows(layer, params, 8.0, T).max() < T
