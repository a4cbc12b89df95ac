"""Study folders with made-up outcomes, for tests of what reads them; no model was trained."""

import datetime
import json
import pathlib

import numpy as np

L = 64
TASKS = {"passkey": 1e-5, "needles_4": 0.25, "mqar_16": 0.21}  # chance without binding
HYBRID, ROTATIONLESS, BIASLESS = "rope+alibi|nope~logn", "alibi|nope~logn", "rope|nope~logn"
YARN = "rope yarn:4"
# arm -> outcome -> mean; a hybrid that wins both axes, and needs both factors.
TABLE = {
    "rope": {"Y_E": 2.9, "Y_id": 2.50, "Y_R": 0.10, "far": 0.02, "Y_R_8": 0.05},
    YARN: {"Y_E": 2.7, "Y_id": 2.50, "Y_R": 0.25, "far": 0.10, "Y_R_8": 0.05},
    "alibi": {"Y_E": 2.5, "Y_id": 2.50, "Y_R": 0.20, "far": 0.05, "Y_R_8": 0.10},
    HYBRID: {"Y_E": 2.4, "Y_id": 2.45, "Y_R": 0.93, "far": 0.90, "Y_R_8": 0.90},
    ROTATIONLESS: {"Y_E": 2.5, "Y_id": 2.50, "Y_R": 0.50, "far": 0.40, "Y_R_8": 0.40},
    BIASLESS: {"Y_E": 2.8, "Y_id": 2.50, "Y_R": 0.90, "far": 0.70, "Y_R_8": 0.70},
}  # fmt: skip
AT_L = 0.96  # corrected accuracy of every arm at L
BUCKETS = ("distance:<=L/4", "distance:L/4-L", "distance:L-2L", "distance:2L-4L")


