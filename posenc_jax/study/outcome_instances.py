"""Instances behind each outcome of a run, for the bootstrap; read from the arrays beside its
rows.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

from posenc_jax.results.schema import FAR, ID, SUMMARY_TASKS
from posenc_jax.results.study_data import RunData
from posenc_jax.study import bootstrap

RECALL = {"Y_R": (FAR, None), "Y_R_far": (FAR, 1.0), "Y_R_8": (8, None), "Y_R_id": (1, None)}
STRETCHES = ("Y_E", "Y_id", "price", "context_gain")
SAMPLED = (*RECALL, "window_drop", *STRETCHES)
LN2 = math.log(2)

# (arm, metric) -> seed -> the instances, or the reason why there are none.
InstanceSamples = Mapping[tuple[str, str], Mapping[int, bootstrap.Sample | str]]


def read_instances(run: RunData) -> dict[str, bootstrap.Sample | str]:
    """Returns the instances of each outcome of `SAMPLED`, or the reason why they are unknown.

    Y_R, Y_R_far, Y_R_8, Y_R_id: one stratum a task, right answers above chance; the weight of an
    instance is its number of answers (Y_R_far: those further than L). window_drop: the same less
    those under the window. Y_E, Y_id, price, context_gain: bits and bytes of each stretch.
    """
    samples: dict[str, bootstrap.Sample | str] = {}
    for outcome in SAMPLED:
        try:
            samples[outcome] = _sample(outcome, run.arrays, run.info["train_length"])
        except ValueError as error:
            samples[outcome] = str(error)
    return samples


def matching_sample(sample: bootstrap.Sample | str, value: float) -> bootstrap.Sample | str:
    """Returns the sample if it gives the value of the rows, else a sentence about it."""
    if isinstance(sample, str):
        return sample
    from_arrays = bootstrap.sample_value(sample)
    if math.isclose(from_arrays, value, rel_tol=1e-6, abs_tol=1e-9):
        return sample
    return f"its arrays give {from_arrays:.6g}, its rows {value:.6g}"


def _sample(outcome: str, load: Callable, length: int) -> bootstrap.Sample:
    if outcome in RECALL:
        k, beyond = RECALL[outcome]
        return _recall(load, f"{k}", length, beyond)
    if outcome == "window_drop":
        drop = bootstrap.paired_difference(
            _recall(load, f"{FAR}", length, None), _recall(load, f"{FAR}_window", length, None)
        )
        if drop is None:
            raise ValueError("it was scored on other instances under the window")
        return drop
    far, near = (load(f"bpb_ctx_{int(k * length)}") for k in (FAR, ID))
    nats_R = {
        "Y_E": lambda: far["nats_R"],
        "Y_id": lambda: near["nats_R"],
        "price": lambda: far["nats_R"] - near["nats_R"],
        "context_gain": lambda: near["nats_R"] - far["nats_R"],
    }[outcome]()
    return (bootstrap.Stratum(nats_R / LN2, far["bytes_R"].astype(np.float64)),)


def _recall(load: Callable, name: str, length: int, beyond: float | None) -> bootstrap.Sample:
    return tuple(_answers(load(f"{task}_{name}"), length, beyond) for task in SUMMARY_TASKS)


def _answers(
    answers: Mapping[str, np.ndarray], length: int, beyond: float | None
) -> bootstrap.Stratum:
    """Returns right answers above chance by instance, for answers further than `beyond` L (None:
    all).

    Chance is the mean over these answers, as in the rows.
    """
    if "chance" not in answers:
        raise ValueError("its arrays are of older definitions, without chance")
    distance = answers["distance"]
    counted = np.ones(len(distance), bool) if beyond is None else distance > beyond * length
    instance, chance = answers["instance"][counted], answers["chance"][counted].mean()
    above = (answers["correct"][counted] - chance) / (1 - chance)
    weight_I = np.bincount(instance, minlength=1).astype(np.float64)
    total_I = np.bincount(instance, above, minlength=1)
    return bootstrap.Stratum(total_I[weight_I > 0], weight_I[weight_I > 0])
