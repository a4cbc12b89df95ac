"""Hardware for ahead-of-time compilation: data sheets of chips, meshes of absent devices, and a
patch of JAX's cuDNN check.

Compiled programs report the memory and the collectives that the chip would use. TPUs use libtpu's
topologies, NVIDIA GPUs use JAX's CUDA plugin and a description of the card (extra: plan). Nothing
is executed. `jax.jit(f).trace(...).lower(lowering_platforms=(chip.platform,)).compile(
compiler_options=chip.options)` under `jax.set_mesh(topology_mesh(chip, ...))` compiles.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
from collections.abc import Iterator
from unittest import mock

import jax
import numpy as np

from posenc_jax.results.near_names import near_names

_COMPILERS = {"tpu": ("libtpu",), "cuda": ("jax_cuda12_plugin", "jax_cuda13_plugin")}
_INSTALL_HINT = 'needs {}; pip install -e ".[plan]"'


@dataclasses.dataclass(frozen=True)
class Hardware:
    """A chip with the numbers of its public data sheet.

    Attributes:
      name: key in `HARDWARE`. platform: lowering platform, "tpu" or "cuda". kind: libtpu's name of
        a TPU, or the name that the driver gives a card.
      memory_bytes: of one device. flops_per_second: bfloat16, dense. memory_bytes_per_second:
        bandwidth of its memory.
      axis_bytes_per_second: sent along one mesh axis: for a TPU over the two links of one torus
        dim; for a GPU over all links, to the switch.
      host_bytes_per_second: sent by a GPU to other hosts; None for TPUs, planned within a slice.
      options: of the compiler.
    """

    name: str
    platform: str
    kind: str
    memory_bytes: int
    flops_per_second: float
    memory_bytes_per_second: float
    axis_bytes_per_second: float
    host_bytes_per_second: float | None
    options: dict

    @property
    def install_hint(self) -> str | None:
        """What to install to compile for this chip; None if it is installed."""
        packages = _COMPILERS["tpu" if self.platform == "tpu" else "cuda"]
        if not any(map(importlib.util.find_spec, packages)):
            return f"{self.name} {_INSTALL_HINT.format(packages[0])}"
        return None


# Data sheets: NVIDIA H100 and H200 Tensor Core GPU (SXM: NVLink 900 GB/s, half of it each way; DGX
# H100: one 400 Gb/s adapter a GPU); Google Cloud TPU documentation, v5e, v5p and v6e: ICI 400,
# 1,200 and 800 GB/s, sent plus received (v6e: 3,200 Gb/s each way), over a torus of 2, 3 and 2
# dims. Autotuning is off, for it times kernels on the card.
_GPU: dict = {"xla_gpu_autotune_level": 0}
_TPU: dict = {}
_H100 = "NVIDIA H100 80GB HBM3"
HARDWARE = {
    chip.name: chip
    for chip in (
        Hardware("h100", "cuda", _H100, 85_000_000_000, 989e12, 3.35e12, 450e9, 50e9, _GPU),
        Hardware("h200", "cuda", "NVIDIA H200", 150_000_000_000, 989e12, 4.8e12, 450e9, 50e9, _GPU),
        Hardware("v5e", "tpu", "v5e", 17_179_869_184, 197e12, 0.82e12, 100e9, None, _TPU),
        Hardware("v5p", "tpu", "v5p", 102_005_473_280, 459e12, 2.77e12, 200e9, None, _TPU),
        Hardware("trillium", "tpu", "v6e", 34_359_738_368, 918e12, 1.64e12, 200e9, None, _TPU),
    )
}


def find_hardware(name: str) -> Hardware:
    """Returns the chip of `HARDWARE`; ValueError for an unknown name, with similar names."""
    if name not in HARDWARE:
        raise ValueError(f"no chip {name!r}{near_names(name.lower(), HARDWARE)}")
    return HARDWARE[name]


def default_topology(chip: Hardware, devices: int) -> str:
    """Returns the usual topology of that many chips: "1x8" or "2x8" GPUs, the squarest slice of a
    TPU.

    Raises:
      ValueError: a number of TPUs that is not a power of two, or of GPUs that fills no hosts of
        eight.
    """
    if chip.platform == "cuda":
        if devices > 8 and devices % 8:
            raise ValueError(f"{devices} GPUs do not fill hosts of 8; name --topology, e.g. 3x4")
        return f"{math.ceil(devices / 8)}x{min(devices, 8)}"
    doublings = devices.bit_length() - 1
    if devices != 1 << doublings:
        raise ValueError(
            f"{devices} chips of {chip.name} make no usual slice; name --topology, e.g. 4x4"
        )
    dims = 3 if chip.name == "v5p" else 2
    sides = [1 << (doublings + i) // dims for i in range(dims)]
    return "x".join(map(str, sorted(sides, key=lambda side: side == 1)))


_HOPPER_CAPABILITY = (9, 0)  # of both cards above
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


@contextlib.contextmanager
def tracing_for(chip: Hardware) -> Iterator[None]:
    """Makes JAX's cuDNN check accept Hopper while tracing; does nothing for a TPU.

    The check reads this machine's GPU, which may be older or missing. cuDNN attention with a head
    dim of 256 needs a Hopper card.
    """
    if chip.platform != "cuda":
        yield
        return
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    def supported(capability: str) -> bool:
        return tuple(map(int, capability.split("."))) <= _HOPPER_CAPABILITY

    with mock.patch.object(cudnn, "check_compute_capability", supported):
        yield


def topology_devices(chip: Hardware, topology: str) -> list:
    """Returns devices to compile for.

    Args:
      topology: of a TPU slice, e.g. "4x4"; of GPUs the number of hosts and of cards each, e.g.
        "1x8".

    Raises:
      ModuleNotFoundError: the compiler for this chip is not installed.
      ValueError: a topology of another form, or one that this TPU does not have.
    """
    from jax.experimental import topologies

    if chip.install_hint:
        raise ModuleNotFoundError(chip.install_hint)
    sides = topology.split("x")
    if not all(side.isdigit() and int(side) for side in sides) or (
        chip.platform == "cuda" and len(sides) != 2
    ):
        raise ValueError(
            f"a topology of {chip.name} reads like {'1x8' if chip.platform == 'cuda' else '4x4'}, "
            f"not {topology!r}"
        )
    if chip.platform == "tpu":
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # or libtpu waits for a metadata server
        # Safe: no real chip is opened, so processes cannot conflict.
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        alone = {"chips_per_host_bounds": [1, 1, 1]} if math.prod(map(int, sides)) == 1 else {}
        try:
            described = topologies.get_topology_desc(f"{chip.kind}:{topology}", "tpu", **alone)
        except jax.errors.JaxRuntimeError as error:
            if "INVALID_ARGUMENT" not in str(error):
                raise
            raise ValueError(
                f"{chip.name} has no slice {topology}: {str(error).splitlines()[0]}"
            ) from None
        return list(described.devices)
    card = _HOPPER.format(
        bandwidth=int(chip.memory_bytes_per_second), memory=chip.memory_bytes, kind=chip.kind
    )
    described = topologies.get_topology_desc(
        chip.name, "cuda", target_config=card, topology=f"1x{topology}"
    )
    return list(described.devices)


def topology_mesh(chip: Hardware, topology: str, **axes: int) -> jax.sharding.Mesh:
    """Returns a mesh over absent devices; ValueError unless the axes multiply to their number."""
    devices = topology_devices(chip, topology)
    if np.prod(list(axes.values())) != len(devices):
        raise ValueError(f"axes {axes} do not multiply to the {len(devices)} devices of {topology}")
    explicit = (jax.sharding.AxisType.Explicit,) * len(axes)
    return jax.sharding.Mesh(
        np.array(devices).reshape(tuple(axes.values())), tuple(axes), axis_types=explicit
    )
