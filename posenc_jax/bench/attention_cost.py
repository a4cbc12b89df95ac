"""Bench of attention under ALiBi or a window: ours, with and without cut-off, beside peer
kernels.
"""

import dataclasses
import functools
import sys
import time
import traceback
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.attention import (
    AttentionSettings,
    BlockwiseSettings,
    TokenSide,
    attend,
    blockwise_attention,
    dense_attention,
    visible,
)
from posenc_jax.attention.blockwise.cutoff import EXACT_EPSILON
from posenc_jax.attention.kernels.flash import flash_attention
from posenc_jax.attention.kernels.vendor import KERNELS
from posenc_jax.bench import peers, pytorch
from posenc_jax.bench.peak_memory import Compiled, peak
from posenc_jax.bench.result import (
    BenchResult,
    Panel,
    aligned,
    failure_text,
    ms,
    ratio_point,
    with_quartiles,
)
from posenc_jax.bench.timing import WARM_UPS, Pace, interleaved, spread
from posenc_jax.encodings import alibi_slopes, parse
from posenc_jax.encodings.scheme import PlacedLayer
from posenc_jax.model.config import DTYPES

BASELINE = "ours"
DENSE = "ours, dense"
FLASH = "ours, flash"  # the baseline where it runs
FOLDED = "ours, folded into "  # followed by the kernel; the baseline without FLASH
WINDOW = 512  # tokens that a query sees under a window
WINDOWED = ", window"  # suffix of candidates with a window
DENSE_LIMIT = 2**28  # largest number of logits that a dense array may have
LONG = 2.0  # seconds; longer runs need no warm-up
DIRECTIONS = {"forward": False, "forward+backward": True}


