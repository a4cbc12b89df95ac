"""One harness: every path of `attend` over every scheme, against the definition: result, gradients, twice."""

import dataclasses
import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.attention import (
    AttentionSettings,
    KernelConditions,
    OptionalInputs,
    TokenSide,
    attend,
    choose_implementation,
)
from posenc_jax.attention.blockwise.api import BlockwiseSettings
from posenc_jax.encodings import cumulative_log_forget

from support import oracles, schemes
from support.attention_inputs import qkv
from support.emulated_kernels import cudnn_by_xla

T, N, K, H = 72, 4, 2, 16
SEG = np.concatenate([np.zeros(3), np.ones(24), np.full(20, 4), np.full(20, 2), np.zeros(5)])
SEG = np.stack([SEG, np.ones(T)]).astype(np.int32)
POS = np.zeros_like(SEG)
for b, t in np.ndindex(2, T - 1):
    POS[b, t + 1] = POS[b, t] + 1 if SEG[b, t] == SEG[b, t + 1] else 0


@dataclasses.dataclass(frozen=True)
class Path:
    """A path as it is asked for; share: of the largest entry, by which results and gradients may differ."""

    implementation: str
    dtype: str
    share: float
    parallel_tiles: int | None = None


PATHS = {
    "blockwise": Path("blockwise", "float32", 1e-5),
    "blockwise, tiles side by side": Path("blockwise", "float32", 1e-5, parallel_tiles=5),
    "blockwise, bfloat16": Path("blockwise", "bfloat16", 0.02),
    "flash": Path("flash", "float32", 1e-5),  # emulated, as splash is
    "flash, bfloat16": Path("flash", "bfloat16", 0.02),
    "splash": Path("splash", "float32", 1e-5),  # emulated in float32; a TPU takes bfloat16
    # Both round q, k, v and the result to 8 bits; the fold adds less than that.
    "cudnn": Path("cudnn", "bfloat16", 0.03),
    "linear": Path("auto", "float32", 1e-5),
}


@pytest.fixture(autouse=True)
def small_and_emulated(monkeypatch, request):
    """Tiles smaller than a row, and cuDNN's call answered by XLA: the same function and arguments."""
    name = getattr(request.node, "callspec", None) and request.node.callspec.params["name"]
    parallel_tiles = PATHS[name].parallel_tiles if name else None
    tiled = functools.partial(BlockwiseSettings, blocks=(16, 24), parallel_tiles=parallel_tiles)
    module = sys.modules["posenc_jax.attention.attend"]  # the package has a function of that name
    monkeypatch.setattr(module, "BlockwiseSettings", tiled)

    def check(arguments, settings):
        assert settings["scale"] == 1.0
        assert settings["is_causal"]
        assert (
            arguments[0].shape[-1] == arguments[2].shape[-1] in (H + 8, 2 * H + 8)
        )  # one for all, as cuDNN asks

    cudnn_by_xla(monkeypatch, check)


layer_of = functools.partial(schemes.layer_of, model_dim=N * H, train_length=32)


def step_of(layer, implementation, window):
    """(result, gradients of q, k, v, ticks, what is learned and sinks, if any) as a jitted function."""

    def loss(arrays, aim):
        q, k, v, ticks, params, *sink = arrays
        clock = cumulative_log_forget(ticks, SEG) if layer.gated else None
        out = attend(
            q,
            k,
            v,
            layer,
            params,
            TokenSide(POS, SEG, clock),
            settings=AttentionSettings(aligned=True, window=window, implementation=implementation),
            optional=OptionalInputs(
                sink_N=sink[0] if sink else None, x_BTD=schemes.projected_from(layer, POS.shape)
            ),
        )
        return (out.astype(jnp.float32) * aim).sum(), out

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def arrays_of(layer, dtype):
    *arrays, gates = qkv(2, T, N, K, H, (2, T, N, H), (2, T, N))
    q, k, v, aim = (x.astype(dtype) for x in arrays)
    return (q, k, v, -jax.nn.softplus(gates), layer.init(jax.random.key(1))), aim


def served(layer, path):
    """Whether the path takes this scheme; a refusal has to be in words."""
    try:
        found = choose_implementation(
            layer,
            T,
            T,
            path.implementation,
            KernelConditions(head_dim=H, dtype=path.dtype),
            device="cpu",
        )
    except ValueError as error:
        if not re.search("cannot serve this layer: |linear attention takes", str(error)):
            raise
        return False
    return path.implementation != "auto" or found.name == "linear"


