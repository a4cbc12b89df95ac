"""Trains one decoder: python train.py --config=configs/lm.py:rope+alibi --workdir=runs/x.

The same command again resumes from the last checkpoint. Exit codes: 0 done, 2 wrong input, 75
stopped and resumable, 74 cannot write (disk full; resumable once there is room), 1 diverged or
another process was lost, 130 ended by a second Ctrl-C without a checkpoint.

Several seeds in one program, each with its own folder: --workdir=runs/x-s{seed} --seeds=0,1,2.

configs/vision.py trains an image classifier and reads test images of several sizes with it.

Several processes of one run: Slurm, OpenMPI, TPU pods and GKE need no flag
(docs/operations/cluster.md); elsewhere each process gets --coordinator=HOST:PORT --processes=N
--process=I.
"""

import os
import shlex
import sys
from pathlib import Path

try:
    from absl import flags
    from ml_collections import config_flags
except ModuleNotFoundError:
    sys.path.append(os.path.join(os.path.dirname(__file__), "scripts"))
    import installed  # noqa: F401, ends with a line about the virtual environment

from posenc_jax import cli
from posenc_jax.results.schema import DONE, FAILED, STOPPED, UNWRITABLE

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
    from posenc_jax.training.loop import Diverged, Preempted

    sections = _CONFIG.value.to_dict()
    try:
        if "image" in sections:
            _train_images(sections)
        else:
            _train_decoder(sections)
    except Preempted as stop:
        print(stop, file=sys.stderr)
        return STOPPED
    except SaveFailed as error:
        print(error, file=sys.stderr)
        return UNWRITABLE
    except Diverged as error:
        print(error, file=sys.stderr)
        return FAILED
    return DONE


def _train_decoder(sections: dict) -> None:
    from posenc_jax.checkpoints.manager import SaveFailed
    from posenc_jax.training.config import check_encodings, from_sections
    from posenc_jax.training.hosts import connect, exit_together
    from posenc_jax.training.loop import Diverged, Preempted, train
    from posenc_jax.training.multi_seed import train_seeds
    from posenc_jax.training.profile import NO_PROFILE, parse_profile

    config = from_sections(sections)
    check_encodings(config)
    profile = NO_PROFILE if _PROFILE.value is None else parse_profile(_PROFILE.value)
    connect(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    with exit_together(Preempted, Diverged, SaveFailed, ValueError):
        if _SEEDS.value is None:
            train(config, Path(_WORKDIR.value), _command(), profile)
        elif _PROFILE.value is None:
            train_seeds(config, _workdirs(), _command())
        else:
            raise ValueError("--profile traces one run; leave --seeds out")


def _train_images(sections: dict) -> None:
    """Trains an image classifier on one device, its seeds one after another."""
    from posenc_jax.training.image_config import image_config
    from posenc_jax.training.image_loop import train_images

    for flag in (_COORDINATOR, _PROCESSES, _PROCESS, _PROFILE):
        if flag.present:
            raise ValueError(f"--{flag.name} is for decoders; images are trained on one device")
    seeds = {sections["train"]["seed"]: Path(_WORKDIR.value)}
    if _SEEDS.value is not None:
        seeds = _workdirs()
    for seed, workdir in seeds.items():
        config = image_config(sections | {"train": sections["train"] | {"seed": seed}})
        print(train_images(config, workdir, _command()))


def _command() -> str:
    """Returns the command line, for the record."""
    return shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])


def _workdirs() -> dict[int, Path]:
    """Returns the folder of each seed."""
    seeds, pattern = cli.whole_numbers("seeds", _SEEDS.value), _WORKDIR.value
    if "{seed}" not in pattern:
        raise ValueError(f"--seeds needs {{seed}} in --workdir, a folder for each, not {pattern!r}")
    return {seed: Path(pattern.replace("{seed}", str(seed))) for seed in seeds}


if __name__ == "__main__":
    cli.run_main(main)
