"""Chips that are not here: meshes to compile programs for, with true memory and collectives.

TPUs through libtpu's topologies, NVIDIA GPUs through JAX's CUDA plugin and a description of the card
(extra: plan). Nothing is executed. `jax.jit(f).trace(...).lower(lowering_platforms=(chip.platform,)).compile(
compiler_options=chip.options)` under `jax.set_mesh(mesh(chip, ...))` is all it takes.
"""

import dataclasses
import importlib.util
import os

import jax
import numpy as np

_MISSING = 'needs {}; pip install -e ".[plan]"'


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip by its public data sheet.

    Attributes:
      name: as for `CHIPS`. platform: of lowering, "tpu" or "cuda". kind: libtpu's name of a TPU, or the
        name that the driver gives a card.
      memory_bytes: of one device. flops: bfloat16, dense, per second. bandwidth: bytes per second.
      options: of the compiler.
    """

    name: str
    platform: str
    kind: str
    memory_bytes: int
    flops: float
    bandwidth: float
    options: dict

    @property
    def missing(self) -> str | None:
        """What must be installed to compile for this chip; None when it is."""
        package = "libtpu" if self.platform == "tpu" else "jax_cuda12_plugin"
        if importlib.util.find_spec(package) is None:
            return f"{self.name} {_MISSING.format(package)}"
        return None


# Autotuning times kernels on the card, which is not here.
_GPU, _TPU = {"xla_gpu_autotune_level": 0}, {}
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("h100", "cuda", "NVIDIA H100 80GB HBM3", 85_000_000_000, 989e12, 3.35e12, _GPU),
        Chip("h200", "cuda", "NVIDIA H200", 150_000_000_000, 989e12, 4.8e12, _GPU),
        Chip("v5e", "tpu", "v5e", 17_179_869_184, 197e12, 0.82e12, _TPU),
        Chip("v5p", "tpu", "v5p", 102_005_473_280, 459e12, 2.77e12, _TPU),
        Chip("trillium", "tpu", "v6e", 34_359_738_368, 918e12, 1.64e12, _TPU),
    )
}  # fmt: skip

_HOPPER = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: {memory}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{kind}"
"""


def absent_devices(chip: Chip, topology: str) -> list:
    """Returns devices to compile for.

    Args:
      topology: of a TPU slice, e.g. "4x4"; of GPUs the number of hosts and of cards each, e.g. "1x8".

    Raises:
      ModuleNotFoundError: the compiler for this chip is not installed.
      ValueError: a topology that is not of that form.
    """
    from jax.experimental import topologies

    if chip.missing:
        raise ModuleNotFoundError(chip.missing)
    sides = topology.split("x")
    if not all(side.isdigit() and int(side) for side in sides) or (chip.platform == "cuda" and len(sides) != 2):  # fmt: skip
        raise ValueError(f"a topology of {chip.name} reads like {'1x8' if chip.platform == 'cuda' else '4x4'}, not {topology!r}")  # fmt: skip
    if chip.platform == "tpu":
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # or it asks a cloud that is not there
        return list(topologies.get_topology_desc(f"{chip.kind}:{topology}", "tpu").devices)
    card = _HOPPER.format(bandwidth=int(chip.bandwidth), memory=chip.memory_bytes, kind=chip.kind)
    described = topologies.get_topology_desc(
        chip.name, "cuda", target_config=card, topology=f"1x{topology}"
    )
    return list(described.devices)


def absent_mesh(chip: Chip, topology: str, **axes: int) -> jax.sharding.Mesh:
    """Returns an explicit mesh over absent devices, e.g. ``absent_mesh(chip, "4x4", data=4, model=4)``.

    Raises:
      ValueError: axes whose product is not the number of devices.
    """
    devices = absent_devices(chip, topology)
    if np.prod(list(axes.values())) != len(devices):
        raise ValueError(f"axes {axes} do not multiply to the {len(devices)} devices of {topology}")
    explicit = (jax.sharding.AxisType.Explicit,) * len(axes)
    return jax.sharding.Mesh(
        np.array(devices).reshape(tuple(axes.values())), tuple(axes), axis_types=explicit
    )