# One scheme for each way a bias is made; the first of each path stands at the head of CASES, two of them
# run by default. All others are slow tests, as each compiles its own gradients.
QUICK = {
    "blockwise": (
        "3*(rope+alibi)|1*nope~logn",
        "nope",
        "rope+alibi",
        "kerple_log",
        "t5",
        "fire",
        "forget",
        "nope~scale_invariant",
        "pope(start=uniform)+alibi&log~adaptive_ssmax|slopes&t5~scale_invariant",
    ),
    "blockwise, tiles side by side": (
        "3*(rope+alibi)|1*nope~logn",
        "rope+alibi",
        "kerple_log",
        "fire",
        "forget",
        "pope",
        "rope+window(size=5)|forget+window(size=12)~logn(clip=false)",
    ),
    "blockwise, bfloat16": ("rope+alibi",),
    "flash": ("alibi", "slopes", "rope+alibi(slopes=match)|nope~logn(clip=false)", "log", "pope"),
    "flash, bfloat16": ("rope+alibi",),
    "splash": ("alibi", "slopes", "3*(rope+alibi)|1*nope~logn", "window"),
    "cudnn": ("alibi", "slopes", "3*(rope+alibi)|1*nope~logn", "nope", "rope", "pope", "window"),
    "linear": ("linear",),
}


def tier(name, line):
    if line not in QUICK[name]:
        return pytest.mark.slow
    return () if line == QUICK[name][0] else pytest.mark.thorough


CASES = [
    pytest.param(name, line, marks=tier(name, line))
    for first in (True, False)
    for name, path in PATHS.items()
    for line in schemes.ALL
    if (line == QUICK[name][0]) == first and served(layer_of(line), path)
]


@pytest.mark.default_cases(2, thorough=7)
@pytest.mark.parametrize(("name", "line"), CASES)
def test_every_path_is_the_definition_and_repeats_itself(name, line):
    layer, path = layer_of(line), PATHS[name]
    arrays, aim = arrays_of(layer, path.dtype)
    step = step_of(layer, path.implementation, None)
    got, again = step(arrays, aim), step(arrays, aim)
    jax.tree.map(np.testing.assert_array_equal, got, again)
    want = step_of(layer, "dense", None)(arrays, aim)
    assert not jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), got, want))  # another program
    *tensors, learned = got[1]
    *wanted, wanted_learned = want[1]
    assert_near((got[0][1], tensors), (want[0][1], wanted), path.share, least=0.0)
    # A constant that a bias adds to all keys has no gradient: what is left of the sums is rounding. The
    # gradients of one part sum the same terms, so one whose terms cancel is as exact as the largest of the
    # part.
    for part, theirs in wanted_learned.items():
        largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(theirs))
        assert_near(learned[part], theirs, path.share, least=max(1.0, largest))


def assert_near(got, want, share, least):
    for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        theirs = np.asarray(theirs, np.float32)
        atol = share * max(np.abs(theirs).max(), least)
        np.testing.assert_allclose(np.asarray(mine, np.float32), theirs, rtol=0, atol=atol)


@pytest.mark.default_cases(1, thorough=2)
@pytest.mark.parametrize(
    "name", ["blockwise", "blockwise, tiles side by side", "flash", "splash", "cudnn"]
)
def test_every_path_keeps_a_window(name):
    layer, path = layer_of("rope+alibi"), PATHS[name]
    arrays, aim = arrays_of(layer, path.dtype)
    (_, got), _ = step_of(layer, path.implementation, 7)(arrays, aim)
    (_, want), _ = step_of(layer, "dense", 7)(arrays, aim)
    (_, whole), _ = step_of(layer, "dense", None)(arrays, aim)
    got, want, whole = (np.asarray(x, np.float32) for x in (got, want, whole))
    np.testing.assert_allclose(got, want, rtol=0, atol=path.share * np.abs(want).max())
    assert np.abs(whole - want).max() > 10 * np.abs(got - want).max()


SINKS = np.array([2.0, 0.0, -40.0, 6.0], np.float32)  # shares of a row from nothing to nearly all


def with_sinks(line, dtype):
    layer = layer_of(line)
    arrays, aim = arrays_of(layer, dtype)
    return layer, (*arrays, jnp.asarray(SINKS)), aim


