"""Our encodings against x-transformers, rotary-embedding-torch, flash-linear-attention and timm.

The first three come with pip install -e ".[interop]"; timm brings a torchvision that must fit torch,
and one file of it is enough: pip install --no-deps timm. Their float32 angles are off by
position * 6e-8 rad, so rotations are compared at few positions, to 1e-6 of the largest value.
"""

import dataclasses
import functools
import importlib
import importlib.util
import pathlib
import sys
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.attention import AttentionSettings, TokenSide, attend
from posenc_jax.encodings import (
    Alibi,
    Forget,
    HeadContext,
    Learned,
    Rope,
    Sinusoidal,
    Xpos,
    cumulative_log_forget,
)
from posenc_jax.encodings.learned_bias import T5
from posenc_jax.encodings.planar import Axial, Mixed
from posenc_jax.encodings.rope_scaling import NtkAware, PositionInterpolation

from support import schemes
from support.torch_comparison import close, differ, heads_first, normal

pytestmark = pytest.mark.interop
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")
    xt = pytest.importorskip("x_transformers.x_transformers")
    ret = pytest.importorskip("rotary_embedding_torch")

T, HEADS, HEAD, WIDTH = 24, 4, 32, 48
PLACE = HeadContext(heads=HEADS, num_heads=HEADS, head_dim=HEAD, model_dim=WIDTH, train_length=T)
POS, SEG = jnp.arange(T)[None], jnp.ones((1, T), int)


def module_of(package, folder, name):
    """One module of an installed package, without what the package itself imports (triton, torchvision)."""
    found = importlib.util.find_spec(package)
    if found is None:
        pytest.skip(f"{package} is not installed")
    shell = types.ModuleType("only_" + "_".join([package, *folder.split("/")]))
    shell.__path__ = [str(pathlib.Path(found.submodule_search_locations[0], folder))]
    sys.modules[shell.__name__] = shell
    return importlib.import_module(f"{shell.__name__}.{name}")


layer_of = functools.partial(
    schemes.layer_of, num_heads=HEADS, head_dim=HEAD, model_dim=WIDTH, train_length=T
)


ROTATIONS = [  # x-transformers, rotary-embedding-torch, ours; both pair neighbours
    ({}, {}, Rope()),
    ({"base": 500}, {"theta": 500}, Rope(base=500.0)),
    (
        {"interpolation_factor": 4},
        {"interpolate_factor": 4},
        Rope(stretch=PositionInterpolation(4.0)),
    ),
    ({"base_rescale_factor": 4}, {"theta_rescale_factor": 4}, Rope(stretch=NtkAware(4.0))),
    ({"dim": 8}, {"dim": 8}, Rope(fraction=0.25)),
    (
        {"dim": 16, "base_rescale_factor": 8},
        {"dim": 16, "theta_rescale_factor": 8},
        Rope(fraction=0.5, stretch=NtkAware(8.0)),
    ),
]


@pytest.mark.parametrize(("x_options", "ret_options", "rope"), ROTATIONS)
def test_rope_partial_interpolated_and_ntk_is_x_transformers_and_rotary_embedding_torchs(
    x_options, ret_options, rope
):
    x = normal(1, T, HEADS, HEAD)
    ours = dataclasses.replace(rope, pairing="interleaved").rotate(
        {}, jnp.asarray(x), POS, PLACE, "query"
    )
    freqs, scale = xt.RotaryEmbedding(**{"dim": HEAD} | x_options).forward_from_seq_len(T)
    close(ours, xt.apply_rotary_pos_emb(heads_first(x), freqs, scale).transpose(1, 2))
    rotary = ret.RotaryEmbedding(**{"dim": HEAD} | ret_options)
    close(ours, rotary.rotate_queries_or_keys(heads_first(x)).transpose(1, 2))
    plain = Rope(pairing="interleaved").rotate({}, jnp.asarray(x), POS, PLACE, "query")
    assert differ(ours, plain) == (rope != Rope())


