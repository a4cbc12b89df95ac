"""Small run and study folders with rows given by hand, for tests of the room of results."""

import json
import pathlib

L = 64


def row(metric, length, value, **changes):
    """One row of today's definitions as a JSON object, of arm rope, seed 0."""
    return {
        "run": "rope-s0", "arm": "rope", "seed": 0, "tier": "cpu", "suite": "E", "metric": metric,
        "length": length, "train_length": L, "k": length / L, "bucket": "all", "value": value, "n": 10,
        "split": "dev", "definitions": 2, "item": metric, "stamp": "x",
    } | changes  # fmt: skip


def record(**changes):
    """run.json of a finished run."""
    return {
        "arm": "rope", "scheme": "rope", "seed": 0, "tier": "cpu", "train_length": L, "steps": 40,
        "finished": True, "tokens": 1000, "corpus": "python_stdlib", "corpus_fingerprint": "ab" * 32,
        "tokenizer_fingerprint": "bytes", "versions": {"jax": "0"}, "hardware": "none", "began": None,
    } | changes  # fmt: skip


def write_run(folder: pathlib.Path, rows, *, split="dev", **changes) -> pathlib.Path:
    """Writes a run that was evaluated to its end; its rows take arm and seed from `changes`."""
    info = record(**changes)
    place = folder / ("evaluation" if split == "test" else f"evaluation_{split}")
    place.mkdir(parents=True)
    owner = {name: info[name] for name in ("arm", "seed", "tier", "train_length")}
    lines = [json.dumps(one | owner | {"split": split}) + "\n" for one in rows]
    (place / "rows.jsonl").write_text("".join(lines))
    (place / "evaluation.json").write_text(json.dumps({"step": info["steps"], "settings": "same"}))
    (folder / "run.json").write_text(json.dumps(info))
    config = {
        "model": {"scheme": info["scheme"]},
        "train": {"steps": info["steps"]},
        "evaluation": {"pairs": 8},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": info["steps"], "loss": 2.0}) + "\n")
    return folder


_ROWS = [row("bpb_ctx", at, 2.0 + at / 100) for at in (L // 2, L, 4 * L)]


def write_study(folder: pathlib.Path) -> None:
    """Writes a study of one arm and two evaluated seeds."""
    for seed in range(2):
        run = write_run(folder / f"runs/rope-s{seed}", _ROWS, seed=seed)
        steps = [{"step": step, "loss": 2.0, "chain": "ab"} for step in (20, 40)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in steps))
    record = {"tier": "cpu", "arms": ["rope"], "seeds": [0, 1], "roles": {"rope": "rope"}, "split": "dev",
              "deviations": [], "factors": {}, "skipped": {}}  # fmt: skip
    (folder / "study.json").write_text(json.dumps(record))
    (folder / "texts.json").write_text(json.dumps({"texts": [{"split": "dev", "name": "a"}]}))
