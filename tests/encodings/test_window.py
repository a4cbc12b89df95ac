"""The window of a scheme: its unit, its refusals, and how analysis, plots and length extension treat it."""

import functools

import jax
import numpy as np
import pytest
from posenc_jax.attention.blockwise.cutoff import cutoff_windows
from posenc_jax.encodings import HeadContext, Window, analysis, extend_length, parse, unparse
from posenc_jax.encodings.scheme_arrays import scheme_arrays
from posenc_jax.report.scheme_figures import sees_alike

from support import oracles
from support.schemes import layer_of

N, K, H, L, T = 4, 2, 16, 64, 41


SHAPE = {"num_layers": 2, "num_heads": N, "head_dim": H, "model_dim": 32, "train_length": L}


placed = functools.partial(layer_of, **SHAPE)


# What a scheme with windows says of itself.


def test_a_window_is_tokens_or_a_share_of_the_training_length():
    place = HeadContext(heads=N, num_heads=N, head_dim=H, model_dim=32, train_length=100)
    sizes = {"L": 100, "L/8": 12, "L/100": 1, 7: 7, 5000: 5000}
    for size, tokens in sizes.items():
        assert Window(size).tokens(place) == tokens
        Window(size).check(place)
    assert placed("3*(rope+window(size=L/4))|nope").window_N == (16, 16, 16, None)
    for line in (
        "3*(rope+window(size=L/4)),nope~logn",
        "window(size=300)|rope+alibi+window",
        "rope+window(size=L)",
    ):
        assert unparse(parse(line)) == line
    assert parse("window(size=L/8)+rope") == parse("rope+window")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("window(size=0)", "window: size=0 is below 1 token"),
        ("window(size=-3)", "window: size=-3 is below 1 token"),
        ("window(size=L/65)", "size=L/65 is below 1 token at a training length of 64; give a larger"),
        ("window(size=M/8)", "a share of the training length .L/8., not 'M/8'"),
        ("window(size=L/0)", "not 'L/0'"),
        ("window(size=half)", "not 'half'"),
        ("window(size=1.5)", "character 13: window: size cannot be '1.5'"),
        ("window(size=L/)", "window: size cannot be '.'"),
        ("window(size=99999999)", "a whole number of at most 16,777,216"),
        ("window+window", "a second window on the same heads"),
        ("nope~window", "'window' is no temperature"),
        ("rope+linear+window", "neither a bias nor a temperature nor a window: put them on softmax"),
    ],
)  # fmt: skip
def test_a_window_that_cannot_be_is_refused_in_one_line(line, words):
    with pytest.raises(ValueError, match=words) as caught:
        placed(line)
    assert "\n" not in str(caught.value)


def test_a_stretch_leaves_a_window_as_it_was_trained():
    scheme = parse("rope+alibi+window(size=L/8)|nope")
    for rule in ("yarn:4", "pi:4", "ntk:4", "abf:500000", "slopes:4", "dynamic:1"):
        further = extend_length(scheme, rule, length=4 * L, train_length=L)
        assert further != scheme
        assert further.place(**SHAPE).layers[0].window_N == (8, 8, None, None)
    with pytest.raises(ValueError, match="changes nothing in this scheme"):
        extend_length(parse("window"), "slopes:4", length=4 * L, train_length=L)


def test_reports_say_how_far_windows_let_heads_see():
    scheme = parse("rope+window(size=20)|alibi+window(size=300)|nope").place(
        **SHAPE | {"num_heads": 3}
    )
    params = analysis.initial_parameters(scheme, jax.random.key(0))
    heads = analysis.analyze_heads(scheme, params, 1000, (50.0,))[:3]
    assert [h.sight for h in heads] == [20, 300, None]
    assert [h.horizon[50.0] for h in heads] == [19, 299, 999]
    assert [h.blind["float32"] for h in heads] == [19, 299, None]
    assert heads[1].bias_over_L == pytest.approx(L * oracles.alibi_slopes(1)[0], rel=1e-5)
    said = analysis.scheme_warnings(heads, 1000, L)
    assert said[0].startswith("2 of 3 heads have a window of 20 to 300 tokens")
    assert not any(
        "cannot see past" in words for words in said
    )  # it is not the bias that ends them
    layer = scheme.layers[0]
    assert list(cutoff_windows(layer, {}, np.inf, 1000)) == [20, 300, 1000]
    assert list(cutoff_windows(layer, {}, 0.0, 1000)) == [20, 300, 1000]
    steep = parse("alibi(factor=0.001)+window(size=300)").place(**SHAPE).layers[0]
    assert cutoff_windows(steep, {}, 1.0, 1000).max() < 300


def test_a_portrait_is_blank_where_a_window_ends():
    scheme = parse("window(size=20)|rope+alibi+window(size=1)").place(**SHAPE)
    distance, grid = np.arange(100), np.arange(0, 128, 4)
    heads, arrays = scheme_arrays(scheme, [{}, {}], distance, grid)
    assert [h["window"] for h in heads[:4]] == [20, 20, 1, 1]
    assert [h["slope"] for h in heads[:4]] == [None, None, *np.float32(oracles.alibi_slopes(2))]
    shown = np.isfinite(arrays["bias_LNS"][0])
    np.testing.assert_array_equal(shown.sum(-1), [20, 20, 1, 1])
    away = grid[:, None] - grid[None, :]
    seen = np.isfinite(arrays["grid_bias_LNGG"][0])
    np.testing.assert_array_equal(seen[0], (away >= 0) & (away < 20))
    assert not sees_alike(arrays["grid_bias_LNGG"][0, :1])
    plain = scheme_arrays(parse("nope").place(**SHAPE), [{}, {}], distance, grid)[1]
    assert sees_alike(plain["grid_bias_LNGG"])
