"""Our encodings against transformers, where it is installed: pip install -e ".[interop]".

Most angles there are a float32 product, off by position * 6e-8 rad: so rotations are compared at few
positions, to 1e-6 of the largest value. Frequencies of stretches are float32 powers, good to 2e-6.
"""

import math
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.attention import TokenSide, attend
from posenc_jax.encodings import (
    HeadContext,
    Learned,
    Prope,
    Rope,
    Sinusoidal,
    alibi_slopes,
    inverse_frequencies,
    rotate,
)
from posenc_jax.encodings.learned_bias import T5, t5_buckets
from posenc_jax.encodings.planar import Axial, axial_angles
from posenc_jax.encodings.rope_scaling import (
    BaseChange,
    DynamicNtk,
    Llama3,
    LongRope,
    PositionInterpolation,
    Yarn,
)
from posenc_jax.encodings.temperature import YarnTemperature

from support import schemes
from support.torch_comparison import close, differ, heads_first, normal

pytestmark = pytest.mark.interop
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers import (
        BloomConfig,
        DINOv3ViTConfig,
        FalconConfig,
        GPTNeoXConfig,
        Llama4VisionConfig,
        LlamaConfig,
        MptConfig,
        PhiConfig,
        Sam2VideoConfig,
        T5Config,
    )
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.bloom.modeling_bloom import BloomAttention, build_alibi_tensor
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek
    from transformers.models.dinov3_vit import modeling_dinov3_vit as dinov3
    from transformers.models.distilbert.modeling_distilbert import create_sinusoidal_embeddings
    from transformers.models.falcon import modeling_falcon as falcon
    from transformers.models.gpt_neox import modeling_gpt_neox as neox
    from transformers.models.gptj import modeling_gptj as gptj
    from transformers.models.llama.modeling_llama import (
        LlamaAttention,
        LlamaRotaryEmbedding,
        apply_rotary_pos_emb,
    )
    from transformers.models.llama4 import modeling_llama4 as llama4
    from transformers.models.marian import modeling_marian as marian
    from transformers.models.mpt.modeling_mpt import MptAttention, build_mpt_alibi_tensor
    from transformers.models.opt import modeling_opt as opt
    from transformers.models.phi.modeling_phi import PhiRotaryEmbedding
    from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen2_vl
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
    from transformers.models.roformer import modeling_roformer as roformer
    from transformers.models.sam2_video import modeling_sam2_video as sam2
    from transformers.models.t5.modeling_t5 import T5Attention
    from transformers.models.xglm import modeling_xglm as xglm

DIM, BASE, LENGTH = 128, 10_000.0, 4096
FREQ = inverse_frequencies(DIM, BASE)
FACTORS = tuple(np.linspace(1.0, 6.0, DIM // 2))


def theirs(kind, base=BASE, length=LENGTH, sequence=None, **parameters):
    """Inverse frequencies and attention factor of transformers for one rope type."""
    config = LlamaConfig(
        hidden_size=DIM,
        num_attention_heads=1,
        max_position_embeddings=length,
        rope_parameters={"rope_type": kind, "rope_theta": base, **parameters},
    )
    config.original_max_position_embeddings = length
    freq, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=sequence)
    return freq.double().numpy(), factor


@pytest.mark.parametrize("factor", [2.0, 8.0])
def test_position_interpolation_is_transformers_linear(factor):
    freq, _ = theirs("linear", factor=factor)
    np.testing.assert_allclose(
        PositionInterpolation(factor).frequencies(FREQ, BASE, LENGTH), freq, rtol=1e-6
    )


@pytest.mark.parametrize("sequence", [4096, 8192, 40_000])
def test_dynamic_ntk_is_transformers(sequence):
    freq, _ = theirs("dynamic", factor=2.0, sequence=sequence)
    ours = DynamicNtk(2.0, sequence).frequencies(FREQ, BASE, LENGTH)
    np.testing.assert_allclose(ours, freq, rtol=2e-6)


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("factor", [4.0, 32.0])
def test_yarn_is_transformers(factor, truncate):
    parameters = {
        "factor": factor,
        "original_max_position_embeddings": LENGTH,
        "truncate": truncate,
    }
    freq, amplitude = theirs("yarn", **parameters)
    yarn = Yarn(factor, truncate=truncate)
    np.testing.assert_allclose(yarn.frequencies(FREQ, BASE, LENGTH), freq, rtol=2e-6)
    assert yarn.amplitude(LENGTH) == pytest.approx(amplitude)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"attention_factor": 1.3},
        {"mscale": 0.707, "mscale_all_dim": 0.707},
        {"mscale": 1.0, "mscale_all_dim": 0.5},
    ],
    ids=str,
)
def test_yarns_attention_factor_is_transformers(given):
    _, amplitude = theirs("yarn", factor=40.0, original_max_position_embeddings=LENGTH, **given)
    assert Yarn(40.0, **given).amplitude(LENGTH) == pytest.approx(amplitude)


