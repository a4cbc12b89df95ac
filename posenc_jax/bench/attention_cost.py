"""What attention under ALiBi or a window costs: ours, cut and uncut, beside other people's kernels."""

import functools
import sys
import time
import traceback
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.attention import attend, blockwise_attention, dense_attention, visible
from posenc_jax.attention.blockwise.cutoff import EXACT_EPSILON
from posenc_jax.attention.kernels.flash import flash_attention
from posenc_jax.attention.kernels.vendor import KERNELS
from posenc_jax.bench import peers, pytorch
from posenc_jax.bench.peak_memory import Compiled, peak
from posenc_jax.bench.result import BenchResult, Panel, aligned, failure, ms, with_quartiles
from posenc_jax.bench.timing import WARM_UPS, Pace, interleaved, spread
from posenc_jax.encodings import alibi_slopes, parse
from posenc_jax.encodings.scheme import PlacedLayer
from posenc_jax.model.config import DTYPES

BASELINE = "ours"
DENSE = "ours, dense"
FLASH = "ours, flash"  # the baseline where it runs
FOLDED = "ours, folded into "  # and the kernel; the baseline where there is one and no other
WINDOW = 512  # tokens that a query sees where a candidate has a window, and no bias
WINDOWED = ", window"  # ends the names of those
DENSE_LIMIT = 2**28  # logits of all rows and heads; above it a dense array of them is not tried
LONG = 2.0  # seconds; a candidate that takes longer has warmed up by its first runs
DIRECTIONS = {"forward": False, "forward+backward": True}


