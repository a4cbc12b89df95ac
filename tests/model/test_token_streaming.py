"""Tokens one by one against the same tokens at once."""

import dataclasses

import jax
import numpy as np
import pytest
from posenc_jax.model import token_streaming
from posenc_jax.model.generate import Sampling, generate
from posenc_jax.model.token_streaming import stream_tokens

from support.decoder_of_scheme import model, row


@pytest.mark.thorough
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, top_k=9, top_p=0.9)])
def test_tokens_one_by_one_are_those_that_generation_gives_at_once(sampling, monkeypatch):
    monkeypatch.setattr(
        token_streaming, "CALL", 4
    )  # the prompt needs two calls, with padding in front
    config, params, _ = model("rope+alibi")
    prompt = np.asarray(row(7)[0][0])
    key = jax.random.key(3)
    want = generate(params, config, [prompt], new_tokens=6, pad=0, sampling=sampling, key=key)[0]
    got = list(stream_tokens(params, config, prompt, 6, sampling, key))
    assert got == want.tolist()
    assert len(set(got)) > 1


def test_what_cannot_be_continued_is_refused_before_the_first_token():
    config, params, _ = model("learned")
    prompt, greedy, key = np.asarray(row(4)[0][0]), Sampling(), jax.random.key(0)
    limit = config.placed.longest()
    cuda = dataclasses.replace(config, attention="auto")
    object.__setattr__(cuda, "attention", "cudnn")
    for args, message in (
        ((config, prompt[:0], 3), "at least one token"),
        ((config, prompt, 0), "at least one token must be asked"),
        ((config, np.array([config.vocab_size]), 3), "outside the"),
        ((config, np.array([-1]), 3), "outside the"),
        ((config, prompt, limit), f"has {limit}"),
        ((cuda, prompt, 3), "cannot use a cache"),
    ):
        with pytest.raises(ValueError, match=message):
            stream_tokens(params, *args, greedy, key)
