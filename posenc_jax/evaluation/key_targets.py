"""Targets of E5, which need far context: chosen once with a reference model, stored in a file.

The reference is a RoPE run trained at 4L. A target is chosen if far context helps it by more than
0.5 nat and is sufficient: NLL(context L) - NLL(context 4L) > 0.5 and NLL(context 4L) < 2
(docs/evaluation.md).
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from posenc_jax.evaluation.lengths import Multiple
from posenc_jax.evaluation.perplexity import fixed_targets
from posenc_jax.evaluation.scorer import Scorer
from posenc_jax.results.files import read_json, write_json
from posenc_jax.training.inputs import Inputs

REFERENCE_MULTIPLE = 4  # the reference's training length in units of L
LEAST_GAIN, MOST_LOSS = 0.5, 2.0  # nats


def choose(scorer: Scorer, rows_RT: np.ndarray, train_length: int) -> np.ndarray:
    """Returns chosen_RT, bool [stretches, L/2]: the targets of E3 that need far context."""
    near, _ = fixed_targets(scorer, rows_RT, train_length, train_length)
    far, _ = fixed_targets(scorer, rows_RT, train_length, REFERENCE_MULTIPLE * train_length)
    return (near - far > LEAST_GAIN) & (far < MOST_LOSS)


def about(
    inputs: Inputs, split: str, train_length: int, top: Multiple, rows_RT: np.ndarray
) -> dict[str, str | Multiple]:
    """Returns the description of a list of targets; equal descriptions mean the same tokens."""
    return {
        "split": split,
        "train_length": train_length,
        "longest_multiple": top,
        "stretches": len(rows_RT),
        "text": inputs.stream(split).fingerprint,
        "tokens": hashlib.sha256(np.ascontiguousarray(rows_RT).tobytes()).hexdigest(),
    }


def write(path: Path, chosen_RT: np.ndarray, about: dict, reference: dict) -> None:
    """Writes the list of targets and its hash."""
    content = {"about": about, "reference": reference, "chosen": np.argwhere(chosen_RT).tolist()}
    content["targets_per_stretch"] = chosen_RT.shape[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content | {"sha256": _hash(content)})


def read(path: Path, about: dict) -> np.ndarray:
    """Returns chosen_RT of a file; ValueError for a damaged one, or one of other text."""
    try:
        content = read_json(path)
        stored = content.pop("sha256")
    except (ValueError, KeyError):
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
    for stretch, target in content["chosen"]:
        chosen_RT[stretch, target] = True
    return chosen_RT


def item_suffix(path: Path | None) -> str:
    """Returns the suffix of items measured with this file; another file has another suffix."""
    return "" if path is None else "@" + hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def _hash(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
