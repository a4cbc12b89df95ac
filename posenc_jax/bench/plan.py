"""Plan of a training step on other chips: compiled ahead of time, with memory, FLOPs, traffic and a
roofline.

The step of `train.py` is compiled from shapes; nothing is allocated and nothing runs. Memory is the
compiler's estimate. Time is a roofline: arithmetic, memory traffic and communication each take
their time at peak, and the step takes the longest of these. The time approximates a lower bound,
and the MFU an upper bound; traffic may be overcounted (branches, cached operands).
"""

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from posenc_jax.attention.attend import KERNELS
from posenc_jax.costs import flops
from posenc_jax.costs.collectives import Collective, collectives
from posenc_jax.costs.hardware import Hardware, default_topology, topology_devices, tracing_for
from posenc_jax.costs.hlo import (
    SENT_PER_PAYLOAD_BYTE,
    executed_instructions,
    memory_traffic,
    parse_hlo,
)
from posenc_jax.data.tokenizers import open_tokenizer
from posenc_jax.encodings.backend import assume_backend
from posenc_jax.model.activation_sharding import key_heads_axis
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder
from posenc_jax.results.near_names import near_names
from posenc_jax.training.config import RunConfig
from posenc_jax.training.loop import check_mesh
from posenc_jax.training.loss import is_chunked
from posenc_jax.training.sharding import BATCH, MESH_AXES
from posenc_jax.training.step import make_step, state_builder

DEVICES = {"cuda": "gpu", "tpu": "tpu", "cpu": "cpu"}  # JAX's name of a platform's device
VOCABULARY = 50_304  # GPT-2's 50,257 ids, up to a multiple of 128
ARRAYS = {  # of a batch, each [slices, B, T]
    **dict.fromkeys(("tokens_BT", "positions_BT", "segments_BT", "targets_BT"), jnp.int32),
    "weights_BT": jnp.float32,
}


def mesh_shape(text: str) -> dict[str, int]:
    """Returns the size of every mesh axis from text such as "data:4,model:4"; the default size is
    1.

    Raises:
      ValueError: an unknown axis, a duplicate, or a size that is no positive whole number.
    """
    shape = {}
    for part in text.split(","):
        axis, _, size = part.strip().partition(":")
        if axis not in MESH_AXES:
            raise ValueError(f"--mesh={text}: no axis {axis!r}{near_names(axis, MESH_AXES)}")
        if axis in shape:
            raise ValueError(f"--mesh={text}: {axis} is given twice")
        if not size.isdigit() or int(size) < 1:
            raise ValueError(f"--mesh={text}: {axis} needs a number of devices, as in {axis}:4")
        shape[axis] = int(size)
    return {axis: shape.get(axis, 1) for axis in MESH_AXES}


def with_mesh(config: RunConfig, shape: Mapping[str, int]) -> RunConfig:
    """Returns the configuration with the devices of a mesh.

    Raises:
      ValueError: more than one device on an axis that config.train has no setting for.
    """
    named = {f"{axis}_devices": n for axis, n in shape.items()}
    settings = {field.name for field in dataclasses.fields(config.train)}
    for name, n in named.items():
        if name not in settings and n > 1:
            axis = name.removesuffix("_devices")
            raise ValueError(
                f"--mesh: a run cannot be split over {axis}: config.train has no {name}"
            )
    devices: dict[str, Any] = {name: n for name, n in named.items() if name in settings}
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **devices))


def planned_vocabulary(config: RunConfig) -> int:
    """Returns the vocabulary size of the tokenizer; `VOCABULARY` if its file is missing.

    Raises:
      ValueError: a task of labelled text.
    """
    if config.data.task != "language":
        raise ValueError(
            f"--vocab_size is required for config.data.task={config.data.task}, which adds class "
            "ids"
        )
    name = config.data.tokenizer
    return open_tokenizer(name).vocab_size if name == "bytes" or Path(name).exists() else VOCABULARY


class CompileTarget(NamedTuple):
    """A chip and its mesh; `estimate` is True if the CPU's compiler replaces a missing one."""

    chip: Hardware
    topology: str
    mesh: jax.sharding.Mesh
    platform: str

    @property
    def estimate(self) -> bool:
        return self.platform == "cpu"


def compile_target(chip: Hardware, shape: Mapping[str, int], topology: str | None) -> CompileTarget:
    """Returns the target; its devices are CPU devices if the chip's compiler is missing.

    Raises:
      ValueError: the mesh and the topology differ in size.
    """
    count = math.prod(shape.values())
    topology = topology or default_topology(chip, count)
    sides = topology.split("x")
    size = math.prod(int(s) for s in sides) if all(s.isdigit() for s in sides) else 0
    words = " x ".join(f"{axis} {n}" for axis, n in shape.items() if n > 1) or "one device"
    if size and size != count:
        raise ValueError(f"--mesh asks for {count} devices ({words}); {topology} has {size}")
    if chip.install_hint:
        devices, platform = _cpu_devices(count), "cpu"
    else:
        devices, platform = topology_devices(chip, topology), chip.platform
    if len(devices) != count:
        raise ValueError(
            f"--mesh asks for {count} devices ({words}); {topology} of {chip.name} has "
            f"{len(devices)}"
        )
    mesh = jax.make_mesh(
        tuple(shape.values()),
        tuple(shape),
        devices=devices,
        axis_types=(jax.sharding.AxisType.Explicit,) * len(shape),
    )
    return CompileTarget(chip, topology, mesh, platform)


