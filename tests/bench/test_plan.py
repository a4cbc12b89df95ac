"""Plans of a step for hardware that is not here: memory, time, meshes, refusals."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configs import large
from posenc_jax.bench.peak_memory import peak_bytes
from posenc_jax.bench.plan import (
    ARRAYS,
    compile_target,
    compiled_step,
    mesh_shape,
    plan_step,
    planned_vocabulary,
    with_mesh,
)
from posenc_jax.bench.plan_table import summary, table
from posenc_jax.costs import flops
from posenc_jax.costs.hardware import HARDWARE
from posenc_jax.model.decoder import Decoder
from posenc_jax.training.config import from_sections
from posenc_jax.training.sharding import BATCH
from posenc_jax.training.step import state_builder

from support import runs

# ------------------------------------------------------------------------------------------ whole plans


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny plan by the CPU's compiler: config, target and row."""
    config = runs.config(tmp_path_factory.mktemp("data"), "rope+alibi")
    shape = mesh_shape("data:4,model:2")
    config = with_mesh(config, shape)
    chip = dataclasses.replace(HARDWARE["v5e"], platform="none")
    where = compile_target(chip, shape, "2x4")
    assert where.estimate
    return config, where, plan_step(config, planned_vocabulary(config), where)


@pytest.mark.thorough
def test_arguments_are_the_state_and_the_batch_that_a_device_holds(tiny):
    config, where, row = tiny
    with jax.set_mesh(where.mesh):
        build, _ = state_builder(config, Decoder(config.model_config(260)), where.mesh)
        state = build(jax.random.key(0))
    first = where.mesh.devices.flat[0]
    held = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(state)
        for shard in leaf.addressable_shards
        if shard.device == first
    )
    batch = 5 * 4 * config.train.batch_size // 4 * config.train.length
    assert row["memory"]["arguments"] == held + batch
    assert row["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(state["params"]))


def test_the_step_takes_at_least_the_longest_of_its_three_terms(tiny):
    _, where, row = tiny
    seconds, chip = row["seconds"], where.chip
    assert seconds["step"] == max(seconds[term] for term in ("compute", "memory", "network"))
    assert seconds[row["bound_by"]] == seconds["step"]
    flops_per_second = 8 * chip.flops_per_second
    assert seconds["compute"] == row["flops_executed"]["total"] / flops_per_second
    assert seconds["memory"] == row["memory_traffic_bytes"] / chip.memory_bytes_per_second
    sent = sum(kind["sent_bytes"] for kind in row["collectives"].values())
    assert math.isclose(seconds["network"], sent / chip.axis_bytes_per_second)
    assert sent > 0
    needed = row["flops_needed"]["total"]
    assert math.isclose(row["mfu"] * seconds["step"] * flops_per_second, needed)
    assert row["mfu"] <= 1


@pytest.mark.thorough
def test_traffic_is_at_least_arguments_in_and_state_out(tiny):
    _, _, row = tiny
    assert row["memory_traffic_bytes"] > 2 * row["memory"]["arguments"]


def test_a_plan_reads_well_and_says_that_it_is_an_estimate(tiny):
    _, _, row = tiny
    assert json.loads(json.dumps(row)) == row
    text = summary(row)
    assert "by the CPU's, so its memory is an estimate, probably too high" in text
    assert "data 4, model 2" in text
    assert "all-reduce" in text
    assert "one by one, remat none; loss over the vocabulary at once" in text
    assert len(table([row, row]).splitlines()) == 4


@pytest.mark.slow
def test_the_planned_memory_of_a_step_is_within_a_tenth_of_what_it_takes(tmp_path):
    config = runs.config(
        tmp_path,
        "rope+alibi",
        model={"model_dim": 256, "mlp_dim": 1024, "num_layers": 4},
        train={"length": 256, "batch_size": 32},
    )
    shape = mesh_shape("data:1")
    config = with_mesh(config, shape)
    where = compile_target(dataclasses.replace(HARDWARE["v5e"], platform="none"), shape, None)
    memory = plan_step(config, 260, where)["memory"]
    step, _ = compiled_step(config, config.model_config(260), where)
    with jax.set_mesh(where.mesh):
        state = state_builder(config, Decoder(config.model_config(260)), where.mesh)[0](
            jax.random.key(0)
        )
        batch = batch_of_ones(config, where.mesh)
        state, _ = step(state, batch)
        taken = peak_bytes(lambda: step(state, batch))
    assert memory["temporaries"] > 100e6  # pages and the allocator's own are small beside it
    assert math.isclose(taken, memory["temporaries"] + memory["results"], rel_tol=0.1)


def batch_of_ones(config, mesh):
    """A batch as the step takes it, on the mesh."""
    shape = (1, config.train.batch_size, config.train.length)
    layout = jax.NamedSharding(mesh, BATCH)
    return {name: jax.device_put(np.ones(shape, kind), layout) for name, kind in ARRAYS.items()}


# -------------------------------------------------------------------------------------------- the door


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dta:4", "no axis 'dta'; did you mean 'data"),
        ("rows:4", "no axis 'rows'; known: data"),
        ("data:4,data:2", "data is given twice"),
        ("data:0", "data needs a number of devices"),
        ("data", "data needs a number of devices"),
        ("", "no axis ''"),
    ],
)
def test_a_mesh_that_cannot_be_read_is_named(text, says):
    with pytest.raises(ValueError, match="--mesh") as error:
        mesh_shape(text)
    assert says in str(error.value)