@pytest.mark.default_cases(1, thorough=1)
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("blockwise", "3*(rope+alibi)|1*nope~logn"),
        ("blockwise, tiles side by side", "rope+alibi"),
        ("blockwise, bfloat16", "rope+alibi"),
        pytest.param(
            "flash", "rope+alibi(slopes=match)|nope~logn(clip=false)", marks=pytest.mark.thorough
        ),
        pytest.param("flash, bfloat16", "log", marks=pytest.mark.thorough),
        pytest.param("blockwise", "fire", marks=pytest.mark.slow),
        pytest.param("blockwise", "forget", marks=pytest.mark.slow),
        pytest.param("blockwise", "nope~scale_invariant", marks=pytest.mark.slow),
        pytest.param("blockwise, tiles side by side", "fire", marks=pytest.mark.slow),
    ],
)
def test_every_path_that_serves_a_sink_is_the_definition(name, line):
    path = PATHS[name]
    layer, arrays, aim = with_sinks(line, path.dtype)
    ((_, got), grads), ((_, want), wanted) = (
        step_of(layer, implementation, None)(arrays, aim)
        for implementation in (path.implementation, "dense")
    )
    ((_, without), _) = step_of(layer, "dense", None)(arrays[:5], aim)
    got, want, without = (np.asarray(x, np.float32) for x in (got, want, without))
    np.testing.assert_allclose(got, want, rtol=0, atol=path.share * np.abs(want).max())
    assert not got[SEG == 0].any()
    assert np.abs(without - want)[:, :, [0, 1, 3]].max((0, 1, 3)).min() > 0.1
    np.testing.assert_allclose(want[:, :, 2], without[:, :, 2], atol=1e-6)  # none, to 40 nats
    (*tensors, learned, sinks), (*others, others_learned, others_sinks) = grads, wanted
    assert_near(tensors, others, path.share, least=0.0)
    assert_near(learned, others_learned, path.share, least=1.0)
    assert_near(sinks, others_sinks, path.share, least=0.0)
    assert (np.abs(sinks)[[0, 1, 3]] > 1e-2).all()


def test_the_definition_with_a_sink_is_a_float64_loop_and_so_is_its_gradient():
    layer, (q, k, v, ticks, params, sinks), aim = with_sinks("rope+alibi", "float32")
    q, k, v, ticks, aim = (x[:1, 27:41] for x in (q, k, v, ticks, aim))  # inside of a document
    wide = [np.repeat(np.asarray(x[0], np.float64), N // K, axis=1) for x in (k, v)]
    turned = [
        np.stack([[oracles.rope_vector(x[t, n], t) for n in range(N)] for t in range(14)])
        for x in (np.asarray(q[0], np.float64), wide[0])
    ]
    slopes = oracles.alibi_slopes(N)

    def by_hand(sinks):
        return oracles.attention(
            *turned,
            wide[1],
            lambda n, i, j: -slopes[n] * (i - j),
            lambda i, j: j <= i,
            sink_N=sinks,
        )

    pos, seg = jnp.arange(14)[None], jnp.ones((1, 14), jnp.int32)

    @jax.jit
    def ours(sinks):
        return attend(
            q,
            k,
            v,
            layer,
            params,
            TokenSide(pos, seg),
            settings=AttentionSettings(implementation="dense"),
            optional=OptionalInputs(sink_N=sinks),
        )

    np.testing.assert_allclose(ours(sinks)[0], by_hand(SINKS.astype(np.float64)), atol=2e-6)
    slope_N = jax.grad(lambda s: (ours(s) * aim).sum())(sinks)
    for n in range(N):
        way = 1e-4 * np.eye(N)[n]
        ends = [(by_hand(SINKS + sign * way) * np.asarray(aim[0])).sum() for sign in (1, -1)]
        assert slope_N[n] == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-4, abs=1e-5)


def test_every_scheme_has_a_path_of_linear_memory():
    taken = {
        line: {name for name, path in PATHS.items() if served(layer_of(line), path)}
        for line in schemes.ALL
    }
    assert all({"blockwise", "linear"} & paths for paths in taken.values())
    assert all(("splash" in paths) == ("cudnn" in paths) for paths in taken.values())
    assert all(("flash" in paths) >= ("cudnn" in paths) for paths in taken.values())
