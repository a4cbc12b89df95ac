"""Bench of RoPE: integer range reduction beside a plain float32 product, a table and polynomials.

XLA on CPU fuses cos and sin into the product with x, and computes them again for every head and
both halves of a pair. "table" is a rotation without that cost. "polynomial" is a proposal: `angles`
returns reduced angles, for which cos and sin are short polynomials that are cheap to compute again.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.bench.result import BenchResult, Panel, aligned, ratio_point, with_quartiles
from posenc_jax.bench.timing import interleaved, spread
from posenc_jax.encodings import angles, inverse_frequencies, rotate
from posenc_jax.encodings.analysis import angle_errors

HEAD_DIM = 64
BASE = 10_000.0
BASELINE = "float32 product"
TARGET = 1.05  # ours may take this many times the baseline's time
FARTHEST = 2**20
DTYPES = ("float32", "bfloat16")
DIRECTIONS = ("forward", "forward+backward")


@dataclasses.dataclass(frozen=True)
class RotationSettings:
    """Settings of the rotation bench."""

    lengths: tuple[int, ...] = (4096, 65536)
    rounds: int = 41
    seed: int = 0


def measure(settings: RotationSettings) -> BenchResult:
    """Returns time and error of four ways to rotate a tensor [1, T, N, 64] by its positions.

    "ours" is `angles` and `rotate`; "float32 product" passes pos * freq in float32 to `rotate`;
    "table" gathers cos and sin that the host has computed; "polynomial" is `angles` with
    `reduced_cos_sin`. N is 8 up to 16,384 tokens, then 2. Positions are inputs, as in the model.
    Backward is the product with a given gradient of the result.

    Raises:
      ValueError: a length that is not between 1 and 2^20.
    """
    lengths, rounds, seed = settings.lengths, settings.rounds, settings.seed
    if not lengths or not all(0 < length <= FARTHEST for length in lengths):
        raise ValueError(f"--lengths must lie between 1 and {FARTHEST}, not {lengths}")
    freq_h = inverse_frequencies(HEAD_DIM, BASE)
    errors = _errors(freq_h)
    rotations = rotations_by_name(freq_h)
    rows = []
    for length in lengths:
        heads = 8 if length <= 16_384 else 2
        cos_Lh, sin_Lh = map(jnp.asarray, tables(freq_h, np.arange(length)))
        for dtype in DTYPES:
            for direction in DIRECTIONS:
                calls = {
                    name: _run(
                        rotation,
                        direction,
                        (1, length, heads, HEAD_DIM),
                        dtype,
                        cos_Lh,
                        sin_Lh,
                        seed,
                    )
                    for name, rotation in rotations.items()
                }
                seconds = interleaved(calls, rounds=rounds, seed=seed)
                rows += [
                    {
                        "bench": "rotation",
                        "implementation": name,
                        "length": length,
                        "heads": heads,
                        "dtype": dtype,
                        "direction": direction,
                        **spread(seconds[name], seconds[BASELINE]),
                        "rounds": rounds,
                        "angle_error": errors[name],
                    }
                    for name in calls
                ]
    return BenchResult(
        "rotation",
        "Rotation, relative to the plain float32 product",
        f"Medians of {rounds} ratios to the float32 product in the same round, bars from first to "
        f"third quartile; dashed: the target of {TARGET}. One tensor [1, T, N, {HEAD_DIM}].",
        dataclasses.asdict(settings) | {"head_dim": HEAD_DIM, "base": BASE},
        tuple(rows),
        _table(rows, errors),
        (_panel(rows),),
    )


def float32_product(pos_BT: jax.Array, freq_h: np.ndarray) -> jax.Array:
    """Returns angle_BTh = pos * freq in float32, the usual way."""
    return pos_BT.astype(jnp.float32)[..., None] * freq_h.astype(np.float32)[None, None]


def rotate_by(x_BTNH: jax.Array, cos_BTh: jax.Array, sin_BTh: jax.Array) -> jax.Array:
    """Returns x rotated by angles given as cos and sin, half-split as in `rotate`."""
    cos_BT1h, sin_BT1h = cos_BTh[:, :, None], sin_BTh[:, :, None]
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    out = [a * cos_BT1h - b * sin_BT1h, b * cos_BT1h + a * sin_BT1h]
    return jnp.concatenate(out, axis=-1).astype(x_BTNH.dtype)


def reduced_cos_sin(angle: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (cos, sin) of angles in [-pi, pi], float32, by Taylor polynomials on a quarter turn.

    The angle is reflected into [-pi/2, pi/2], where the truncated terms are below 6e-8.
    """
    reflected = jnp.abs(angle) > np.float32(np.pi / 2)
    near = jnp.where(reflected, jnp.sign(angle) * np.float32(np.pi) - angle, angle)
    square = near * near

    def series(powers: range):
        total = jnp.zeros_like(square)
        for power in reversed(powers):
            total = total * square + np.float32((-1) ** (power // 2) / math.factorial(power))
        return total

    cos = series(range(0, 13, 2))
    return jnp.where(reflected, -cos, cos), near * series(range(1, 12, 2))


def tables(freq_h: np.ndarray, pos_L: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (cos_Lh, sin_Lh), float32, of angles that are exact to float64."""
    angle_Lh = pos_L[:, None] * freq_h
    return np.cos(angle_Lh).astype(np.float32), np.sin(angle_Lh).astype(np.float32)


def rotations_by_name(freq_h: np.ndarray) -> dict[str, Callable]:
    """Returns rotation(x_BTNH, pos_BT, cos_Lh, sin_Lh) by name; the tables are inputs."""
    return {
        "ours": lambda x, pos, cos, sin: rotate(x, angles(pos, freq_h), "half", 1.0),
        BASELINE: lambda x, pos, cos, sin: rotate(x, float32_product(pos, freq_h), "half", 1.0),
        "table": lambda x, pos, cos, sin: rotate_by(x, cos[pos], sin[pos]),
        "polynomial": lambda x, pos, cos, sin: rotate_by(x, *reduced_cos_sin(angles(pos, freq_h))),
    }


def _run(rotation, direction, shape, dtype, cos_Lh, sin_Lh, seed) -> Callable:
    """Returns a function that rotates a tensor, and with backward takes its gradient."""
    keys = jax.random.split(jax.random.key(seed), 2)
    x, grad = (jax.random.normal(key, shape).astype(dtype) for key in keys)
    pos = jnp.arange(shape[1], dtype=jnp.int32)[None]

    @jax.jit
    def forward(x, grad, pos, cos, sin):
        return rotation(x, pos, cos, sin)

    @jax.jit
    def both(x, grad, pos, cos, sin):
        out, pull = jax.vjp(lambda x: rotation(x, pos, cos, sin), x)
        return out, pull(grad)[0]

    chosen = {"forward": forward, "forward+backward": both}[direction]
    return lambda: chosen(x, grad, pos, cos_Lh, sin_Lh)


def _errors(freq_h: np.ndarray) -> dict[str, float]:
    """Returns the largest angle error in rad at positions up to 2^20, by implementation."""
    known = angle_errors(tuple(2 * np.pi / freq_h), FARTHEST + 1)
    pos_L = np.unique(np.linspace(0, FARTHEST, 4096).astype(np.int64))

    def of(cos_Lh, sin_Lh) -> float:
        angle_Lh = np.arctan2(np.asarray(sin_Lh, np.float64), np.asarray(cos_Lh, np.float64))
        revolutions_Lh = (angle_Lh - pos_L[:, None] * freq_h) / (2 * np.pi)
        return float(2 * np.pi * np.abs(revolutions_Lh - np.round(revolutions_Lh)).max())

    return {
        "ours": known["ours"],
        BASELINE: known[BASELINE],
        "table": of(*tables(freq_h, pos_L)),
        "polynomial": of(*reduced_cos_sin(angles(jnp.asarray(pos_L, jnp.int32), freq_h))),
    }


def _table(rows: list[dict], errors: dict[str, float]) -> str:
    lines = [
        [
            row["implementation"],
            f"{row['length']:,}",
            str(row["heads"]),
            row["dtype"],
            row["direction"],
            f"{row['min_ms']:.2f}",
            f"{row['median_ms']:.2f}",
            with_quartiles(row),
        ]
        for row in rows
    ]
    names = (
        "implementation",
        "length",
        "heads",
        "dtype",
        "direction",
        "min ms",
        "median ms",
        f"x {BASELINE}",
    )
    shown = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    ours = [row["ratio"] for row in rows if row["implementation"] == "ours"]
    kept = sum(ratio <= TARGET for ratio in ours)
    return (
        f"{aligned(names, lines)}\nlargest angle error to position {FARTHEST:,}: {shown} rad\n"
        f"ours: at most {TARGET} times the {BASELINE} in {kept} of {len(ours)} cases"
    )


def _panel(rows: list[dict]) -> Panel:
    series: dict[str, list] = {}
    for row in rows:
        if row["implementation"] != BASELINE:
            label = (
                f"{row['length']:,} tokens, {row['heads']} heads, {row['dtype']}, "
                f"{row['direction']}"
            )
            series.setdefault(row["implementation"], []).append(ratio_point(label, row))
    return Panel(f"time, relative to the {BASELINE}", series, TARGET)
