"""Bench of scoring: time per token and peak memory, from the training length to much longer
text.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence

import jax
import numpy as np

from posenc_jax.bench.encoding_cost import SHAPE, VOCABULARY
from posenc_jax.bench.peak_memory import peak_bytes
from posenc_jax.bench.result import BenchResult, Panel, aligned, ratio_point, with_quartiles
from posenc_jax.bench.timing import interleaved, spread
from posenc_jax.evaluation.scorer import Scorer
from posenc_jax.model.decoder import Decoder
from posenc_jax.training.config import RunConfig
from posenc_jax.training.config_sections import ModelSection, TrainSection
from posenc_jax.training.loss import token_losses

SCHEMES = ("nope", "rope", "alibi", "rope+alibi", "rope+alibi|nope~logn")
TRAINING = "training forward pass"


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """Settings of the scoring bench."""

    schemes: Sequence[str] = SCHEMES
    train_length: int = 128
    lengths: Sequence[int] = (128, 512, 2048, 8192, 32_768)
    rounds: int = 5
    seed: int = 0


def measure(settings: EvaluationSettings) -> BenchResult:
    """Returns time per token and peak memory of scoring at every length, relative to the training
    length.

    Every run scores the same number of tokens (the longest length), in sequences of its own length,
    with the scorer of evaluation. The forward pass and loss of training, at the training length,
    are timed too. Parameters are random; the norms of trained queries and keys would change the
    early stop of a bias.

    Raises:
      ValueError: a length that is no whole multiple of the training length, or a scheme that does
        not fit.
    """
    train_length, rounds, seed = settings.train_length, settings.rounds, settings.seed
    schemes, lengths = settings.schemes, sorted({train_length, *settings.lengths})
    if not all(n % train_length == 0 and lengths[-1] % n == 0 for n in lengths):
        raise ValueError(
            f"lengths must be multiples of train_length={train_length} that divide the longest, "
            f"not {lengths}"
        )
    tokens = lengths[-1]
    calls: dict[tuple[str, int, str], Callable] = {}
    for scheme in schemes:
        config = RunConfig(
            model=ModelSection(scheme=scheme, **SHAPE), train=TrainSection(length=train_length)
        ).model_config(VOCABULARY)
        params = _params(config, seed)
        calls[scheme, train_length, TRAINING] = _forward(config, params, tokens, seed)
        for length in lengths:
            scorer = Scorer({length: config}, params, batch_tokens=tokens)
            rows_RT = _tokens(tokens // length, length + 1, seed)
            calls[scheme, length, "scoring"] = functools.partial(scorer.score, rows_RT)
    peaks = {}
    for name, call in calls.items():
        print(f"first run: {name[0]}, {name[1]:,} tokens, {name[2]}", file=sys.stderr, flush=True)
        call()
        on_cpu = jax.default_backend() == "cpu"  # the system does not count memory of a device
        peaks[name] = peak_bytes(call) if on_cpu else None
    seconds = interleaved(calls, rounds=rounds, seed=seed, warm_ups=0)
    rows = [
        {
            "bench": "evaluation",
            "scheme": scheme,
            "length": length,
            "direction": what,
            "tokens": tokens,
            "rounds": rounds,
            **spread(seconds_R, seconds[scheme, train_length, "scoring"]),
            "us_per_token": float(1e6 * np.median(seconds_R) / tokens),
            "peak_mb": None if (peak := peaks[scheme, length, what]) is None else peak / 1e6,
        }
        for (scheme, length, what), seconds_R in seconds.items()
    ]
    used = dataclasses.asdict(settings) | {"lengths": lengths, **SHAPE, "vocab_size": VOCABULARY}
    return BenchResult(
        "evaluation",
        "Scoring longer text than training text",
        "Time per token of a 2-layer decoder (model dim 128, 4 heads of 32) relative to scoring at "
        f"{train_length} tokens; every run scores {tokens:,} tokens. Medians of {rounds} ratios "
        "taken in the same round.",
        used,
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
    """Returns a function of the losses of a batch, computed as in training, without gradients."""
    T = config.train_length
    rows_BT = _tokens(tokens // T, T + 1, seed)
    pos_BT = np.broadcast_to(np.arange(T, dtype=np.int32), (len(rows_BT), T))

    @jax.jit
    def losses(params, rows_BT, pos_BT, seg_BT):
        logits_BTV, _ = Decoder(config).apply({"params": params}, rows_BT[:, :-1], pos_BT, seg_BT)
        return token_losses(logits_BTV, rows_BT[:, 1:])

    return lambda: np.asarray(losses(params, rows_BT, pos_BT, np.ones_like(pos_BT)))


def _table(rows: list[dict]) -> str:
    lines = [
        [
            row["scheme"],
            f"{row['length']:,}",
            row["direction"],
            f"{row['us_per_token']:.1f}",
            with_quartiles(row),
            "-" if row["peak_mb"] is None else f"{row['peak_mb']:.1f}",
        ]
        for row in rows
    ]
    return aligned(
        ("scheme", "length", "what", "us per token", "x at training length", "peak MB"), lines
    )


def _series(rows: list[dict]) -> dict[str, list]:
    series: dict[str, list] = {}
    for row in rows:
        name = TRAINING if row["direction"] == TRAINING else f"{row['length']:,} tokens"
        series.setdefault(name, []).append(ratio_point(row["scheme"], row))
    return series