def _cpu_devices(count: int) -> list:
    if len(jax.devices("cpu")) < count:
        raise ValueError(
            f"without the chip's compiler this plan needs {count} CPU devices, and the process has "
            f"{len(jax.devices('cpu'))}; set jax_num_cpu_devices={count} before the first JAX call"
        )
    return jax.devices("cpu")[:count]


def compiled_step(config: RunConfig, model: ModelConfig, target: CompileTarget):
    """Returns the compiled step and its state's shapes; ValueError if memory does not suffice."""
    decoder = Decoder(model)
    t = config.train
    batch_sharding = jax.NamedSharding(target.mesh, BATCH)
    dims = (t.accumulation, t.batch_size // t.accumulation, t.length)
    batch = {
        name: jax.ShapeDtypeStruct(dims, kind, sharding=batch_sharding)
        for name, kind in ARRAYS.items()
    }
    backend = assume_backend(DEVICES[target.platform])
    with jax.set_mesh(target.mesh), tracing_for(target.chip), backend:
        _, state = state_builder(config, decoder, target.mesh)
        lowered = (
            make_step(config, decoder)
            .trace(state, batch)
            .lower(lowering_platforms=(target.platform,))
        )
        try:
            compiled = lowered.compile(
                compiler_options={} if target.estimate else target.chip.options
            )
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            needs = " ".join(str(error).split())
            raise ValueError(
                f"the step does not fit on {target.chip.name}: {needs[:300]}"
            ) from None
        return compiled, state


def plan_step(config: RunConfig, vocab_size: int, target: CompileTarget) -> dict:
    """Returns a row: memory per device, FLOPs, memory traffic, collectives, time and MFU of one
    step.

    Raises:
      ValueError: a configuration that does not fit the mesh, or a kernel that the CPU compiler
        cannot compile.
    """
    if target.estimate and config.model.attention in KERNELS:
        raise ValueError(
            f"config.model.attention={config.model.attention} is compiled for the chip alone; "
            f"{target.chip.install_hint}"
        )
    check_mesh(config, target.mesh)
    model, t, chip = config.model_config(vocab_size), config.train, target.chip
    start, spent = time.monotonic(), time.process_time()
    compiled, state = compiled_step(config, model, target)
    seconds, spent = time.monotonic() - start, time.process_time() - spent
    program = parse_hlo(compiled.as_text())
    devices = target.mesh.size
    host_devices = int(target.topology.split("x")[1]) if chip.platform == "cuda" else devices
    program_collectives = collectives(program, devices, host_devices)
    needed = flops.model_flops(model, t.batch_size, t.length)
    device = DEVICES[target.platform]
    on_model = target.mesh.shape["model"]
    executed = flops.hardware_flops(
        model,
        t.batch_size,
        t.length,
        device,
        sequence=t.sequence_devices,
        key_copies=1 if key_heads_axis(model.num_kv_heads, on_model) else on_model,
        remat=t.remat,
        head_again=is_chunked(t.loss_chunks, on_model),
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state["params"]))
    tokens = t.batch_size * t.length
    traffic = memory_traffic(program)
    inside = sum(c.sent for c in program_collectives if not c.spans_hosts)
    outside = sum(c.sent for c in program_collectives if c.spans_hosts)
    to_hosts = chip.host_bytes_per_second or chip.axis_bytes_per_second
    seconds_of = {
        "compute": executed.total / devices / chip.flops_per_second,
        "memory": traffic / chip.memory_bytes_per_second,
        # All communication: inside hosts, and between them.
        "network": inside / chip.axis_bytes_per_second + outside / to_hosts,
    }
    step = max(seconds_of.values())
    return {
        "chip": chip.name,
        "topology": target.topology,
        "devices": devices,
        "mesh": {axis: n for axis, n in target.mesh.shape.items() if n > 1},
        "compiler": (
            "the CPU's, so its memory is an estimate, probably too high"
            if target.estimate
            else "the chip's own"
        ),
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
        "collectives": _by_kind(program_collectives),
        "seconds": seconds_of | {"step": step},
        "bound_by": max(seconds_of, key=seconds_of.__getitem__),
        "tokens_per_second": tokens / step,
        "mfu": needed.total / devices / chip.flops_per_second / step,
        "compile_seconds": round(seconds, 1),
        "compile_cpu_seconds": round(spent, 1),
    }


def _memory(compiled, chip: Hardware) -> dict:
    """Returns the bytes of one device; results that alias arguments (the state) count once."""
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


def _by_kind(program_collectives: list[Collective]) -> dict:
    kinds = {}
    for kind in SENT_PER_PAYLOAD_BYTE:
        of_kind = [c for c in program_collectives if c.kind == kind]
        if of_kind:
            kinds[kind] = {
                "count": sum(c.times for c in of_kind),
                "payload_bytes": sum(c.times * c.payload for c in of_kind),
                "sent_bytes": sum(c.sent for c in of_kind),
                "sent_between_hosts_bytes": sum(c.sent for c in of_kind if c.spans_hosts),
            }
    return kinds
