"""Run folders as training and evaluation leave them, for tests of what reads them.

All numbers are synthetic: smooth made-up functions with a little noise; no model was trained.
"""

import functools
import json
import pathlib

import numpy as np

ARMS = ("nope", "rope", "alibi", "rope+alibi", "2*(rope+alibi)|2*nope~logn")
# Made up: slope of bits per byte beyond L, reach of retrieval in multiples of L.
SHAPES = {
    **dict(zip(ARMS, ((0.9, 1.0), (1.4, 0.9), (-0.02, 2.0), (0.0, 1.6), (-0.03, 20.0)), strict=True)),
    "prope-logn": (0.05, 6.0), "alibi-match": (-0.01, 1.2), "sum": (0.0, 1.5), "coupled": (-0.03, 20.0),
    "coupled-rotated": (0.02, 3.0), "coupled-unrotated": (-0.01, 12.0), "logtail": (-0.04, 8.0),
    "capped": (0.01, 4.0), "rope yarn:4": (0.3, 3.0),
}  # fmt: skip
PLACE = {arm: place for place, arm in enumerate(SHAPES)}
# As many as a study of hybrids has: colours must not be all that tells them apart.
MANY = (
    "nope",
    "rope",
    "prope-logn",
    "alibi",
    "alibi-match",
    "sum",
    "coupled",
    "coupled-rotated",
    "coupled-unrotated",
    "logtail",
    "capped",
    "rope yarn:4",
)
L = 64
BINS = {"<=L/4": (0, 0.25), "L/4-L": (0.25, 1), "L-2L": (1, 2), "2L-4L": (2, 4), "4L-8L": (4, 8)}
# Without binding; that of mqar is of eight pairs, that of copy and flipflop made up.
CHANCE = {
    "passkey": 1e-5,
    "needles_4": 0.25,
    "mqar": 0.34,
    "mqar_16": 0.21,
    "copy": 0.05,
    "latest_first": 0.5,
    "flipflop": 0.6,
}
TASKS = ("passkey", "needles_4", "mqar_16", "copy", "latest_first", "flipflop")
OFFSETS = (16, 20, 25, 31, 47)
CLASS_BINS = {"<=L": 1, "L-2L": 2, "2L-4L": 4, "4L-8L": 8, ">8L": 8}


def one_row(arm, seed, suite, metric, k, value, n, bucket="all", chance=None):
    return {
        "run": f"{arm}-s{seed}", "arm": arm, "seed": seed, "tier": "cpu", "suite": suite,
        "metric": metric, "length": int(k * L), "train_length": L, "k": k, "bucket": bucket,
        "value": None if value is None else float(value), "n": n, "split": "test",
        "chance": chance, "definitions": 2,
    }  # fmt: skip


def answer_rows(row, task, k, accuracy, n, bucket):
    """Accuracy and corrected accuracy of a task, with its chance."""
    chance = CHANCE[task]
    corrected = (accuracy - chance) / (1 - chance)
    return [
        row("R", f"{task}_accuracy", k, accuracy, n, bucket, chance),
        row("R", f"{task}_corrected", k, corrected, n, bucket, chance),
    ]


def synthetic_rows(arm: str, seed: int) -> list[dict]:
    noise = np.random.default_rng([PLACE[arm], seed])
    slope, reach = SHAPES[arm]

    row = functools.partial(one_row, arm, seed)
    drift, base = noise.normal(0, 0.1), 2.4 + noise.normal(0, 0.04)

    def bpb(k):
        return base - 0.12 * min(0, np.log2(k)) + slope * (1 + drift) * max(0, np.log2(k))

    luck = noise.normal(0, 0.2)

    def accuracy(d):
        right = 0.985 / (1 + (d / reach / (1 + luck)) ** 3) + noise.normal(0, 0.01)
        return float(np.clip(right, 0, 1))

    rows = [row("E", "bpb_ctx", k, bpb(k), 4096) for k in (0.125, 0.25, 0.5, 1, 2, 4, 8)]
    rows += [row("E", "bpb_nonoverlap", k, bpb(k) + 0.1 / k, 9000) for k in (1, 2, 4, 8)]
    for octave in range(10):
        name = f"[{2**octave},{2 ** (octave + 1)})"
        rows.append(row("E", "nll_pos", 8, 1.8 + max(0, slope) * max(0, octave - 6), 100, name))
    for task in ("passkey", "mqar"):
        for k in (1, 2, 4, 8):
            depths = [(i + 0.5) / 10 for i in range(10)]
            values = [accuracy((1 - p) * k) for p in depths]
            rows += answer_rows(row, task, k, np.mean(values), 200, "all")
            for i, value in enumerate(values):
                rows += answer_rows(row, task, k, value, 20, f"depth:{i}")
            for name, (a, b) in BINS.items():
                if a < k:
                    middle = (a + min(b, k)) / 2
                    n = int(200 * (min(b, k) - a) / k)
                    rows += answer_rows(row, task, k, accuracy(middle), n, f"distance:{name}")
    return rows


