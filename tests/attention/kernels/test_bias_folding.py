"""The fold against float64: bfloat16 columns, float32 sums, as a vendor kernel would take them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.attention.kernels.bias_folding import fold_bias, slope_limbs, slot_limbs
from posenc_jax.encodings import parse
from posenc_jax.encodings.bias import alibi_slopes

from support import schemes

N, K, H = 6, 2, 16
BOUND = 1e-2  # total variation of a row's weights; the naive fold misses it by far from 1k on


def rows(S, count=4):
    """The query slots looked at: early, in the middle, the last."""
    return np.unique(np.linspace(S // 7, S - 1, count).astype(int))


def tensors(S):
    """bfloat16 q of a few rows and k, whose scaled q is exact (sqrt(16) = 4): only the bias is on trial."""
    q_key, k_key = jax.random.split(jax.random.key(S))
    q = jax.random.normal(q_key, (1, len(rows(S)), N, H)).astype(jnp.bfloat16)
    return q, jax.random.normal(k_key, (1, S, K, H)).astype(jnp.bfloat16)


def softmax(logit_S):
    weight_S = np.exp(logit_S - logit_S.max())
    return weight_S / weight_S.sum()


def oracle(q, k, slopes, n, t, i):
    """float64: weights of row i over the keys up to it, by the definition."""
    q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)
    logit_S = k[0, : i + 1, n // (N // K)] @ q[0, t, n] / np.sqrt(H)
    return softmax(logit_S - np.float64(slopes[n]) * (i - np.arange(i + 1)))


def worst(q, k, slopes, folded):
    """The largest total variation between the folded kernel's weights and the oracle's."""
    q_X, k_X = folded
    wide = jnp.repeat(k_X, N // K, axis=2)
    logits = jnp.einsum("BTNH,BSNH->BNTS", q_X, wide, preferred_element_type=jnp.float32)
    logits = np.asarray(logits)
    gaps = []
    for t, i in enumerate(rows(k.shape[1])):
        for n in range(N):
            got = softmax(logits[0, n, t, : i + 1].astype(np.float64))
            gaps.append(np.abs(got - oracle(q, k, slopes, n, t, i)).sum() / 2)
    return max(gaps)


def naive(q, k, slope_N):
    """The published fold: one column, slope times slot, each rounded to bfloat16."""
    q = (q.astype(jnp.float32) / np.sqrt(H)).astype(jnp.bfloat16)
    slope = jnp.broadcast_to(slope_N.astype(jnp.bfloat16)[None, None, :, None], (*q.shape[:3], 1))
    slot = jnp.arange(k.shape[1], dtype=jnp.float32).astype(jnp.bfloat16)
    slot = jnp.broadcast_to(slot[None, :, None, None], (*k.shape[:3], 1))
    return jnp.concatenate([q, slope], -1), jnp.concatenate([k, slot], -1)


# Six heads: published slopes off powers of two, and ones that no few bits hold.
SLOPES = np.float32(np.where(np.arange(N) < 3, alibi_slopes(N), [0, 0, 0, 0.7071, 1e-3 / 3, 0.0]))


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("S", [1024, 16_384, 131_072])
def test_the_fold_in_bfloat16_is_the_bias_of_the_definition(S):
    q, k = tensors(S)
    assert worst(q, k, SLOPES, fold_bias(q, k, jnp.asarray(SLOPES), 8, None, q.shape[-1])) < BOUND


@pytest.mark.slow
def test_the_third_limb_carries_rows_beyond_two():
    S = 262_144
    assert len(slot_limbs(131_072)[1]) == 2
    assert len(slot_limbs(S)[1]) == 3
    q, k = tensors(S)
    assert worst(q, k, SLOPES, fold_bias(q, k, jnp.asarray(SLOPES), 8, None, q.shape[-1])) < BOUND


@pytest.mark.parametrize("S", [1024, 16_384])
def test_the_published_fold_fails_the_same_bound(S):
    q, k = tensors(S)
    assert worst(q, k, SLOPES, naive(q, k, jnp.asarray(SLOPES))) > 10 * BOUND


@pytest.mark.parametrize(
    ("S", "weights"),
    [
        (1, [1]), (255, [1]), (512, [1]), (1024, [2, 1]), (8192, [16, 1]), (65_536, [128, 1]),
        (131_072, [256, 1]), (131_076, [512, 256, 1]), (262_144, [512, 256, 1]), (2**21, [4096, 256, 1]),
    ],
)  # fmt: skip
def test_slots_come_back_whole_from_bfloat16_limbs(S, weights):
    limb_SL, weight_L = slot_limbs(S)
    assert weight_L.tolist() == weights
    limb_SL = np.asarray(jnp.asarray(limb_SL, jnp.bfloat16).astype(jnp.float32), np.float64)
    assert np.array_equal(limb_SL @ weight_L.astype(np.float64), np.arange(S) - S // 2)


def test_two_limbs_hold_a_slope_to_its_bound():
    slopes = np.random.default_rng(0).uniform(1e-5, 1, 10_000).astype(np.float32)
    limbs = np.asarray(slope_limbs(jnp.asarray(slopes), jnp.bfloat16).astype(jnp.float32))
    gap = np.abs(limbs.astype(np.float64).sum(1) - slopes) / slopes
    assert gap.max() <= 2.0**-17 < np.abs(limbs[:, 0] / slopes - 1).max()


def test_head_dim_is_padded_and_other_inputs_are_refused():
    q, k = tensors(64)
    q, k = q[:, :64], k[:, :64]
    q_X, k_X = fold_bias(q, k, jnp.asarray(SLOPES), 8, None, q.shape[-1])
    assert q_X.shape[-1] == k_X.shape[-1] == 24
    assert k_X.shape[2] == K
    with pytest.raises(ValueError, match="bfloat16 or float32"):
        fold_bias(q.astype(jnp.float16), k, jnp.asarray(SLOPES), 8, None, q.shape[-1])
    with pytest.raises(ValueError, match="one slope per query head, 6"):
        fold_bias(q, k, jnp.asarray(SLOPES[:2]), 8, None, q.shape[-1])


def test_gradients_through_the_fold_are_those_of_the_definition():
    S = 48
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, aim = (
        jax.random.normal(key, (1, S, heads, H))
        for key, heads in zip(keys, (N, K, K, N), strict=True)
    )
    seen = jnp.tril(jnp.ones((S, S), bool))[None, None]

    def out(logits):
        weights = jax.nn.softmax(jnp.where(seen, logits, -jnp.inf))
        return jnp.sum(aim * jnp.einsum("BNTS,BSNH->BTNH", weights, jnp.repeat(v, N // K, axis=2)))

    def folded(q, k, slope_N):
        q_X, k_X = fold_bias(q, k, slope_N, 8, None, q.shape[-1])
        return out(jnp.einsum("BTNH,BSNH->BNTS", q_X, jnp.repeat(k_X, N // K, axis=2)))

    def defined(q, k, slope_N):
        qk = jnp.einsum("BTNH,BSNH->BNTS", q, jnp.repeat(k, N // K, axis=2)) / np.sqrt(H)
        apart = (jnp.arange(S)[:, None] - jnp.arange(S)[None]).astype(jnp.float32)
        return out(qk - slope_N[None, :, None, None] * apart[None, None])

    got = jax.jit(jax.grad(folded, (0, 1, 2)))(q, k, jnp.asarray(SLOPES))
    want = jax.jit(jax.grad(defined, (0, 1, 2)))(q, k, jnp.asarray(SLOPES))
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-4 * float(jnp.abs(theirs).max()))


def test_the_limbs_of_a_slope_have_together_the_derivative_of_the_slope():
    slope_N = jnp.asarray(SLOPES)
    total = jax.jacobian(lambda s: slope_limbs(s, jnp.bfloat16).astype(jnp.float32).sum(1))(slope_N)
    assert np.array_equal(total, np.eye(N))


@pytest.mark.parametrize("line", schemes.some(pytest.mark.thorough, few=schemes.FEWER))
def test_a_layer_that_says_it_is_linear_has_that_bias(line):
    layer = parse(line).place(num_layers=2, num_heads=4, head_dim=16, model_dim=32, train_length=64)
    layer = layer.layers[0]
    params = layer.init(jax.random.key(0))
    slope_N = layer.linear_slope_N(params)
    pos = jnp.array([[0, 1, 2, 7, 400]])
    bias = layer.bias(params, pos, pos)
    apart = np.abs(np.subtract.outer(np.asarray(pos[0]), np.asarray(pos[0])))
    per_head = np.zeros((4, 5, 5)) if bias is None else np.asarray(bias[0])
    if slope_N is None:
        # Every head of a linear layer falls alike at every distance; some head here must not.
        unit = -per_head[:, 1, 0]
        assert layer.gated or not np.allclose(per_head, -unit[:, None, None] * apart, atol=1e-6)
    else:
        want = -np.asarray(slope_N)[:, None, None] * apart
        np.testing.assert_allclose(per_head, want, rtol=1e-6)


@pytest.mark.thorough
def test_a_learned_slopes_gradient_survives_a_kernel_that_rounds_what_it_sums():
    S = 1500  # slots in limbs of 4 and 1
    q, k, v, aim = (
        jax.random.normal(key, (1, S, 2, 8)) for key in jax.random.split(jax.random.key(0), 4)
    )
    q, k = q.astype(jnp.bfloat16), k.astype(jnp.bfloat16)
    slope_N = jnp.array([0.05, 0.01])
    seen = jnp.tril(jnp.ones((S, S), bool))[None, None]

    def total(weights):
        return (aim * jnp.einsum("BNTS,BSNH->BTNH", weights, v)).sum()

    def softmax(logits):
        return jax.nn.softmax(jnp.where(seen, logits, -jnp.inf))

    def defined(slope_N):
        qk = jnp.einsum("BTNH,BSNH->BNTS", q, k, preferred_element_type=jnp.float32) / np.sqrt(8)
        apart = (jnp.arange(S)[:, None] - jnp.arange(S)[None]).astype(jnp.float32)
        return total(softmax(qk - slope_N[None, :, None, None] * apart[None, None]))

    @jax.custom_vjp
    def kernel(q, k):
        return forward(q, k)[0]

    def forward(q, k):
        logits = jnp.einsum("BTNX,BSNX->BNTS", q, k, preferred_element_type=jnp.float32)
        return total(softmax(logits)), (k, softmax(logits))

    def backward(kept, _):
        k, weights = kept
        d_weights = jnp.einsum("BTNH,BSNH->BNTS", aim, v)
        d_logits = weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True))
        d_q = jnp.einsum(
            "BNTS,BSNX->BTNX", d_logits.astype(jnp.bfloat16), k, preferred_element_type=jnp.float32
        )
        return d_q.astype(jnp.bfloat16), jnp.zeros_like(k)

    kernel.defvjp(forward, backward)
    want = jax.grad(defined)(slope_N)
    got = jax.grad(lambda slope_N: kernel(*fold_bias(q, k, slope_N, 8, None, q.shape[-1])))(slope_N)
    # Without the column of ones it is off by 58 % and more.
    np.testing.assert_allclose(got, want, rtol=0.06)
