"""Trains one decoder: python train.py --config=configs/lm.py:rope+alibi --workdir=runs/x.

Running the same command again goes on from the last checkpoint. Exit codes: 0 done, 2 wrong input,
75 stopped and resumable, 1 diverged, or another process of the run was lost.

Several processes are one run: Slurm, OpenMPI, TPU pods and GKE are seen without a flag (docs/cluster.md);
elsewhere every process gets --coordinator=HOST:PORT --processes=N --process=I.
"""

import os
import shlex
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from posenc_jax import door

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, e.g. configs/lm.py:rope+alibi"
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; made if absent, resumed if begun"
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "host:port of process 0 of several; auto: let JAX ask (a TPU VM)"
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes of this run")
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0")
_PROFILE = flags.DEFINE_string(
    "profile", None, "first:count, the steps that JAX's profiler traces into the workdir"
)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> int:
    """Flags to config to one call."""
    from posenc_jax.training.checkpoints import SaveFailed
    from posenc_jax.training.config import from_sections
    from posenc_jax.training.hosts import connect, ending_together
    from posenc_jax.training.loop import STOPPED, Diverged, Stopped, train
    from posenc_jax.training.profile import NOTHING, parse_profile

    config = from_sections(_CONFIG.value.to_dict())
    profile = NOTHING if _PROFILE.value is None else parse_profile(_PROFILE.value)
    connect(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    try:
        with ending_together(Stopped, Diverged, SaveFailed, ValueError):
            train(
                config,
                Path(_WORKDIR.value),
                shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
                profile,
            )
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return STOPPED
    except (Diverged, SaveFailed) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    door.enter(main)
