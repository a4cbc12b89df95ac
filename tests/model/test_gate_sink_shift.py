"""Output gate, sink logit and token shift of a decoder: against float64, exact under cache, packing and
meshes, off by default.
"""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.attention import (
    KernelConditions,
    OptionalInputs,
    TokenSide,
    attend,
    choose_implementation,
)
from posenc_jax.costs.flops import hardware_flops, model_flops
from posenc_jax.model.cache import empty_cache, required_slots
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder
from posenc_jax.model.generate import Sampling, generate
from posenc_jax.model.layer_stack import LayerExecution
from posenc_jax.model.vision import VisionConfig
from posenc_jax.training.config import from_sections, read
from posenc_jax.training.loop import run_mesh
from posenc_jax.training.step import make_step, state_builder

from support import oracles, runs

BASE = ModelConfig(
    scheme="rope+alibi", vocab_size=37, train_length=64, num_layers=2, model_dim=32, num_heads=4,
    num_kv_heads=2, head_dim=8, mlp_dim=48, activation="swiglu", qk_norm=True, tied_head=True,
    embedding_scale=1.0, norm_epsilon=1e-6, dtype="float32", attention="auto",
)  # fmt: skip


SWITCHES = ("output_gate", "sink_logit", "token_shift")


ALL = dict.fromkeys(SWITCHES, True)


EACH = [pytest.param({name: True}, id=name) for name in SWITCHES]


LINES = ("rope+alibi|nope~logn", "forget", "fire", "xpos")


@functools.cache
def fresh(config):
    ones = jnp.ones((1, 4), jnp.int32)
    return Decoder(config).init(jax.random.key(3), ones, ones, ones)["params"]


@functools.cache
def model(scheme=BASE.scheme, **changes):
    """(config, parameters, forward pass): twice the weights of a fresh model, sinks that take an eighth to a
    half.
    """
    config = dataclasses.replace(BASE, scheme=scheme, **changes)
    params = jax.tree_util.tree_map_with_path(
        lambda path, p: jnp.array([-1.0, 0.5, 1.0, 2.0]) if path[-1].key == "sink_N" else 2 * p,
        fresh(config),
    )
    return config, params, jax.jit(lambda p, *a: Decoder(config).apply({"params": p}, *a))


def row(T, seed=0):
    tokens = np.random.default_rng(seed).integers(0, BASE.vocab_size, (1, T))
    return jnp.asarray(tokens), jnp.arange(T)[None], jnp.ones((1, T), jnp.int32)


