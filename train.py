"""Trains one decoder: python train.py --config=configs/lm.py:rope+alibi --workdir=runs/x.

Running the same command again goes on from the last checkpoint. Several seeds in one program, each in a
folder of its own: --workdir=runs/x-s{seed} --seeds=0,1,2. Exit codes: 0 done, 2 wrong input, 75 stopped and
resumable, 1 diverged.
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
_SEEDS = flags.DEFINE_list(
    "seeds", None, "Training seeds, trained together; {seed} in --workdir stands for each"
)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> int:
    """Flags to config to one call."""
    from posenc_jax.training.config import from_sections
    from posenc_jax.training.loop import STOPPED, Diverged, Stopped, train
    from posenc_jax.training.together import train_together

    config = from_sections(_CONFIG.value.to_dict())
    command = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    try:
        if _SEEDS.value is None:
            train(config, Path(_WORKDIR.value), command)
        else:
            train_together(config, _workdirs(), command)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return STOPPED
    except Diverged as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _workdirs() -> dict[int, Path]:
    """The folder of every seed asked for."""
    seeds, pattern = _SEEDS.value, _WORKDIR.value
    if not seeds or not all(s.isdigit() for s in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds must be whole numbers, each once, not {','.join(seeds)!r}")
    if "{seed}" not in pattern:
        raise ValueError(f"--seeds needs {{seed}} in --workdir, a folder for each, not {pattern!r}")
    return {int(s): Path(pattern.replace("{seed}", s)) for s in seeds}


if __name__ == "__main__":
    door.enter(main)
