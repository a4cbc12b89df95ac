"""Bench of the training loop: cost of checkpoints, and time spent waiting for data."""

import contextlib
import dataclasses
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from configs import lm
from posenc_jax.bench.result import BenchResult, Panel, aligned, ratio_point, with_quartiles
from posenc_jax.bench.timing import spread
from posenc_jax.training import loop
from posenc_jax.training.config import RunConfig, from_sections

NEVER, ASIDE, WAITED = "never saves", "saves while it goes on", "waits for its saves"
SAVING = 0.03  # target: the largest share of the time that saving may take


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """Settings of the loop bench; saves: checkpoints of a run. seed: of the order in a round."""

    schemes: tuple[str, ...] = ("rope+alibi",)
    saves: int = 1
    rounds: int = 5
    seed: int = 0


def measure(settings: LoopSettings) -> BenchResult:
    """Returns the time of whole training runs of configs/lm.py that save, relative to one that
    never does.

    A run calls `train`, for `saves` save intervals and a few steps more. The time is that of all
    steps after the first, which compiles, and of everything between them. The shares of time
    blocked on saving and on data are logged by the run (`training.meter`). The cost of a save that
    runs in the background shows in the ratio alone.

    Raises:
      ValueError: fewer saves or rounds than one, or a scheme that a decoder does not take.
    """
    schemes, saves = settings.schemes, settings.saves
    rounds, seed = settings.rounds, settings.seed
    if saves < 1 or rounds < 1:
        raise ValueError(f"the loop needs a save and a round, not {saves} and {rounds}")
    configs = {scheme: _config(scheme, saves) for scheme in schemes}
    names = [(kind, scheme) for scheme in schemes for kind in (NEVER, ASIDE, WAITED)]
    runs_of: dict[tuple, list[dict]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="loop-") as folder:
        for r in range(rounds):
            for i in np.random.default_rng((seed, r)).permutation(len(names)):
                kind, scheme = names[i]
                print(f"round {r + 1} of {rounds}: {scheme}, {kind}", file=sys.stderr, flush=True)
                workdir = Path(folder) / f"{r}-{i}"
                runs_of[names[i]].append(_run(configs[scheme], kind, workdir))
    rows = []
    for (kind, scheme), runs in runs_of.items():
        t = configs[scheme].train
        seconds, never = (
            np.array([run["seconds"] for run in runs_of[k, scheme]]) for k in (kind, NEVER)
        )
        rows.append(
            {
                "bench": "loop",
                "implementation": kind,
                "scheme": scheme,
                "length": t.length,
                "direction": "training",
                "batch": t.batch_size,
                "steps": t.steps,
                "save_every": t.save_every,
                "rounds": rounds,
                **spread(seconds, never),
                **{
                    name: value
                    for share in ("save_share", "data_wait_share", "tokens_per_second")
                    for name, value in _quartiles(share, [run[share] for run in runs]).items()
                },
            }
        )
    t = configs[schemes[0]].train
    used = {
        "config": "configs/lm.py",
        "schemes": list(schemes),
        "saves": saves,
        "steps": t.steps,
        "save_every": t.save_every,
        "rounds": rounds,
        "seed": seed,
    }
    points = [ratio_point(f"{row['scheme']}: {row['implementation']}", row) for row in rows]
    return BenchResult(
        "loop",
        "Training with checkpoints, relative to training without",
        f"configs/lm.py, {t.steps} steps, a checkpoint every {t.save_every}: medians of {rounds} "
        "ratios taken in the same round, bars from first to third quartile; the dashed line is "
        f"{1 + SAVING}.",
        used,
        tuple(rows),
        _table(rows),
        (
            Panel(
                "time of the loop, relative to one that never saves", {"loop": points}, 1 + SAVING
            ),
        ),
    )


def _config(scheme: str, saves: int) -> RunConfig:
    sections = lm.get_config(scheme).to_dict()
    train = sections["train"]
    train["steps"] = saves * train["save_every"] + train["log_every"]
    return from_sections(sections)


def _run(config: RunConfig, kind: str, workdir: Path) -> dict[str, float]:
    """Trains once; returns the time of the measured steps, tokens a second, shares of the time."""
    sections = json.loads(config.to_json())
    sections["train"]["wait_for_saves"] = kind == WAITED
    saved = loop.CheckpointManager
    loop.CheckpointManager = _Unsaved if kind == NEVER else saved  # type: ignore[misc]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            loop.train(from_sections(sections), workdir, "a bench")
    finally:
        loop.CheckpointManager = saved  # type: ignore[misc]
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["step"] > 1]  # no rate has the first step
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
    """A checkpoint manager that writes nothing."""

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
        lines.append(
            [
                f"{row['scheme']}, {row['implementation']}",
                f"{row['tokens_per_second']:,.0f}",
                with_quartiles(row),
                *shares,
            ]
        )
    names = ("loop", "tokens/s", "x never saves", "blocked on saving, %", "waiting for data, %")
    return aligned(names, lines)
