"""Small random models of transformers, and what they and our decoder make of the same tokens.

Importing this needs torch and transformers.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from posenc_jax.interop import huggingface
from posenc_jax.model.decoder import Decoder
from posenc_jax.model.generate import Sampling, generate

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    import transformers
transformers.logging.set_verbosity_error()

T = 41  # tokens of a row: more than every window and original length of a small model
PROMPT, NEW = 5, 32  # tokens of a greedy continuation


def random_model(family, settings, seed=0):
    """A model of transformers whose every weight is random: gains around 1, biases around 0."""
    attention = "sdpa" if family == "falcon" else "eager"
    config = transformers.AutoConfig.for_model(family, attn_implementation=attention, **settings)
    kind = getattr(transformers, huggingface.FAMILIES[family].model_class)
    torch.manual_seed(seed)
    model = kind(config).float().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "embed_positions" not in name:  # sinusoids, which are no weights
                p.copy_(0.12 * torch.randn_like(p) + (p if p.ndim == 1 else 0))
    return model


def random_tokens(vocab_size, seed, batch=2, length=T):
    """Ids from 3 on, which no model takes for a special one."""
    return np.random.default_rng(seed).integers(3, vocab_size, (batch, length))


def their_logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.numpy()


@functools.cache
def _program(config):
    return jax.jit(Decoder(config).apply)


def our_logits(config, params, ids):
    pos = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    row = (jnp.asarray(x) for x in (ids, pos, np.ones_like(pos)))
    return np.asarray(_program(config)({"params": params}, *row)[0])


def their_greedy(model, prompt, cached=True):
    """`NEW` tokens after a prompt [1, T]; without a cache all keys are computed for every token."""
    with torch.no_grad():
        told = model.generate(
            torch.tensor(prompt),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            use_cache=cached,
        )
    return told[0, prompt.shape[1] :].numpy()


def our_greedy(config, params, prompt, count=NEW):
    """`count` tokens after a prompt [1, T]."""
    return generate(
        params,
        config,
        list(prompt),
        new_tokens=count,
        pad=0,
        sampling=Sampling(),
        key=jax.random.key(0),
    )[0]
