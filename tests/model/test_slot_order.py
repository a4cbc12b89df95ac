"""Causality by slots in the decoder: positions may repeat, restart and fall, and no later slot leaks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.attention import attend
from posenc_jax.model.cache import empty_cache, required_slots
from posenc_jax.model.decoder import Decoder
from posenc_jax.model.generate import Sampling, generate

from support import oracles
from support.decoder_of_scheme import assert_same, model, row
from support.marks import thorough

POS = np.array([[5, 5, 5, 2, 0, 9, 9, 0, 0, 3, 1, 1]], np.int32)
SEG = np.array([[1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]], np.int32)
T = POS.shape[1]
TOKENS = row(T)[0]


def test_a_decoder_by_slots_equals_a_float64_loop():
    """One layer without norms in the way: its attention is the oracle's, by slot and not by position."""
    config, params, _ = model("alibi", num_layers=1, slot_order=True)
    seen = {}

    def capture(q, k, v, *rest):
        seen["qkv"], seen["out"] = (q, k, v), attend(q, k, v, *rest)
        return seen["out"]

    Decoder(config, attend=capture).apply({"params": params}, TOKENS, POS, SEG)
    q, k, v = (np.asarray(x[0], np.float64) for x in seen["qkv"])
    k, v = (np.repeat(x, 2, axis=1) for x in (k, v))
    slopes = oracles.alibi_slopes(4)
    want = oracles.attention(
        q,
        k,
        v,
        bias=lambda n, i, j: -slopes[n] * abs(int(POS[0, i]) - int(POS[0, j])),
        visible=lambda i, j: SEG[0, i] == SEG[0, j] and j <= i,
        tau=lambda n, i: 1.0,
    )
    np.testing.assert_allclose(seen["out"][0], want, rtol=0, atol=5e-6 * np.abs(want).max())


@pytest.mark.parametrize("line", ["rope+alibi", *thorough("t5~logn", "rope+forget", "rope+linear")])
def test_no_later_slot_moves_an_earlier_one_and_every_earlier_one_does(line):
    config, params, _ = model(line, slot_order=True)

    def logit(embedding_BTD, t):
        """One number of the logits at slot t; tokens have embeddings of their own."""
        table = jnp.concatenate([params["embedding_VD"], embedding_BTD[0]])
        wide = dataclasses.replace(config, vocab_size=len(table), tied_head=False)
        head = jnp.ones_like(table) * jnp.arange(len(table))[:, None]
        ids = config.vocab_size + jnp.arange(T)[None]
        out, _ = Decoder(wide).apply(
            {"params": params | {"embedding_VD": table, "head_VD": head}}, ids, POS, SEG
        )
        return (out[0, t] * jnp.sin(jnp.arange(len(table)))).sum()

    gradient = jax.jit(jax.grad(logit))
    for t in (2, 4, 8, T - 1):
        moved = np.abs(gradient(params["embedding_VD"][TOKENS], t)).sum(-1)[0]
        sees = (np.arange(T) <= t) & (SEG[0] == SEG[0, t])
        assert (moved[~sees] == 0).all()
        assert (moved[sees] > 0).all()


@pytest.mark.thorough
def test_where_positions_rise_slots_and_positions_are_one_order():
    line = "rope+alibi|nope~logn"
    tokens, pos, seg = row(9)
    outs = [model(line, slot_order=on)[2](model(line)[1], tokens, pos, seg)[0] for on in (0, 1)]
    np.testing.assert_array_equal(*outs)


@pytest.mark.parametrize("line", ["rope+alibi", *thorough("window(size=4)+rope,t5", "rope+forget")])
@pytest.mark.parametrize("call", [5, *thorough(1)])
def test_a_cache_read_in_pieces_equals_one_pass(line, call):
    config, params, apply = model(line, slot_order=True)
    want = apply(params, TOKENS, POS, SEG)[0]
    kept = required_slots(config, params, T, call)
    assert kept == ((T,),) * config.num_layers  # nothing is evicted by positions that are no order
    cache, out = empty_cache(config, 1, T, kept, call), []
    for at in range(0, T, call):
        part = np.s_[:, at : at + call]
        logits, cache = apply(params, TOKENS[part], POS[part], SEG[part], cache)
        out.append(logits)
    assert_same(np.concatenate(out, 1), want)


@pytest.mark.thorough
def test_generation_by_slots_is_generation_by_positions():
    config, params, _ = model("rope+alibi")
    how = {"new_tokens": 5, "pad": 0, "sampling": Sampling(), "key": jax.random.key(0)}
    prompts = [np.arange(3), np.arange(7)]
    by_slots = dataclasses.replace(config, slot_order=True)
    np.testing.assert_array_equal(
        generate(params, by_slots, prompts, **how), generate(params, config, prompts, **how)
    )


def test_without_the_switch_the_same_positions_are_refused():
    config, params, _ = model("rope+alibi")
    with pytest.raises(ValueError, match="both have position"):
        Decoder(config).apply({"params": params}, TOKENS, POS, SEG)


@pytest.mark.parametrize(
    ("changes", "asked", "said"),
    [
        ({"attention": "flash"}, {"length": 64}, "it counts distances in slots"),
        ({}, {"length": 64, "sequence": 2}, "the tokens of a row lie on 2 devices"),
    ],
)
def test_what_cannot_serve_an_order_of_slots_says_so(changes, asked, said):
    config, _, _ = model("rope+alibi")
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(config, slot_order=True, **changes).attention_paths(**asked)
