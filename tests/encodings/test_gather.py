"""Rows of a table: the gradient sums what every place of an id hands back, and on a GPU in one order."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.bench.plan import compile_target, compiled_step, mesh_shape, with_mesh
from posenc_jax.costs.hardware import HARDWARE
from posenc_jax.encodings.backend import assume_backend
from posenc_jax.encodings.gather import gather_rows, sum_rows_by_id
from posenc_jax.model.decoder import Decoder
from posenc_jax.training.loop import run_mesh
from posenc_jax.training.sharding import BATCH
from posenc_jax.training.step import make_step, state_builder

from support import runs

B, T, V, D = 8, 32, 40, 16


def drawn(seed=0, shape=(B, T)):
    """(ids, cotangents): of some ids many places, of others none, of some past the end."""
    rng = np.random.default_rng(seed)
    ids = np.minimum(rng.geometric(0.1, shape) - 1, V + 3).astype(np.int32)
    ids[ids == 5] = 6
    return ids, rng.standard_normal((*shape, D)).astype(np.float32)


def oracle(ids, d, size=V):
    """The sums in float64, one place after the other."""
    total = np.zeros((size, d.shape[-1]))
    for row, id_ in zip(d.reshape(-1, d.shape[-1]), ids.reshape(-1), strict=True):
        if id_ < size:
            total[id_] += row
    return total


def gradient(ids, d, device):
    def dot(table):
        return jnp.sum(jnp.where(d == 0, 0, gather_rows(table, ids, "fill") * d))

    with assume_backend(device):
        return jax.jit(jax.grad(dot))(jnp.ones((V, D)))


def test_the_gradient_of_a_row_is_the_sum_over_its_places():
    ids, d = drawn()
    assert np.bincount(ids.reshape(-1)).max() > 20
    assert (ids >= V).any()
    d[ids >= V] = 0  # what reads NaN is not multiplied
    want = oracle(ids, d)
    assert not want[5].any()
    for device in ("gpu", "cpu"):
        np.testing.assert_allclose(gradient(ids, d, device), want, atol=1e-5)


def test_ids_past_the_end_read_nan_and_give_nothing():
    ids, d = drawn()

    @jax.jit
    def both(table, d):
        rows, transpose = jax.vjp(lambda table: gather_rows(table, ids, "fill"), table)
        return rows, transpose(d)[0]

    with assume_backend("gpu"):
        rows, got = both(jnp.ones((V, D)), d)
    np.testing.assert_array_equal(np.isnan(rows), np.broadcast_to(ids[..., None] >= V, d.shape))
    np.testing.assert_allclose(got, oracle(ids, d), atol=1e-5)


def test_the_error_of_a_long_sum_grows_with_the_logarithm_of_its_length():
    rng = np.random.default_rng(1)
    d = rng.random((1 << 13, 1), np.float32)
    ids = rng.integers(0, 3, 1 << 13).astype(np.int32)
    want = oracle(ids, d, 3)
    got = jax.jit(sum_rows_by_id, static_argnums=2)(d, ids, 3)
    np.testing.assert_allclose(got, want, rtol=14 * 2**-24)
    one_by_one = np.cumsum(d[ids == 0], dtype=np.float32)[-1]
    assert abs(one_by_one / want[0, 0] - 1) > 14 * 2**-24  # a plain sum would be seen


def test_a_place_that_is_not_finite_spoils_the_row_of_its_id_alone():
    ids, d = drawn()
    d[0, 0] = np.inf
    summed = jax.jit(sum_rows_by_id, static_argnums=2)
    got = summed(d.reshape(-1, D), ids.reshape(-1), V)
    assert ids[0, 0] < V
    np.testing.assert_array_equal(np.isfinite(got).all(1), np.arange(V) != ids[0, 0])


def test_seeds_side_by_side_get_the_bits_of_each_alone():
    ids, d = map(np.stack, zip(*map(drawn, range(3)), strict=True))
    d[ids >= V] = 0
    together = jax.jit(jax.vmap(lambda i, d: gradient(i, d, "gpu")))(ids, d)
    alone = jax.jit(lambda i, d: gradient(i, d, "gpu"))
    np.testing.assert_array_equal(together, [alone(i, x) for i, x in zip(ids, d, strict=True)])


@pytest.mark.parametrize(
    "axes",
    [
        {"data": 2, "fsdp": 2, "sequence": 1, "model": 2},
        {"data": 1, "fsdp": 2, "sequence": 2, "model": 2},
        {"data": 1, "fsdp": 1, "sequence": 1, "model": 8},
        {"data": 8, "fsdp": 1, "sequence": 1, "model": 1},
    ],
    ids=str,
)
def test_on_a_mesh_the_sums_are_those_of_all_devices(axes):
    explicit = (jax.sharding.AxisType.Explicit,) * 4
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=explicit)
    ids, d = drawn()
    split, table = jax.P(("data", "fsdp"), "sequence"), jax.P(None, "model")

    def transposed(table_VD, ids_BT, d_BTD):
        rows_BTD, transpose = jax.vjp(lambda table: gather_rows(table, ids_BT, "fill"), table_VD)
        assert jax.typeof(rows_BTD).sharding.spec == jax.P(*split, "model")
        return transpose(d_BTD)[0]

    with jax.set_mesh(mesh), assume_backend("gpu"):
        placed = (
            jax.device_put(np.ones((V, D), np.float32), table),
            jax.device_put(ids, split),
            jax.device_put(d, jax.P(*split, "model")),
        )
        got = jax.jit(transposed)(*placed)
        text = jax.jit(transposed).lower(*placed).compile().as_text()
    assert got.sharding.spec == table
    np.testing.assert_allclose(got, oracle(ids, d), atol=1e-5)
    assert not re.search(r" (all-gather|all-to-all|collective-permute)(-start)?\(", text)


@pytest.mark.parametrize("device", ["gpu", "cpu", "tpu"])
def test_only_a_gpu_sorts_and_only_elsewhere_rows_are_scattered(device):
    ids, d = drawn()
    with assume_backend(device):
        jaxpr = str(jax.make_jaxpr(lambda d: gradient(ids, d, device))(d))
    sorts, scatters = " sort[" in jaxpr, " scatter-add[" in jaxpr
    assert (sorts, scatters) == (device == "gpu", device != "gpu")


def stepped(config, device):
    """(loss, gradient norm) of two steps, the parameters that they leave, and the program."""
    mesh = run_mesh(config)
    decoder = Decoder(config.model_config(260))
    rng = np.random.default_rng(0)
    dims = (config.train.accumulation, 8 // config.train.accumulation, 16)
    tokens = rng.integers(0, 9, dims, dtype=np.int32)
    ones = np.ones(dims, np.int32)
    batch = {
        "tokens_BT": tokens,
        "targets_BT": tokens[..., ::-1],
        "segments_BT": ones,
        "positions_BT": np.broadcast_to(np.arange(16, dtype=np.int32), dims),
        "weights_BT": ones.astype(np.float32),
    }
    context = assume_backend(device) if device else contextlib.nullcontext()
    with jax.set_mesh(mesh), context:
        state = state_builder(config, decoder, mesh)[0](jax.random.key(0))
        batch = jax.device_put(batch, jax.NamedSharding(mesh, BATCH))
        step = make_step(config, decoder)
        lowered = step.lower(state, batch).as_text()
        found = []
        for _ in range(2):
            state, metrics = step(state, batch)
            found.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return found, jax.device_get(state["params"]), lowered


@pytest.mark.thorough
def test_a_step_for_a_gpu_is_that_of_a_cpu_up_to_rounding(tmp_path):
    split = {"data_devices": 2, "fsdp_devices": 2, "model_devices": 2}
    config = runs.config(
        tmp_path,
        "learned+alibi",
        model={"attention": "dense", "num_layers": 1},
        train={"accumulation": 2, "length": 16} | split,
        optimizer={"epsilon": 1e-3},
    )
    want, params, plain = stepped(config, None)
    got, ordered, text = stepped(config, "gpu")
    assert "stablehlo.scatter" in plain
    assert "stablehlo.scatter" not in text
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(ordered), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-6)


@pytest.mark.aot
@pytest.mark.filterwarnings("ignore")  # of the compilers, about a machine without their chips
@pytest.mark.parametrize(
    ("line", "attention", "shape"),
    [
        ("rope+alibi", "auto", "data:1"),
        ("rope+alibi", "cudnn", "data:1"),
        ("learned+t5", "blockwise", "data:1"),
        ("learned+alibi", "cudnn", "data:2,model:2"),
    ],
)
def test_no_sum_of_a_step_for_an_h100_depends_on_what_arrives_first(
    line, attention, shape, tmp_path
):
    chip, shape = HARDWARE["h100"], mesh_shape(shape)
    if chip.install_hint:
        pytest.skip(chip.install_hint)
    model = {"model_dim": 256, "num_heads": 4, "num_layers": 2}
    config = runs.config(
        tmp_path,
        line,
        model=model | {"dtype": "bfloat16", "attention": attention},
        train={"length": 1024, "batch_size": 8},
    )
    step, _ = compiled_step(
        with_mesh(config, shape), config.model_config(260), compile_target(chip, shape, None)
    )
    lines = step.as_text().splitlines()
    scatters = [s for s in lines if re.search(r" (select-and-)?scatter\(", s)]
    assert [s for s in scatters if "unique_indices=true" not in s] == []
    assert any(" sort(" in s or "cub" in s for s in lines)  # the rows were put in order


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
def test_on_a_gpu_the_sums_are_the_same_bits_every_time():
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 16, (64, 512)).astype(np.int32)
    d = rng.standard_normal((64, 512, 256)).astype(np.float32)

    @jax.jit
    def summed(table_VD, d_BTD):
        return jax.vjp(lambda table: gather_rows(table, ids, "fill"), table_VD)[1](d_BTD)[0]

    table = jnp.zeros((16, 256))
    first = np.asarray(summed(table, d))
    want = np.stack([d[ids == id_].astype(np.float64).sum(0) for id_ in range(16)])
    np.testing.assert_allclose(first, want, atol=1e-3)
    for _ in range(20):
        np.testing.assert_array_equal(summed(table, d), first)