def assert_same(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def by_hand(params, tokens):
    """Logits of one document in float64, under RoPE with ALiBi."""
    slopes = oracles.alibi_slopes(4)

    def attention(layer, q, k, v):
        turned = [
            np.stack([[oracles.rope_vector(x[t, n], t) for n in range(4)] for t in range(len(x))])
            for x in (q, k)
        ]
        sink = params[f"layer_{layer}"]["attention"].get("sink_N")
        return oracles.attention(
            *turned,
            v,
            lambda n, i, j: -slopes[n] * (i - j),
            lambda i, j: j <= i,
            sink_N=None if sink is None else np.asarray(sink, np.float64),
        )

    return oracles.decoder_logits(params, tokens, 4, attention)


@pytest.mark.default_cases(2, thorough=1)
@pytest.mark.parametrize("switches", [*EACH, pytest.param(ALL, id="all")])
def test_a_switch_is_its_float64_reference_forward_and_in_every_gradient(switches):
    _config, params, apply = model(**switches)
    tokens, pos, seg = row(7)
    want = by_hand(params, np.asarray(tokens[0]))
    np.testing.assert_allclose(apply(params, tokens, pos, seg)[0][0], want, atol=3e-4, rtol=1e-4)
    assert np.abs(want - by_hand(model()[1], np.asarray(tokens[0]))).max() > 0.1

    aim = np.random.default_rng(1).normal(size=want.shape)
    grads = jax.grad(lambda p: (apply(p, tokens, pos, seg)[0][0] * aim).sum())(params)
    block, slope = params["layer_0"]["attention"], grads["layer_0"]["attention"]
    leaves = [name for name in block if name != "query_gain_H"]
    assert set(leaves) >= set(model()[1]["layer_0"]["attention"]) - {"query_gain_H"}
    for seed, name in enumerate(leaves):
        way = np.random.default_rng(seed).normal(size=block[name].shape)

        def total(step, name=name, way=way):
            moved = {**block, name: np.asarray(block[name], np.float64) + step * way}
            there = params | {"layer_0": params["layer_0"] | {"attention": moved}}
            return (by_hand(there, np.asarray(tokens[0])) * aim).sum()

        found = float((np.asarray(slope[name], np.float64) * way).sum())
        assert found == pytest.approx((total(1e-4) - total(-1e-4)) / 2e-4, rel=3e-3, abs=3e-3), name


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("line", LINES)
def test_cached_decoding_equals_prefill_whole_and_in_chunks(line):
    config, params, apply = model(line, **ALL)
    tokens, pos, seg = row(12)
    whole, _ = apply(params, tokens, pos, seg)
    for sizes in ((5, 5, 1, 1), (1,) * 12):
        cache, out, start = empty_cache(config, 1, 16), [], 0
        for size in sizes:
            part = slice(start, start + size)
            logits, cache = apply(params, tokens[:, part], pos[:, part], seg[:, part], cache)
            out.append(logits)
            start += size
        assert_same(jnp.concatenate(out, 1), whole)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("line", LINES)
def test_packed_documents_equal_separate_ones_and_so_do_padded_ones(line):
    _, params, apply = model(line, **ALL)
    tokens, _, _ = row(14)
    pos = jnp.array([[0, 0, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 0]])
    seg = jnp.array([[0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0]])
    packed, _ = apply(params, tokens, pos, seg)
    for a, b in ((2, 7), (7, 12)):
        alone, _ = apply(params, tokens[:, a:b], *row(b - a)[1:])
        assert_same(packed[:, a:b], alone)


@pytest.mark.thorough
def test_packed_documents_that_come_in_chunks_equal_separate_ones():
    """A chunk that ends where a document ends leaves nothing to the next one; nor does left padding."""
    config, params, apply = model(**ALL)
    tokens, _, _ = row(12)
    pos = jnp.array([[0, 0, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5]])
    seg = jnp.array([[0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]])
    cache, out = empty_cache(config, 1, 12), []
    for a, b in ((0, 2), (2, 6), (6, 7), (7, 12)):
        logits, cache = apply(params, tokens[:, a:b], pos[:, a:b], seg[:, a:b], cache)
        out.append(logits)
    got = jnp.concatenate(out, 1)
    for a, b in ((2, 6), (6, 12)):
        assert_same(got[:, a:b], apply(params, tokens[:, a:b], *row(b - a)[1:])[0])


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("switches", EACH)
def test_a_token_is_moved_by_every_token_of_its_document_and_by_no_other(switches):
    config, params, _ = model(**switches)
    tokens, _, _ = row(9)
    pos, seg = jnp.array([[0, 1, 2, 0, 1, 2, 3, 4, 5]]), jnp.array([[1, 1, 1, 2, 2, 2, 2, 2, 2]])

    def logit(embedding_BTD):
        table = jnp.concatenate([params["embedding_VD"], embedding_BTD[0]])
        wide = dataclasses.replace(config, vocab_size=len(table), tied_head=False)
        p = params | {
            "embedding_VD": table,
            "head_VD": jnp.ones_like(table) * jnp.arange(len(table))[:, None],
        }
        out, _ = Decoder(wide).apply(
            {"params": p}, config.vocab_size + jnp.arange(9)[None], pos, seg
        )
        return (out[0, 6] * jnp.sin(jnp.arange(len(table)))).sum()

    moved = np.abs(jax.jit(jax.grad(logit))(params["embedding_VD"][tokens])).sum(-1)[0]
    assert (moved[3:7] > 0).all()
    np.testing.assert_array_equal(moved[[0, 1, 2, 7, 8]], 0)


@pytest.mark.thorough
def test_eviction_and_prompts_of_different_lengths_change_no_generated_token():
    config, params, apply = model("alibi(factor=0.002)", num_kv_heads=4, **ALL)
    prompts = [np.asarray(row(n)[0][0]) for n in (70, 5, 1)]
    ask = {"new_tokens": 4, "pad": 0, "sampling": Sampling(), "key": jax.random.key(0)}
    assert required_slots(config, params, 74, 8)[0][0] < 70
    got = generate(params, config, prompts, call=8, **ask)
    np.testing.assert_array_equal(got, generate(params, config, prompts, epsilon=0.0, **ask))
    for prompt, found in zip(prompts, got, strict=True):
        sequence = list(prompt)
        for token in found:
            whole = [jnp.asarray([sequence + [0] * (74 - len(sequence))]), *row(74)[1:]]
            assert token == int(apply(params, *whole)[0][0, len(sequence) - 1].argmax())
            sequence.append(int(token))


@pytest.mark.thorough
@pytest.mark.parametrize(
    "execution", [LayerExecution(scan=True, remat="dots"), LayerExecution(remat="full")]
)
def test_layers_in_a_loop_and_made_again_are_the_same_layers(execution):
    config, params, apply = model(**ALL)
    arrays = row(9)

    def total(params, execution):
        out, _ = Decoder(config, execution=execution).apply({"params": params}, *arrays)
        return jnp.sin(out).sum()

    want, got = (
        jax.jit(jax.value_and_grad(functools.partial(total, execution=e)))(params)
        for e in (LayerExecution(), execution)
    )
    assert apply(params, *arrays)[0].size
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(1.0, np.abs(b).max()))


