"""Plans: FLOPs against loops and XLA, collectives of known size, memory against what a step really takes."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import runs

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
from posenc_jax.costs import flops, hlo
from posenc_jax.costs.collectives import collectives, replica_groups
from posenc_jax.costs.hardware import HARDWARE, default_topology, find_hardware
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder
from posenc_jax.model.layer_stack import LayerExecution
from posenc_jax.training.config import from_sections
from posenc_jax.training.sharding import BATCH
from posenc_jax.training.step import state_builder

SHAPE = {
    "vocab_size": 7, "train_length": 6, "num_layers": 3, "model_dim": 8, "num_heads": 4,
    "num_kv_heads": 2, "head_dim": 4, "mlp_dim": 10, "activation": "swiglu", "qk_norm": False,
    "tied_head": True, "embedding_scale": 1.0, "norm_epsilon": 1e-6, "dtype": "float32",
    "attention": "dense",
}  # fmt: skip


def model(scheme="rope", **changes):
    return ModelConfig(scheme=scheme, **{**SHAPE, **changes})


# ----------------------------------------------------------------------------------------------- FLOPs


def counted_by_hand(c, rows, length, window=None):
    """Multiplications and additions of the matrix products of one step, token by token and pair by pair."""
    total = dict.fromkeys(("projections", "mlp", "attention", "head"), 0.0)
    matrices = 3 if c.activation == "swiglu" else 2
    for _row in range(rows):
        for query in range(length):
            total["head"] += 2 * c.vocab_size * c.model_dim
            for _layer in range(c.num_layers):
                for heads in (c.num_heads, c.num_kv_heads, c.num_kv_heads, c.num_heads):
                    total["projections"] += 2 * c.model_dim * heads * c.head_dim
                total["mlp"] += matrices * 2 * c.model_dim * c.mlp_dim
                for key in range(query + 1):
                    if window is None or query - key < window:
                        total["attention"] += c.num_heads * (2 * c.head_dim + 2 * c.head_dim)
    return {
        name: 3 * n for name, n in total.items()
    }  # backward: by each of a product's two factors


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@pytest.mark.parametrize("window", [None, 4])
def test_flops_are_those_counted_token_by_token(activation, window):
    c = model(activation=activation, window=window)
    assert dataclasses.asdict(flops.model_flops(c, 2, 6)) == counted_by_hand(c, 2, 6, window)


@pytest.mark.parametrize("remat", ["none", "dots", "attention", "full"])
@pytest.mark.parametrize("untied", [False, True])
def test_flops_are_near_what_xla_counts_of_a_model_without_loops(untied, remat):
    c = model(vocab_size=512, model_dim=128, num_heads=4, num_kv_heads=4, head_dim=32, mlp_dim=512,
              tied_head=not untied)  # fmt: skip
    decoder, rows, length = Decoder(c, execution=LayerExecution(remat=remat)), 2, 64
    ids = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    params = jax.eval_shape(decoder.init, jax.random.key(0), ids, ids, ids)

    def loss(params, tokens, pos, seg):
        return jax.nn.logsumexp(decoder.apply(params, tokens, pos, seg)[0], axis=-1).sum()

    text = jax.jit(jax.value_and_grad(loss)).lower(params, ids, ids, ids)
    counted = text.cost_analysis()["flops"]
    ours = flops.hardware_flops(c, rows, length, "cpu", remat=remat).total
    assert ours <= counted <= 1.1 * ours  # XLA counts norms, rotations and softmax as well


def test_what_is_made_again_is_counted_again_and_a_kernel_that_keeps_its_result_is_not():
    for attention, keeps in (("dense", False), ("blockwise", True)):
        c = model(attention=attention)
        plain, dots, kept, full = (
            flops.hardware_flops(c, 2, 6, "cpu", remat=r)
            for r in ("none", "dots", "attention", "full")
        )
        forward = plain.attention * (1 / 3 if attention == "dense" else 2 / 7)
        assert full.attention == pytest.approx(plain.attention + forward)
        assert dots.attention == kept.attention == (plain if keeps else full).attention
        assert (dots.projections, dots.mlp) == (plain.projections, plain.mlp)
        for made_again in (kept, full):
            assert made_again.projections == 4 / 3 * plain.projections
            assert made_again.mlp == pytest.approx(
                (3 + 2 / 3) / 3 * plain.mlp
            )  # up and gate, not down
        twice = flops.hardware_flops(c, 2, 6, "cpu", head_again=True)
        assert twice == dataclasses.replace(plain, head=4 / 3 * plain.head)


def test_devices_that_each_project_to_all_key_heads_count_them_each():
    c = model()
    alone, copied = (flops.hardware_flops(c, 2, 6, "cpu", key_copies=n) for n in (1, 4))
    assert alone.projections == counted_by_hand(c, 2, 6)["projections"]
    keys_and_values = 2 * 6 * 3 * 2 * 2 * 8 * 2 * 4  # rows, tokens, layers; two matrices of D, K, H
    assert copied == dataclasses.replace(alone, projections=alone.projections + 3 * 3 * keys_and_values)  # fmt: skip


def test_dense_attention_multiplies_every_pair_and_blocks_those_of_their_tiles():
    dense, blocks = model(), model(attention="blockwise")
    assert flops.hardware_flops(dense, 1, 6, "cpu").attention == 3 * 3 * 4 * 4 * 4 * 6 * 6
    tiles = (
        3 * 4 * (7 / 2) * 4 * 4 * 6 * 6
    )  # one tile; backward makes the logits again: 5 products for 2
    assert flops.hardware_flops(blocks, 1, 6, "cpu").attention == tiles


def test_tiles_are_those_that_hold_a_pair_in_reach():
    for length, reach, q_block, k_block in ((64, 64, 16, 8), (64, 10, 16, 8), (128, 1, 32, 32), (96, 40, 32, 16)):  # fmt: skip
        held = {
            (q // q_block, k // k_block)
            for q in range(length) for k in range(q + 1) if q - k < reach
        }  # fmt: skip
        assert flops.tile_pairs(length, reach, q_block, k_block) == len(held) * q_block * k_block


def test_a_steep_bias_ends_the_work_of_its_heads_and_a_kernel_with_a_fold_pays_for_its_columns():
    shape = {"attention": "blockwise", "train_length": 4096, "qk_norm": True, "head_dim": 64,
             "num_heads": 8, "num_kv_heads": 8, "dtype": "bfloat16"}  # fmt: skip
    flat, steep = (
        flops.hardware_flops(model(s, **shape), 1, 4096, "cpu") for s in ("rope", "rope+alibi")
    )
    assert steep.attention < 0.8 * flat.attention
    assert flops.model_flops(model("rope", **shape), 1, 4096) == flops.model_flops(model("rope+alibi", **shape), 1, 4096)  # fmt: skip
    # Side by side on a GPU: seven products a pair in all backward, not five, and tiles of 512 x 512.
    c = model("rope", **shape)
    pairs = 3 * 8 * flops.tile_pairs(4096, 4096, 512, 512)
    assert flops.hardware_flops(c, 1, 4096, "gpu").attention == pairs * 2 * 64 * (2 + 7)
    for device, kernel, columns in (("gpu", "cudnn", 72), ("tpu", "splash", 128)):
        c = model("rope+alibi", **shape | {"attention": kernel})
        pairs = (
            3 * 8 * flops.tile_pairs(4096, 4096, *((128, 128) if device == "gpu" else (512, 512)))
        )
        values = 72 if device == "gpu" else 64
        again = 3 * 2 * columns + 2 * 2 * values if device == "gpu" else 4 * 2 * columns + 3 * 2 * values  # fmt: skip
        want = pairs * (2 * columns + 2 * values + again)
        assert flops.hardware_flops(c, 1, 4096, device).attention == want
    ours = [model(s, **shape | {"attention": "flash"}) for s in ("rope", "rope+alibi")]
    flat, steep = (flops.hardware_flops(c, 1, 4096, "gpu").attention for c in ours)
    assert flat == 3 * 8 * flops.tile_pairs(4096, 4096, 128, 64) * 2 * 64 * (2 + 7)
    assert steep < 0.8 * flat


# ----------------------------------------------------------------------------------------- collectives


def said(function, *shapes, specs, out, devices=8):
    """The collectives of a function compiled for eight CPU devices in one line."""
    mesh = jax.make_mesh((devices,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=jax.NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    ]
    local = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
    with jax.set_mesh(mesh):
        text = jax.jit(local).lower(*arguments).compile().as_text()
    return collectives(hlo.parse_hlo(text), devices, host_devices=4)


def test_a_sum_over_devices_is_one_all_reduce_of_its_bytes():
    (found,) = said(lambda x: jax.lax.psum(x, "x"), (8, 100), specs=(jax.P("x", None),), out=jax.P(None, None))  # fmt: skip
    assert found == ("all-reduce", 1, 400.0, 8, True)
    assert found.sent == 2 * 7 / 8 * 400


def test_a_gather_in_a_loop_of_five_counts_five_times():
    def gathered(x_in):
        def body(total, _):
            return total + jax.lax.all_gather(total[:2], "x", tiled=True), None

        return jax.lax.scan(body, x_in, None, length=5)[0]

    (found,) = said(gathered, (16, 25), specs=(jax.P(None, None),), out=jax.P(None, None))
    assert found == ("all-gather", 5, 16 * 25 * 4.0, 8, True)
    assert found.sent == 5 * 7 / 8 * 1600


def test_scattered_sums_exchanges_and_shifts_are_told_apart():
    spec = (jax.P("x", None),)
    (scatter,) = said(lambda x: jax.lax.psum_scatter(x, "x", tiled=True), (64, 10), specs=spec, out=spec[0])  # fmt: skip
    assert scatter == ("reduce-scatter", 1, 8 * 10 * 4.0, 8, True)
    assert scatter.sent == 7 / 8 * 320
    (exchange,) = said(lambda x: jax.lax.all_to_all(x, "x", 0, 0), (64, 10), specs=spec, out=spec[0])  # fmt: skip
    assert (exchange.kind, exchange.payload, exchange.sent) == ("all-to-all", 320.0, 280.0)
    ring = [(i, i ^ 1) for i in range(8)]
    (shift,) = said(lambda x: jax.lax.ppermute(x, "x", ring), (64, 10), specs=spec, out=spec[0])
    assert (shift.kind, shift.sent, shift.across) == ("collective-permute", 320.0, False)


def test_a_group_inside_a_host_uses_the_links_between_its_chips():
    groups = [[0, 1, 2, 3], [4, 5, 6, 7]]
    spec = jax.P("x", None)
    (near,) = said(lambda x: jax.lax.psum(x, "x", axis_index_groups=groups), (8, 100), specs=(spec,), out=spec)  # fmt: skip
    assert (near.group, near.across) == (4, False)


def test_groups_are_read_in_every_form_that_xla_writes():
    forms = {
        "{{0,1},{2,3}}, x": [[0, 1], [2, 3]],
        "{}, x": [[0, 1, 2, 3, 4, 5, 6, 7]],
        "[4,2]<=[8], x": [[0, 1], [2, 3], [4, 5], [6, 7]],
        "[2,4]<=[4,2]T(1,0), x": [[0, 2, 4, 6], [1, 3, 5, 7]],
        "mesh['a'=2,'b'=4] {'b'}, x": [[0, 1, 2, 3], [4, 5, 6, 7]],
        "mesh['a'=2,'b'=4] {'a'}, x": [[0, 4], [1, 5], [2, 6], [3, 7]],
        "mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}, x": [[0, 1], [2, 3], [4, 5], [6, 7]],
        "mesh['a'=2], device_ids=(1,0) {'a'}, x": [[1, 0]],
        "mesh['a'=8] {'a':(2)2}, x": [[0, 2], [1, 3], [4, 6], [5, 7]],
    }
    for text, want in forms.items():
        assert replica_groups(f"channel_id=1, replica_groups={text}", 8).tolist() == want
    with pytest.raises(ValueError, match="unknown form"):
        replica_groups("replica_groups=all of them", 8)


# -------------------------------------------------------------------------------------- memory traffic


def test_traffic_is_what_instructions_read_and_write_and_slices_what_they_cut():
    text = """HloModule m

