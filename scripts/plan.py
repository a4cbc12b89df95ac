"""Plans training on other chips: python scripts/plan.py --config=configs/large.py:1.3b
--mesh=data:4,model:4 --chips=v5e.

Compiles the training step for the chips (extra: plan) and prints memory per device, FLOPs, memory
traffic, collectives, and a roofline estimate of the least time of a step. If the compiler of a chip
is not installed, the estimate is that of the CPU compiler and is marked. --out appends a row per
chip. Exit code 2 for wrong input.
"""

import contextlib
import dataclasses
import json
import math
import os
import shlex
import sys
from importlib import metadata
from pathlib import Path

# Nothing runs: local chips stay free, and no cloud is queried. This must precede the import of JAX.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"

import installed  # noqa: F401
from absl import flags
from ml_collections import config_flags

from posenc_jax import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/large.py:1.3b")
_MESH = flags.DEFINE_string("mesh", None, "Devices by axis, e.g. data:4,model:4", required=True)
_CHIPS = flags.DEFINE_list("chips", ["v5e"], "h100, h200, v5e, v5p, trillium; several with commas")
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "TPU slice, e.g. 4x4, or GPU hosts x cards, e.g. 2x8; none: the usual one"
)
_VOCAB = flags.DEFINE_integer(
    "vocab_size", None, "Ids of the tokenizer; none: of config.data.tokenizer", lower_bound=1
)
_OUT = flags.DEFINE_string(
    "out", None, "JSONL file that a row per chip is appended to; a table of its rows lies beside it"
)
flags.mark_flag_as_required("config")


def main() -> None:
    """Makes one row per chip."""
    import jax

    from posenc_jax.bench.plan import (
        compile_target,
        mesh_shape,
        plan_step,
        planned_vocabulary,
        with_mesh,
    )
    from posenc_jax.bench.plan_table import summary
    from posenc_jax.costs.hardware import find_hardware
    from posenc_jax.training.config import from_sections

    shape = mesh_shape(_MESH.value)
    chips = [find_hardware(name.strip()) for name in _CHIPS.value]
    if any(chip.install_hint for chip in chips):  # before JAX makes its devices
        jax.config.update("jax_num_cpu_devices", math.prod(shape.values()))
    config = with_mesh(from_sections(_CONFIG.value.to_dict()), shape)
    vocab_size = _VOCAB.value or planned_vocabulary(config)
    if _OUT.value and not Path(_OUT.value).absolute().parent.is_dir():
        raise ValueError(f"--out={_OUT.value}: there is no such folder to write to")
    for chip in chips:
        row = plan_step(config, vocab_size, compile_target(chip, shape, _TOPOLOGY.value))
        print(summary(row))
        if _OUT.value:
            _append(row | _provenance(config), Path(_OUT.value))


def _append(row: dict, out: Path) -> None:
    """Appends a row, prints a comparison with the last row of the same chips, and rewrites the
    table.
    """
    from posenc_jax.bench.plan_table import comparison, table

    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    alike = [r for r in rows if all(r[key] == row[key] for key in ("chip", "mesh"))]
    if alike:
        print(comparison(row, alike[-1]))
    with out.open("a") as file:
        file.write(json.dumps(row) + "\n")
    out.with_suffix(".md").write_text(table([*rows, row]))


def _provenance(config) -> dict:
    from posenc_jax.training.workdir import provenance

    compilers = {}
    for package in ("libtpu", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12", "nvidia-cudnn-cu12"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            compilers[package] = metadata.version(package)
    command = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    return {
        "compilers": compilers,
        **provenance(),
        "config": dataclasses.asdict(config),
        "command": command,
    }


if __name__ == "__main__":
    cli.run_main(main)
