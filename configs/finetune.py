"""Fine-tuning of a trained run at four times its length, with its encoding stretched as in a
zero-shot evaluation.

Command:  python train.py --config=configs/finetune.py:yarn,runs/x --workdir=runs/x-yarn
          also pi, ntk, llama3, dynamic; slopes (m L / L' of ALiBi, rotations unchanged); none, the
          control; yarn:8 for eight times the length
Reaches:  not measured; run.json has the zero-shot dev loss (`source`), metrics.jsonl the later ones
Takes:    1,000 steps with as many tokens as those of the run: a minute of one core

Model, data and optimizer are those of the run in the given folder. The peak learning rate is a
tenth of that of the run, after 20 steps of warm-up (as in Chen et al. 2023, sec. 3.1, and Peng et
al. 2023, sec. 4.1). The batch is smaller, so that a step has the same number of tokens.
"""

import dataclasses
import math
from pathlib import Path

from ml_collections import ConfigDict

from posenc_jax.encodings import extend_length, parse, unparse
from posenc_jax.training.config import read

FACTOR = 4
RULES = ("pi", "ntk", "yarn", "llama3", "dynamic", "slopes", "none")


def get_config(arm_and_run: str = "") -> ConfigDict:
    """Returns the configuration of a stretch and the folder of a run, e.g. "yarn,runs/x"."""
    arm, _, folder = arm_and_run.partition(",")
    name, _, number = arm.partition(":")
    if name not in RULES or not folder or not (number.isdigit() if number else True):
        raise ValueError(
            f"configs/finetune.py needs a stretch ({', '.join(RULES)}) and a run, e.g. "
            f"yarn,runs/x, not {arm_and_run!r}"
        )
    factor, path = int(number or FACTOR), Path(folder) / "config.json"
    if not path.exists():
        raise ValueError(f"{folder} holds no run: it has no config.json")
    source = read(path)
    length = factor * source.train.length
    rule = "dynamic:1" if name == "dynamic" else f"{name}:{factor}"

    config = ConfigDict(dataclasses.asdict(source))
    if name != "none":
        scheme = extend_length(
            parse(source.model.scheme),
            rule,
            length=length,
            train_length=source.train.length,
            placed_length=source.placed_length,
        )
        config.model.scheme = unparse(scheme)
    batch_size = max(source.train.batch_size // factor, 1)
    config.train.update(
        arm=f"{source.arm} {rule} tuned",
        init_from=folder,
        original_length=source.placed_length,
        length=length,
        batch_size=batch_size,
        accumulation=math.gcd(source.train.accumulation, batch_size),
        steps=1000,
        save_every=250,
        dev_every=250,
    )
    config.optimizer.update(
        learning_rate=source.optimizer.learning_rate / 10,
        muon_learning_rate=source.optimizer.muon_learning_rate / 10,
        warmup_steps=20,
    )
    return config
