"""What scoring costs per token, and in memory, as the text gets longer than training text."""

import sys
from collections.abc import Sequence

import jax
import numpy as np

from posenc_jax.bench.encoding_cost import SHAPE, VOCABULARY
from posenc_jax.bench.peak_memory import peak_bytes
from posenc_jax.bench.result import BenchResult, Panel, aligned, with_quartiles
from posenc_jax.bench.timing import interleaved, spread
from posenc_jax.evaluation.scorer import Scorer
from posenc_jax.model.decoder import Decoder
from posenc_jax.training.config import RunConfig
from posenc_jax.training.config_sections import ModelSection, TrainSection
from posenc_jax.training.loss import token_losses

SCHEMES = ("nope", "rope", "alibi", "rope+alibi", "rope+alibi|nope~logn")
TRAINING = "training forward pass"


def measure(
    *,
    schemes: Sequence[str] = SCHEMES,
    train_length: int = 128,
    lengths: Sequence[int] = (128, 512, 2048, 8192, 32_768),
    rounds: int = 5,
    seed: int = 0,
) -> BenchResult:
    """Returns time per token and peak memory of scoring at every length, relative to the training length.

    Every run scores as many tokens as the longest length has, in rows of its own length, by the scorer
    that evaluation uses, so times compare per token. Beside it, the forward pass and loss of training at
    the training length, on the same number of tokens. Parameters are random: what a trained model's
    queries and keys are like decides how far a bias lets it stop early.

    Raises:
      ValueError: a length that is no whole multiple of the training length, or a scheme that does not fit.
    """
    lengths = sorted({train_length, *lengths})
    if not all(n % train_length == 0 and lengths[-1] % n == 0 for n in lengths):
        raise ValueError(
            f"lengths must be multiples of train_length={train_length} that divide the longest, not {lengths}"
        )
    tokens = lengths[-1]
    runs = {}
    for scheme in schemes:
        config = RunConfig(
            model=ModelSection(scheme=scheme, **SHAPE), train=TrainSection(length=train_length)
        ).model_config(VOCABULARY)
        params = _params(config, seed)
        runs[scheme, train_length, TRAINING] = _forward(config, params, tokens, seed)
        for length in lengths:
            scorer = Scorer({length: config}, params, batch_tokens=tokens)
            rows_RT = _tokens(tokens // length, length + 1, seed)
            runs[scheme, length, "scoring"] = lambda s=scorer, rows=rows_RT: s.score(rows)
    peaks = {}
    for name, run in runs.items():
        print(f"first run: {name[0]}, {name[1]:,} tokens, {name[2]}", file=sys.stderr, flush=True)
        run()
        on_cpu = jax.default_backend() == "cpu"  # the system does not see a device's own memory
        peaks[name] = peak_bytes(run) if on_cpu else None
    seconds = interleaved(runs, rounds=rounds, seed=seed, warm_ups=0)
    rows = [
        {
            "bench": "evaluation", "scheme": scheme, "length": length, "direction": what,
            "tokens": tokens, "rounds": rounds,
            **spread(seconds_R, seconds[scheme, train_length, "scoring"]),
            "us_per_token": float(1e6 * np.median(seconds_R) / tokens),
            "peak_mb": None if peaks[scheme, length, what] is None else peaks[scheme, length, what] / 1e6,
        }
        for (scheme, length, what), seconds_R in seconds.items()
    ]  # fmt: skip
    settings = {
        "schemes": list(schemes), "train_length": train_length, "lengths": lengths, "rounds": rounds,
        "seed": seed, **SHAPE, "vocab_size": VOCABULARY,
    }  # fmt: skip
    return BenchResult(
        "evaluation",
        "Scoring longer text than training text",
        f"Time per token of a 2-layer decoder (model dim 128, 4 heads of 32) relative to scoring at {train_length} "
        f"tokens; every run scores {tokens:,} tokens. Medians of {rounds} ratios taken in the same round.",
        settings,
        tuple(rows),
        _table(rows),
        (Panel("time per token, relative to the training length", _series(rows)),),
    )


def _params(config, seed: int):
    blank = jax.numpy.ones((1, 8), jax.numpy.int32)
    return jax.jit(Decoder(config).init)(jax.random.key(seed), blank, blank, blank)["params"]


def _tokens(rows: int, length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(VOCABULARY, size=(rows, length), dtype=np.int32)


def _forward(config, params, tokens: int, seed: int):
    """Returns the losses of a training batch as training computes them, without gradients."""
    T = config.train_length
    rows_BT = _tokens(tokens // T, T + 1, seed)
    place_BT = np.broadcast_to(np.arange(T, dtype=np.int32), (len(rows_BT), T))

    @jax.jit
    def losses(params, rows_BT, pos_BT, seg_BT):
        logits_BTV, _ = Decoder(config).apply({"params": params}, rows_BT[:, :-1], pos_BT, seg_BT)
        return token_losses(logits_BTV, rows_BT[:, 1:])

    return lambda: np.asarray(losses(params, rows_BT, place_BT, np.ones_like(place_BT)))


def _table(rows: list[dict]) -> str:
    lines = [
        [
            row["scheme"], f"{row['length']:,}", row["direction"], f"{row['us_per_token']:.1f}",
            with_quartiles(row), "-" if row["peak_mb"] is None else f"{row['peak_mb']:.1f}",
        ]
        for row in rows
    ]  # fmt: skip
    return aligned(("scheme", "length", "what", "us per token", "x at training length", "peak MB"), lines)  # fmt: skip


def _series(rows: list[dict]) -> dict[str, list]:
    series: dict[str, list] = {}
    for row in rows:
        name = TRAINING if row["direction"] == TRAINING else f"{row['length']:,} tokens"
        mark = (row["scheme"], row["ratio_q1"], row["ratio"], row["ratio_q3"])
        series.setdefault(name, []).append(mark)
    return series
