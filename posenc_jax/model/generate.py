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
from posenc_jax.model.decoder import Decoder, check_token_ids

ROUNDING = 1e-6  # of a float32 sum of probabilities


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
    """Returns token_B: the next token of every row.

    Top-k keeps k tokens. Top-p (Holtzman et al. 2020, nucleus sampling) keeps the fewest likeliest
    tokens whose probabilities after top-k add up to p, up to a rounding error of `ROUNDING`. Of
    equally likely tokens the one with the smaller id is kept first.
    """
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    # Relative to the largest, so that a small temperature gives -inf and not inf - inf.
    below_BV = logits_BV - logits_BV.max(-1, keepdims=True)
    logits_BV = jnp.where(below_BV == 0, 0.0, below_BV / sampling.temperature)
    if not sampling.top_k and sampling.top_p == 1:
        return jax.random.categorical(key, logits_BV)
    token_BV = jnp.argsort(-logits_BV, axis=-1, stable=True)
    logits_BV = jnp.take_along_axis(logits_BV, token_BV, axis=-1)
    rank_1V = jnp.arange(logits_BV.shape[-1])[None]
    if sampling.top_k:
        logits_BV = jnp.where(rank_1V < sampling.top_k, logits_BV, -jnp.inf)
    if sampling.top_p < 1:
        share_BV = jax.nn.softmax(logits_BV, -1)
        before_BV = jnp.cumsum(share_BV, -1) - share_BV  # total probability of more likely tokens
        kept_BV = (before_BV < sampling.top_p - ROUNDING) | (rank_1V == 0)
        logits_BV = jnp.where(kept_BV, logits_BV, -jnp.inf)
    chosen_B1 = jax.random.categorical(key, logits_BV)[:, None]
    return jnp.take_along_axis(token_BV, chosen_B1, axis=-1)[:, 0]


@functools.partial(jax.jit, static_argnames=("config", "new_tokens", "sampling", "kept", "call"))
def _generate(params, prompt_BT, side, key, *, config, new_tokens, sampling, kept, call):
    """Returns tokens_BT, and finite_B: whether all logits of the row were finite."""
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
        finite_B = jnp.isfinite(logits_BV).all(-1)
        one_B1 = jnp.ones_like(pos_B1)
        logits_B1V, cache = model.apply({"params": params}, token_B[:, None], pos_B1, one_B1, cache)
        return (logits_B1V[:, 0], cache, pos_B1 + 1), (token_B, finite_B)

    carry = (logits_CBV[-1], cache, side.pos_BT[:, -1:] + 1)
    _, (token_TB, finite_TB) = jax.lax.scan(step, carry, jax.random.split(key, new_tokens))
    return token_TB.T, finite_TB.all(0)


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

    Prompts are padded on the left, all to the next power of two of the longest, so that few
    programs serve all lengths. Padding has segment 0, and positions start at the first token of
    each prompt, so the result of a row does not depend on the other rows.

    Args:
      prompts: ids, whole numbers below the size of the vocabulary.
      epsilon: largest share of a row's attention weight on tokens that the cache does not keep
        (`posenc_jax.model.cache.required_slots`); 0 keeps all visible tokens.
      call: number of prompt tokens per call of the decoder.

    Raises:
      ValueError: an empty prompt, ids that are not of the vocabulary, more positions than the
        scheme has, a kernel that cannot use a cache, or logits that are not finite.
    """
    if config.attention in KERNELS:
        raise ValueError(
            f"attention {config.attention!r} cannot use a cache: generate with "
            "dataclasses.replace(config, attention='auto')"
        )
    prompts = list(map(np.asarray, prompts))
    lengths = np.array([len(p) for p in prompts])
    if not len(prompts) or lengths.min() == 0:
        raise ValueError("every prompt needs at least one token, for example BOS")
    for prompt in prompts:
        check_token_ids(prompt, config.vocab_size)
    longest, limit = int(lengths.max()) + new_tokens, config.placed.longest()
    if limit is not None and longest > limit:
        raise ValueError(f"{longest} positions are needed; {config.scheme_line!r} has {limit}")
    wide = 1 << (int(lengths.max()) - 1).bit_length()
    call = min(call, wide)
    wide = -(-wide // call) * call
    place_BT = np.arange(wide)[None, :] - (wide - lengths)[:, None]
    prompt_BT = np.full(place_BT.shape, pad, np.int32)
    for row, prompt in zip(prompt_BT, prompts, strict=True):
        row[len(row) - len(prompt) :] = prompt
    tokens_BT, finite_B = _generate(
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
    if not np.asarray(finite_B).all():
        rows = ", ".join(map(str, np.flatnonzero(~np.asarray(finite_B))))
        raise ValueError(
            f"the logits of prompts {rows} are not finite: look for NaN in the parameters"
        )
    return np.asarray(tokens_BT)