@pytest.mark.thorough
def test_bfloat16_is_float32_to_its_rounding():
    params = model(**ALL)[1]
    tokens, pos, seg = row(48)
    out = {}
    for dtype in ("float32", "bfloat16"):
        for name, switches in (("off", {}), ("on", ALL)):
            config = dataclasses.replace(BASE, dtype=dtype, **switches)
            out[name, dtype] = np.asarray(
                Decoder(config).apply({"params": params}, tokens, pos, seg)[0]
            )
    error = {
        name: np.sqrt(np.mean((out[name, "bfloat16"] - out[name, "float32"]) ** 2))
        / out[name, "float32"].std()
        for name in ("off", "on")
    }
    assert 0 < error["on"] < max(0.02, 1.5 * error["off"])


# A run's settings.


def test_switches_are_off_by_default_and_old_configurations_open_with_them_off(tmp_path):
    config = runs.config("unused")
    stored = json.loads(config.to_json())
    for name in SWITCHES:
        assert stored["model"].pop(name) is False
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert read(tmp_path / "config.json") == config
    on = runs.config("unused", model=ALL)
    assert from_sections(json.loads(on.to_json())) == on
    assert all(getattr(on.model_config(260), name) for name in SWITCHES)
    with pytest.raises(ValueError, match=r"config\.model\.sink_logit must be bool, not 1"):
        runs.config("unused", model={"sink_logit": 1})


@pytest.mark.parametrize("switches", EACH)
def test_a_switch_adds_its_parameters_and_leaves_all_others_at_their_initial_values(switches):
    config = dataclasses.replace(BASE, scheme="fire", **switches)
    (name,) = switches
    off, on = (fresh(c)["layer_0"] for c in (dataclasses.replace(BASE, scheme="fire"), config))
    new = set(on["attention"]) - set(off["attention"])
    assert (
        new
        == {
            "output_gate": {"gate_DNH"},
            "sink_logit": {"sink_N"},
            "token_shift": {"key_now_K", "key_before_K", "value_now_K", "value_before_K"},
        }[name]
    )
    kept = on | {"attention": {k: v for k, v in on["attention"].items() if k not in new}}
    jax.tree.map(np.testing.assert_array_equal, kept, off)