def every_row(arm: str, seed: int) -> list[dict]:
    """Rows of all measures of a language model, as evaluation names them (docs/evaluation.md)."""
    old = synthetic_rows(arm, seed)
    noise = np.random.default_rng([7, PLACE[arm], seed])
    _, reach = SHAPES[arm]
    row = functools.partial(one_row, arm, seed)
    bpb = {r["k"]: r["value"] for r in old if r["metric"] == "bpb_ctx"}
    rows = [r for r in old if r["suite"] == "E"]
    for k in (1, 2, 4, 8):
        sliding = bpb[k] + 0.1 / k - 0.08 / k
        rows.append(row("E", "bpb_sliding", k, sliding, 4000))
        rows.append(row("E", "early_token_curse", k, 0.08 / k, 4000))
        rows.append(row("E", "bpb_key", k, bpb[k] + 1.5 - 0.5 * min(k, reach) ** 0.5, 90))
    uses = 0.02 * (reach > 3)
    rows.append(row("E", "context_gain", 4, bpb[0.5] - bpb[4], 4096))
    rows.append(row("E", "bpb_window", 4, min(bpb[4], bpb[1]) + uses, 4096))
    rows.append(row("E", "window_check", 4, min(bpb[4], bpb[1]) + uses - bpb[4], 4096))
    for g in (0.25, 0.5, 1, 2, 4):
        rows.append(
            row("E", "repeat_gain", g, 1.2 / (1 + (g / reach) ** 2) + noise.normal(0, 0.02), 64)
        )

    def accuracy(task, d):
        chance = CHANCE[task]
        right = 0.98 / (1 + (d / reach) ** 3) * (0.4 if task == "copy" else 1)
        return chance + (1 - chance) * float(np.clip(right + noise.normal(0, 0.01), 0, 1))

    def add(task, k, value, n, bucket):
        rows.extend(answer_rows(row, task, k, value, n, bucket))
        rows.append(row("R", f"{task}_nll", k, 4 * (1 - value), n, bucket))

    scores = {}
    for task in TASKS:
        for k in (1, 2, 4, 8):
            if task == "mqar_16" and arm == "nope" and k == 1:
                continue
            scores[task, k] = accuracy(task, k / 2)
            add(task, k, scores[task, k], 200, "all")
            if task != "copy":
                for i in range(10):
                    add(task, k, accuracy(task, (1 - (i + 0.5) / 10) * k), 20, f"depth:{i}")
            for name, (a, b) in BINS.items():
                if a < k:
                    n = int(200 * (min(b, k) - a) / k)
                    add(task, k, accuracy(task, (a + min(b, k)) / 2), n, f"distance:{name}")
            if task == "latest_first":
                add(task, k, accuracy(task, k / 8), 100, "kind:LAST")
                add(task, k, accuracy(task, k), 100, "kind:FIRST")
        skip = {"skipped": f"{task} is not above chance at its shortest length, {L}"}
        none = arm == "nope" and task == "copy"
        rows.append(
            row("R", "EL_0.85", 8, None if none else 2 * L, 4, task) | (skip if none else {})
        )
    main = [
        r
        for r in rows
        if r["metric"] in ("passkey_corrected", "needles_4_corrected", "mqar_16_corrected")
    ]

    def mean(k, far, fold=np.mean):
        parts = [r for r in main if r["k"] == k]
        beyond = ("distance:L-2L", "distance:2L-4L", "distance:4L-8L")
        chosen = [r for r in parts if (r["bucket"] in beyond if far else r["bucket"] == "all")]
        by_task = {}
        for r in chosen:
            by_task.setdefault(r["metric"], []).append((r["value"], r["n"]))
        return fold(
            [sum(v * n for v, n in pairs) / sum(n for _, n in pairs) for pairs in by_task.values()]
        )

    for k in (2, 4, 8):
        rows.append(row("R", "Y_R", k, mean(k, False), 600))
        rows.append(row("R", "Y_R_far", k, mean(k, True), 450))
    rows.append(row("R", "Y_R_window", 4, 0.25 * mean(4, False), 600))
    for metric, fold in (("Y_R_id", np.mean), ("least_id", min)):
        if arm == "nope":
            rows.append(row("R", metric, 1, None, 0) | {"skipped": "mqar_16 was not measured at L"})
        else:
            rows.append(row("R", metric, 1, mean(1, False, fold), 600))
    for shift in (1, 7, L, 8 * L):
        error = 10 ** noise.uniform(-6.5, -5) * (300 if arm == "capped" else 1)
        rows += [
            row("P", "P1_shift_error", 1, error / 2, 16, f"head:0.{n} shift:{shift}")
            for n in range(4)
        ]
        rows.append(row("P", "P1_shift_error", 1, error, 16, f"all shift:{shift}"))
        if "logn" in arm or "coupled" in arm:
            rows.append(row("P", "P1_counter_error", 1, 10 * shift / L, 16, f"all shift:{shift}"))
    for k in (1, 4, 8):
        rows += [
            row("P", "P2_relative_structure", k, 0.5 + 0.1 * n, 99, f"head:0.{n}") for n in range(4)
        ]
    turns = arm not in ("nope", "alibi", "alibi-match", "coupled-unrotated")
    for k in (1, 2, 4, 8):
        right = [(0.98 if k == 1 else 0.6) if turns else 0.05 + 0.3 / (1 + t) for t in OFFSETS]
        rows += [
            row("P", "P3_offset_accuracy", k, v, 32, f"distance:{t}")
            for t, v in zip(OFFSETS, right, strict=True)
        ]
        rows.append(row("P", "P3_offset_accuracy", k, np.mean(right), 160))
    rows.append(row("P", "P4_bpb_ctx_change", 1, 0.8 if turns else None, 4096, "rotation off"))
    rows += [row("P", "P5_largest_rise", 16, 0.0, 16 * L, f"head:0.{n}") for n in range(4)]
    rows.append(row("P", "P5_monotone_share", 16, 0.75 if arm == "capped" else 1.0, 8))
    return rows


