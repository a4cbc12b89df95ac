"""Trains one decoder: python train.py --config=configs/lm.py:rope+alibi --workdir=runs/x.

The same command again resumes from the last checkpoint. Exit codes: 0 done, 2 wrong input, 75 stopped and
resumable, 74 cannot write (disk full; resumable once there is room), 1 diverged or another process was
lost, 130 ended by a second Ctrl-C without a checkpoint.

Several seeds in one program, each with its own folder: --workdir=runs/x-s{seed} --seeds=0,1,2.

Several processes of one run: Slurm, OpenMPI, TPU pods and GKE need no flag (docs/operations/cluster.md); elsewhere
each process gets --coordinator=HOST:PORT --processes=N --process=I.
"""

import os
import shlex
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from posenc_jax import cli
from posenc_jax.results.schema import DONE, FAILED, INTERRUPTED, STOPPED, UNWRITABLE

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
_SEEDS = flags.DEFINE_list(
    "seeds", None, "Training seeds, trained together; {seed} in --workdir stands for each"
)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> int:
    """Trains the run of the flags; returns the exit code."""
    from posenc_jax.checkpoints.manager import SaveFailed
    from posenc_jax.training.config import from_sections
    from posenc_jax.training.hosts import connect, exit_together
    from posenc_jax.training.loop import Diverged, Preempted, train
    from posenc_jax.training.multi_seed import train_seeds
    from posenc_jax.training.profile import NO_PROFILE, parse_profile

    config = from_sections(_CONFIG.value.to_dict())
    command = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    profile = NO_PROFILE if _PROFILE.value is None else parse_profile(_PROFILE.value)
    connect(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    try:
        with exit_together(Preempted, Diverged, SaveFailed, ValueError):
            if _SEEDS.value is None:
                train(config, Path(_WORKDIR.value), command, profile)
            elif _PROFILE.value is None:
                train_seeds(config, _workdirs(), command)
            else:
                raise ValueError("--profile traces one run; leave --seeds out")
    except Preempted as stop:
        print(stop, file=sys.stderr)
        return STOPPED
    except SaveFailed as error:
        print(error, file=sys.stderr)
        return UNWRITABLE
    except Diverged as error:
        print(error, file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(
            "ended at once; run the same command to go on from the last checkpoint", file=sys.stderr
        )
        return INTERRUPTED
    return DONE


def _workdirs() -> dict[int, Path]:
    """Returns the folder of each seed."""
    seeds, pattern = _SEEDS.value, _WORKDIR.value
    if not seeds or not all(s.isdigit() for s in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds must be whole numbers, each once, not {','.join(seeds)!r}")
    if "{seed}" not in pattern:
        raise ValueError(f"--seeds needs {{seed}} in --workdir, a folder for each, not {pattern!r}")
    return {int(s): Path(pattern.replace("{seed}", s)) for s in seeds}


if __name__ == "__main__":
    cli.run_main(main)
