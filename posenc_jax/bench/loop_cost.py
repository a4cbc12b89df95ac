"""What the training loop costs beside its steps: checkpoints, and waiting for data."""

import contextlib
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from configs import lm
from posenc_jax.bench.result import BenchResult, Panel, aligned, with_quartiles
from posenc_jax.bench.timing import spread
from posenc_jax.training import loop
from posenc_jax.training.config import RunConfig, from_sections

NEVER, ASIDE, WAITED = "never saves", "saves while it goes on", "waits for its saves"
SAVING, WAITING = 0.03, 0.01  # shares of the time that saving and waiting for data may take


def measure(
    *,
    schemes: tuple[str, ...] = ("rope+alibi",),
    saves: int = 1,
    rounds: int = 5,
    seed: int = 0,
) -> BenchResult:
    """Returns the time of whole training runs of configs/lm.py that save, relative to one that never does.

    Every run is `train` itself, over `saves` intervals of the configuration and a few steps more, into a folder
    of its own. What is timed is every step but the first, which is compiled, with all that happens
    between; the shares in which the loop is blocked on saving and on the feed are those that a run writes
    down (`training.meter`). What a save costs while the loop goes on is in the ratio alone.

    Args:
      schemes: in the scheme language. saves: of a run. seed: of the order within the rounds.

    Raises:
      ValueError: fewer saves or rounds than one, or a scheme that a decoder does not take.
    """
    if saves < 1 or rounds < 1:
        raise ValueError(f"the loop needs a save and a round, not {saves} and {rounds}")
    configs = {scheme: _config(scheme, saves) for scheme in schemes}
    names = [(kind, scheme) for scheme in schemes for kind in (NEVER, ASIDE, WAITED)]
    found: dict[tuple, list[dict]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="loop-") as folder:
        for r in range(rounds):
            for i in np.random.default_rng((seed, r)).permutation(len(names)):
                kind, scheme = names[i]
                print(f"round {r + 1} of {rounds}: {scheme}, {kind}", file=sys.stderr, flush=True)
                workdir = Path(folder) / f"{r}-{i}"
                found[names[i]].append(_run(configs[scheme], kind, workdir))
    rows = []
    for (kind, scheme), runs in found.items():
        t = configs[scheme].train
        seconds, never = (np.array([run["seconds"] for run in found[k, scheme]]) for k in (kind, NEVER))  # fmt: skip
        rows.append({
            "bench": "loop", "implementation": kind, "scheme": scheme, "length": t.length, "direction": "training",
            "batch": t.batch_size, "steps": t.steps, "save_every": t.save_every, "rounds": rounds,
            **spread(seconds, never),
            **{name: value for share in ("save_share", "data_wait_share", "tokens_per_second")
               for name, value in _quartiles(share, [run[share] for run in runs]).items()},
        })  # fmt: skip
    t = configs[schemes[0]].train
    settings = {
        "config": "configs/lm.py", "schemes": list(schemes), "saves": saves, "steps": t.steps,
        "save_every": t.save_every, "rounds": rounds, "seed": seed,
    }  # fmt: skip
    marks = [
        (f"{row['scheme']}: {row['implementation']}", row["ratio_q1"], row["ratio"], row["ratio_q3"])
        for row in rows
    ]  # fmt: skip
    return BenchResult(
        "loop",
        "Training with checkpoints, relative to training without",
        f"configs/lm.py, {t.steps} steps, a checkpoint every {t.save_every}: medians of {rounds} ratios taken in the "
        f"same round, bars from first to third quartile; the dashed line is {1 + SAVING}.",
        settings,
        tuple(rows),
        _table(rows),
        (Panel("time of the loop, relative to one that never saves", {"loop": marks}, 1 + SAVING),),
    )


def _config(scheme: str, saves: int) -> RunConfig:
    sections = lm.get_config(scheme).to_dict()
    train = sections["train"]
    train["steps"] = saves * train["save_every"] + train["log_every"]
    return from_sections(sections)


def _run(config: RunConfig, kind: str, workdir: Path) -> dict[str, float]:
    """Trains once; returns seconds of the measured steps, tokens a second and both shares of the time."""
    sections = json.loads(config.to_json())
    sections["train"]["wait_for_saves"] = kind == WAITED
    saved = loop.CheckpointManager
    loop.CheckpointManager = _Unsaved if kind == NEVER else saved
    try:
        with contextlib.redirect_stdout(sys.stderr):
            loop.train(from_sections(sections), workdir, "a bench")
    finally:
        loop.CheckpointManager = saved
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [
        row for row in map(json.loads, lines) if row["step"] > 1
    ]  # the first step is in no rate
    tokens = config.train.batch_size * config.train.length
    counted = np.diff([1, *(row["step"] for row in rows)])
    seconds = tokens * counted / [row["tokens_per_second"] for row in rows]
    shares = {
        name: float(np.average([row[name] for row in rows], weights=seconds))
        for name in ("save_share", "data_wait_share")
    }
    total = float(seconds.sum())
    return {"seconds": total, "tokens_per_second": tokens * int(counted.sum()) / total, **shares}


class _Unsaved(loop.CheckpointManager):
    """The checkpoints of a run that writes none."""

    def save(self, step, state, record) -> None:
        pass


def _quartiles(name: str, values: list[float]) -> dict[str, float]:
    q1, q3 = np.quantile(values, (0.25, 0.75))
    return {name: statistics.median(values), f"{name}_q1": float(q1), f"{name}_q3": float(q3)}


def _table(rows: list[dict]) -> str:
    lines = []
    for row in rows:
        shares = [
            f"{100 * row[name]:.2f} [{100 * row[f'{name}_q1']:.2f}, {100 * row[f'{name}_q3']:.2f}]"
            for name in ("save_share", "data_wait_share")
        ]
        lines.append([f"{row['scheme']}, {row['implementation']}", f"{row['tokens_per_second']:,.0f}", with_quartiles(row), *shares])  # fmt: skip
    names = ("loop", "tokens/s", "x never saves", "blocked on saving, %", "waiting for data, %")
    return aligned(names, lines)