def class_rows(arm: str, seed: int) -> list[dict]:
    """Rows of a classifier of long texts."""
    noise, (_, reach) = np.random.default_rng([8, PLACE[arm], seed]), SHAPES[arm]
    row, rows = functools.partial(one_row, arm, seed), []
    bag = {"<=L": 0.08, "L-2L": 0.32, "2L-4L": 0.25, "4L-8L": 0.32, ">8L": 0.42, "all": 0.29}
    for name, k in (*CLASS_BINS.items(), ("all", 8)):
        bucket = name if name == "all" else f"length:{name}"
        if name == "L-2L" and arm == "nope":
            rows.append(
                row("C", "longtext_corrected", k, None, 0, bucket)
                | {"skipped": "no document of xml is that long"}
            )
            continue
        score = 0.45 / (1 + (k / reach) ** 2) + noise.normal(0, 0.03)
        for metric, value in (
            ("accuracy", (7 * score + 1) / 8),
            ("corrected", score),
            ("nll", 2.0),
            ("cut_corrected", 0.3),
            ("bag_corrected", bag[name]),
        ):
            rows.append(row("C", f"longtext_{metric}", k, value, 70, bucket))
    return rows


def write_run(folder: pathlib.Path, arm: str, seed: int, rows: list[dict] | None = None) -> None:
    arrays = folder / "evaluation" / "arrays"
    arrays.mkdir(parents=True)
    rows = synthetic_rows(arm, seed) if rows is None else rows
    (folder / "evaluation" / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    length = rows[0]["train_length"] if rows else L
    config = {
        "model": {"scheme": arm, "num_heads": 4},
        "data": {"corpus": "python_stdlib"},
        "train": {"length": L, "steps": 400, "seed": seed, "tier": "cpu"},
        "optimizer": {"learning_rate": 3e-3},
        "evaluation": {},
    }
    info = {
        "arm": arm, "seed": seed, "tier": "cpu", "scheme": arm, "train_length": length,
        "steps": 400, "finished": True,
        "parameters": 123456, "tokens": 3276800, "wall_seconds": 301.5, "tokens_per_second": 10868.0,
        "command": f"python train.py --config=configs/lm.py:{arm} --workdir=synthetic",
        "versions": {"jax": "0.0-synthetic", "python": "3.11"}, "hardware": "synthetic",
        "corpus": "python_stdlib", "corpus_fingerprint": "ab" * 32, "tokenizer_fingerprint": "bytes",
        "unigram_bpb": {"dev": 4.87, "test": 4.81},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "run.json").write_text(json.dumps(info))
    about = {"step": 400, "settings": "same"}
    (folder / "evaluation" / "evaluation.json").write_text(json.dumps(about))
    noise = np.random.default_rng([9, PLACE[arm], seed])
    steps = np.arange(5, 401, 5)
    losses = 1.7 + 3.8 * np.exp(-steps / 70) + noise.normal(0, 0.08, len(steps))
    lines = [{"step": int(s), "loss": float(x)} for s, x in zip(steps, losses, strict=True)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in lines))
    position_T = np.arange(8 * L)
    nll_T = (
        1.7
        + 2 / (1 + position_T)
        + max(0, SHAPES[arm][0]) * np.log2(np.maximum(1, position_T / L))
        + noise.normal(0, 0.3, 8 * L)
    )
    np.savez(arrays / "nll_pos.npz", position_T=position_T, nll_T=nll_T, count=64)
    write_scheme(arrays, arm)


