"""Trains one decoder: python train.py --config=configs/lm.py:rope+alibi --workdir=runs/x.

Running the same command again goes on from the last checkpoint. Exit codes: 0 done, 2 wrong input,
75 stopped and resumable, 74 cannot write (disk full; resumable once there is room), 1 diverged, 130
ended by a second Ctrl-C without waiting for a checkpoint.
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
flags.mark_flags_as_required(["config", "workdir"])


def main() -> int:
    """Flags to config to one call."""
    from posenc_jax.training.checkpoints import SaveFailed
    from posenc_jax.training.config import from_sections
    from posenc_jax.training.loop import STOPPED, UNWRITABLE, Diverged, Stopped, train

    config = from_sections(_CONFIG.value.to_dict())
    try:
        train(
            config,
            Path(_WORKDIR.value),
            shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        )
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return STOPPED
    except SaveFailed as error:
        print(error, file=sys.stderr)
        return UNWRITABLE
    except Diverged as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "ended at once; run the same command to go on from the last checkpoint", file=sys.stderr
        )
        return 130
    return 0


if __name__ == "__main__":
    door.enter(main)
