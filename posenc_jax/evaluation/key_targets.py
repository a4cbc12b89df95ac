"""E5: targets that need far context, chosen once by a reference model and then read from a file.

The reference is a RoPE run trained at 4L. A target is chosen when far context helped it much and enough:
NLL(context L) - NLL(context 4L) > 0.5 nat and NLL(context 4L) < 2 nat (EVALUATION.md, sec. 1).
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from posenc_jax.evaluation.perplexity import fixed_targets
from posenc_jax.evaluation.scorer import Scorer
from posenc_jax.results.files import write_json
from posenc_jax.training.inputs import Inputs

REFERENCE_MULTIPLE = 4  # the reference's training length in units of L
LEAST_GAIN, MOST_LOSS = 0.5, 2.0  # nats


def choose(scorer: Scorer, rows_RT: np.ndarray, train_length: int) -> np.ndarray:
    """Returns chosen_RT, bool [stretches, L/2]: which of E3's targets need far context."""
    near, _ = fixed_targets(scorer, rows_RT, train_length, train_length)
    far, _ = fixed_targets(scorer, rows_RT, train_length, REFERENCE_MULTIPLE * train_length)
    return (near - far > LEAST_GAIN) & (far < MOST_LOSS)


def about(
    inputs: Inputs, split: str, train_length: int, top: int, rows_RT: np.ndarray
) -> dict[str, str | int]:
    """Returns what a list of targets is a list of; two that differ name different tokens."""
    return {
        "split": split,
        "train_length": train_length,
        "longest_multiple": top,
        "stretches": len(rows_RT),
        "text": inputs.stream(split).fingerprint,
        "tokens": hashlib.sha256(np.ascontiguousarray(rows_RT).tobytes()).hexdigest(),
    }


def write(path: Path, chosen_RT: np.ndarray, about: dict, reference: dict) -> None:
    """Writes the list with its own hash in it."""
    content = {"about": about, "reference": reference, "chosen": np.argwhere(chosen_RT).tolist()}
    content["targets_per_stretch"] = chosen_RT.shape[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content | {"sha256": _hash(content)})


def read(path: Path, about: dict) -> np.ndarray:
    """Returns chosen_RT of a file.

    Raises:
      ValueError: the file is damaged, or lists targets of other text, lengths or stretches.
    """
    try:
        content = json.loads(path.read_text())
        stored = content.pop("sha256")
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError):
        raise ValueError(f"--key_targets={path} is no list of targets") from None
    if stored != _hash(content):
        raise ValueError(
            f"--key_targets={path} is damaged: its hash does not agree; write it again"
        )
    for field, ours in about.items():
        if content["about"].get(field) != ours:
            raise ValueError(
                f"--key_targets={path} lists targets of {field}={content['about'].get(field)}; "
                f"this evaluation has {field}={ours}"
            )
    chosen_RT = np.zeros((about["stretches"], content["targets_per_stretch"]), bool)
    for stretch, place in content["chosen"]:
        chosen_RT[stretch, place] = True
    return chosen_RT


def mark(path: Path | None) -> str:
    """Returns what tells items measured with this file from those with another."""
    return "" if path is None else "@" + hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def _hash(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