%cut (p.0: f32[10,100], p.1: s32[]) -> f32[1,100] {
  %p.0 = f32[10,100]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = f32[1,100]{1,0} dynamic-slice(%p.0, %p.1, %zero), dynamic_slice_sizes={1,100}
}

%body (c: (s32[], f32[10,100], f32[1,100])) -> (s32[], f32[10,100], f32[1,100]) {
  %c = (s32[], f32[10,100]{1,0}, f32[1,100]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %table = f32[10,100]{1,0} get-tuple-element(%c), index=1
  %row = f32[1,100]{1,0} fusion(%table, %i), kind=kLoop, calls=%cut
  ROOT %next = (s32[], f32[10,100]{1,0}, f32[1,100]{1,0}) tuple(%i, %table, %row)
}

%condition (c: (s32[], f32[10,100], f32[1,100])) -> pred[] {
  %c.1 = (s32[], f32[10,100]{1,0}, f32[1,100]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%c.1), index=0
  %ten = s32[] constant(10)
  ROOT %less = pred[] compare(%i.1, %ten), direction=LT
}

ENTRY %main (a: f32[10,100], b: f32[100,7]) -> f32[10,7] {
  %a = f32[10,100]{1,0} parameter(0)
  %b = f32[100,7]{1,0:T(8,128)S(1)} parameter(1)
  %zero.1 = s32[] constant(0)
  %start = f32[1,100]{1,0} broadcast(%zero.1), dimensions={}
  %init = (s32[], f32[10,100]{1,0}, f32[1,100]{1,0}) tuple(%zero.1, %a, %start)
  %loop = (s32[], f32[10,100]{1,0}, f32[1,100]{1,0}) while(%init), condition=%condition, body=%body
  ROOT %dot = f32[10,7]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
    read = hlo.parse_hlo(text)
    row, index = 400, 4
    broadcast = row + index
    product = 4000 + 280  # its other factor lies on the chip
    assert hlo.memory_traffic(read) == broadcast + 10 * (row + row + index) + product
    assert hlo.executed_instructions(read)[1] == 0
    unknown = text.replace("direction=LT", "direction=NE")
    assert hlo.executed_instructions(hlo.parse_hlo(unknown))[1] == 1


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


def test_arguments_are_the_state_and_the_batch_that_a_device_holds(tiny):
    config, where, row = tiny
    with jax.set_mesh(where.mesh):
        build, _ = state_builder(config, Decoder(config.model_config(260)), where.mesh)
        state = build(jax.random.key(0))
    first = where.mesh.devices.flat[0]
    held = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards
        if shard.device == first
    )  # fmt: skip
    batch = 5 * 4 * config.train.batch_size // 4 * config.train.length
    assert row["memory"]["arguments"] == held + batch
    assert row["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(state["params"]))


def test_the_step_takes_at_least_the_longest_of_its_three_terms(tiny):
    _, where, row = tiny
    seconds, chip = row["seconds"], where.chip
    assert seconds["step"] == max(seconds[term] for term in ("compute", "memory", "network"))
    assert seconds[row["bound_by"]] == seconds["step"]
    assert seconds["compute"] == row["flops_executed"]["total"] / 8 / chip.flops
    assert seconds["memory"] == row["memory_traffic_bytes"] / chip.bandwidth
    sent = sum(kind["sent_bytes"] for kind in row["collectives"].values())
    assert math.isclose(seconds["network"], sent / chip.interconnect)
    assert sent > 0
    assert math.isclose(row["mfu"] * seconds["step"] * 8 * chip.flops, row["flops_needed"]["total"])
    assert row["mfu"] <= 1


def test_traffic_is_at_least_arguments_in_and_state_out(tiny):
    _, _, row = tiny
    assert row["memory_traffic_bytes"] > 2 * row["memory"]["arguments"]


def test_a_plan_reads_well_and_says_that_it_is_an_estimate(tiny):
    _, _, row = tiny
    assert json.loads(json.dumps(row)) == row
    text = summary(row)
    assert "by the CPU's, an upper bound of memory" in text
    assert "data 4, model 2" in text
    assert "all-reduce" in text
    assert "one by one, remat none; loss over the vocabulary at once" in text
    assert len(table([row, row]).splitlines()) == 4


@pytest.mark.slow
def test_the_planned_memory_of_a_step_is_within_a_tenth_of_what_it_takes(tmp_path):
    config = runs.config(
        tmp_path, "rope+alibi", model={"model_dim": 256, "mlp_dim": 1024, "num_layers": 4},
        train={"length": 256, "batch_size": 32},
    )  # fmt: skip
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


def test_a_sequence_axis_is_planned(tmp_path):
    shape = mesh_shape("sequence:2")
    train = {"length": 512, "batch_size": 1}
    config = with_mesh(runs.config(tmp_path, "alibi", model={"num_layers": 1}, train=train), shape)
    chip = dataclasses.replace(HARDWARE["v5e"], platform="none")
    row = plan_step(config, 260, compile_target(chip, shape, "1x2"))
    assert row["mesh"] == {"sequence": 2}
    assert row["attention"] == ["blockwise (tokens of a row lie on 2 devices: keys go around a ring up to the cut-off)"]  # fmt: skip
    assert row["collectives"]["collective-permute"]["sent_bytes"] > 0
    model = dataclasses.replace(config.model_config(260), dtype="bfloat16")
    alone, ring = (
        flops.hardware_flops(model, 1, 512, "gpu", sequence=sequence).attention
        for sequence in (1, 2)
    )
    blocks = dataclasses.replace(model, attention="blockwise")
    assert alone != ring == flops.hardware_flops(blocks, 1, 512, "gpu").attention


def test_chips_are_known_by_name_and_near_ones_offered():
    assert find_hardware("v5e").flops == 197e12
    with pytest.raises(ValueError, match="did you mean 'h100"):
        find_hardware("H1000")
    with pytest.raises(ValueError, match="known: h100, h200"):
        find_hardware("abacus")


def test_the_usual_topology_is_the_squarest():
    want = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 256: "16x16"}
    assert {n: default_topology(HARDWARE["v5e"], n) for n in want} == want
    want = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 64: "4x4x4", 128: "4x4x8"}
    assert {n: default_topology(HARDWARE["v5p"], n) for n in want} == want
    assert [default_topology(HARDWARE["h100"], n) for n in (1, 8, 16)] == ["1x1", "1x8", "2x8"]
    with pytest.raises(ValueError, match="name --topology"):
        default_topology(HARDWARE["h100"], 12)
    with pytest.raises(ValueError, match="name --topology"):
        default_topology(HARDWARE["v5e"], 12)


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
    if chip.missing:
        pytest.skip(chip.missing)
    shape = mesh_shape("data:2,model:2")
    config = runs.config(
        tmp_path, "rope+alibi", model={"dtype": "bfloat16", "model_dim": 256, "num_heads": 4},
        train={"length": 1024},
    )  # fmt: skip
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
    if chip.missing:
        pytest.skip(chip.missing)
    where = compile_target(chip, mesh_shape("data:1"), None)
    times = {}
    for remat in ("attention", "full"):
        config = runs.config(
            tmp_path, "rope+alibi", model={"dtype": "bfloat16", "model_dim": 256, "num_heads": 2, "num_layers": 2},
            train={"length": 1024, "batch_size": 1, "scan_layers": True, "remat": remat},
        )  # fmt: skip
        config = with_mesh(config, mesh_shape("data:1"))
        text = compiled_step(config, config.model_config(260), where)[0].as_text()
        calls = [line for line in text.splitlines() if "custom-call(" in line and forward in line]
        times[remat] = len(calls)
    assert times == {"attention": 1, "full": 2}


