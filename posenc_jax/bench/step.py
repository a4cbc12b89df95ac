"""What a training step costs under each encoding, beside the same model in plain PyTorch and other people's."""

import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Sequence

import jax
import numpy as np

from posenc_jax.bench.encodings import VOCABULARY, random_batch
from posenc_jax.bench.memory import peak_bytes
from posenc_jax.bench.outcome import Outcome, Panel, aligned, with_quartiles
from posenc_jax.bench.peers import versions
from posenc_jax.bench.timing import interleaved, spread
from posenc_jax.model.decoder import Decoder
from posenc_jax.training.config import RunConfig
from posenc_jax.training.layout import make_mesh
from posenc_jax.training.sections import ModelSection, TrainSection
from posenc_jax.training.step import learning_rate_schedule, make_step, state_builder

BASELINE = ("ours", "nope")
SCHEMES = ("nope", "rope", "alibi", "rope+alibi")
SHAPE = {"num_layers": 2, "model_dim": 256, "num_heads": 4, "head_dim": 64}
CHECKED = 3  # updates over which a twin's losses are compared with ours
_NOT_INSTALLED = 'not installed; pip install -e ".[peers]"'


def measure(
    *,
    schemes: Sequence[str] = SCHEMES,
    train_length: int = 512,
    batch: int = 4,
    rounds: int = 9,
    compiled: bool = True,
    seed: int = 0,
) -> Outcome:
    """Returns time and peak memory of whole training steps: loss, gradients, clipping, AdamW.

    Ours is the step that training runs. Where PyTorch is installed, its twin (posenc_jax.bench.twin) starts from
    the same weights and reads the same batch; parity is the largest relative difference of the loss over
    the first updates. Decoders of an architecture of their own have no parity.

    Args:
      schemes: in the scheme language; peers join for those they know. train_length, batch: T and B.
      compiled: also the twin through `torch.compile`.

    Raises:
      ValueError: a scheme, length or batch that a decoder does not take.
    """
    schemes = tuple(dict.fromkeys((BASELINE[1], *schemes)))
    ours = {scheme: _Ours(scheme, train_length, batch, seed) for scheme in schemes}
    runs: dict[tuple[str, str], Callable] = {("ours", s): subject for s, subject in ours.items()}
    missing = {}
    if importlib.util.find_spec("torch") is None:
        missing["torch"] = _NOT_INSTALLED
    else:
        found, missing = _peers(ours, compiled)
        runs |= found
    losses, looks = {}, {}
    for name, run in runs.items():
        print(f"first steps: {', '.join(name)}", file=sys.stderr, flush=True)
        losses[name] = [run()[0] for _ in range(CHECKED)]
        looks[name] = peak_bytes(run)
    own_weights = {name for name in runs if name[0] in ("transformers, BLOOM", "x-transformers")}
    seconds = interleaved(runs, rounds=rounds, seed=seed)
    rows = []
    for name, seconds_R in seconds.items():
        same = seconds["ours", name[1]]
        # An optimizer of theirs without our schedule agrees on the first loss only.
        checked = 1 if name[0].startswith("transformers") else CHECKED
        pairs = zip(losses[name][:checked], losses["ours", name[1]], strict=False)
        rows.append({
            "bench": "step", "implementation": name[0], "scheme": name[1], "length": train_length,
            "direction": "step", "batch": batch, "rounds": rounds, **spread(seconds_R, seconds[BASELINE]),
            **{f"same_{k}": v for k, v in spread(seconds_R, same).items() if k.startswith("ratio")},
            "peak_mb": None if looks[name] is None else looks[name] / 1e6,
            "difference": None if name in own_weights else max(abs(a / b - 1) for a, b in pairs),
        })  # fmt: skip
    settings = {
        "schemes": list(schemes), "train_length": train_length, "batch": batch, "rounds": rounds,
        "compiled": compiled, "seed": seed, **SHAPE, "vocab_size": VOCABULARY,
        "parameters": ours[BASELINE[1]].parameters,
        "skipped": [f"{name}: {why}" for name, why in missing.items()], "peers": versions(),
    }  # fmt: skip
    return Outcome(
        "step",
        "A training step, relative to ours under nope",
        f"{SHAPE['num_layers']} layers, model dim {SHAPE['model_dim']}, {SHAPE['num_heads']} heads of "
        f"{SHAPE['head_dim']}, {train_length} tokens, batch {batch}, float32: medians of {rounds} ratios taken "
        "in the same round, bars from first to third quartile.",
        settings,
        tuple(rows),
        _table(rows, settings["skipped"]),
        (Panel("time of a step, relative to ours under nope", _series(rows)),),
    )