def measure(
    *,
    lengths: Sequence[int] = (512, 1024, 4096),
    batch: int = 1,
    directions: Sequence[str] = tuple(DIRECTIONS),
    heads: int = 8,
    head_dim: int = 64,
    qk_norm: bool = True,
    dtype: str = "float32",
    rounds: int = 7,
    patience: int = 60,
    candidates: Sequence[str] = (),
    seed: int = 0,
) -> BenchResult:
    """Returns time and memory of every candidate that survives each length, relative to ours.

    Causal, ALiBi with the standard slopes where a candidate has a bias; those whose names end in ", window" have none
    and see the last `WINDOW` tokens. In bfloat16 our kernel joins on
    a GPU, on a GPU or TPU the vendor's with the bias folded in, and so do the peers that want bfloat16; ratios are to the
    first of these there is, else to the blockwise path ("baseline" in a row). Parity comes first: the largest
    difference of a candidate's result to the dense definition (where that is too large, to the blockwise
    path: "difference_to"); candidates with neither bias nor window do other work and have none. Peak memory is what the system counts, on
    an accelerator what the compiler planned or PyTorch allocated ("peak_source"). A candidate that cannot
    be compiled or run is listed with its reason.

    Args:
      lengths: T, taken in ascending order. batch: B. directions: of `DIRECTIONS`. qk_norm: queries and keys of
        RMS 1, as a decoder with qk-norm has them; otherwise plain Gaussian ones. dtype: of `DTYPES`.
      patience: seconds; a candidate that would take longer for one run, at the rate at which it has
        grown so far (at first: with the square of the length), is left out and listed.
      candidates: names of those to time, as the table prints them; none: all. Ratios are to the first of
        the table where the usual baseline is not among them; parity is of the same results, named or not.

    Raises:
      ValueError: an unknown direction, dtype or candidate, a length below 8, or nothing that can be timed.
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
    rows, skipped, pace = [], [], {direction: Pace(patience) for direction in directions}
    for length in sorted(lengths):
        tensors = _tensors(batch, length, heads, head_dim, qk_norm, dtype, seed)
        for direction in directions:
            dense = batch * heads * length**2 <= DENSE_LIMIT
            makers = _ours(tensors, DIRECTIONS[direction], dense)
            baseline = next((name for name in makers if name.startswith((FLASH, FOLDED))), BASELINE)
            theirs, missing = peers.attention(tensors, DIRECTIONS[direction], dense, WINDOW)
            if not dense:
                missing |= dict.fromkeys((DENSE, DENSE + WINDOWED), "all its logits are too many")
            definitions = _definitions(makers)
            makers, missing = _chosen(candidates, makers | theirs, missing)
            baseline = baseline if baseline in makers else next(iter(makers), BASELINE)
            missing |= pace[direction].left_out(length, [n for n in makers if n != baseline])
            print(f"{direction}, {length:,} tokens", file=sys.stderr, flush=True)
            held = peers.bias_bytes(heads, length, tensors[0].dtype.itemsize)
            runs, looks = _looked_at(definitions | makers, missing, held)
            runs = {name: run for name, run in runs.items() if name in makers}
            skipped += [
                f"{name}, {direction}, {length:,} tokens: {why}" for name, why in missing.items()
            ]
            if not runs:
                continue
            baseline = next(name for name in (baseline, BASELINE, *runs) if name in runs)
            slow = any(looks[name]["seconds"] > LONG for name in runs)
            seconds = interleaved(runs, rounds=rounds, seed=seed, warm_ups=0 if slow else WARM_UPS)
            for name, seconds_R in seconds.items():
                pace[direction].saw(name, length, float(np.median(seconds_R)))
                rows.append({
                    "bench": "attention", "implementation": name, "length": length, "batch": batch,
                    "direction": direction, "heads": heads, "head_dim": head_dim, "dtype": dtype,
                    "rounds": rounds, "baseline": baseline,
                    **spread(seconds_R, seconds[baseline]),
                    **{key: value for key, value in looks[name].items() if key != "seconds"},
                    "planned_mb": _planned(runs[name]),
                })  # fmt: skip
            del runs  # a GPU has the room of one length
            pytorch.release_memory()
    if not rows:
        raise ValueError(f"nothing to time: {'; '.join(skipped)}")
    settings = {
        "lengths": list(lengths), "batch": batch, "directions": list(directions), "heads": heads,
        "head_dim": head_dim, "qk_norm": qk_norm, "dtype": dtype, "rounds": rounds,
        "patience": patience, "candidates": list(candidates), "seed": seed,
        "skipped": sorted(set(skipped)), "peers": peers.versions(),
    }  # fmt: skip
    return BenchResult(
        name="attention",
        title="Attention under ALiBi, and under a window",
        caption=f"Batch {batch}, {heads} heads of {head_dim}, {dtype}, causal, windows of {WINDOW}; time relative to {_baselines(rows)} in "
        f"the same round; peak memory by {', '.join(sorted({row['peak_source'] for row in rows}))}.",
        settings=settings,
        rows=tuple(rows),
        table=_table(rows, settings["skipped"]),
        panels=tuple(
            _panel(rows, d) for d in directions if d in {row["direction"] for row in rows}
        ),
    )


def _definitions(makers: peers.Makers) -> peers.Makers:
    """Returns what results are compared with: the first with a bias, and the first with a window."""
    ours = [
        next(n for n in makers if n.endswith(WINDOWED) == windowed) for windowed in (False, True)
    ]
    return {name: makers[name] for name in ours}


def _chosen(candidates: Sequence[str], makers: peers.Makers, missing: dict) -> tuple[dict, dict]:
    if not candidates:
        return makers, missing
    unknown = [name for name in candidates if name not in makers and name not in missing]
    if unknown:
        raise ValueError(
            f"no candidate {unknown[0]!r} here; there are {'; '.join([*makers, *missing])}"
        )
    return tuple({n: x for n, x in those.items() if n in candidates} for those in (makers, missing))


def _tensors(
    batch: int, length: int, heads: int, head_dim: int, qk_norm: bool, dtype: str, seed: int
):
    q, k, v = jax.random.normal(jax.random.key(seed), (3, batch, length, heads, head_dim))
    if qk_norm:
        q, k = (x / jnp.sqrt((x * x).mean(-1, keepdims=True)) for x in (q, k))
    return tuple(x.astype(dtype) for x in (q, k, v))


def _ours(tensors, backward: bool, dense: bool) -> peers.Makers:
    batch, length, heads, head_dim = tensors[0].shape
    place = {"num_layers": 1, "num_heads": heads, "head_dim": head_dim, "model_dim": heads * head_dim}  # fmt: skip
    alibi, nope, windowed = (
        parse(line).place(train_length=length, **place).layers[0]
        for line in ("alibi", "nope", f"window(size={WINDOW})")
    )
    pos = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    seg = jnp.ones_like(pos)

    def blockwise(layer, epsilon):
        def attention(q, k, v, pos, seg):
            how = {} if epsilon is None else {"epsilon": epsilon}
            return blockwise_attention(
                q, k, v, layer, {}, q_pos_BT=pos, k_pos_BS=pos, q_seg_BT=seg, k_seg_BS=seg, **how
            )

        return attention

    def definition(layer: PlacedLayer):
        def attention(q, k, v, pos, seg):
            mask = visible(pos, pos, seg, seg, causal=True, window=layer.window_N[0])
            return dense_attention(q, k, v, layer.bias({}, pos, pos), mask)

        return attention

    def folded(kernel):
        def attention(q, k, v, pos, seg):
            return attend(
                q, k, v, alibi, {}, q_pos_BT=pos, k_pos_BS=pos, q_seg_BT=seg, k_seg_BS=seg,
                aligned=True, implementation=kernel,
            )  # fmt: skip

        return attention

    def flash(epsilon=EXACT_EPSILON, slopes=1.0, window=None):
        slope_N = slopes * jnp.asarray(alibi_slopes(tensors[0].shape[2]), jnp.float32)

        def attention(q, k, v, pos, seg):
            return flash_attention(q, k, v, slope_N, seg, window, epsilon=epsilon)

        return attention

    runs = {DENSE: definition(alibi), DENSE + WINDOWED: definition(windowed)} if dense else {}
    runs |= {
        BASELINE: blockwise(alibi, None),
        "ours, nothing cut": blockwise(alibi, 0.0),
        "ours, no bias": blockwise(nope, 0.0),
        BASELINE + WINDOWED: blockwise(windowed, None),
    }
    for kernel, device in KERNELS.items():
        if jax.default_backend() == device and tensors[0].dtype == jnp.bfloat16:
            if kernel == "flash":
                more = {
                    "": {}, ", nothing cut": {"epsilon": 0.0}, ", no bias": {"slopes": 0.0},
                    WINDOWED: {"slopes": 0.0, "window": WINDOW},
                }  # fmt: skip
                runs |= {f"{FLASH}{name}": flash(**how) for name, how in more.items()}
            else:
                runs[f"{FOLDED}{kernel}"] = folded(kernel)
    arrays = (*tensors, pos, seg)
    return {
        name: functools.partial(Compiled, _with_gradients(run, backward), arrays)
        for name, run in runs.items()
    }


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


def _looked_at(makers: peers.Makers, missing: dict, held: dict[str, int]) -> tuple[dict, dict]:
    """Returns (runs, looks) of the candidates that are not missing; one that fails goes to `missing`.

    The first one with a bias, and the first with a window, is what the others' results are compared with.

    Args:
      held: bytes beside q, k and v that a candidate was given, by name.
    """
    runs, looks, wanted = {}, {}, {}
    for name in [name for name in makers if name not in missing]:
        try:
            run = makers[name]()
            got = _result(run)  # what must be compiled is compiled here
            start = time.perf_counter()
            taken, source = peak(run)
            seconds = time.perf_counter() - start
        except Exception as error:  # a compiler or a device's memory: a missing row, not our end
            missing[name] = failure(error)
            if name.startswith(BASELINE):  # ours to mend, so all of it
                traceback.print_exc()
            continue
        finally:
            pytorch.release_memory()
        if taken is not None:  # made before, and held all the time
            taken += held.get(name, 0)
        free = "no bias" in name
        reference, want = (
            (None, got) if free else wanted.setdefault(name.endswith(WINDOWED), (name, got))
        )
        runs[name] = run
        looks[name] = {
            "difference": None if free else float(np.abs(got - want).max()),
            "difference_to": reference,
            "peak_mb": None if taken is None else taken / 1e6,
            "peak_source": source,
            "seconds": seconds,
        }
    return runs, looks


def _table(rows: list[dict], skipped: list[str]) -> str:
    lines = []
    for row in rows:
        difference = "-" if row["difference"] is None else f"{row['difference']:.1e}"
        peaks = ("-" if row[k] is None else f"{row[k]:.1f}" for k in ("peak_mb", "planned_mb"))
        times = [ms(row["min_ms"]), ms(row["median_ms"]), with_quartiles(row), *peaks, row["peak_source"]]  # fmt: skip
        lines.append(
            [row["implementation"], f"{row['length']:,}", row["direction"], difference, *times]
        )
    names = ("implementation", "length", "direction", "difference", "min ms", "median ms", f"x {_baselines(rows)}", "peak MB", "planned MB", "peak by")  # fmt: skip
    return "\n".join([aligned(names, lines), *(f"left out: {line}" for line in skipped)])


def _baselines(rows: list[dict]) -> str:
    return " or ".join(sorted({row["baseline"] for row in rows}))


def _panel(rows: list[dict], direction: str) -> Panel:
    series: dict[str, list] = {}
    for row in rows:
        if row["direction"] == direction:
            mark = (row["implementation"], row["ratio_q1"], row["ratio"], row["ratio_q3"])
            series.setdefault(f"{row['length']:,} tokens", []).append(mark)
    return Panel(f"{direction}: time relative to {_baselines(rows)}", series)