@pytest.mark.aot
@pytest.mark.filterwarnings("ignore")
def test_a_step_that_does_not_fit_and_a_slice_that_is_not_sold_are_said_in_a_line(tmp_path):
    chip = HARDWARE["v5e"]
    if chip.missing:
        pytest.skip(chip.missing)
    shape = mesh_shape("data:1")
    config = runs.config(tmp_path, "nope", model={"num_layers": 1}, train={"length": 1024, "batch_size": 512})  # fmt: skip
    with pytest.raises(ValueError, match=r"does not fit on v5e: .*HBM"):
        plan_step(with_mesh(config, shape), 50_304, compile_target(chip, shape, None))
    with pytest.raises(ValueError, match="v5e has no slice 1x2"):
        compile_target(chip, mesh_shape("data:2"), "1x2")


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
def test_on_a_gpu_the_planned_peak_is_within_a_tenth_of_what_it_reports(tmp_path):
    config = runs.config(
        tmp_path, "rope+alibi", model={"dtype": "bfloat16", "model_dim": 1024, "num_heads": 8, "num_layers": 8},
        train={"length": 1024, "batch_size": 16},
    )  # fmt: skip
    shape = mesh_shape("data:1")
    config, device = with_mesh(config, shape), jax.devices()[0]
    mesh = jax.make_mesh(tuple(shape.values()), tuple(shape), devices=[device],
                         axis_types=(jax.sharding.AxisType.Explicit,) * len(shape))  # fmt: skip
    here = compile_target(HARDWARE["h100"], shape, "1x1")._replace(mesh=mesh, platform="cuda")
    step, _ = compiled_step(config, config.model_config(260), here)
    planned = plan_step(config, 260, here)["memory"]["peak"]
    with jax.set_mesh(mesh):
        state = state_builder(config, Decoder(config.model_config(260)), mesh)[0](jax.random.key(0))
        jax.block_until_ready(step(state, batch_of_ones(config, mesh)))
    assert math.isclose(device.memory_stats()["peak_bytes_in_use"], planned, rel_tol=0.1)