def test_deepseeks_rotary_and_softmax_scales_are_ours():
    given = {"mscale": 0.8, "mscale_all_dim": 0.707}
    assert Yarn(40.0, **given).amplitude(LENGTH) == pytest.approx(
        deepseek.yarn_get_mscale(40.0, 0.8) / deepseek.yarn_get_mscale(40.0, 0.707)
    )
    place = HeadContext(heads=1, num_heads=1, head_dim=DIM, model_dim=DIM, train_length=LENGTH)
    tau = YarnTemperature(40.0, mscale=0.707).temperature(
        {}, jnp.array([[3]]), jnp.array([[3]]), place
    )
    assert float(tau[0, 0, 0, 0]) == pytest.approx(deepseek.yarn_get_mscale(40.0, 0.707) ** 2)


def test_llama3_is_transformers():
    parameters = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    freq, _ = theirs(
        "llama3", base=500_000.0, length=8192, original_max_position_embeddings=8192, **parameters
    )
    ours = Llama3(8.0, original=8192).frequencies(
        inverse_frequencies(DIM, 500_000.0), 500_000.0, 131_072
    )
    np.testing.assert_allclose(ours, freq, rtol=2e-6)


@pytest.mark.parametrize("given", [{}, {"attention_factor": 1.3}], ids=str)
@pytest.mark.parametrize("sequence", [4096, 4097])
def test_longrope_is_transformers(sequence, given):
    short, long = FACTORS, tuple(2 * f for f in FACTORS)
    parameters = {"factor": 8.0, "short_factor": list(short), "long_factor": list(long), **given}
    freq, amplitude = theirs(
        "longrope", sequence=sequence, original_max_position_embeddings=LENGTH, **parameters
    )
    ours = LongRope(8.0, short, long, length=sequence, **given)
    np.testing.assert_allclose(ours.frequencies(FREQ, BASE, LENGTH), freq, rtol=2e-6)
    assert ours.amplitude(LENGTH) == pytest.approx(amplitude)


def test_half_pairing_is_llamas_rotation():
    x = np.random.default_rng(0).normal(size=(1, 2, 50, DIM)).astype(np.float32)
    angle = np.arange(50)[:, None] * FREQ
    cos, sin = (
        torch.tensor(np.concatenate([f(angle)] * 2, -1)[None], dtype=torch.float32)
        for f in (np.cos, np.sin)
    )
    want, _ = apply_rotary_pos_emb(torch.tensor(x), torch.tensor(x), cos, sin)
    place = HeadContext(heads=2, num_heads=2, head_dim=DIM, model_dim=256, train_length=LENGTH)
    ours = Rope().rotate(
        {}, jnp.asarray(x.transpose(0, 2, 1, 3)), jnp.arange(50)[None], place, "query"
    )
    np.testing.assert_allclose(ours.transpose(0, 2, 1, 3), want.numpy(), atol=3e-6)


@pytest.mark.parametrize("heads", [1, 8, 12, 16, 20, 112])
def test_alibi_slopes_are_blooms_and_mpts(heads):
    bloom = build_alibi_tensor(torch.ones(1, 5), heads, torch.float32).numpy()[:, 0]
    np.testing.assert_allclose(np.diff(bloom)[:, 0], alibi_slopes(heads), rtol=1e-6)
    mpt = build_mpt_alibi_tensor(heads, 5).numpy().reshape(heads, 5)
    np.testing.assert_allclose(np.diff(mpt)[:, 0], alibi_slopes(heads), rtol=1e-6)
    steeper = build_mpt_alibi_tensor(heads, 5, alibi_bias_max=6).numpy().reshape(heads, 5)
    np.testing.assert_allclose(np.diff(steeper)[:, 0], alibi_slopes(heads, 6.0), rtol=1e-6)


@pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (16, 1000), (32, 256)])
def test_t5_buckets_are_t5s(buckets, longest):
    distance = np.arange(3 * longest)
    want = T5Attention._relative_position_bucket(torch.tensor(-distance), False, buckets, longest)
    np.testing.assert_array_equal(t5_buckets(jnp.asarray(distance), buckets, longest), want.numpy())


T, HEADS, HEAD = 24, 4, 32
PLACE = HeadContext(
    heads=HEADS, num_heads=HEADS, head_dim=HEAD, model_dim=HEADS * HEAD, train_length=T
)
POS, SEG = jnp.arange(T)[None], jnp.ones((1, T), int)


def attended(line, q_BTNH, k_BSKH, v_BSKH):
    """What `attend` makes of torch's projections under one of our schemes, heads side by side."""
    shape = {"num_heads": HEADS, "head_dim": HEAD, "model_dim": HEADS * HEAD, "train_length": T}
    layer = schemes.layer_of(line, **shape)
    q, k, v = (jnp.asarray(x.detach().numpy()) for x in (q_BTNH, k_BSKH, v_BSKH))
    out = attend(q, k, v, layer, {}, TokenSide(POS, SEG))
    return np.asarray(out).reshape(1, T, -1)


def unprojected(module):
    """Makes the output projection the identity, so that the module returns its heads side by side."""
    module.weight.data = torch.eye(HEADS * HEAD)
    if module.bias is not None:
        module.bias.data.zero_()


CAUSAL = torch.full((T, T), torch.finfo(torch.float32).min).triu(1)[None, None]


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("family", ["gpt_neox", "phi"])
def test_partial_rotation_is_gpt_neoxs_and_phis(family, share):
    kind, module = {
        "gpt_neox": (GPTNeoXConfig, neox.GPTNeoXRotaryEmbedding),
        "phi": (PhiConfig, PhiRotaryEmbedding),
    }[family]
    parameters = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": share}
    config = kind(hidden_size=HEADS * HEAD, num_attention_heads=HEADS, rope_parameters=parameters)
    x = normal(1, T, HEADS, HEAD)
    cos, sin = module(config)(torch.tensor(x), torch.arange(T)[None])
    assert cos.shape[-1] == share * HEAD
    want, _ = neox.apply_rotary_pos_emb(heads_first(x), heads_first(x), cos, sin)
    ours = Rope(base=500.0, fraction=share).rotate({}, jnp.asarray(x), POS, PLACE, "query")
    assert differ(ours, x)
    close(ours, want.transpose(1, 2))


@pytest.mark.parametrize("dim", [8, HEAD])
def test_interleaved_pairing_is_gpt_js(dim):
    x = normal(1, T, HEADS, HEAD)
    sin, cos = gptj.create_sinusoidal_positions(T, dim)[None].chunk(2, dim=-1)
    turned = gptj.apply_rotary_pos_emb(torch.tensor(x[..., :dim]), sin, cos)
    want = np.concatenate([turned.numpy(), x[..., dim:]], -1)  # as GPTJAttention does
    rope = Rope(fraction=dim / HEAD, pairing="interleaved")
    ours = rope.rotate({}, jnp.asarray(x), POS, PLACE, "query")
    assert differ(ours, Rope(fraction=dim / HEAD).rotate({}, jnp.asarray(x), POS, PLACE, "query"))
    close(ours, want)


def test_interleaved_pairing_is_roformers():
    q, k = normal(1, T, HEADS, HEAD), normal(1, T, HEADS, HEAD, seed=1)
    table = roformer.RoFormerSinusoidalPositionalEmbedding(T, HEAD)
    table.weight.data = table.create_weight()
    turn = roformer.RoFormerSelfAttention.apply_rotary_position_embeddings
    wants = turn(table((1, T))[None, None], heads_first(q), heads_first(k))
    for x, want, side in zip((q, k), wants, ("query", "key"), strict=True):
        ours = Rope(pairing="interleaved").rotate({}, jnp.asarray(x), POS, PLACE, side)
        close(ours, want.transpose(1, 2))