def test_an_axis_that_no_run_can_have_is_refused(tmp_path):
    shape = mesh_shape("data:2,fsdp:4")
    planned = with_mesh(runs.config(tmp_path, train={"fsdp_devices": 2}), shape).train
    assert (planned.data_devices, planned.fsdp_devices, planned.model_devices) == (2, 4, 1)
    with pytest.raises(ValueError, match=r"config\.train has no spare_devices"):
        with_mesh(runs.config(tmp_path), {**shape, "spare": 2})


@pytest.mark.thorough
def test_a_sequence_axis_is_planned(tmp_path):
    shape = mesh_shape("sequence:2")
    train = {"length": 512, "batch_size": 1}
    config = with_mesh(runs.config(tmp_path, "alibi", model={"num_layers": 1}, train=train), shape)
    chip = dataclasses.replace(HARDWARE["v5e"], platform="none")
    row = plan_step(config, 260, compile_target(chip, shape, "1x2"))
    assert row["mesh"] == {"sequence": 2}
    assert row["attention"] == [
        "blockwise (tokens of a row lie on 2 devices: keys go around a ring up to the cut-off)"
    ]
    assert row["collectives"]["collective-permute"]["sent_bytes"] > 0
    model = dataclasses.replace(config.model_config(260), dtype="bfloat16")
    alone, ring = (
        flops.hardware_flops(model, 1, 512, "gpu", sequence=sequence).attention
        for sequence in (1, 2)
    )
    blocks = dataclasses.replace(model, attention="blockwise")
    assert alone != ring == flops.hardware_flops(blocks, 1, 512, "gpu").attention


def test_a_mesh_must_multiply_to_the_topology_and_divide_the_model(tmp_path):
    shape = mesh_shape("data:4,model:2")
    with pytest.raises(
        ValueError, match=r"--mesh asks for 8 devices \(data 4 x model 2\); 4x4 has 16"
    ):
        compile_target(HARDWARE["v5e"], shape, "4x4")
    chip = dataclasses.replace(HARDWARE["v5e"], platform="none")
    config = runs.config(tmp_path, "rope", model={"num_heads": 3, "head_dim": 8})
    with pytest.raises(ValueError, match=r"model\.num_heads=3 does not divide over 2"):
        plan_step(with_mesh(config, shape), 260, compile_target(chip, shape, None))
    config = runs.config(tmp_path, "rope", train={"batch_size": 6})
    with pytest.raises(ValueError, match="6 rows do not divide over 4"):
        plan_step(with_mesh(config, shape), 260, compile_target(chip, shape, None))
    config = runs.config(tmp_path, "rope", model={"attention": "splash"})
    with pytest.raises(ValueError, match=r"splash is compiled for the chip alone; .*pip install"):
        plan_step(with_mesh(config, shape), 260, compile_target(chip, shape, None))