def outcome_rows(arm: str, seed: int, split: str = "test") -> list[dict]:
    """The rows that both rules read, as evaluation writes them, and some that are of no clause."""
    noise = np.random.default_rng([len(arm), seed])
    mean = {
        k: v + noise.normal(0, 0.002 if k in ("Y_E", "Y_id") else 0.01)
        for k, v in TABLE[arm].items()
    }

    def row(suite, metric, length, value, bucket="all", chance=None):
        return {
            "run": f"{arm}-s{seed}",
            "arm": arm,
            "seed": seed,
            "tier": "cpu",
            "suite": suite,
            "metric": metric,
            "length": length,
            "train_length": L,
            "k": length / L,
            "bucket": bucket,
            "value": float(value),
            "n": 200,
            "split": split,
            "chance": chance,
            "definitions": 2,
        }

    at_L = mean["Y_id"] + 0.01
    rows = [
        row("E", "bpb_ctx", c, v)
        for c, v in ((L // 2, mean["Y_id"]), (L, at_L), (4 * L, mean["Y_E"]))
    ]
    rows += [row("E", "bpb_ctx", 2 * L, 99), row("R", "Y_R", 2 * L, 99)]  # of no clause
    corrected = {1: AT_L + noise.normal(0, 0.01), 4: mean["Y_R"], 8: mean["Y_R_8"]}
    rows += [row("R", "Y_R", 4 * L, corrected[4]), row("R", "Y_R_far", 4 * L, mean["far"])]
    rows += [row("R", "Y_R", 8 * L, corrected[8]), row("R", "Y_R_id", L, corrected[1])]
    rows += [row("R", "least_id", L, corrected[1] - 0.02)]
    rows += [row("R", "Y_R_window", 4 * L, 0.1 * corrected[4])]
    for task, chance in TASKS.items():
        for k, value in corrected.items():
            parts = {"all": value} | (dict.fromkeys(BUCKETS[2:], mean["far"]) if k == 4 else {})
            for bucket, one in parts.items():
                accuracy = chance + (1 - chance) * one
                rows.append(row("R", f"{task}_accuracy", k * L, accuracy, bucket, chance))
                rows.append(row("R", f"{task}_corrected", k * L, one, bucket, chance))
    rows += [row("E", "context_gain", 4 * L, mean["Y_id"] - mean["Y_E"])]
    rows += [row("E", "window_check", 4 * L, 0.08 + noise.normal(0, 0.01))]
    rows += [
        row("E", "repeat_gain", g, v + noise.normal(0, 0.01))
        for g, v in ((L, 99), (2 * L, 0.4), (4 * L, 0.2))
    ]
    rows += [row("P", "P1_shift_error", L, 1e-8 * d, f"all shift:{d}") for d in (1, 7, L, 8 * L)]
    rows += [row("P", "P1_shift_error", L, 99, "head:0.0 shift:1")]
    rows += [
        row("P", "P3_offset_accuracy", L, 0.95 + noise.normal(0, 0.01)),
        row("P", "P3_offset_accuracy", 4 * L, 99),
    ]
    rows += [row("P", "P4_bpb_ctx_change", L, 0.4 + noise.normal(0, 0.05), "rotation off")]
    rows += [row("P", "P5_monotone_share", 16 * L, 1.0)]
    return rows


def write_run(run: pathlib.Path, info: dict, rows: list[dict], split: str) -> None:
    """Writes a finished, evaluated run that began now."""
    evaluation = run / ("evaluation" if split == "test" else f"evaluation_{split}")
    evaluation.mkdir(parents=True)
    rows = [row | {name: info[name] for name in ("tier", "train_length")} for row in rows]
    (evaluation / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (evaluation / "evaluation.json").write_text(json.dumps({"step": 400, "settings": "same"}))
    info = {
        "steps": 400,
        "finished": True,
        "tokens": 10**6,
        "corpus_fingerprint": "ab" * 32,
        "tokenizer_fingerprint": "cd" * 32,
        "hardware": "synthetic",
        "versions": {"jax": "0.0-synthetic"},
        "scheme": info["arm"],
        "began": datetime.datetime.now(datetime.UTC).isoformat(),
    } | info
    (run / "run.json").write_text(json.dumps(info))


def write_outcome_study(
    folder: pathlib.Path, seeds, *, arms=tuple(TABLE), tier="cpu", split="test"
) -> pathlib.Path:
    """Writes a study folder of finished, evaluated runs that all began now."""
    for index, arm in enumerate(arms):
        for seed in seeds:
            info = {"arm": arm, "seed": seed, "tier": tier, "train_length": L}
            rows = outcome_rows(arm, seed, split)
            write_run(folder / "runs" / f"arm{index}-s{seed}", info, rows, split)
    return folder


def edit(path: pathlib.Path, **changes) -> None:
    """Changes fields of a JSON file; None takes a field away."""
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


def add_instances(folder: pathlib.Path, count: int) -> None:
    """Writes, for every run of a study, arrays of `count` instances that give the values of its rows."""
    for path in sorted(folder.glob("runs/*/evaluation/rows.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        value = {(r["metric"], r["length"]): r["value"] for r in rows if r["bucket"] == "all"}
        random = np.random.default_rng(list(str(path).encode()))
        bytes_R = np.arange(50, 50 + count)

        def bits(bpb, random=random, bytes_R=bytes_R):
            """Nats of stretches that cost so many bits per byte together."""
            nats_R = random.normal(1, 0.1, len(bytes_R)) * bytes_R
            return {
                "nats_R": nats_R * bpb * np.log(2) * bytes_R.sum() / nats_R.sum(),
                "bytes_R": bytes_R,
            }

        def answers(share, far, chance, random=random):
            """Answers, the first of each instance beyond L, with these corrected accuracies."""
            right = (
                chance + (1 - chance) * np.r_[np.full(count, far), np.full(count, 2 * share - far)]
            )
            luck = random.normal(0, 0.2, (2, count))
            right = right + (luck - luck.mean(1, keepdims=True)).reshape(
                -1
            )  # no 0 or 1, but a mean
            return {
                "correct": right,
                "distance": np.r_[np.full(count, 2 * L), np.full(count, L)],
                "chance": np.full(2 * count, chance),
                "instance": np.tile(np.arange(count), 2),
            }

        arrays = {
            "bpb_ctx_256": bits(value["bpb_ctx", 4 * L]),
            "bpb_ctx_32": bits(value["bpb_ctx", L // 2]),
        }
        for task, chance in TASKS.items():
            arrays[f"{task}_4"] = answers(value["Y_R", 4 * L], value["Y_R_far", 4 * L], chance)
            arrays[f"{task}_4_window"] = answers(*[value["Y_R_window", 4 * L]] * 2, chance)
            arrays[f"{task}_8"] = answers(*[value["Y_R", 8 * L]] * 2, chance)
            arrays[f"{task}_1"] = answers(*[value["Y_R_id", L]] * 2, chance)
        (path.parent / "arrays").mkdir()
        for name, stored in arrays.items():
            np.savez(path.parent / "arrays" / f"{name}.npz", **stored)