def xpos_peers(q, k, scale):
    """Rotated queries and keys [B,T,N,H] of both peers, which centre xPos at half of *this call's* length."""
    one = xt.RotaryEmbedding(HEAD, use_xpos=True, scale_base=scale)
    freqs, amplitude = one.forward_from_seq_len(q.shape[1])
    yield tuple(
        xt.apply_rotary_pos_emb(heads_first(x), freqs, a).transpose(1, 2).numpy()
        for x, a in ((q, amplitude), (k, amplitude**-1))
    )
    two = ret.RotaryEmbedding(HEAD, use_xpos=True, xpos_scale_base=scale)
    yield tuple(
        x.transpose(1, 2).detach().numpy()
        for x in two.rotate_queries_and_keys(heads_first(q), heads_first(k))
    )


@pytest.mark.parametrize("scale", [16, 512])
def test_xpos_is_x_transformers_and_rotary_embedding_torchs_at_the_training_length(scale):
    q, k = normal(1, T, HEADS, HEAD), normal(1, T, HEADS, HEAD, seed=1)
    part = Xpos(scale=float(scale), pairing="interleaved")
    ours = [
        part.rotate({}, jnp.asarray(x), POS, PLACE, side) for x, side in ((q, "query"), (k, "key"))
    ]
    lengths = np.linalg.norm(ours[0], axis=-1) / np.linalg.norm(q, axis=-1)
    assert lengths.min() < 0.99 < 1.01 < lengths.max()
    for theirs in xpos_peers(q, k, scale):
        for a, b in zip(ours, theirs, strict=True):
            close(a, b)


def test_xpos_logits_are_the_peers_whatever_length_they_are_centred_by():
    """A centre that follows the call multiplies all queries and divides all keys by one number a pair."""
    length, scale = 16, 16
    q, k = normal(1, length, HEADS, HEAD), normal(1, length, HEADS, HEAD, seed=1)
    part, pos = Xpos(scale=float(scale), pairing="interleaved"), jnp.arange(length)[None]
    a, b = (
        np.asarray(part.rotate({}, jnp.asarray(x), pos, PLACE, side))
        for x, side in ((q, "query"), (k, "key"))
    )
    for theirs in xpos_peers(q, k, scale):
        assert differ(a, theirs[0])
        assert differ(b, theirs[1])
        close(np.einsum("btnh,bsnh->bnts", a, b), np.einsum("btnh,bsnh->bnts", *theirs))


@pytest.mark.parametrize("heads", [1, 3, 8, 12, 71])
def test_alibi_is_x_transformers_on_both_sides_of_the_query(heads):
    queries, keys = 5, 30
    want = xt.AlibiPositionalBias(heads)(queries, keys)
    place = HeadContext(
        heads=heads, num_heads=heads, head_dim=HEAD, model_dim=WIDTH, train_length=T
    )
    q_pos, k_pos = jnp.arange(keys - queries, keys)[None], jnp.arange(keys)[None]
    assert (want[:, 0, -1] < 0).all()  # a key to come costs too
    np.testing.assert_allclose(Alibi().bias({}, q_pos, k_pos, place)[0], want.numpy(), rtol=1e-6)


def test_alibi_is_x_transformers_at_positions_of_ones_own():
    pos = np.array([[0, 1, 2, 0, 1, 7, 40], [3, 4, 5, 6, 9, 10, 11]])
    want = xt.AlibiPositionalBias(HEADS).forward_custom_pos(torch.tensor(pos))
    ours = Alibi().bias({}, jnp.asarray(pos), jnp.asarray(pos), PLACE)
    np.testing.assert_allclose(ours, want.numpy(), rtol=1e-6)


def test_alibi_on_half_of_the_heads_is_x_transformers_with_total_heads():
    want = xt.AlibiPositionalBias(HEADS, total_heads=2 * HEADS)(T, T).numpy()
    assert (want[HEADS:] == 0).all()
    ours = layer_of("alibi|nope", num_heads=2 * HEADS).bias({}, POS, POS)[0]
    np.testing.assert_allclose(ours, want, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (16, 1000)])
