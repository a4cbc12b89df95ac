"""Generation: greedy and sampled tokens, prompts of different lengths, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.model.generate import Sampling, generate, sample_token

from support.decoder_of_scheme import model, row


@pytest.mark.thorough
@pytest.mark.parametrize("line", ["learned", "rope+alibi|nope~logn", "fire"])
def test_a_prompt_is_continued_alike_alone_and_beside_a_longer_one(line):
    config, params, _ = model(line)
    tokens, _, _ = row(7)
    prompts = [np.asarray(tokens[0]), np.asarray(tokens[0, :3])]
    ask = {"new_tokens": 5, "pad": 0, "sampling": Sampling(), "key": jax.random.key(0)}
    both = generate(params, config, prompts, **ask)
    for prompt, together in zip(prompts, both, strict=True):
        np.testing.assert_array_equal(generate(params, config, [prompt], **ask)[0], together)


def test_greedy_generation_repeats_the_argmax_of_full_forward_passes():
    config, params, apply = model("rope+alibi")
    tokens, _, _ = row(4)
    sequence = list(np.asarray(tokens[0]))
    for _ in range(6):
        T = len(sequence)
        logits, _ = apply(
            params, jnp.asarray([sequence]), jnp.arange(T)[None], jnp.ones((1, T), jnp.int32)
        )
        sequence.append(int(logits[0, -1].argmax()))
    got = generate(
        params,
        config,
        [np.asarray(tokens[0])],
        new_tokens=6,
        pad=0,
        sampling=Sampling(),
        key=jax.random.key(0),
    )
    assert got[0].tolist() == sequence[4:]


@pytest.mark.thorough
def test_sampling_keeps_to_top_k_and_to_the_nucleus():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.15, 0.07, 0.03]]))
    keys = jax.random.split(jax.random.key(0), 2000)

    def shares(**how):
        drawn = jax.vmap(lambda k: sample_token(logits, k, Sampling(temperature=1.0, **how))[0])(
            keys
        )
        return np.bincount(np.asarray(drawn), minlength=5) / 2000

    np.testing.assert_allclose(shares(), [0.5, 0.25, 0.15, 0.07, 0.03], atol=0.04)
    np.testing.assert_allclose(shares(top_k=2), [2 / 3, 1 / 3, 0, 0, 0], atol=0.04)
    np.testing.assert_allclose(shares(top_p=0.7), [2 / 3, 1 / 3, 0, 0, 0], atol=0.04)
    np.testing.assert_allclose(
        shares(top_p=0.76), [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0, 0], atol=0.04
    )
    assert sample_token(logits, keys[0], Sampling())[0] == 0


def test_a_learned_table_refuses_to_generate_past_its_end():
    config, params, _ = model("learned")
    with pytest.raises(ValueError, match="70 positions are needed"):
        generate(
            params,
            config,
            [np.arange(10)],
            new_tokens=60,
            pad=0,
            sampling=Sampling(),
            key=jax.random.key(0),
        )


def test_a_kernel_that_serves_no_cache_is_refused_with_what_to_do():
    config, params, _ = model("rope+alibi")
    forced = dataclasses.replace(config, attention="flash", dtype="bfloat16")
    with pytest.raises(ValueError, match=r"'flash' cannot use a cache.*attention='auto'"):
        generate(
            params,
            forced,
            [np.arange(4)],
            new_tokens=2,
            pad=0,
            sampling=Sampling(),
            key=jax.random.key(0),
        )