class _Ours:
    """Our training step: calling it trains once and returns (loss, gradient norm)."""

    def __init__(self, scheme: str, train_length: int, batch: int, seed: int):
        self.config = RunConfig(
            model=ModelSection(scheme=scheme, qk_norm=False, **SHAPE),
            train=TrainSection(length=train_length, batch_size=batch, data_devices=1),
        )
        model = Decoder(self.config.model_config(VOCABULARY))
        self.shape = SHAPE | {"norm_epsilon": model.config.norm_epsilon}
        mesh = make_mesh(1, 1)
        with jax.set_mesh(mesh):
            build, _ = state_builder(self.config, model, mesh)
            self._state = build(jax.random.key(seed))
            self.batch = random_batch(train_length, batch, seed, mesh)
            self._step = make_step(self.config, model).lower(self._state, self.batch).compile()
        self.params = jax.tree.map(
            np.array, self._state["params"]
        )  # copies: the step takes the state
        self.parameters = sum(x.size for x in jax.tree.leaves(self.params))

    def __call__(self) -> tuple[float, float]:
        self._state, metrics = self._step(self._state, self.batch)
        return float(metrics["loss"]), float(metrics["grad_norm"])


def _peers(ours: dict[str, _Ours], compiled: bool):
    """Returns (runs, missing): training steps by (name, scheme), and why others are not there."""
    from posenc_jax.bench import twin

    runs, missing = {}, {}
    for scheme in (s for s in ours if s in twin.SCHEMES):
        subject = ours[scheme]
        rates = learning_rate_schedule(subject.config, subject.config.optimizer.learning_rate)
        for name, how in {"PyTorch twin": False, "PyTorch twin, compiled": True}.items():
            if how and not compiled:
                continue
            runs[name, scheme] = twin.Twin(
                subject.params, scheme, subject.shape,
                subject.batch["tokens_BT"][0], subject.batch["targets_BT"][0],
                dataclasses.asdict(subject.config.optimizer),
                lambda done, rates=rates: float(rates(done)), how,
            )  # fmt: skip
    if any(importlib.util.find_spec(name) is None for name in ("transformers", "x_transformers")):
        missing["transformers, x-transformers"] = _NOT_INSTALLED
        return runs, missing
    rope = ours.get("rope") or ours[BASELINE[1]]  # the parameters are the same under all of SCHEMES
    more = twin.others(
        rope.params, rope.shape, VOCABULARY, rope.batch["tokens_BT"][0], rope.batch["targets_BT"][0]
    )
    return runs | {name: run for name, run in more.items() if name[1] in ours}, missing


def _table(rows: list[dict], skipped: list[str]) -> str:
    lines = []
    for row in sorted(rows, key=lambda row: row["ratio"]):
        same = {k.removeprefix("same_"): v for k, v in row.items() if k.startswith("same_")}
        lines.append([
            row["implementation"], row["scheme"],
            "-" if row["difference"] is None else f"{row['difference']:.1e}",
            f"{row['min_ms']:.1f}", f"{row['median_ms']:.1f}", with_quartiles(row), with_quartiles(same),
            "-" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}",
        ])  # fmt: skip
    names = ("implementation", "scheme", "difference", "min ms", "median ms", "x ours, nope", "x ours, same scheme", "peak MB")  # fmt: skip
    return "\n".join([aligned(names, lines), *(f"left out: {line}" for line in skipped)])


def _series(rows: list[dict]) -> dict[str, list]:
    labelled = [(f"{row['implementation']}: {row['scheme']}", row) for row in rows]
    labelled.sort(key=lambda pair: pair[1]["ratio"])
    return {
        "step": [(name, row["ratio_q1"], row["ratio"], row["ratio_q3"]) for name, row in labelled]
    }
