"""The Transformer of 2017 and the ALiBi paper's decoder against PyTorch's own layers.

`torch.nn.TransformerEncoderLayer` with a causal mask is the decoder of both papers: norms after the
sublayers or before them, ReLU, all biases. fairseq's ALiBi adds its slopes to that mask.
"""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.model.decoder import Decoder
from posenc_jax.model.presets import preset

from support.checkpoint_folders import random_parameters

pytestmark = pytest.mark.interop
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")

T = 50


def tensor(x):
    return torch.tensor(np.asarray(x))


def layer_of(config, p):
    """A layer of PyTorch with our parameters."""
    layer = torch.nn.TransformerEncoderLayer(
        config.model_dim,
        config.num_heads,
        config.mlp_dim,
        dropout=0.0,
        activation="relu",
        layer_norm_eps=config.norm_epsilon,
        batch_first=True,
        norm_first=config.norm_position == "pre",
    ).train()
    a, m = p["attention"], p["mlp"]
    rows = [
        np.asarray(a[name]).reshape(config.model_dim, -1).T
        for name in ("query_DNH", "key_DKH", "value_DKH")
    ]
    biases = [
        np.asarray(a[name]).ravel() for name in ("query_bias_NH", "key_bias_KH", "value_bias_KH")
    ]
    values = {
        "self_attn.in_proj_weight": np.concatenate(rows),
        "self_attn.in_proj_bias": np.concatenate(biases),
        "self_attn.out_proj.weight": np.asarray(a["out_NHD"]).reshape(-1, config.model_dim).T,
        "self_attn.out_proj.bias": a["out_bias_D"],
        "linear1.weight": m["up_DF"].T,
        "linear1.bias": m["up_bias_F"],
        "linear2.weight": m["down_FD"].T,
        "linear2.bias": m["down_bias_D"],
        "norm1.weight": p["attention_gain_D"],
        "norm1.bias": p["attention_norm_bias_D"],
        "norm2.weight": p["mlp_gain_D"],
        "norm2.bias": p["mlp_norm_bias_D"],
    }
    layer.load_state_dict({name: tensor(np.ascontiguousarray(x)) for name, x in values.items()})
    return layer


def sinusoids(dim):
    """Vaswani et al. 2017, sec. 3.5, written down."""
    table = torch.zeros(T, dim, dtype=torch.float64)
    for i in range(T):
        for k in range(dim // 2):
            angle = i / 10000 ** (2 * k / dim)
            table[i, 2 * k], table[i, 2 * k + 1] = math.sin(angle), math.cos(angle)
    return table.float()


def alibi_mask(heads):
    """fairseq's: slope times the key's position, and minus infinity for later keys."""
    slopes = torch.tensor([2 ** (-8 * (n + 1) / heads) for n in range(heads)])
    return slopes[:, None, None] * torch.arange(T)[None, None, :]


@pytest.mark.parametrize("name", ["transformer", "alibi-247m", "alibi-1.3b"])
@pytest.mark.parametrize("seed", range(3))
def test_the_decoder_is_pytorchs_layers(name, seed):
    config = preset(name, small=True)
    params = random_parameters(config, seed)
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, (1, T))
    row = jnp.asarray(ids), jnp.arange(T)[None], jnp.ones((1, T), jnp.int32)
    got, _ = jax.jit(Decoder(config).apply)({"params": params}, *row)

    table = tensor(params["embedding_VD"])
    x = table[tensor(ids)] * math.sqrt(config.model_dim)
    mask = torch.full((T, T), -torch.inf).triu(1)
    if name == "transformer":
        x = x + sinusoids(config.model_dim)
    else:
        mask = mask + alibi_mask(config.num_heads)
    with torch.no_grad():
        for i in range(config.num_layers):
            x = layer_of(config, params[f"layer_{i}"])(x, src_mask=mask)
        want = (x @ table.T).numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