def test_t5_is_x_transformers_relative_position_bias_with_its_scale_in_the_table(buckets, longest):
    torch.manual_seed(0)
    scale, n = HEAD**0.5, 300
    peer = xt.RelativePositionBias(
        scale, causal=True, num_buckets=buckets, max_distance=longest, heads=HEADS
    )
    want, pos = peer(n, n).detach().numpy(), jnp.arange(n)[None]
    table = scale * jnp.asarray(peer.relative_attention_bias.weight.detach().numpy().T)
    ours = T5(buckets, longest).bias({"table_NU": table}, pos, pos, PLACE)[0]
    past = np.tril(np.ones((n, n), bool))
    np.testing.assert_allclose(np.asarray(ours)[:, past], want[:, past], rtol=1e-6)


@pytest.mark.parametrize("theta", [100.0, 10_000.0])
def test_scaled_sinusoids_are_x_transformers_with_sines_first(theta):
    want = xt.ScaledSinusoidalEmbedding(WIDTH, theta=theta)(torch.zeros(1, T, 1)).detach().numpy()
    ours = Sinusoidal(base=theta, scale=WIDTH**-0.5).embed({}, POS, PLACE)[0]
    close(np.concatenate([ours[:, 0::2], ours[:, 1::2]], axis=1), want, 2e-6)  # 23 * 6e-8 rad


def test_a_learned_table_is_x_transformers_with_its_scale_in_the_table():
    peer = xt.AbsolutePositionalEmbedding(WIDTH, T)
    pos = np.array([[0, 5, 23, 5]])
    want = peer(torch.zeros(1, 4, WIDTH), pos=torch.tensor(pos))
    table = jnp.asarray(peer.emb.weight.detach().numpy()) * WIDTH**-0.5
    close(Learned().embed({"table_LD": table}, jnp.asarray(pos), PLACE), want)


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_the_forget_gate_is_x_transformers_data_dependent_alibi(factor):
    """Its post_log_scale is our 1 / factor; its gates start at sigmoid(5), ours elsewhere: given here."""
    torch.manual_seed(0)
    peer = xt.DataDependentAlibi(WIDTH, HEADS, post_log_scale=1 / factor)
    linear = peer.to_forget_gates[0]
    linear.bias.data = torch.tensor([0.0, 1.0, 3.0, 5.0])  # every head its own
    x = normal(1, T, WIDTH)
    want = peer(torch.tensor(x)).detach().numpy()
    params = {
        "gate_DN": jnp.asarray(linear.weight.detach().numpy().T),
        "gate_bias_N": jnp.asarray(linear.bias.detach().numpy()),
    }
    layer = layer_of(f"forget(factor={factor})")
    clock = cumulative_log_forget(layer.log_forget({"0.bias": params}, jnp.asarray(x)), SEG)
    ours = np.asarray(layer.bias({"0.bias": params}, POS, POS, clock, clock))
    assert differ(want[0, 0], want[0, 1])
    close(ours, want)
    rest = Forget(factor=factor).bias(params, POS, POS, PLACE)
    still = peer(torch.zeros(1, T, WIDTH)).detach().numpy()
    past = np.tril(np.ones((T, T), bool))
    close(np.asarray(rest)[..., past], still[..., past])


@pytest.mark.parametrize("keys", [HEADS, 2, 1])
def test_forgetting_attention_is_flash_linear_attentions_with_grouped_keys(keys):
    naive = module_of("fla", "ops/forgetting_attn", "naive")
    q, k, v = (
        normal(1, T, HEADS, HEAD),
        normal(1, T, keys, HEAD, seed=1),
        normal(1, T, keys, HEAD, seed=2),
    )
    layer, x = layer_of("forget"), jnp.asarray(normal(1, T, WIDTH, seed=3))
    params = jax.tree.map(lambda p: 8 * p, layer.init(jax.random.key(0)))
    ticks = layer.log_forget(params, x)
    clock = cumulative_log_forget(ticks, SEG)
    want = naive.naive_forgetting_attn(
        *map(torch.tensor, (q, k, v)), torch.tensor(np.asarray(ticks))
    )
    ours = attend(*map(jnp.asarray, (q, k, v)), layer, params, TokenSide(POS, SEG, clock))
    assert differ(
        ours, attend(*map(jnp.asarray, (q, k, v)), layer_of("nope"), {}, TokenSide(POS, SEG))
    )
    close(ours, want)


