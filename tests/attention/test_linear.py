"""Linear attention against the equation of RoFormer, over chunks and documents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.attention import AttentionSettings, TokenSide, attend
from posenc_jax.attention.linear import CHUNK
from posenc_jax.encodings import parse

from support import oracles
from support.schemes import placed

SEG = np.array([0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3])


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("line", ["linear", "rope+linear", "rope(fraction=0.5)+linear"])
def test_linear_attention_equals_roformers_equation_19(line):
    layer = placed(line).layers[0]
    q, k, v = (np.random.default_rng(s).normal(size=(12, 4, 16)) for s in range(3))
    pos = np.array([0, 0, 0, 1, 2, 3, 0, 1, 2, 3, 9, 0])
    dims = {"linear": 0, "rope+linear": 16}.get(line, 8)
    want = oracles.linear_attention(
        q,
        k,
        v,
        visible=lambda i, j: SEG[i] == SEG[j] != 0 and pos[j] <= pos[i],
        turn=lambda x, i: oracles.rope_vector(x, pos[i], rotary_dim=dims),
    )
    at, seg = jnp.asarray(pos)[None], jnp.asarray(SEG)[None]
    for aligned in (False, True):
        got = attend(
            *(jnp.asarray(x, jnp.float32)[None] for x in (q, k, v)),
            layer,
            {},
            TokenSide(at, seg),
            settings=AttentionSettings(aligned=aligned),
        )
        np.testing.assert_allclose(got[0], want, atol=3e-5)


@pytest.mark.thorough
def test_linear_attention_in_order_carries_its_state_over_chunks_and_never_over_documents():
    layer, T = placed("rope+linear").layers[0], 3 * CHUNK + 5
    seg = np.r_[np.zeros(9), np.ones(2 * CHUNK - 3), np.full(T - 2 * CHUNK - 6, 2)].astype(int)
    pos = np.r_[np.zeros(9), np.arange(2 * CHUNK - 3), np.arange(T - 2 * CHUNK - 6)].astype(int)
    tensors = tuple(jax.random.normal(jax.random.key(s), (2, T, 4, 16)) for s in range(3))
    at, of = (
        jnp.asarray(np.stack([x, np.arange(T) if x is pos else np.ones(T, int)]))
        for x in (pos, seg)
    )

    def run(tensors, aligned):
        return attend(
            *tensors, layer, {}, TokenSide(at, of), settings=AttentionSettings(aligned=aligned)
        )

    np.testing.assert_allclose(run(tensors, True), run(tensors, False), atol=3e-5)
    a, b = (
        jax.grad(lambda t, how=how: jnp.sin(run(t, how)).sum())(tensors) for how in (True, False)
    )
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-4)


def test_linear_attention_refuses_what_it_cannot_mean():
    for line, message in (
        ("linear+alibi", "neither a bias nor a temperature"),
        ("linear~logn", "neither a bias nor a temperature"),
        ("linear|rope", "share one form of attention"),
    ):
        with pytest.raises(ValueError, match=message):
            placed(line)
    with pytest.raises(ValueError, match="a second form"):
        parse("linear+linear")
