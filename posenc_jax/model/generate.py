"""Generation from a prompt: greedy, or sampled with temperature, top-k and nucleus (top-p)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.attention import TokenSide
from posenc_jax.attention.blockwise.cutoff import EXACT_EPSILON
from posenc_jax.attention.kernels.vendor import KERNELS
from posenc_jax.model.cache import empty_cache, required_slots
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature=0 is greedy, top_k=0 and top_p=1 keep all."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not (self.temperature >= 0 and self.top_k >= 0 and 0 < self.top_p <= 1):
            raise ValueError(f"sampling needs temperature >= 0, top_k >= 0, 0 < top_p <= 1: {self}")


def sample_token(logits_BV: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """Returns token_B: the next token of every row."""
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    logits_BV = logits_BV / sampling.temperature
    order_BV = jnp.flip(jnp.sort(logits_BV, -1), -1)
    if sampling.top_k:
        floor_B1 = order_BV[:, min(sampling.top_k, logits_BV.shape[-1]) - 1][:, None]
        logits_BV = jnp.where(logits_BV < floor_B1, -jnp.inf, logits_BV)
        order_BV = jnp.where(order_BV < floor_B1, -jnp.inf, order_BV)
    if sampling.top_p < 1:
        share_BV = jax.nn.softmax(order_BV, -1)
        before_BV = jnp.cumsum(share_BV, -1) - share_BV  # total probability of more likely tokens
        kept_BV = before_BV < sampling.top_p
        floor_B1 = jnp.where(kept_BV, order_BV, jnp.inf).min(-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < floor_B1, -jnp.inf, logits_BV)
    return jax.random.categorical(key, logits_BV)


@functools.partial(jax.jit, static_argnames=("config", "new_tokens", "sampling", "kept", "call"))
def _generate(params, prompt_BT, side, key, *, config, new_tokens, sampling, kept, call):
    model = Decoder(config)
    batch, prompt_length = prompt_BT.shape
    cache = empty_cache(config, batch, prompt_length + new_tokens, kept, call)

    def read(cache, call_B3T):
        tokens_BT, pos_BT, seg_BT = call_B3T
        logits_BTV, cache = model.apply({"params": params}, tokens_BT, pos_BT, seg_BT, cache)
        return cache, logits_BTV[:, -1]

    calls = [
        x.reshape(batch, -1, call).swapaxes(0, 1) for x in (prompt_BT, side.pos_BT, side.seg_BT)
    ]
    cache, logits_CBV = jax.lax.scan(read, cache, calls)

    def step(carry, step_key):
        logits_BV, cache, pos_B1 = carry
        token_B = sample_token(logits_BV, step_key, sampling).astype(jnp.int32)
        one_B1 = jnp.ones_like(pos_B1)
        logits_B1V, cache = model.apply({"params": params}, token_B[:, None], pos_B1, one_B1, cache)
        return (logits_B1V[:, 0], cache, pos_B1 + 1), token_B

    carry = (logits_CBV[-1], cache, side.pos_BT[:, -1:] + 1)
    _, tokens_TB = jax.lax.scan(step, carry, jax.random.split(key, new_tokens))
    return tokens_TB.T


def generate(
    params,
    config: ModelConfig,
    prompts: list[np.ndarray],
    *,
    new_tokens: int,
    pad: int,
    sampling: Sampling,
    key: jax.Array,
    epsilon: float = EXACT_EPSILON,
    call: int = 256,
) -> np.ndarray:
    """Returns tokens [B, new_tokens] that continue the prompts.

    Prompts of different lengths are padded on the left. Padding has segment 0, and positions start
    at the first token of each prompt, so the result of a row does not depend on the other rows.

    Args:
      epsilon: largest share of a row's attention weight on tokens that the cache does not keep
        (`posenc_jax.model.cache.required_slots`); 0 keeps all visible tokens.
      call: number of prompt tokens per call of the decoder.

    Raises:
      ValueError: an empty prompt, more positions than the scheme has, or a kernel that cannot use a
        cache.
    """
    if config.attention in KERNELS:
        raise ValueError(
            f"attention {config.attention!r} cannot use a cache: generate with "
            "dataclasses.replace(config, attention='auto')"
        )
    lengths = np.array([len(p) for p in prompts])
    if not len(prompts) or lengths.min() == 0:
        raise ValueError("every prompt needs at least one token, for example BOS")
    longest, limit = int(lengths.max()) + new_tokens, config.placed.longest()
    if limit is not None and longest > limit:
        raise ValueError(f"{longest} positions are needed; {config.scheme_line!r} has {limit}")
    call = min(call, int(lengths.max()))
    wide = -(-lengths.max() // call) * call
    place_BT = np.arange(wide)[None, :] - (wide - lengths)[:, None]
    prompt_BT = np.full(place_BT.shape, pad, np.int32)
    for row, prompt in zip(prompt_BT, prompts, strict=True):
        row[len(row) - len(prompt) :] = prompt
    tokens_BT = _generate(
        params,
        jnp.asarray(prompt_BT),
        TokenSide(
            jnp.asarray(np.maximum(place_BT, 0).astype(np.int32)),
            jnp.asarray((place_BT >= 0).astype(np.int32)),
        ),
        key,
        config=config,
        new_tokens=new_tokens,
        sampling=sampling,
        kept=required_slots(config, params, wide + new_tokens, call, epsilon),
        call=call,
    )
    return np.asarray(tokens_BT)
