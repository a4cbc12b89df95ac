"""DroPE: continues a run without its rotation, at the same length (Gelberg et al. 2025, arXiv
2512.12167).

Command:  python train.py --config=configs/lm.py:rope --config.train.steps=1020 --workdir=runs/x
          python train.py --config=configs/drope.py:runs/x --workdir=runs/x-drope
Reaches:  not measured
Takes:    15/85 of the steps of the run in the folder: a fifth of a minute of one core

The run in the folder has taken 85 % of all steps; this configuration takes the other 15 %.
Rotations are removed; biases and temperatures are kept. Moments begin at zero; the rate is warmed
up again in 2 % of these steps and decays by a cosine. Its peak is that of the run under qk-norm,
and a third of it otherwise, as in the authors' configurations of Llama 2 7B:
llama2_7b_drope_qk_norm.yaml (3e-4, the peak of pretraining) and llama2_7b_drope.yaml (1e-4), with
100 of 15,000 and of 5,000 steps of warm-up (repository SakanaAI/DroPE). Their weight decay of 0 is
not used.
"""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from posenc_jax.encodings import parse, unparse
from posenc_jax.encodings.length_extension import rotation_dropped
from posenc_jax.training.config import read

SHARE = 0.15  # of all steps, without the rotation
WARMUP = 0.02  # of these steps


def get_config(folder: str = "") -> ConfigDict:
    """Returns the configuration that continues the run in a folder, e.g. "runs/x"."""
    path = Path(folder) / "config.json"
    if not folder:
        raise ValueError("configs/drope.py needs the folder of a run, e.g. configs/drope.py:runs/x")
    if not path.exists():
        raise ValueError(f"{folder} holds no run: it has no config.json")
    source = read(path)
    steps = max(round(source.train.steps * SHARE / (1 - SHARE)), 1)
    peak = 1.0 if source.model.qk_norm else 1 / 3

    config = ConfigDict(dataclasses.asdict(source))
    config.model.scheme = unparse(rotation_dropped(parse(source.model.scheme)))
    config.train.update(
        arm=f"{source.arm} dropped",
        init_from=folder,
        original_length=source.placed_length,
        steps=steps,
        save_every=min(source.train.save_every, steps),
        dev_every=0,
    )
    config.optimizer.update(
        learning_rate=source.optimizer.learning_rate * peak,
        muon_learning_rate=source.optimizer.muon_learning_rate * peak,
        warmup_steps=max(round(steps * WARMUP), 1),
    )
    return config
