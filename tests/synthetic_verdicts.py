"""Study folders with made-up outcomes, for tests of what reads them; no model was trained."""

import datetime
import json
import pathlib

import numpy as np

L = 64
HYBRID, ROTATIONLESS, BIASLESS = "rope+alibi|nope~logn", "alibi|nope~logn", "rope|nope~logn"
# arm -> outcome -> mean; a hybrid that wins both axes, and needs both factors.
TABLE = {
    "rope": {"Y_E": 2.9, "Y_R": 0.10, "Y_R_far": 0.02, "Y_R_id": 0.90, "bpb_id": 2.50, "P3": 0.60},
    "alibi": {"Y_E": 2.5, "Y_R": 0.20, "Y_R_far": 0.05, "Y_R_id": 0.90, "bpb_id": 2.50, "P3": 0.30},
    HYBRID: {"Y_E": 2.4, "Y_R": 0.85, "Y_R_far": 0.80, "Y_R_id": 0.95, "bpb_id": 2.45, "P3": 0.62},
    ROTATIONLESS: {"Y_E": 2.5, "Y_R": 0.5, "Y_R_far": 0.4, "Y_R_id": 0.95, "bpb_id": 2.5, "P3": 0.3},
    BIASLESS: {"Y_E": 2.8, "Y_R": 0.8, "Y_R_far": 0.7, "Y_R_id": 0.95, "bpb_id": 2.5, "P3": 0.62},
}  # fmt: skip


def outcome_rows(arm: str, seed: int, split: str = "test") -> list[dict]:
    """The rows that the rule reads, as evaluation writes them."""
    noise = np.random.default_rng([len(arm), seed])
    mean = {k: v + noise.normal(0, 0.002 if k in ("Y_E", "bpb_id") else 0.02) for k, v in TABLE[arm].items()}  # fmt: skip

    def row(suite, metric, length, value, bucket="all"):
        return {"run": f"{arm}-s{seed}", "arm": arm, "seed": seed, "tier": "cpu", "suite": suite, "metric": metric,
                "length": length, "train_length": L, "k": length / L, "bucket": bucket, "value": float(value),
                "n": 200, "split": split}  # fmt: skip

    rows = [row("E", "bpb_ctx", L, mean["bpb_id"]), row("E", "bpb_ctx", 4 * L, mean["Y_E"])]
    rows += [row("E", "bpb_ctx", 2 * L, 99), row("R", "Y_R", 2 * L, 99)]  # of no clause
    rows += [row("R", "Y_R", 4 * L, mean["Y_R"]), row("R", "Y_R_far", 4 * L, mean["Y_R_far"])]
    rows += [row("R", "Y_R_id", L, mean["Y_R_id"])]
    rows += [row("E", "context_gain", 4 * L, mean["bpb_id"] - mean["Y_E"])]
    rows += [row("E", "window_check", 4 * L, 0.08 + noise.normal(0, 0.01))]
    rows += [row("E", "repeat_gain", g, v) for g, v in ((L, 99), (2 * L, 0.4), (4 * L, 0.2))]
    rows += [row("P", "P1_shift_error", L, 1e-8 * d, f"all shift:{d}") for d in (1, 7, L, 8 * L)]
    rows += [row("P", "P1_shift_error", L, 99, "head:0.0 shift:1")]
    rows += [
        row("P", "P3_offset_accuracy", L, mean["P3"]),
        row("P", "P3_offset_accuracy", 4 * L, 99),
    ]
    rows += [row("P", "P5_monotone_share", 16 * L, 1.0)]
    return rows


def write_outcome_study(
    folder: pathlib.Path, seeds, *, arms=tuple(TABLE), tier="cpu", split="test"
) -> pathlib.Path:  # fmt: skip
    """Writes a study folder of finished, evaluated runs that all began now."""
    for index, arm in enumerate(arms):
        for seed in seeds:
            run = folder / "runs" / f"arm{index}-s{seed}"
            evaluation = run / ("evaluation" if split == "test" else f"evaluation_{split}")
            evaluation.mkdir(parents=True)
            rows = [row | {"tier": tier} for row in outcome_rows(arm, seed, split)]
            (evaluation / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
            (evaluation / "evaluation.json").write_text(
                json.dumps({"step": 400, "settings": "same"})
            )
            info = {"arm": arm, "seed": seed, "tier": tier, "train_length": L, "steps": 400, "finished": True,
                    "tokens": 10**6, "corpus_fingerprint": "ab" * 32, "tokenizer_fingerprint": "cd" * 32,
                    "hardware": "synthetic", "versions": {"jax": "0.0-synthetic"}, "scheme": arm,
                    "began": datetime.datetime.now(datetime.UTC).isoformat()}  # fmt: skip
            (run / "run.json").write_text(json.dumps(info))
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
            return {"nats_R": nats_R * bpb * np.log(2) * bytes_R.sum() / nats_R.sum(), "bytes_R": bytes_R}  # fmt: skip

        def answers(share, far, chance, random=random):
            """Answers, the first of each instance beyond L, with these corrected accuracies."""
            right = (
                chance + (1 - chance) * np.r_[np.full(count, far), np.full(count, 2 * share - far)]
            )
            luck = random.normal(0, 0.2, (2, count))
            right = right + (luck - luck.mean(1, keepdims=True)).reshape(
                -1
            )  # no 0 or 1, but a mean
            return {"correct": right, "distance": np.r_[np.full(count, 2 * L), np.full(count, L)],
                    "instance": np.tile(np.arange(count), 2)}  # fmt: skip

        far, near = value["bpb_ctx", 4 * L], value["bpb_ctx", L]
        arrays = {"bpb_ctx_256": bits(far), "bpb_ctx_64": bits(near)}
        arrays["bpb_window_256"] = bits(far + value["window_check", 4 * L])
        for task in ("passkey", "needles_4", "mqar_16"):
            guess = 1e-5 if task == "passkey" else 1 / 64
            arrays[f"{task}_4"] = answers(value["Y_R", 4 * L], value["Y_R_far", 4 * L], guess)
            arrays[f"{task}_1"] = answers(*[value["Y_R_id", L]] * 2, guess)
        arrays["P3_1"] = answers(*[value["P3_offset_accuracy", L]] * 2, 0.0)
        for gap in (2 * L, 4 * L):
            first_R, second_R = random.normal(0, 0.2, (2, count))
            first_R += value["repeat_gain", gap] - (first_R - second_R).mean()
            arrays[f"repeat_gain_{gap}"] = {"first_R": first_R, "second_R": second_R}
        (path.parent / "arrays").mkdir()
        for name, stored in arrays.items():
            np.savez(path.parent / "arrays" / f"{name}.npz", **stored)