@pytest.mark.parametrize("size", large.SIZES)
def test_large_configurations_have_the_size_that_they_are_called_by(size):
    config = from_sections(large.get_config(f"{size},3*(rope+alibi),nope~logn").to_dict())
    assert config.model.scheme == "3*(rope+alibi),nope~logn"
    assert config.train.scan_layers
    vocab_size = planned_vocabulary(config)
    assert vocab_size == 50_304
    decoder = Decoder(config.model_config(vocab_size))
    ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    params = jax.eval_shape(decoder.init, jax.random.key(0), ids, ids, ids)["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert math.isclose(count / 1e9, {"1.3b": 1.361, "7b": 6.89}[size], rel_tol=5e-3)
    with pytest.raises(ValueError, match=r"sizes 1\.3b, 7b, not '13b'"):
        large.get_config("13b")


# ------------------------------------------------------------------------------------------ real chips


@pytest.mark.aot
@pytest.mark.filterwarnings("ignore")  # of the compilers, about a machine without their chips
@pytest.mark.parametrize(("name", "kernel"), [("v5e", "splash"), ("h100", "flash")])
def test_a_step_is_compiled_for_a_chip_with_its_own_kernel(name, kernel, tmp_path):
    chip = HARDWARE[name]
    if chip.install_hint:
        pytest.skip(chip.install_hint)
    shape = mesh_shape("data:2,model:2")
    config = runs.config(
        tmp_path,
        "rope+alibi",
        model={"dtype": "bfloat16", "model_dim": 256, "num_heads": 4},
        train={"length": 1024},
    )
    row = plan_step(with_mesh(config, shape), 260, compile_target(chip, shape, None))
    assert row["compiler"] == "the chip's own"
    assert row["attention"][0].startswith(kernel)
    assert row["memory"]["fits"]
    assert {"all-reduce", "all-gather"} <= set(row["collectives"])
    mesh = compile_target(chip, shape, None)
    call = {"splash": "tpu_custom_call", "flash": "__gpu$xla.gpu.triton"}[kernel]
    text = compiled_step(with_mesh(config, shape), config.model_config(260), mesh)[0].as_text()
    assert call in text


@pytest.mark.aot
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "forward"), [("v5e", "splash_mha_fwd"), ("h100", 'name = "forward_kernel"')]
)
def test_a_kernel_runs_twice_only_under_full_remat(name, forward, tmp_path):
    chip = HARDWARE[name]
    if chip.install_hint:
        pytest.skip(chip.install_hint)
    where = compile_target(chip, mesh_shape("data:1"), None)
    times = {}
    for remat in ("attention", "full"):
        config = runs.config(
            tmp_path,
            "rope+alibi",
            model={"dtype": "bfloat16", "model_dim": 256, "num_heads": 2, "num_layers": 2},
            train={"length": 1024, "batch_size": 1, "scan_layers": True, "remat": remat},
        )
        config = with_mesh(config, mesh_shape("data:1"))
        text = compiled_step(config, config.model_config(260), where)[0].as_text()
        calls = [line for line in text.splitlines() if "custom-call(" in line and forward in line]
        times[remat] = len(calls)
    assert times == {"attention": 1, "full": 2}


@pytest.mark.aot
@pytest.mark.filterwarnings("ignore")
def test_a_step_that_does_not_fit_and_a_slice_that_is_not_sold_are_said_in_a_line(tmp_path):
    chip = HARDWARE["v5e"]
    if chip.install_hint:
        pytest.skip(chip.install_hint)
    shape = mesh_shape("data:1")
    config = runs.config(
        tmp_path, "nope", model={"num_layers": 1}, train={"length": 1024, "batch_size": 512}
    )
    with pytest.raises(ValueError, match=r"does not fit on v5e: .*HBM"):
        plan_step(with_mesh(config, shape), 50_304, compile_target(chip, shape, None))
    with pytest.raises(ValueError, match="v5e has no slice 1x2"):
        compile_target(chip, mesh_shape("data:2"), "1x2")


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
def test_on_a_gpu_the_planned_peak_is_within_a_tenth_of_what_it_reports(tmp_path):
    config = runs.config(
        tmp_path,
        "rope+alibi",
        model={"dtype": "bfloat16", "model_dim": 1024, "num_heads": 8, "num_layers": 8},
        train={"length": 1024, "batch_size": 16},
    )
    shape = mesh_shape("data:1")
    config, device = with_mesh(config, shape), jax.devices()[0]
    mesh = jax.make_mesh(
        tuple(shape.values()),
        tuple(shape),
        devices=[device],
        axis_types=(jax.sharding.AxisType.Explicit,) * len(shape),
    )
    here = compile_target(HARDWARE["h100"], shape, "1x1")._replace(mesh=mesh, platform="cuda")
    step, _ = compiled_step(config, config.model_config(260), here)
    planned = plan_step(config, 260, here)["memory"]["peak"]
    with jax.set_mesh(mesh):
        state = state_builder(config, Decoder(config.model_config(260)), mesh)[0](jax.random.key(0))
        jax.block_until_ready(step(state, batch_of_ones(config, mesh)))
    assert math.isclose(device.memory_stats()["peak_bytes_in_use"], planned, rel_tol=0.1)