@pytest.mark.parametrize("kept", [0.25, 0.75, 0.3, 0.992])  # of 64 pairs 16, 48, 19.2, 63.488
def test_prope_is_transformers_proportional(kept):
    parameters = {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": kept}
    config = LlamaConfig(hidden_size=DIM, num_attention_heads=1, rope_parameters=parameters)
    freq, _ = ROPE_INIT_FUNCTIONS["proportional"](config, torch.device("cpu"))
    place = HeadContext(heads=1, num_heads=1, head_dim=DIM, model_dim=DIM, train_length=LENGTH)
    assert (freq == 0).sum() == DIM // 2 - int(kept * DIM / 2)
    ours = Prope(kept=kept, base=1e6, rounding="down").frequencies(place)
    np.testing.assert_allclose(ours, freq.numpy(), rtol=1e-6)


def test_a_changed_base_is_transformers_default_at_that_base():
    config = LlamaConfig(
        hidden_size=DIM,
        num_attention_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    )
    freq, _ = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    ours = BaseChange(500_000.0).frequencies(FREQ, BASE, LENGTH)
    assert differ(np.log(ours), np.log(FREQ))
    np.testing.assert_allclose(ours, freq.numpy(), rtol=1e-6)


def test_yarns_temperature_is_the_square_of_transformers_attention_factor():
    _, amplitude = theirs("yarn", factor=16.0, original_max_position_embeddings=LENGTH)
    assert amplitude > 1.2
    tau = YarnTemperature(factor=16.0).temperature({}, POS, POS, PLACE)
    np.testing.assert_allclose(tau, amplitude**2, rtol=1e-6)


@pytest.mark.parametrize("stretch", ["", "yarn", "linear"])
def test_attention_under_rope_is_llamas_whole_layer_with_grouped_keys(stretch):
    """Projection, rotation, amplitude, scale, mask and softmax at once; only the weights are shared."""
    parameters = {"rope_type": stretch or "default", "rope_theta": BASE}
    if stretch:
        parameters |= {"factor": 4.0, "original_max_position_embeddings": T}
    config = LlamaConfig(
        hidden_size=HEADS * HEAD,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        max_position_embeddings=4 * T,
        rope_parameters=parameters,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    layer = LlamaAttention(config, 0)
    layer.q_proj.weight.data *= 8  # sharp enough that the temperature shows
    unprojected(layer.o_proj)
    x = torch.tensor(normal(1, T, HEADS * HEAD))
    turns = LlamaRotaryEmbedding(config)(x, torch.arange(T)[None])
    want, _ = layer(x, position_embeddings=turns, attention_mask=CAUSAL)
    q, k, v = (p(x).view(1, T, -1, HEAD) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    line = {
        "": "rope",
        "yarn": "rope(stretch=yarn(factor=4.0))",
        "linear": "rope(stretch=pi(factor=4.0))",
    }
    ours = attended(line[stretch], q, k, v)
    for other in {"nope", *line.values()} - {line[stretch]}:
        assert differ(ours, attended(other, q, k, v))
    close(ours, want)


def test_attention_under_alibi_is_blooms_whole_layer():
    """BLOOM adds slope * j, not -slope * (i - j): the difference is one number a row, lost in softmax."""
    torch.manual_seed(0)
    layer = BloomAttention(BloomConfig(hidden_size=HEADS * HEAD, n_head=HEADS), 0).eval()
    unprojected(layer.dense)
    x = torch.tensor(normal(1, T, HEADS * HEAD))
    alibi = build_alibi_tensor(torch.ones(1, T), HEADS, torch.float32)
    want, _ = layer(x, torch.zeros_like(x), alibi, CAUSAL)
    q, k, v = (y.transpose(1, 2) for y in layer._reshape(layer.query_key_value(x)))
    ours = attended("alibi", q, k, v)
    assert differ(ours, attended("nope", q, k, v))
    close(ours, want)


def test_attention_under_alibi_is_mpts_whole_layer():
    torch.manual_seed(0)
    layer = MptAttention(MptConfig(d_model=HEADS * HEAD, n_heads=HEADS), 0).eval()
    unprojected(layer.out_proj)
    x = torch.tensor(normal(1, T, HEADS * HEAD))
    want, _ = layer(x, build_mpt_alibi_tensor(HEADS, T), attention_mask=CAUSAL < 0)
    q, k, v = (y.view(1, T, HEADS, HEAD) for y in layer.Wqkv(x).chunk(3, dim=2))
    close(attended("alibi", q, k, v), want)


@pytest.mark.parametrize("heads", [4, 12, 71])
def test_falcons_slopes_are_alibis_rounded_to_bfloat16(heads):
    ones = torch.ones(1, 2, dtype=torch.int64)
    slopes = falcon.build_alibi_tensor(ones, heads, torch.float32)[:, 0, 1]
    want = torch.tensor(alibi_slopes(heads), dtype=torch.float32).bfloat16().float()
    np.testing.assert_array_equal(slopes.numpy(), want.numpy())


def test_attention_under_alibi_divided_by_the_root_of_the_head_dim_is_falcons_whole_layer():
    """Falcon adds ALiBi before the 1/sqrt(H) scale, unlike the paper: our factor = sqrt(H) is that."""
    torch.manual_seed(0)
    config = FalconConfig(
        hidden_size=HEADS * HEAD,
        num_attention_heads=HEADS,
        alibi=True,
        new_decoder_architecture=False,
        multi_query=False,
        bias=False,
        attn_implementation="eager",
    )
    layer = falcon.FalconAttention(config, 0).eval()
    unprojected(layer.dense)
    slopes = torch.tensor(alibi_slopes(HEADS))
    assert (slopes == slopes.bfloat16()).all()  # so that its rounding changes nothing here
    x = torch.tensor(normal(1, T, HEADS * HEAD))
    alibi = falcon.build_alibi_tensor(torch.ones(1, T, dtype=torch.int64), HEADS, torch.float32)
    want, _ = layer(x, alibi, CAUSAL)
    q, k, v = layer._split_heads(layer.query_key_value(x))
    ours = attended(f"alibi(factor={math.sqrt(HEAD)!r})", q, k, v)
    assert differ(ours, attended("alibi", q, k, v))
    close(ours, want)


def test_t5_bias_is_the_decoders_table_read_by_distance():
    torch.manual_seed(0)
    layer = T5Attention(
        T5Config(num_heads=HEADS, is_decoder=True), has_relative_attention_bias=True, layer_idx=0
    )
    layer.relative_attention_bias.weight.data = torch.randn(32, HEADS)
    want = layer.compute_bias(200, 200).detach().numpy()
    pos = jnp.arange(200)[None]
    params = {"table_NU": jnp.asarray(layer.relative_attention_bias.weight.detach().numpy().T)}
    ours = T5().bias(params, pos, pos, PLACE)
    assert len(np.unique(want[0, 0, -1])) == 32  # every bucket is read
    past = np.tril(
        np.ones((200, 200), bool)
    )  # of what is to come, T5 has one bucket and we have none
    np.testing.assert_array_equal(np.asarray(ours)[:, :, past], want[:, :, past])


def test_sinusoids_are_distilberts_and_roformers():
    want = torch.empty(300, 64)
    create_sinusoidal_embeddings(n_pos=300, dim=64, out=want)
    place = HeadContext(heads=1, num_heads=1, head_dim=64, model_dim=64, train_length=300)
    ours = np.asarray(Sinusoidal().embed({}, jnp.arange(300)[None], place))[0]
    close(ours, want)
    halves = roformer.RoFormerSinusoidalPositionalEmbedding(300, 64).create_weight()
    close(np.concatenate([ours[:, 0::2], ours[:, 1::2]], 1), halves)  # sines first there
    sines_first = Sinusoidal(pairing="half").embed({}, jnp.arange(300)[None], place)[0]
    close(sines_first, marian.MarianSinusoidalPositionalEmbedding(300, 64).create_weight())


def test_sinusoids_of_fairseq_are_xglms_and_learned_rows_are_opts():
    place = HeadContext(heads=1, num_heads=1, head_dim=64, model_dim=64, train_length=300)
    pos = jnp.arange(300)[None]
    part = Sinusoidal(base=10_000.0 ** (32 / 31), pairing="half", offset=2)
    table = xglm.XGLMSinusoidalPositionalEmbedding(300, 64, padding_idx=1)
    want = table(torch.arange(300)[None])[0]
    np.testing.assert_allclose(part.embed({}, pos, place)[0], want, atol=5e-5)  # float32 angles
    learned = opt.OPTLearnedPositionalEmbedding(300, 64)
    params = {"table_LD": jnp.asarray(learned.weight.detach().numpy())}
    got = Learned(offset=2).embed(params, pos, place)[0]
    close(got, learned(torch.ones(1, 300, dtype=torch.long))[0].detach())


ROWS, COLUMNS = 4, 6  # unequal, so that an exchange of the axes shows
ROW, COLUMN = (torch.tensor(x.ravel()) for x in np.indices((ROWS, COLUMNS)))
EXCHANGED = np.arange(HEAD).reshape(2, 2, -1)[:, ::-1].ravel()  # rows' pairs and columns' pairs


def test_axial_rope_is_qwen2_vls_with_the_axes_exchanged():
    config = Qwen2VLVisionConfig(
        embed_dim=HEADS * HEAD,
        num_heads=HEADS,
        rope_parameters={"rope_type": "axial", "rope_theta": 100.0},
    )
    x = normal(1, T, HEADS, HEAD)
    turns = qwen2_vl.Qwen2VLVisionRotaryEmbedding(config)(x, torch.stack([ROW, COLUMN], -1))
    want, _ = qwen2_vl.apply_rotary_pos_emb_vision(torch.tensor(x), torch.tensor(x), *turns)
    ours = Axial(width=COLUMNS).rotate({}, jnp.asarray(x[..., EXCHANGED]), POS, PLACE, "query")
    close(np.asarray(ours)[..., EXCHANGED], want)
    assert differ(want, Axial(width=COLUMNS).rotate({}, jnp.asarray(x), POS, PLACE, "query"))


def test_axial_rope_is_sam2s_interleaved():
    """SAM 2 turns its first pairs with the column, as we do, though it calls them height."""
    config = Sam2VideoConfig(
        memory_attention_hidden_size=HEAD,
        memory_attention_num_attention_heads=1,
        memory_attention_downsample_rate=1,
        memory_attention_rope_feat_sizes=[COLUMNS, ROWS],
        rope_parameters={"rope_type": "axial", "rope_theta": 100.0},
    )
    x = normal(1, T, HEADS, HEAD)
    places = sam2.Sam2VideoMemoryAttention.precompute_positions(config)
    cos, sin = sam2.Sam2VideoVisionRotaryEmbedding(config)(torch.tensor(x), places)
    want, _ = sam2.apply_rotary_pos_emb_2d(heads_first(x), heads_first(x), cos, sin)
    axial = Axial(width=COLUMNS, pairing="interleaved")
    ours = axial.rotate({}, jnp.asarray(x), POS, PLACE, "query")
    close(ours, want.transpose(1, 2))


def test_axial_angles_are_llama_4s_one_step_further():
    """Llama 4 numbers rows and columns from 1; between two patches only the difference counts."""
    config = Llama4VisionConfig(
        hidden_size=HEADS * HEAD,
        num_attention_heads=HEADS,
        image_size=4,
        patch_size=1,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )
    turns = llama4.Llama4VisionRotaryEmbedding(config).freqs_ci[
        :16
    ]  # the last one is the class token
    x = normal(1, 16, HEADS, HEAD)
    want, _ = llama4.vision_apply_rotary_emb(torch.tensor(x), torch.tensor(x), turns)
    row, column = (jnp.asarray(x.ravel() + 1)[None] for x in np.indices((4, 4)))
    angle = axial_angles(row, column, inverse_frequencies(HEAD // 2, 100.0))
    close(rotate(jnp.asarray(x), angle, "interleaved", 1.0), want)


def test_axial_angles_are_dinov3s_at_its_places():
    """DINOv3 places patch centres in [-1, 1] and turns rows first, by 2 pi a unit."""
    config = DINOv3ViTConfig(
        hidden_size=HEADS * HEAD, num_attention_heads=HEADS, patch_size=1, image_size=COLUMNS
    )
    embedding = dinov3.DINOv3ViTRopePositionEmbedding(config).eval()
    cos, sin = embedding(torch.zeros(1, 3, ROWS, COLUMNS))
    x = normal(1, T, HEADS, HEAD)
    want, _ = dinov3.apply_rotary_pos_emb(heads_first(x), heads_first(x), cos, sin)
    row, column = (
        jnp.asarray(2 * np.pi * (2 * (place.numpy() + 0.5) / size - 1), jnp.float32)[None]
        for place, size in ((ROW, ROWS), (COLUMN, COLUMNS))
    )
    angle = axial_angles(row, column, inverse_frequencies(HEAD // 2, config.rope_theta))
    ours = rotate(jnp.asarray(x[..., EXCHANGED]), angle, "half", 1.0)
    close(np.asarray(ours)[..., EXCHANGED], want.transpose(1, 2))