@dataclasses.dataclass(frozen=True)
class AttentionBenchSettings:
    """Settings of the attention bench.

    Attributes:
      lengths: T, measured in ascending order. batch: B. directions: keys of `DIRECTIONS`. heads,
        head_dim: N, H.
      qk_norm: queries and keys have RMS 1, as under qk-norm; otherwise they are Gaussian. dtype: a
        key of `DTYPES`.
      patience: seconds; a candidate whose next run is expected to take longer is left out and
        listed. The time is extrapolated from the last two lengths; after a single length it is
        taken to grow with the square of the length.
      candidates: names of the candidates to measure; empty: all. If the usual baseline is not among
        them, ratios are to the first one in the table.

    Raises:
      ValueError: an unknown direction or dtype, or a length below 8.
    """

    lengths: Sequence[int] = (512, 1024, 4096)
    batch: int = 1
    directions: Sequence[str] = tuple(DIRECTIONS)
    heads: int = 8
    head_dim: int = 64
    qk_norm: bool = True
    dtype: str = "float32"
    rounds: int = 7
    patience: int = 60
    candidates: Sequence[str] = ()
    seed: int = 0

    def __post_init__(self):
        unknown = set(self.directions) - set(DIRECTIONS)
        if unknown or not self.directions:
            raise ValueError(
                f"directions must be some of {', '.join(DIRECTIONS)}, not {sorted(unknown)}"
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        if not self.lengths or min(self.lengths) < 8:
            raise ValueError(f"lengths must be 8 tokens or more, not {tuple(self.lengths)}")


def measure(settings: AttentionBenchSettings) -> BenchResult:
    """Returns time and memory of every candidate at every length, relative to our fastest path.

    Attention is causal. Candidates have ALiBi with the standard slopes, no bias, or a window of the
    last `WINDOW` tokens without a bias (", window"). In bfloat16 there are also our kernel (on a
    GPU), vendor kernels with the folded bias (on a GPU or TPU), and peers that need bfloat16.

    The baseline of the ratios is our kernel if it runs, else the vendor kernel, else the blockwise
    path. Parity is the largest difference from the result of the dense definition, or of the
    blockwise path if dense logits are too large ("difference_to"). A candidate with neither bias
    nor window computes another function and has no parity. Peak memory is counted by the operating
    system; on an accelerator it is planned by the compiler or counted by PyTorch ("peak_source"). A
    candidate that fails is listed with its reason.

    Raises:
      ValueError: an unknown candidate, or nothing that can be timed.
    """
    s = settings
    rows, skipped, pace = [], [], {direction: Pace(s.patience) for direction in s.directions}
    for length in sorted(s.lengths):
        tensors = _tensors(s, length)
        for direction in s.directions:
            dense = s.batch * s.heads * length**2 <= DENSE_LIMIT
            makers = _ours(tensors, DIRECTIONS[direction], dense)
            baseline = next((name for name in makers if name.startswith((FLASH, FOLDED))), BASELINE)
            theirs, missing = peers.attention(tensors, DIRECTIONS[direction], dense, WINDOW)
            if not dense:
                missing |= dict.fromkeys((DENSE, DENSE + WINDOWED), "all its logits are too many")
            definitions = _definitions(makers)
            makers, missing = _chosen(s.candidates, makers | theirs, missing)
            baseline = baseline if baseline in makers else next(iter(makers), BASELINE)
            missing |= pace[direction].left_out(length, [n for n in makers if n != baseline])
            print(f"{direction}, {length:,} tokens", file=sys.stderr, flush=True)
            input_bytes = peers.bias_bytes(s.heads, length, tensors[0].dtype.itemsize)
            calls, measured = _first_calls(definitions | makers, missing, input_bytes)
            calls = {name: call for name, call in calls.items() if name in makers}
            skipped += [
                f"{name}, {direction}, {length:,} tokens: {why}" for name, why in missing.items()
            ]
            if not calls:
                continue
            baseline = next(name for name in (baseline, BASELINE, *calls) if name in calls)
            slow = any(measured[name]["seconds"] > LONG for name in calls)
            seconds = interleaved(
                calls, rounds=s.rounds, seed=s.seed, warm_ups=0 if slow else WARM_UPS
            )
            for name, seconds_R in seconds.items():
                pace[direction].record(name, length, float(np.median(seconds_R)))
                rows.append(
                    {
                        "bench": "attention",
                        "implementation": name,
                        "length": length,
                        "batch": s.batch,
                        "direction": direction,
                        "heads": s.heads,
                        "head_dim": s.head_dim,
                        "dtype": s.dtype,
                        "rounds": s.rounds,
                        "baseline": baseline,
                        **spread(seconds_R, seconds[baseline]),
                        **{key: value for key, value in measured[name].items() if key != "seconds"},
                        "planned_mb": calls[name].planned_bytes / 1e6
                        if isinstance(calls[name], Compiled)
                        else None,
                    }
                )
            del calls  # two lengths may not fit into GPU memory
            pytorch.release_memory()
    if not rows:
        raise ValueError(f"nothing to time: {'; '.join(skipped)}")
    skipped = sorted(set(skipped))
    return BenchResult(
        name="attention",
        title="Attention under ALiBi, and under a window",
        caption=f"Batch {s.batch}, {s.heads} heads of {s.head_dim}, {s.dtype}, causal, "
        f"windows of {WINDOW}; time relative to {_baselines(rows)} in the same round; peak memory "
        f"by {', '.join(sorted({row['peak_source'] for row in rows}))}.",
        settings=dataclasses.asdict(s) | {"skipped": skipped, "peers": peers.versions()},
        rows=tuple(rows),
        table=_table(rows, skipped),
        panels=tuple(
            _panel(rows, d) for d in s.directions if d in {row["direction"] for row in rows}
        ),
    )


def _definitions(makers: peers.Makers) -> peers.Makers:
    """Returns the references for parity: the first maker with a bias, the first with a window."""
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
    makers = {name: maker for name, maker in makers.items() if name in candidates}
    return makers, {name: why for name, why in missing.items() if name in candidates}


def _tensors(s: AttentionBenchSettings, length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    shape = (3, s.batch, length, s.heads, s.head_dim)
    q, k, v = jax.random.normal(jax.random.key(s.seed), shape)
    if s.qk_norm:
        q, k = (x / jnp.sqrt((x * x).mean(-1, keepdims=True)) for x in (q, k))
    return q.astype(s.dtype), k.astype(s.dtype), v.astype(s.dtype)


def _ours(tensors, backward: bool, dense: bool) -> peers.Makers:
    batch, length, heads, head_dim = tensors[0].shape
    place = {
        "num_layers": 1,
        "num_heads": heads,
        "head_dim": head_dim,
        "model_dim": heads * head_dim,
    }
    alibi, nope, windowed = (
        parse(line).place(train_length=length, **place).layers[0]
        for line in ("alibi", "nope", f"window(size={WINDOW})")
    )
    pos = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    seg = jnp.ones_like(pos)

    def blockwise(layer, epsilon):
        def attention(q, k, v, pos, seg):
            tokens, settings = TokenSide(pos, seg), BlockwiseSettings(epsilon=epsilon)
            return blockwise_attention(q, k, v, layer, {}, tokens, tokens, settings)

        return attention

    def definition(layer: PlacedLayer):
        def attention(q, k, v, pos, seg):
            tokens = TokenSide(pos, seg)
            mask = visible(tokens, tokens, causal=True, window=layer.window_N[0])
            return dense_attention(q, k, v, layer.bias({}, pos, pos), mask)

        return attention

    def folded(kernel):
        def attention(q, k, v, pos, seg):
            settings = AttentionSettings(aligned=True, implementation=kernel)
            return attend(q, k, v, alibi, {}, TokenSide(pos, seg), settings=settings)

        return attention

    def flash(epsilon=EXACT_EPSILON, slopes=1.0, window=None):
        slope_N = slopes * jnp.asarray(alibi_slopes(tensors[0].shape[2]), jnp.float32)

        def attention(q, k, v, pos, seg):
            return flash_attention(q, k, v, slope_N, seg, window, epsilon=epsilon)

        return attention

    attentions = {DENSE: definition(alibi), DENSE + WINDOWED: definition(windowed)} if dense else {}
    attentions |= {
        BASELINE: blockwise(alibi, EXACT_EPSILON),
        "ours, nothing cut": blockwise(alibi, 0.0),
        "ours, no bias": blockwise(nope, 0.0),
        BASELINE + WINDOWED: blockwise(windowed, EXACT_EPSILON),
    }
    for kernel, device in KERNELS.items():
        if jax.default_backend() == device and tensors[0].dtype == jnp.bfloat16:
            if kernel == "flash":
                more = {
                    "": {},
                    ", nothing cut": {"epsilon": 0.0},
                    ", no bias": {"slopes": 0.0},
                    WINDOWED: {"slopes": 0.0, "window": WINDOW},
                }
                attentions |= {f"{FLASH}{name}": flash(**how) for name, how in more.items()}
            else:
                attentions[f"{FOLDED}{kernel}"] = folded(kernel)
    arrays = (*tensors, pos, seg)
    return {
        name: functools.partial(Compiled, _with_gradients(attention, backward), arrays)
        for name, attention in attentions.items()
    }


def _with_gradients(attention: Callable, backward: bool) -> Callable:
    """Returns a function of the result, with `backward` also of the gradients of q, k and v."""

    def call(q, k, v, *rest):
        if not backward:
            return (attention(q, k, v, *rest),)
        out, pull = jax.vjp(lambda *qkv: attention(*qkv, *rest), q, k, v)
        return out, *pull(q)  # any cotangent of the right shape

    return call


def _first_calls(
    makers: peers.Makers, missing: dict, input_bytes: dict[str, int]
) -> tuple[dict, dict]:
    """Returns (calls, measurements) of the candidates; one that fails is added to `missing`.

    Results are compared with the results of the first candidate with a bias, or with a window.

    Args:
      input_bytes: bytes of a candidate's inputs other than q, k and v, by name.
    """
    calls, measured, references = {}, {}, {}
    for name in [name for name in makers if name not in missing]:
        try:
            call = makers[name]()
            got = np.asarray(call()[0], np.float32)  # the first call compiles
            start = time.perf_counter()
            peak_bytes, source = peak(call)
            seconds = time.perf_counter() - start
        except Exception as error:  # the compiler failed or memory ran out
            missing[name] = failure_text(error)
            if name.startswith(BASELINE):  # a fault of our own code
                traceback.print_exc()
            continue
        finally:
            pytorch.release_memory()
        if peak_bytes is not None:  # adds the inputs, which exist before the call
            peak_bytes += input_bytes.get(name, 0)
        unbiased = "no bias" in name
        reference, want = (
            (None, got) if unbiased else references.setdefault(name.endswith(WINDOWED), (name, got))
        )
        calls[name] = call
        measured[name] = {
            "difference": None if unbiased else float(np.abs(got - want).max()),
            "difference_to": reference,
            "peak_mb": None if peak_bytes is None else peak_bytes / 1e6,
            "peak_source": source,
            "seconds": seconds,
        }
    return calls, measured


def _table(rows: list[dict], skipped: list[str]) -> str:
    lines = []
    for row in rows:
        difference = "-" if row["difference"] is None else f"{row['difference']:.1e}"
        peaks = ("-" if row[k] is None else f"{row[k]:.1f}" for k in ("peak_mb", "planned_mb"))
        times = [
            ms(row["min_ms"]),
            ms(row["median_ms"]),
            with_quartiles(row),
            *peaks,
            row["peak_source"],
        ]
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
        f"x {_baselines(rows)}",
        "peak MB",
        "planned MB",
        "peak by",
    )
    return "\n".join([aligned(names, lines), *(f"left out: {line}" for line in skipped)])


def _baselines(rows: list[dict]) -> str:
    return " or ".join(sorted({row["baseline"] for row in rows}))


def _panel(rows: list[dict], direction: str) -> Panel:
    series: dict[str, list] = {}
    for row in rows:
        if row["direction"] == direction:
            series.setdefault(f"{row['length']:,} tokens", []).append(
                ratio_point(row["implementation"], row)
            )
    return Panel(f"{direction}: time relative to {_baselines(rows)}", series)
