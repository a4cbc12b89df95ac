"""The next token: the smallest sets of top-k and top-p, small temperatures, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.model import generate as generation
from posenc_jax.model.cache import empty_cache
from posenc_jax.model.decoder import Decoder
from posenc_jax.model.generate import Sampling, generate, sample_token

from support.decoders import model

ASK = {"new_tokens": 2, "pad": 0, "sampling": Sampling(), "key": jax.random.key(0)}


def drawn(shares, sampling, draws=400):
    """Every token of 400 draws from these probabilities."""
    logits = jnp.log(jnp.asarray(shares, jnp.float32))[None]
    keys = jax.random.split(jax.random.key(0), draws)
    tokens = jax.jit(jax.vmap(lambda key: sample_token(logits, key, sampling)[0]))(keys)
    return set(np.asarray(tokens).tolist())


@pytest.mark.parametrize(
    ("shares", "sampling", "kept"),
    [
        ([0.5, 0.3, 0.1, 0.1], Sampling(1.0, top_p=0.8), {0, 1}),  # exactly p
        ([0.3, 0.1, 0.1, 0.5], Sampling(1.0, top_p=0.8), {0, 3}),
        ([0.5, 0.3, 0.2], Sampling(1.0, top_p=0.81), {0, 1, 2}),
        ([0.25] * 4, Sampling(1.0, top_p=0.5), {0, 1}),  # ties: the smaller ids
        ([0.02] * 50, Sampling(1.0, top_p=0.1), set(range(5))),
        ([0.97, 0.01, 0.01, 0.01], Sampling(1.0, top_p=1e-9), {0}),
        ([0.4, 0.2, 0.2, 0.2], Sampling(1.0, top_k=2), {0, 1}),
        ([0.4, 0.3, 0.2, 0.1], Sampling(1.0, top_k=3, top_p=0.7), {0, 1}),  # 4/9 + 3/9 of three
        ([0.6, 0.2, 0.2], Sampling(0.01, top_k=1, top_p=0.8), {0}),
    ],
)
def test_the_fewest_tokens_are_kept(shares, sampling, kept):
    assert drawn(shares, sampling) == kept


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("temperature", [1e-30, 1e-37, 1e-44, 1e-60])
def test_a_tiny_temperature_is_greedy(temperature):
    assert drawn([0.3, 0.31, 0.2, 0.19], Sampling(temperature), 50) == {1}
    assert drawn([0.3, 0.31, 0.2, 0.19], Sampling(temperature, top_p=0.9), 50) == {1}


def test_ids_that_the_vocabulary_has_not_are_refused():
    config, params = model("rope")
    for ids, said in (
        ([1, 37], "token id 37 lies outside of the vocabulary of 37"),
        ([-1, 3], "token id -1 lies outside"),
        ([2**31 - 1], "token id 2147483647 lies outside"),
        ([1.7, 2.2], "token ids must be whole numbers, not float"),
    ):
        with pytest.raises(ValueError, match=said):
            generate(params, config, [np.array([1]), np.array(ids)], **ASK)
        tokens = np.array([ids])
        slot = np.arange(len(ids))[None]
        with pytest.raises(ValueError, match=said):
            Decoder(config).apply({"params": params}, tokens, slot, np.ones_like(slot))


def test_logits_that_are_not_finite_name_their_prompts():
    config, params = model("rope")
    bad = jax.tree.map(lambda x: x, params)
    bad["embedding_VD"] = bad["embedding_VD"].at[5].set(jnp.nan)
    with pytest.raises(ValueError, match="the logits of prompts 0, 1 are not finite"):
        generate(bad, config, [np.array([5, 1]), np.array([1])], **ASK)


def test_prompts_of_five_to_eight_tokens_share_one_program(monkeypatch):
    config, params = model("rope")
    traced = []
    monkeypatch.setattr(
        generation, "empty_cache", lambda *asked: traced.append(asked) or empty_cache(*asked)
    )
    generation._generate.clear_cache()
    for length in (5, 7, 8):
        generate(params, config, [np.arange(length) + 1], **ASK)
    assert len(traced) == 1
    generate(params, config, [np.arange(9) + 1], **ASK)
    assert len(traced) == 2


def test_a_fifth_token_does_not_fit_into_four_slots():
    config, params = model("nope")
    cache, one = empty_cache(config, 1, 4), jnp.ones((1, 3), jnp.int32)
    apply = Decoder(config).apply
    _, cache = jax.jit(apply)({"params": params}, one, jnp.arange(3)[None], one, cache)
    with pytest.raises(ValueError, match="5 tokens in all; this cache has 4 slots"):
        apply({"params": params}, one[:, :2], jnp.array([[3, 4]]), one[:, :2], cache)


@pytest.mark.thorough
@pytest.mark.parametrize("line", ["learned+t5"])
def test_parameters_may_be_numpy_arrays(line):
    config, params = model(line)
    tokens, slot = jnp.array([[1, 2, 3]]), jnp.arange(3)[None]
    apply = Decoder(config).apply
    want, _ = apply({"params": params}, tokens, slot, slot + 1 > 0)
    got, _ = apply({"params": jax.device_get(params)}, tokens, slot, slot + 1 > 0)
    np.testing.assert_array_equal(got, want)


PADDED = ("learned+alibi", "rope+alibi|nope~logn")


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("line", PADDED)
def test_ids_and_positions_of_padding_change_neither_loss_nor_gradients(line):
    config, params = model(line)
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, config.vocab_size)
    seg = jnp.ones((2, 12), jnp.int32).at[0, :5].set(0)

    @jax.jit
    def loss_and_gradients(params, tokens, pos):
        def loss(params):
            logits, _ = Decoder(config).apply({"params": params}, tokens, pos, seg)
            return -(jax.nn.log_softmax(logits)[..., 3] * (seg != 0)).sum()

        return jax.value_and_grad(loss)(params)

    offset = jnp.stack([jnp.arange(12) - 5, jnp.arange(12)])
    want = loss_and_gradients(params, tokens, jnp.maximum(offset, 0))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(want))
    foreign = jnp.where(seg == 0, -100, tokens)
    for ids, pos in (
        (tokens, offset),  # arange - pads
        (tokens, jnp.cumsum(seg, 1) - 1),  # from an attention mask
        (foreign, jnp.where(seg == 0, 10_000, offset)),  # past the learned table
    ):
        got = loss_and_gradients(params, ids, pos)
        for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_positions_that_restart_inside_a_document_are_refused():
    config, params = model("nope")
    tokens, pos = np.array([[1, 2, 3, 4]]), np.array([[0, 1, 0, 1]])
    with pytest.raises(ValueError, match="row 0: slots 0 and 2 of document 1 both have position 0"):
        Decoder(config).apply({"params": params}, tokens, pos, np.ones_like(pos))
