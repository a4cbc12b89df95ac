"""What a training step will cost on chips that are not here: compiled for them, read, and set against their peaks.

The step that `train.py` would run is compiled ahead of time from shapes alone; nothing is allocated and
nothing runs. Memory is the compiler's own. Time is a roofline: each of arithmetic, memory traffic and
the links between chips gets the time it needs at its peak, and a step takes at least the longest of
them. What a chip reaches of its peak is not known here: the prediction is a floor, the MFU a ceiling.
"""

import dataclasses
import difflib
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from posenc_jax.attention.attend import KERNELS
from posenc_jax.costs import flops
from posenc_jax.costs.collectives import collectives
from posenc_jax.costs.hardware import Hardware, default_topology, topology_devices, tracing_for
from posenc_jax.costs.hlo import COLLECTIVES, executed_instructions, memory_traffic, parse_hlo
from posenc_jax.data.tokenizers import open_tokenizer
from posenc_jax.encodings.backend import assume_backend
from posenc_jax.model.activation_sharding import key_heads_axis
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder
from posenc_jax.training.config import RunConfig
from posenc_jax.training.loop import check_mesh
from posenc_jax.training.loss import in_pieces
from posenc_jax.training.sharding import BATCH, MESH_AXES
from posenc_jax.training.step import make_step, state_builder

DEVICES = {"cuda": "gpu", "tpu": "tpu", "cpu": "cpu"}  # JAX's name of a platform's device
VOCABULARY = 50_304  # GPT-2's 50,257 ids, up to a multiple of 128
ARRAYS = {  # of a batch
    **dict.fromkeys(("tokens_BT", "positions_BT", "segments_BT", "targets_BT"), jnp.int32),
    "weights_BT": jnp.float32,
}


def mesh_shape(text: str) -> dict[str, int]:
    """Returns the size of every mesh axis from text such as "data:4,model:4"; axes left out have size 1.

    Raises:
      ValueError: an unknown axis, one given twice, or a size that is no whole number above zero.
    """
    shape = {}
    for part in text.split(","):
        axis, _, size = part.strip().partition(":")
        if axis not in MESH_AXES:
            near = difflib.get_close_matches(axis, MESH_AXES, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(MESH_AXES)}"
            raise ValueError(f"--mesh={text}: no axis {axis!r}; {hint}")
        if axis in shape:
            raise ValueError(f"--mesh={text}: {axis} stands there twice")
        if not size.isdigit() or int(size) < 1:
            raise ValueError(f"--mesh={text}: {axis} needs a number of devices, as in {axis}:4")
        shape[axis] = int(size)
    return {axis: shape.get(axis, 1) for axis in MESH_AXES}


def with_mesh(config: RunConfig, shape: Mapping[str, int]) -> RunConfig:
    """Returns the configuration with the mesh that is planned for.

    Raises:
      ValueError: an axis that training cannot split over.
    """
    named = {f"{axis}_devices": n for axis, n in shape.items()}
    settings = {field.name for field in dataclasses.fields(config.train)}
    for name, n in named.items():
        if name not in settings and n > 1:
            raise ValueError(f"--mesh: config.train has no {name}: a run cannot be split so")
    devices = {name: n for name, n in named.items() if name in settings}
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **devices))


def planned_vocabulary(config: RunConfig) -> int:
    """Returns the number of ids of the tokenizer, or `VOCABULARY` where its file is not here.

    Raises:
      ValueError: a task whose ids the corpus decides.
    """
    if config.data.task != "language":
        raise ValueError(f"--vocab_size: name it for config.data.task={config.data.task}, which adds ids of classes")  # fmt: skip
    name = config.data.tokenizer
    return open_tokenizer(name).vocab_size if name == "bytes" or Path(name).exists() else VOCABULARY


class CompileTarget(NamedTuple):
    """What a step is compiled for: a chip and its mesh; `estimate` where the CPU compiler stands in."""

    chip: Hardware
    topology: str
    mesh: jax.sharding.Mesh
    platform: str

    @property
    def estimate(self) -> bool:
        return self.platform == "cpu"


def compile_target(chip: Hardware, shape: Mapping[str, int], topology: str | None) -> CompileTarget:
    """Returns the mesh to compile for: of the chip, or of CPU devices where its compiler is not installed.

    Raises:
      ValueError: a mesh that does not multiply to the topology.
    """
    wanted = math.prod(shape.values())
    topology = topology or default_topology(chip, wanted)
    sides = topology.split("x")
    there = math.prod(int(s) for s in sides) if all(s.isdigit() for s in sides) else 0
    said = " x ".join(f"{axis} {n}" for axis, n in shape.items() if n > 1) or "one device"
    if there and there != wanted:
        raise ValueError(f"--mesh asks for {wanted} devices ({said}); {topology} has {there}")
    if chip.missing:
        devices, platform = _cpu_devices(wanted), "cpu"
    else:
        devices, platform = topology_devices(chip, topology), chip.platform
    if len(devices) != wanted:
        raise ValueError(f"--mesh asks for {wanted} devices ({said}); {topology} of {chip.name} has {len(devices)}")  # fmt: skip
    mesh = jax.make_mesh(
        tuple(shape.values()), tuple(shape), devices=devices,
        axis_types=(jax.sharding.AxisType.Explicit,) * len(shape),
    )  # fmt: skip
    return CompileTarget(chip, topology, mesh, platform)


def _cpu_devices(wanted: int) -> list:
    if len(jax.devices("cpu")) < wanted:
        raise ValueError(f"{wanted} CPU devices stand in for chips; this process has {len(jax.devices('cpu'))}")  # fmt: skip
    return jax.devices("cpu")[:wanted]