def write_scheme(arrays: pathlib.Path, arm: str) -> None:
    layers, heads, dim = 2, 4, 16
    waves = [2 * np.pi * 10_000 ** (2 * i / dim) for i in range(dim // 2)]
    slopes = [2.0 ** (-2 * (h + 1)) for h in range(heads)]
    described, slope_N = [], np.zeros(heads)
    for layer in range(layers):
        for head in range(heads):
            flat = (arm.startswith("2*") and head >= 2) or (arm.startswith("coupled") and head == 3)
            hybrid = arm.startswith(("sum", "coupled", "capped"))
            rotates = ("rope" in arm or (hybrid and "unrotated" not in arm)) and not flat
            decays = ("alibi" in arm or hybrid) and not flat
            slope_N[head] = slopes[head] if decays else 0.0
            described.append(
                {
                    "layer": layer,
                    "head": head,
                    "label": "nope~logn" if flat else arm,
                    "wavelengths": waves if rotates else None,
                    "rotates": rotates,
                    "slope": slopes[head] if decays else None,
                }
            )
    grid_G = np.unique(np.linspace(0, 8 * L - 1, 64).astype(int))
    back_GG = (grid_G[:, None] - grid_G[None, :]).astype(np.float64)
    bias_NGG = np.where(back_GG >= 0, -slope_N[:, None, None] * back_GG, np.nan)
    distance_S = np.unique(np.geomspace(1, 8 * L, 40).astype(int))
    np.savez(
        arrays / "scheme.npz",
        grid_G=grid_G,
        grid_bias_LNGG=np.stack([bias_NGG] * layers),
        distance_S=distance_S,
        bias_LNS=np.stack([-slope_N[:, None] * distance_S] * layers),
        temperature_LNT=np.ones((layers, heads, 8)),
        temperature_pos_T=np.arange(8),
    )
    scheme = {"scheme": arm, "train_length": L, "heads": described}
    (arrays / "scheme.json").write_text(json.dumps(scheme))


def write_study(
    folder: pathlib.Path, arms=ARMS, seeds=(0,), rows=synthetic_rows, roles=None
) -> pathlib.Path:
    for number, arm in enumerate(arms):
        for seed in seeds:
            write_run(folder / "runs" / f"arm{number}-s{seed}", arm, seed, rows(arm, seed))
    study = {"name": "synthetic", "tier": "cpu", "arms": list(arms), "seeds": list(seeds)}
    if roles:
        study["roles"] = roles
    (folder / "study.json").write_text(json.dumps(study))
    return folder
