"""What attention under ALiBi costs: ours, cut and uncut, beside other people's kernels."""

import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.attention import attend, blockwise_attention, dense_attention, visible
from posenc_jax.attention.fused import KERNELS
from posenc_jax.bench import peers
from posenc_jax.bench.memory import Compiled, peak_bytes
from posenc_jax.bench.outcome import Outcome, Panel, aligned, with_quartiles
from posenc_jax.bench.timing import WARM_UPS, interleaved, spread
from posenc_jax.encodings import parse
from posenc_jax.model.config import DTYPES

BASELINE = "ours"
DENSE_LIMIT = 2**28  # logits of all heads; above it a dense array of them is not tried
LONG = 2.0  # seconds; a candidate that takes longer has warmed up by its first runs
DIRECTIONS = {"forward": False, "forward+backward": True}


def measure(
    *,
    lengths: Sequence[int] = (512, 1024, 4096),
    directions: Sequence[str] = tuple(DIRECTIONS),
    heads: int = 8,
    head_dim: int = 64,
    qk_norm: bool = True,
    dtype: str = "float32",
    rounds: int = 7,
    patience: int = 60,
    seed: int = 0,
) -> Outcome:
    """Returns time and memory of every candidate that survives each length, relative to ours.

    Batch 1, causal, ALiBi with the standard slopes where a candidate has a bias. Parity comes
    first: the largest difference of a candidate's result to the dense definition (to ours where the
    definition is too large); candidates without a bias do other work and have none. On a GPU or TPU the
    vendor's kernel with the bias folded in joins in bfloat16, and so do the peers that want one.

    Args:
      lengths: T, taken in ascending order. directions: of `DIRECTIONS`. qk_norm: queries and keys of
        RMS 1, as a decoder with qk-norm has them; otherwise plain Gaussian ones. dtype: of `DTYPES`.
      patience: seconds; a candidate that would take longer for one run, at the rate at which it has
        grown so far (at first: with the square of the length), is left out and listed.

    Raises:
      ValueError: an unknown direction or dtype, or a length below 8.
    """
    unknown = set(directions) - set(DIRECTIONS)
    if unknown or not directions:
        raise ValueError(
            f"directions must be some of {', '.join(DIRECTIONS)}, not {sorted(unknown)}"
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    if not lengths or min(lengths) < 8:
        raise ValueError(f"lengths must be 8 tokens or more, not {tuple(lengths)}")
    rows, skipped, pace = [], [], {direction: _Pace(patience) for direction in directions}
    for length in sorted(lengths):
        tensors = _tensors(length, heads, head_dim, qk_norm, dtype, seed)
        for direction in directions:
            candidates = _ours(length, heads, head_dim, tensors, DIRECTIONS[direction])
            dense = heads * length**2 <= DENSE_LIMIT
            found, missing = peers.attention(tensors, DIRECTIONS[direction], dense)
            missing |= pace[direction].left_out(length, [*candidates, *found])
            runs = {n: run for n, run in (candidates | found).items() if n not in missing}
            skipped += [f"{name}, {length:,} tokens: {why}" for name, why in missing.items()]
            want = _result(runs["ours, dense" if dense else BASELINE])
            seen = {name: _look(name, run, want, heads, length) for name, run in runs.items()}
            slow = any(look["seconds"] > LONG for look in seen.values())
            seconds = interleaved(runs, rounds=rounds, seed=seed, warm_ups=0 if slow else WARM_UPS)
            for name, seconds_R in seconds.items():
                pace[direction].saw(name, length, float(np.median(seconds_R)))
                rows.append({
                    "bench": "attention", "implementation": name, "length": length,
                    "direction": direction, "heads": heads, "head_dim": head_dim, "dtype": dtype,
                    "rounds": rounds,
                    **spread(seconds_R, seconds[BASELINE]),
                    "peak_mb": seen[name]["peak_mb"], "planned_mb": _planned(runs[name]),
                    "difference": seen[name]["difference"],
                })  # fmt: skip
    settings = {
        "lengths": list(lengths), "directions": list(directions), "heads": heads,
        "head_dim": head_dim, "qk_norm": qk_norm, "dtype": dtype, "rounds": rounds,
        "patience": patience, "seed": seed,
        "skipped": sorted(set(skipped)), "peers": peers.versions(),
    }  # fmt: skip
    return Outcome(
        name="attention",
        title="Attention under ALiBi",
        caption=f"Batch 1, {heads} heads of {head_dim}, {dtype}, causal; time relative to ours in the same round.",
        settings=settings,
        rows=tuple(rows),
        table=_table(rows, settings["skipped"]),
        panels=tuple(_panel(rows, direction) for direction in directions),
    )


def _tensors(length: int, heads: int, head_dim: int, qk_norm: bool, dtype: str, seed: int):
    q, k, v = jax.random.normal(jax.random.key(seed), (3, 1, length, heads, head_dim))
    if qk_norm:
        q, k = (x / jnp.sqrt((x * x).mean(-1, keepdims=True)) for x in (q, k))
    return tuple(x.astype(dtype) for x in (q, k, v))


def _ours(length: int, heads: int, head_dim: int, tensors, backward: bool) -> dict[str, Callable]:
    place = {
        "num_layers": 1,
        "num_heads": heads,
        "head_dim": head_dim,
        "model_dim": heads * head_dim,
    }
    alibi, nope = (
        parse(line).place(train_length=length, **place).layers[0] for line in ("alibi", "nope")
    )
    pos = jnp.arange(length, dtype=jnp.int32)[None]
    seg = jnp.ones_like(pos)

    def blockwise(layer, epsilon):
        def attention(q, k, v, pos, seg):
            how = {} if epsilon is None else {"epsilon": epsilon}
            return blockwise_attention(
                q, k, v, layer, {}, q_pos_BT=pos, k_pos_BS=pos, q_seg_BT=seg, k_seg_BS=seg, **how
            )

        return attention

    def dense(q, k, v, pos, seg):
        mask = visible(pos, pos, seg, seg, causal=True)
        return dense_attention(q, k, v, alibi.bias({}, pos, pos), mask)

    def folded(kernel):
        def attention(q, k, v, pos, seg):
            return attend(
                q, k, v, alibi, {}, q_pos_BT=pos, k_pos_BS=pos, q_seg_BT=seg, k_seg_BS=seg,
                aligned=True, implementation=kernel,
            )  # fmt: skip

        return attention

    runs = {
        BASELINE: blockwise(alibi, None),
        "ours, nothing cut": blockwise(alibi, 0.0),
        "ours, no bias": blockwise(nope, 0.0),
    }
    if heads * length**2 <= DENSE_LIMIT:
        runs["ours, dense"] = dense
    for kernel, device in KERNELS.items():
        if jax.default_backend() == device and tensors[0].dtype == jnp.bfloat16:
            runs[f"ours, folded into {kernel}"] = folded(kernel)
    arrays = (*tensors, pos, seg)
    return {name: Compiled(_with_gradients(run, backward), arrays) for name, run in runs.items()}


def _with_gradients(attention: Callable, backward: bool) -> Callable:
    """Returns a function of the arrays: the result, and with `backward` also the three gradients."""

    def run(q, k, v, *rest):
        if not backward:
            return (attention(q, k, v, *rest),)
        out, pull = jax.vjp(lambda *qkv: attention(*qkv, *rest), q, k, v)
        return out, *pull(q)  # any cotangent of the right shape

    return run


def _planned(run: Callable) -> float | None:
    return run.planned_bytes / 1e6 if isinstance(run, Compiled) else None


def _result(run: Callable) -> np.ndarray:
    return np.asarray(run()[0], np.float32)


def _look(name: str, run: Callable, want: np.ndarray, heads: int, length: int) -> dict:
    """Returns a candidate's difference to what is wanted, its peak memory, and seconds of that run."""
    got = _result(run)  # what must be compiled is compiled here
    difference = None if "no bias" in name else float(np.abs(got - want).max())
    start = time.perf_counter()
    peak = peak_bytes(run)
    seconds = time.perf_counter() - start
    if peak is not None and name in peers.HOLD_A_BIAS:  # made before the run, and held all the time
        peak += 4 * heads * length**2
    return {
        "difference": difference,
        "peak_mb": None if peak is None else peak / 1e6,
        "seconds": seconds,
    }


class _Pace:
    """How a candidate's time grew with length, and which one is not worth waiting for."""

    def __init__(self, patience: float):
        self._patience, self._seen = patience, {}

    def saw(self, name: str, length: int, seconds: float) -> None:
        self._seen.setdefault(name, []).append((length, seconds))

    def left_out(self, length: int, names: Sequence[str]) -> dict[str, str]:
        """Returns why, by name, for those whose next run would take longer than patience."""
        reasons = {}
        for name in names:
            if name == BASELINE or name not in self._seen:
                continue
            *before, (last, seconds) = self._seen[name]
            power = 2.0
            if before:
                power = np.log(seconds / before[-1][1]) / np.log(last / before[-1][0])
            expected = seconds * (length / last) ** power
            if expected > self._patience:
                reasons[name] = (
                    f"about {expected:.0f} s a run, longer than patience={self._patience}"
                )
        return reasons


def _table(rows: list[dict], skipped: list[str]) -> str:
    lines = []
    for row in rows:
        difference = "-" if row["difference"] is None else f"{row['difference']:.1e}"
        peaks = ("-" if row[k] is None else f"{row[k]:.1f}" for k in ("peak_mb", "planned_mb"))
        times = [f"{row['min_ms']:.1f}", f"{row['median_ms']:.1f}", with_quartiles(row), *peaks]
        lines.append(
            [row["implementation"], f"{row['length']:,}", row["direction"], difference, *times]
        )
    names = (
        "implementation",
        "length",
        "direction",
        "difference",
        "min ms",
        "median ms",
        "x ours",
        "peak MB",
        "planned MB",
    )
    return "\n".join([aligned(names, lines), *(f"left out: {line}" for line in skipped)])


def _panel(rows: list[dict], direction: str) -> Panel:
    series: dict[str, list] = {}
    for row in rows:
        if row["direction"] == direction:
            mark = (row["implementation"], row["ratio_q1"], row["ratio"], row["ratio_q3"])
            series.setdefault(f"{row['length']:,} tokens", []).append(mark)
    return Panel(f"{direction}: time relative to ours", series)