def compiled_step(config: RunConfig, model: ModelConfig, where: CompileTarget):
    """Returns the training step compiled for `where`, from shapes alone, and the shapes of the state.

    Raises:
      ValueError: a step that the compiler cannot fit into the chip's memory.
    """
    decoder = Decoder(model)
    t = config.train
    rows = jax.NamedSharding(where.mesh, BATCH)
    dims = (t.accumulation, t.batch_size // t.accumulation, t.length)
    batch = {name: jax.ShapeDtypeStruct(dims, kind, sharding=rows) for name, kind in ARRAYS.items()}
    device = assume_backend(DEVICES[where.platform])
    with jax.set_mesh(where.mesh), tracing_for(where.chip), device:
        _, state = state_builder(config, decoder, where.mesh)
        lowered = make_step(config, decoder).trace(state, batch).lower(lowering_platforms=(where.platform,))  # fmt: skip
        try:
            compiled = lowered.compile(
                compiler_options={} if where.estimate else where.chip.options
            )
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            needs = " ".join(str(error).split())
            raise ValueError(f"the step does not fit on {where.chip.name}: {needs[:300]}") from None
        return compiled, state


def plan_step(config: RunConfig, vocab_size: int, where: CompileTarget) -> dict:
    """Returns a row: memory per device, FLOPs, memory traffic, collectives, time and MFU of one step.

    Raises:
      ValueError: a configuration that does not fit the mesh, or a kernel that the stand-in cannot compile.
    """
    if where.estimate and config.model.attention in KERNELS:
        raise ValueError(f"config.model.attention={config.model.attention} is compiled for the chip alone; {where.chip.missing}")  # fmt: skip
    check_mesh(config, where.mesh)
    model, t, chip = config.model_config(vocab_size), config.train, where.chip
    start, spent = time.monotonic(), time.process_time()
    compiled, state = compiled_step(config, model, where)
    seconds, spent = time.monotonic() - start, time.process_time() - spent
    program = parse_hlo(compiled.as_text())
    devices = where.mesh.size
    host = int(where.topology.split("x")[1]) if chip.platform == "cuda" else devices
    spoken = collectives(program, devices, host)
    needed = flops.model_flops(model, t.batch_size, t.length)
    device = DEVICES[where.platform]
    on_model = where.mesh.shape["model"]
    executed = flops.hardware_flops(
        model, t.batch_size, t.length, device, sequence=t.sequence_devices,
        key_copies=1 if key_heads_axis(model.num_kv_heads, on_model) else on_model,
        remat=t.remat, head_again=in_pieces(t.loss_chunks, on_model),
    )  # fmt: skip
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state["params"]))
    tokens = t.batch_size * t.length
    traffic = memory_traffic(program)
    inside = sum(c.sent for c in spoken if not c.across)
    outside = sum(c.sent for c in spoken if c.across)
    seconds_of = {
        "compute": executed.total / devices / chip.flops,
        "memory": traffic / chip.bandwidth,
        "network": inside / chip.interconnect + (outside / chip.network if outside else 0.0),
    }
    step = max(seconds_of.values())
    return {
        "chip": chip.name,
        "topology": where.topology,
        "devices": devices,
        "mesh": {axis: n for axis, n in where.mesh.shape.items() if n > 1},
        "compiler": "the CPU's, an upper bound of memory" if where.estimate else "the chip's own",
        "scheme": config.model.scheme,
        "attention": model.attention_paths(t.length, t.sequence_devices, device),
        "length": t.length,
        "batch_size": t.batch_size,
        "accumulation": t.accumulation,
        "scan_layers": t.scan_layers,
        "remat": t.remat,
        "loss_chunks": t.loss_chunks,
        "vocab_size": vocab_size,
        "parameters": parameters,
        "memory": _memory(compiled, chip),
        "flops_needed": _parts(needed),
        "flops_executed": _parts(executed),
        "flops_6nd": 6.0 * parameters * tokens,
        "memory_traffic_bytes": traffic,
        "loops_counted_once": executed_instructions(program)[1],
        "collectives": _by_kind(spoken),
        "seconds": seconds_of | {"step": step},
        "bound_by": max(seconds_of, key=seconds_of.get),
        "tokens_per_second": tokens / step,
        "mfu": needed.total / devices / chip.flops / step,
        "compile_seconds": round(seconds, 1),
        "compile_cpu_seconds": round(spent, 1),
    }


def _memory(compiled, chip: Hardware) -> dict:
    """Returns bytes of one device; the state is updated in place, so results that alias arguments count once."""
    m = compiled.memory_analysis()
    results = m.output_size_in_bytes - m.alias_size_in_bytes
    peak = (
        m.argument_size_in_bytes + results + m.temp_size_in_bytes + m.generated_code_size_in_bytes
    )
    return {
        "arguments": m.argument_size_in_bytes,
        "results": results,
        "temporaries": m.temp_size_in_bytes,
        "code": m.generated_code_size_in_bytes,
        "peak": peak,
        "of_chip": chip.memory_bytes,
        "fits": peak <= chip.memory_bytes,
    }


def _parts(counted: flops.Flops) -> dict:
    return dataclasses.asdict(counted) | {"total": counted.total}


def _by_kind(spoken) -> dict:
    kinds = {}
    for kind in COLLECTIVES:
        found = [c for c in spoken if c.kind == kind]
        if found:
            kinds[kind] = {
                "count": sum(c.times for c in found),
                "payload_bytes": sum(c.times * c.payload for c in found),
                "sent_bytes": sum(c.sent for c in found),
                "sent_between_hosts_bytes": sum(c.sent for c in found if c.across),
            }
    return kinds