def test_initial_values_are_those_of_the_papers():
    blocks = [
        fresh(dataclasses.replace(BASE, num_layers=8, **ALL))[f"layer_{i}"]["attention"]
        for i in range(8)
    ]
    now = np.stack([[block[f"{of}_now_K"] for of in ("key", "value")] for block in blocks])
    before = np.stack([[block[f"{of}_before_K"] for of in ("key", "value")] for block in blocks])
    np.testing.assert_allclose(now + before, 1, rtol=1e-6)
    assert now.min() >= 0
    assert now.max() < 1
    assert 0.35 < now.mean() < 0.65
    assert len(np.unique(now)) == now.size
    gate = np.stack([block["gate_DNH"] for block in blocks])
    assert gate.std() == pytest.approx(BASE.model_dim**-0.5, rel=0.03)
    assert all(not block["sink_N"].any() for block in blocks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attention": "cudnn", "sink_logit": True, "dtype": "bfloat16"},
            "'cudnn' cannot serve this layer: its softmax knows no sink logit; take 'flash'",
        ),
        ({"attention": "splash", "sink_logit": True}, "set model.sink_logit to False"),
        (
            {"scheme": "rope,linear", "sink_logit": True},
            "linear attention has no softmax, so it takes no sink logit",
        ),
    ],
)
def test_what_cannot_serve_a_sink_refuses_in_words(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BASE, **changes)


def test_auto_takes_no_kernel_that_knows_no_sink():
    layer = dataclasses.replace(BASE, scheme="alibi").placed.layers[0]
    wide = KernelConditions(head_dim=192, dtype="bfloat16")
    for device, kernel in (("gpu", "cudnn"), ("tpu", "splash")):
        ask = functools.partial(choose_implementation, layer, 4096, 4096, "auto", device=device)
        assert ask(wide).name == kernel
        path = ask(dataclasses.replace(wide, sink=True))
        assert path.name == "blockwise"
        assert f"not {kernel}: its softmax knows no sink logit" in path.why
    assert (
        choose_implementation(
            layer,
            4096,
            4096,
            "auto",
            KernelConditions(head_dim=64, dtype="bfloat16", sink=True),
            device="gpu",
        ).name
        == "flash"
    )


def test_linear_attention_takes_gate_and_shift():
    config, params, apply = model("linear", output_gate=True, token_shift=True)
    tokens, pos, seg = row(12)
    whole, _ = apply(params, tokens, pos, seg)
    cache, out = empty_cache(config, 1, 12), []
    for part in (slice(0, 7), slice(7, 12)):
        logits, cache = apply(params, tokens[:, part], pos[:, part], seg[:, part], cache)
        out.append(logits)
    assert_same(jnp.concatenate(out, 1), whole)


def test_an_encoder_of_images_has_no_token_shift():
    flat = dataclasses.replace(BASE, tied_head=False, token_shift=True)
    with pytest.raises(ValueError, match="patches have no previous token"):
        VisionConfig(flat, patch_size=2, channels=1)
    VisionConfig(
        dataclasses.replace(flat, token_shift=False, output_gate=True, sink_logit=True), 2, 1
    )


def test_a_sink_of_another_shape_is_refused():
    layer = BASE.placed.layers[0]
    q, k, v = jnp.zeros((3, 1, 4, 4, 8))
    pos = jnp.arange(4)[None]
    with pytest.raises(ValueError, match=r"one logit per query head, 4; its shape is \(1,\)"):
        attend(
            q,
            k,
            v,
            layer,
            {},
            TokenSide(pos, pos + 1),
            optional=OptionalInputs(sink_N=jnp.zeros(1)),
        )