@pytest.mark.parametrize("aligned", [True, False])
def test_linear_attention_without_a_rotation_is_flash_linear_attentions_recurrence(aligned):
    naive, length = module_of("fla", "ops/linear_attn", "naive"), 150  # three chunks of ours
    q, k, v = (normal(1, length, HEADS, HEAD, seed=s) for s in range(3))
    features = [torch.nn.functional.elu(torch.tensor(x)) + 1 for x in (q, k)]
    want, _ = naive.naive_recurrent_linear_attn(*features, torch.tensor(v), normalize=True)
    pos, seg = jnp.arange(length)[None], jnp.ones((1, length), int)
    ours = attend(
        *map(jnp.asarray, (q, k, v)),
        layer_of("linear"),
        {},
        TokenSide(pos, seg),
        settings=AttentionSettings(aligned=aligned),
    )
    close(ours, want)


ROWS, COLUMNS = 4, 6  # unequal, so that an exchange of the axes shows
ROWS_FIRST = np.roll(
    np.arange(HEAD), HEAD // 2
)  # dims of our second half of pairs, then of the first


def test_axial_rope_is_rotary_embedding_torchs_with_rows_first():
    x = normal(1, T, HEADS, HEAD)
    freqs = ret.RotaryEmbedding(HEAD // 2, theta=100).get_axial_freqs(ROWS, COLUMNS)
    want = ret.apply_rotary_emb(freqs.reshape(T, HEAD), heads_first(x)).transpose(1, 2)
    part = Axial(width=COLUMNS, pairing="interleaved")
    ours = part.rotate({}, jnp.asarray(x[..., ROWS_FIRST]), POS, PLACE, "query")
    close(np.asarray(ours)[..., ROWS_FIRST], want)
    assert differ(want.detach(), part.rotate({}, jnp.asarray(x), POS, PLACE, "query"))


@pytest.mark.parametrize("order", ["ij", "xy"])
def test_axial_rope_is_timms_in_either_order_of_the_axes(order):
    timm = module_of("timm", "layers", "pos_embed_sincos")
    x = normal(1, T, HEADS, HEAD)
    peer = timm.RotaryEmbeddingCat(
        HEAD, in_pixels=False, temperature=100.0, feat_shape=[ROWS, COLUMNS], grid_indexing=order
    )
    want = timm.apply_rot_embed_cat(heads_first(x), peer.get_embed()).transpose(1, 2)
    dims = ROWS_FIRST if order == "ij" else np.arange(HEAD)
    part = Axial(width=COLUMNS, pairing="interleaved")
    ours = part.rotate({}, jnp.asarray(x[..., dims]), POS, PLACE, "query")
    close(np.asarray(ours)[..., dims], want)


def test_mixed_rope_is_timms_under_the_same_frequencies():
    timm = module_of("timm", "layers", "pos_embed_sincos")
    torch.manual_seed(0)
    x = normal(1, T, HEADS, HEAD)
    peer = timm.RotaryEmbeddingMixed(
        HEADS * HEAD, depth=1, num_heads=HEADS, feat_shape=[ROWS, COLUMNS]
    )
    want = timm.apply_rot_embed_cat(heads_first(x), peer.get_embed()[0]).transpose(1, 2)
    params = {"freq_2Nh": jnp.asarray(peer.freqs[:, 0].detach().numpy())}
    part = Mixed(width=COLUMNS, pairing="interleaved")
    close(part.rotate(params, jnp.asarray(x), POS, PLACE, "query"), want)


def test_mixed_rope_starts_as_timms_two_spectra_at_right_angles_turned_per_head():
    timm = module_of("timm", "layers", "pos_embed_sincos")
    torch.manual_seed(0)
    theirs = timm.init_random_2d_freqs(HEAD, 1, HEADS, temperature=10.0)[:, 0].numpy()
    ours = np.asarray(Mixed().init(jax.random.key(0), PLACE)["freq_2Nh"])

    def unturned(freq_2Nh):  # complex frequencies, with each head's own angle taken out
        plane = freq_2Nh[0] + 1j * freq_2Nh[1]
        return plane * np.exp(-1j * np.angle(plane[:, :1]))

    assert len(set(np.angle(ours[0] + 1j * ours[1])[:, 0])) == HEADS
    close(unturned(ours), unturned(theirs))
