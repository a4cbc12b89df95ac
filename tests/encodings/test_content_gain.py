"""The analysis of what rotations do to content, of biases that rise, and under a length extension."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.encodings import analysis, extend_length, parse
from posenc_jax.encodings.scheme_arrays import pair_vector

from support import schemes

H, L = 16, 1024


def heads_of(line, length, stretch=None, margins=(10.0,)):
    shape = {"head_dim": H, "train_length": L}
    trained = placed = schemes.placed(line, **shape)
    if stretch:
        scheme = extend_length(parse(line), stretch, length=length, train_length=L)
        placed = scheme.place(**schemes.SHAPE | shape | {"num_layers": 1})
    params = analysis.initial_parameters(placed, jax.random.key(0))
    return analysis.analyze_heads(placed, params, length, margins, trained)


def products(line, distance_S):
    """<R(i) e, R(j) e> of the pairs (1, 0) by the rotation itself, relative to distance 0."""
    layer = schemes.placed(line, head_dim=H, train_length=L).layers[0]
    last = int(distance_S.max())
    e = jnp.broadcast_to(
        jnp.asarray(pair_vector(H, "half"), jnp.float32), (1, len(distance_S), 4, H)
    )
    q = layer.rotate({}, e[:, :1], jnp.array([[last]]), "query")
    k = layer.rotate({}, e, jnp.asarray(last - distance_S)[None], "key")
    product_S = np.asarray(jnp.einsum("BTNH,BSNH->NS", q, k)[0], np.float64)
    return product_S / product_S[0], layer.groups[0]


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("line", ["xpos", "rope(stretch=yarn(factor=4.0))", "xpos(scale=128.0)"])
def test_the_kernel_drawn_is_the_product_of_rotated_vectors(line):
    distance_S = np.array([0, 1, 7, 100, 512, 1500])
    want, group = products(line, distance_S)
    kernel, bound = analysis.rotation_curves(group, distance_S)
    np.testing.assert_allclose(kernel, want, rtol=0, atol=2e-5)
    if line.startswith("xpos"):
        assert (
            bound[-1]
            < analysis.decay_bound(group.heads.rotation.wavelengths(group.context), distance_S)[-1]
        )


def test_xpos_says_how_much_content_it_takes():
    """zeta_p^(d/s), zeta_p = (p/h + gamma) / (1 + gamma), meaned over the pairs (Sun et al. 2022)."""
    (head, *_) = heads = heads_of("xpos", 16_384)
    zeta = [(p / 8 + 0.4) / 1.4 for p in range(8)]
    assert head.gain_at_L == pytest.approx(np.mean([z ** (L / 512) for z in zeta]))
    assert head.gain_at_end == pytest.approx(np.mean([z ** (16_383 / 512) for z in zeta]))
    said = " ".join(analysis.scheme_warnings(heads, 16_384, L))
    assert "in 4 of 4 heads the rotation also shrinks content: a logit is on average" in said
    assert f"{head.gain_at_L:.2g} times as large at distance 1,024" in said


def test_a_needle_under_xpos_keeps_only_the_gain_of_its_margin():
    ((far,),) = (h.horizon.values() for h in heads_of("rope", 16_384, margins=(20.0,))[:1])
    ((near,),) = (h.horizon.values() for h in heads_of("xpos", 16_384, margins=(20.0,))[:1])
    assert far == 16_383
    gain = [
        np.mean([((p / 8 + 0.4) / 1.4) ** (d / 512) for p in range(8)]) for d in (near, near + 1)
    ]
    assert 20 * gain[0] >= np.log(16_383) - 1e-3 > 20 * gain[1] - 2e-3


def test_yarn_raises_the_margin_by_its_amplitude_and_half_of_the_dims_take_half():
    amplitude = (0.1 * np.log(4) + 1) ** 2
    for line, want in (("rope", amplitude), ("rope(fraction=0.5)", (amplitude + 1) / 2)):
        (head, *_) = heads_of(line, 4096, "yarn:4")
        assert head.gain_at_end == pytest.approx(want)


def test_what_a_power_loses_over_the_training_length_is_its_bias_there():
    for head, m in zip(heads_of("power", 100), 2.0 ** -np.array([2, 4, 6, 8]), strict=True):
        assert head.bias_over_L == pytest.approx(m * np.sqrt(L), rel=1e-5)


def test_heads_whose_bias_rises_lose_less_than_one_nat():
    heads = heads_of("t5", 4096)
    assert min(h.bias_over_L for h in heads) < 0  # a random table rises in some heads
    said = " ".join(analysis.scheme_warnings(heads, 4096, L))
    assert "4 of 4 heads lose less than 1 nat over L = 1,024" in said


def test_a_stretch_is_judged_against_what_was_trained():
    plain, longer = heads_of("rope+alibi", 4096)[0], heads_of("rope+alibi", 4096, "pi:4")[0]
    assert plain.unseen_pairs == sum(w > L for w in plain.wavelengths) > 0
    assert longer.unseen_pairs == 0  # interpolation stays inside of the arc seen in training
    assert heads_of("rope+alibi", 8192, "pi:4")[0].unseen_pairs == plain.unseen_pairs
    assert longer.slope == pytest.approx(plain.slope / 4)
    assert longer.bias_over_L == pytest.approx(plain.bias_over_L)
    trained_so = heads_of("rope(stretch=pi(factor=4.0))", 4096)[0]
    assert trained_so.unseen_pairs == sum(w > L for w in longer.wavelengths)


def test_nothing_is_said_where_nothing_stands_out():
    assert analysis.scheme_warnings(heads_of("nope", 100), 100, L) == []