def test_the_gate_is_in_the_operations_of_a_step_and_the_rest_costs_none():
    rows, length = 3, 64
    of = {
        name: model_flops(dataclasses.replace(BASE, **{name: True}), rows, length)
        for name in SWITCHES
    }
    off = model_flops(BASE, rows, length)
    gate = 3 * 2 * rows * length * BASE.num_layers * BASE.model_dim * BASE.num_heads * BASE.head_dim
    assert of["output_gate"].total - off.total == gate
    assert of["sink_logit"] == of["token_shift"] == off
    done = [
        hardware_flops(dataclasses.replace(BASE, output_gate=on), rows, length, "cpu").projections
        for on in (False, True)
    ]
    assert done[1] - done[0] == gate


def stepped(optimizer, steps=2, **train):
    """Parameters before and after some steps on fixed tokens, and the last loss."""
    config = runs.config(
        "unused",
        "rope+alibi|nope~logn",
        model=ALL,
        train={"steps": 4} | train,
        optimizer={"epsilon": 1e-3, "weight_decay": 0.0} | optimizer,
    )
    mesh, decoder = run_mesh(config), Decoder(config.model_config(260))
    tokens = np.random.default_rng(0).integers(0, 256, (steps, 1, 8, 17), dtype=np.int32)
    ones = np.ones((1, 8, 16), np.int32)
    with jax.set_mesh(mesh):
        build, _ = state_builder(config, decoder, mesh)
        state, step = build(jax.random.key(0)), make_step(config, decoder)
        first = jax.device_get(state["params"])
        for batch in tokens:
            state, metrics = step(
                state,
                {
                    "tokens_BT": batch[..., :-1],
                    "targets_BT": batch[..., 1:],
                    "segments_BT": ones,
                    "positions_BT": ones * np.arange(16, dtype=np.int32),
                    "weights_BT": ones.astype(np.float32),
                },
            )
    assert int(metrics["skipped"]) == 0
    return first, jax.device_get(state["params"]), float(metrics["loss"])


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_gates_decay_as_matrices_do_and_sinks_and_shifts_do_not(name):
    heavy = {"name": name, "weight_decay": 5.0, "learning_rate": 1e-2, "muon_learning_rate": 1e-2}
    first, decayed, _ = stepped(heavy, steps=1)
    _, kept, _ = stepped(heavy | {"weight_decay": 0.0}, steps=1)
    for leaf, before in first["layer_0"]["attention"].items():
        a, b = (x["layer_0"]["attention"][leaf] for x in (decayed, kept))
        assert not np.array_equal(b, before), leaf  # it learns
        assert np.array_equal(a, b) != leaf.endswith(("DNH", "DKH", "NHD")), leaf


@pytest.mark.default_cases(0, thorough=1)
@pytest.mark.parametrize(
    "axes",
    [{"data": 2, "sequence": 2, "model": 2}, {"fsdp": 2, "model": 4}, {"sequence": 8}],
    ids=str,
)
def test_a_mesh_takes_the_steps_of_one_device(axes):
    _, want, loss = stepped({}, data_devices=1)
    devices = {
        f"{axis}_devices": axes.get(axis, 1) for axis in ("data", "fsdp", "sequence", "model")
    }
    _, got, sharded = stepped({}, **devices)
    assert sharded == pytest.approx(loss, rel=1e-5)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_cache_grows_by_one_token_a_layer():

    def size(c):
        shapes = jax.eval_shape(lambda: empty_cache(c, 3, 20))
        return sum(x.size for x in jax.tree.leaves(shapes))

    token = 3 * (2 * BASE.num_kv_heads * BASE.head_dim + 1)
    assert size(dataclasses.replace(BASE, **ALL)) - size(BASE) == BASE.num_layers * token
    assert math.isclose(size(BASE), size(dataclasses.replace(BASE, sink_logit=True)))
