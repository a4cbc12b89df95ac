"""The instances behind every outcome of a run, from the arrays that lie beside its rows."""

import functools
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from posenc_jax.study import nested
from posenc_jax.study.outcomes import PLAIN, repeat_lengths
from posenc_jax.tasks.table import SUMMARY_TASKS, chance

RETRIEVAL = ("Y_R", "Y_R_far", "Y_R_id")
STRETCHES = ("Y_E", "bpb_id", "context_gain", "repeat_gain", "window_check")
SAMPLED = (*RETRIEVAL, *STRETCHES, "P3")
LN2 = math.log(2)

# By arm and metric, by seed: the instances, or the reason why there are none.
Samples = Mapping[tuple[str, str], Mapping[int, nested.Sample | str]]


def read_samples(arrays: Path, rows: Sequence[Mapping]) -> dict[str, nested.Sample | str]:
    """Returns the instances of each outcome of `SAMPLED`, or in words why they are not known.

    Y_R, Y_R_far, Y_R_id: one stratum a task, chance-corrected; an instance counts once for every answer
    (Y_R_far: for those further than L, and is no instance where it has none). Y_E, bpb_id, context_gain,
    window_check: bits and bytes of each stretch. repeat_gain: the mean over the gaps from 2L to 4L of
    each stretch. P3: right answers and questions of each instance.

    Args:
      arrays: folder of an evaluation's arrays. rows: of the same evaluation.
    """
    if not rows:
        return dict.fromkeys(SAMPLED, "no rows")
    length = rows[0]["train_length"]
    gaps = repeat_lengths({(r["metric"], r["length"], r["bucket"]) for r in rows}, length)
    found: dict[str, nested.Sample | str] = {}
    for outcome in SAMPLED:
        try:
            found[outcome] = _sample(outcome, functools.partial(_load, arrays), length, gaps)
        except ValueError as error:
            found[outcome] = str(error)
    return found


def confirmed(sample: nested.Sample | str, value: float) -> nested.Sample | str:
    """Returns the sample if it gives the value that the rows have, else that it does not."""
    if isinstance(sample, str):
        return sample
    mine = nested.value(sample)
    if math.isclose(mine, value, rel_tol=1e-6, abs_tol=1e-9):
        return sample
    return f"its arrays give {mine:.6g}, its rows {value:.6g}"


def _sample(outcome: str, load, length: int, gaps: Sequence[int]) -> nested.Sample:
    k = 1 if outcome == "repeat_gain" else PLAIN[outcome][1]
    if outcome in RETRIEVAL:
        beyond = length if outcome == "Y_R_far" else None
        return tuple(_answers(load(f"{task}_{k}"), chance(task), beyond) for task in SUMMARY_TASKS)
    if outcome == "P3":
        return (_answers(load(f"P3_{k}"), 0.0, None),)
    if outcome == "repeat_gain":
        if not gaps:
            raise ValueError("no row repeat_gain at 2L to 4L")
        pairs = [load(f"repeat_gain_{gap}") for gap in gaps]
        gain_R = np.mean([pair["first_R"] - pair["second_R"] for pair in pairs], axis=0)
        return (nested.Stratum(gain_R, np.ones(len(gain_R))),)
    far = load(f"bpb_ctx_{k * length}")
    nats_R = {
        "context_gain": lambda: load(f"bpb_ctx_{length}")["nats_R"] - far["nats_R"],
        "window_check": lambda: load(f"bpb_window_{k * length}")["nats_R"] - far["nats_R"],
        "Y_E": lambda: far["nats_R"],
        "bpb_id": lambda: far["nats_R"],
    }[outcome]()
    return (nested.Stratum(nats_R / LN2, far["bytes_R"].astype(np.float64)),)


def _answers(answers: Mapping[str, np.ndarray], guess: float, beyond: float | None) -> nested.Stratum:  # fmt: skip
    """Corrected accuracy by instance, of the answers further away than `beyond` (None: all)."""
    far = np.ones(len(answers["correct"]), bool) if beyond is None else answers["distance"] > beyond
    instance, right = answers["instance"][far], answers["correct"][far]
    weight_I = np.bincount(instance, minlength=1).astype(np.float64)
    total_I = (np.bincount(instance, right, minlength=1) - guess * weight_I) / (1 - guess)
    return nested.Stratum(total_I[weight_I > 0], weight_I[weight_I > 0])


def _load(arrays: Path, name: str) -> dict[str, np.ndarray]:
    path = arrays / f"{name}.npz"
    if not path.exists():
        raise ValueError(f"no {path.parent.name}/{path.name}")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile):
        raise ValueError(f"{path.parent.name}/{path.name} is damaged") from None
