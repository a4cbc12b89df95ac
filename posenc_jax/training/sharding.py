"""Sharding of parameters and batches: the mesh, and one table of parameter layouts."""

import re

import jax
from jax.sharding import AxisType

from posenc_jax.model.activation_sharding import key_heads_axis

# From the slowest links to the fastest. data: rows. fsdp: rows and parts of every matrix (fully
# sharded data parallelism). sequence: tokens of a row. model: heads and hidden units.
MESH_AXES = ("data", "fsdp", "sequence", "model")
BATCH = jax.P(None, ("data", "fsdp"), "sequence")  # of a step's arrays [slices, B, T]

# Path pattern -> axes. Exactly one row matches a parameter, or `parameter_layout` raises. Tables
# are split over D, never over V: a lookup would need rows of other devices. Key heads stay whole
# where the axis "model" does not divide them (`key_heads_axis`).
LAYOUT: tuple[tuple[str, tuple[str | tuple[str, ...] | None, ...]], ...] = (
    (r"(embedding|head)_VD", (None, ("model", "fsdp"))),
    (r"patch_PD", (None, ("model", "fsdp"))),
    (r"layer_\d+/attention/(query|gate)_DNH", ("fsdp", "model", None)),
    (r"layer_\d+/attention/(key|value)_DKH", ("fsdp", "model", None)),
    (r"layer_\d+/attention/out_NHD", ("model", None, "fsdp")),
    (r"layer_\d+/attention/(query|key)_gain_H", (None,)),
    (r"layer_\d+/attention/(sink_N|(key|value)_(now|before)_K)", (None,)),
    (r"layer_\d+/attention/(query|key|value)_bias_[NK]H", (None, None)),
    (r"layer_\d+/mlp/(up|gate)_DF", ("fsdp", "model")),
    (r"layer_\d+/mlp/down_FD", ("model", "fsdp")),
    (r"layer_\d+/mlp/router_DE", ("fsdp", None)),
    (r"layer_\d+/mlp/(up|gate)_EDF", (None, "fsdp", "model")),
    (r"layer_\d+/mlp/down_EFD", (None, "model", "fsdp")),
    (r"(embedding|final|transform|layer_\d+/(attention|mlp)(_post)?)_(gain|norm_bias)_D", (None,)),
    (r"layer_\d+/(attention/out|mlp/(up|gate|down))_bias_[DF]", (None,)),
    (r"transform_DD", ("fsdp", None)),
    (r"transform_bias_D|head_bias_V", (None,)),
    (r"absolute/.+", ()),
    (r"layer_\d+/attention/scheme/.+", ()),
)


def make_mesh(
    data_devices: int, model_devices: int, *, fsdp_devices: int = 1, sequence_devices: int = 1
) -> jax.sharding.Mesh:
    """Returns a mesh with the explicit axes `MESH_AXES`; 0 data devices takes all remaining
    devices.

    Raises:
      ValueError: more devices requested than there are, or fewer than a job of several processes
        has.
    """
    devices = jax.devices()
    per_data = fsdp_devices * sequence_devices * model_devices
    data_devices = data_devices or max(len(devices) // per_data, 1)
    wanted = data_devices * per_data
    shape = (data_devices, fsdp_devices, sequence_devices, model_devices)
    if wanted > len(devices):
        raise ValueError(
            f"config.train asks for {' x '.join(map(str, shape))} devices "
            f"({' x '.join(f'{axis}_devices' for axis in MESH_AXES)}); this machine has "
            f"{len(devices)}"
        )
    if jax.process_count() > 1 and wanted != len(devices):
        raise ValueError(
            f"{wanted} devices asked for; {len(devices)} are in this job: use them all"
        )
    return jax.make_mesh(
        shape, MESH_AXES, axis_types=(AxisType.Explicit,) * len(MESH_AXES), devices=devices[:wanted]
    )


def batch_rows(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> int:
    """Returns the number of parts that the rows of a batch are split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def parameter_layout(params, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> dict:
    """Returns a PartitionSpec per parameter; ValueError unless one row of LAYOUT matches."""

    def row(path, leaf):
        name = "/".join(str(key.key) for key in path)
        matches = [axes for pattern, axes in LAYOUT if re.fullmatch(pattern, name)]
        if len(matches) != 1:
            raise ValueError(
                f"parameter {name} {leaf.shape} matches {len(matches)} rows of LAYOUT, not one"
            )
        (axes,) = matches
        if name.endswith("_DKH"):
            axes = (axes[0], key_heads_axis(leaf.shape[1], mesh.shape["model"]), axes[2])
        return jax.P(*axes)

    return jax.tree_util.tree_map_with_path(row, params)


def optimizer_layout(state, layout) -> dict:
    """Returns a PartitionSpec per optimizer leaf, as of its parameter; ValueError without one."""
    specs = {_names(path): spec for path, spec in _leaves(layout)}

    def row(path, leaf):
        names = _names(path)
        for start in range(len(names)):
            if names[start:] in specs:
                return specs[names[start:]]
        if len(leaf.shape) > 1:  # counters and coefficients are small and replicated
            raise ValueError(f"optimizer state {names} {leaf.shape} belongs to no parameter")
        return jax.P()

    return jax.tree_util.tree_map_with_path(row, state)


def _leaves(layout):
    return jax.tree_util.tree_leaves_with_path(layout, is_leaf=lambda x: isinstance(x, jax.P))


def _names(path) -> tuple[str, ...]:
    return tuple(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
