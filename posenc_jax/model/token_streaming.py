"""Streaming generation: yields each token of one text as soon as it is chosen."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.attention.kernels.vendor import KERNELS
from posenc_jax.model.cache import empty_cache, required_slots
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder
from posenc_jax.model.generate import Sampling, sample_token

CALL = 256  # prompt tokens per call of the decoder


def stream_tokens(
    params,
    config: ModelConfig,
    prompt_T: np.ndarray,
    new_tokens: int,
    sampling: Sampling,
    key: jax.Array,
) -> Iterator[int]:
    """Yields up to `new_tokens` ids that continue a prompt: those of
    `posenc_jax.model.generate.generate`.

    Args:
      prompt_T: ids, at least one. key: of sampled tokens.

    Raises:
      ValueError: before the first id: an empty prompt, an id outside the vocabulary, no new tokens,
        more positions than the scheme has, or a kernel that cannot use a cache.
    """
    _check(config, prompt_T, new_tokens)
    call = min(CALL, len(prompt_T))
    wide = -(-len(prompt_T) // call) * call
    kept = required_slots(config, params, wide + new_tokens, call)
    # An empty cache has one array of zeros in many places; each call gives its arrays away.
    cache = jax.tree.map(jnp.copy, empty_cache(config, 1, wide + new_tokens, kept, call))
    padding = wide - len(prompt_T)  # on the left, segment 0
    tokens_1T = np.concatenate([np.zeros(padding), prompt_T]).astype(np.int32)[None]
    place_1T = np.arange(-padding, len(prompt_T), dtype=np.int32)[None]
    for start in range(0, wide, call):
        piece = slice(start, start + call)
        pos_1T, seg_1T = (
            np.maximum(place_1T[:, piece], 0),
            (place_1T[:, piece] >= 0).astype(np.int32),
        )
        logits_1V, cache = _read(params, cache, tokens_1T[:, piece], pos_1T, seg_1T, config=config)
    drawing = (sampling, jax.random.split(key, new_tokens))
    return _continued(params, config, (logits_1V, cache), len(prompt_T), drawing)


def _check(config: ModelConfig, prompt_T: np.ndarray, new_tokens: int) -> None:
    if not len(prompt_T):
        raise ValueError("a prompt needs at least one token, for example BOS")
    if min(prompt_T) < 0 or max(prompt_T) >= config.vocab_size:
        raise ValueError(f"the prompt has ids outside the {config.vocab_size} of the vocabulary")
    if new_tokens < 1:
        raise ValueError(f"at least one token must be asked for, not {new_tokens}")
    if config.attention in KERNELS:
        raise ValueError(f"attention {config.attention!r} cannot use a cache; take config.measured")
    longest, limit = len(prompt_T) + new_tokens, config.placed.longest()
    if limit is not None and longest > limit:
        raise ValueError(f"{longest} positions are needed; {config.scheme_line!r} has {limit}")


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def _read(params, cache, tokens_1T, pos_1T, seg_1T, *, config: ModelConfig):
    """Returns the logits after the last token, and the cache with all tokens."""
    logits_1TV, cache = Decoder(config).apply({"params": params}, tokens_1T, pos_1T, seg_1T, cache)
    return logits_1TV[:, -1], cache


_choose = jax.jit(sample_token, static_argnames="sampling")


def _continued(params, config: ModelConfig, state, position: int, choice) -> Iterator[int]:
    (logits_1V, cache), (sampling, keys) = state, choice
    for number, key in enumerate(keys):
        token_1 = _choose(logits_1V, key, sampling=sampling)
        yield int(token_1[0])
        if number + 1 < len(keys):
            pos_11 = jnp.full((1, 1), position + number, jnp.int32)
            token_11 = token_1[:, None].astype(jnp.int32)
            logits_1V, cache = _read(
                params, cache, token_11, pos_11, jnp.ones_like(pos_11), config=config
            )
