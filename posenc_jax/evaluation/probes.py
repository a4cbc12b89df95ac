"""Suite M: head statistics, receptive field, needles and interventions, one item each."""

import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np

from posenc_jax.encodings.analysis import decay_bound, rotary_kernel
from posenc_jax.evaluation import head_statistics
from posenc_jax.evaluation.capture import over_batches
from posenc_jax.evaluation.interventions import every_intervention
from posenc_jax.evaluation.lengths import Multiple
from posenc_jax.evaluation.perplexity import octaves
from posenc_jax.evaluation.probe_context import LINEAR, ProbeContext
from posenc_jax.evaluation.receptive_field import gradient_by_distance, reach_of_share
from posenc_jax.results.schema import Row

SHARES = (0.5, 0.9)  # of the gradient, for M3


def probe_items(probe: ProbeContext) -> dict[str, Callable]:
    """Returns the items of suite M: observation and M13 per multiple, M3, M9 with M10 per task,
    M12.
    """
    multiples, four = probe.ctx.multiples, probe.target_multiple()
    chosen = sorted({1, four, max(multiples)} & set(multiples))
    items: dict[str, Callable] = {}
    items |= {f"M/observed/{k}": functools.partial(_observation, probe, k) for k in chosen}
    items |= {f"M13/{k}": functools.partial(_distance_change, probe, k) for k in chosen}
    items[f"M3/{max(multiples)}"] = functools.partial(_receptive_field, probe, max(multiples))
    for k in sorted({1, four} & set(multiples)):
        for task in probe.tasks(k):
            items[f"M9/{task}/{k}"] = functools.partial(_needles, probe, task, k)
        for name, change in every_intervention(probe.config, probe.L).items():
            items[f"M12/{name}/{k}"] = functools.partial(probe.change, "M", "M12", name, change, k)
    return items


def _observation(probe: ProbeContext, k: Multiple) -> list[Row]:
    """Returns M1, M2, M4, M5, M6, M7 and M11 at one context length."""
    layers, length, L = probe.observed(k), probe.ctx.tokens(k), probe.L
    rows = []

    def add(metric, measure, extra=""):
        values = [None if sums is None else measure(sums) for sums in layers]
        rows.extend(probe.of_heads("M", metric, length, values, n, extra))

    n = next((sums.queries for sums in layers if sums is not None), 0)
    for low, high in octaves(length):
        within = functools.partial(head_statistics.mass_between, low=low, high=high)
        add("M1_distance", within, f" distance:[{low},{high})")
    add("M1_mean_distance", head_statistics.mean_distance)
    add("M1_rho_far", lambda sums: head_statistics.mass_between(sums, L + 1, length))
    add("M2_entropy", lambda sums: sums.entropy_N)
    add("M4_sink", lambda sums: sums.sink_N)
    if probe.config.sink_logit:
        add("M4_sink_logit", lambda sums: 1 - head_statistics.mass_between(sums, 0, length))
    add("M7_kendall", head_statistics.monotonicity)
    for dtype in ("float32", "bfloat16"):
        add("M11_blind", lambda sums, dtype=dtype: sums.blind_N[dtype], f" {dtype}")
    for low, high in octaves(length):

        def content(sums, low=low, high=high):
            pairs_Z = sums.pairs_Z[low:high]
            return sums.content_NZ[:, low:high] @ pairs_Z / pairs_Z.sum()

        add("M6_content", content, f" distance:[{low},{high})")
    planes = [
        head_statistics.rotary_planes(layer, learned, probe.config.head_dim)
        for layer, learned in zip(probe.placed.layers, probe.learned, strict=True)
    ]
    rows.extend(_frequency_rows(probe, layers, planes, length))
    _save_observation(probe, layers, planes, k)
    return rows


def _distance_change(probe: ProbeContext, k: Multiple) -> list[Row]:
    """Returns M13: what training added to the mean distance of each head, tokens."""
    both = zip(probe.observed(k), probe.observed(k, trained=False), strict=True)
    changes = [
        None
        if after is None or before is None
        else head_statistics.mean_distance(after) - head_statistics.mean_distance(before)
        for after, before in both
    ]
    n = next((sums.queries for sums in probe.observed(k) if sums is not None), 0)
    length = probe.ctx.tokens(k)
    return list(probe.of_heads("M", "M13_distance_change", length, changes, n))


def _frequency_rows(probe: ProbeContext, layers, planes, length) -> Iterator[Row]:
    for i, (sums, heads) in enumerate(zip(layers, planes, strict=True)):
        if sums is None:
            yield from probe.ctx.skipped("M", "M5_frequency_use", length, LINEAR, f"layer:{i}")
            continue
        tokens = sums.rows * len(sums.pairs_Z)
        for n, (share, pairs) in enumerate(
            zip(head_statistics.frequency_use(sums, heads), heads, strict=True)
        ):
            if not pairs:
                reason = "this head has no rotation"
                yield from probe.ctx.skipped(
                    "M", "M5_frequency_use", length, reason, f"head:{i}.{n}"
                )
                continue
            names = [f" wavelength:{pair['wavelength']:.4g}" for pair in pairs] + [" unrotated"]
            for name, value in zip(names, share, strict=True):
                yield probe.row(
                    "M", "M5_frequency_use", length, f"head:{i}.{n}{name}", value, tokens
                )


def _save_observation(probe: ProbeContext, layers, planes, k: Multiple) -> None:
    N, length = probe.config.num_heads, probe.ctx.tokens(k)
    distance_Z = np.arange(length)
    empty_NZ = np.full((N, length), np.nan)

    def stacked(field: str) -> np.ndarray:
        return np.stack([empty_NZ if s is None else getattr(s, field) for s in layers])

    kernel_LNZ, bound_LNZ = (np.full((len(layers), N, length), np.nan) for _ in range(2))
    for i, (layer, heads) in enumerate(zip(probe.placed.layers, planes, strict=True)):
        of_head = [group for group in layer.groups for _ in range(group.context.heads)]
        for n, (group, pairs) in enumerate(zip(of_head, heads, strict=True)):
            waves = tuple(pair["wavelength"] for pair in pairs)
            if waves and group.heads.rotation is not None:
                gain_Zh = group.heads.rotation.pair_gains(group.context, distance_Z)
                fixed_Zh = gain_Zh if gain_Zh.shape[1] == len(waves) else None  # learned pairs
                kernel_Z = rotary_kernel(waves, distance_Z, fixed_Zh)
                bound_Z = decay_bound(waves, distance_Z, fixed_Zh)
                kernel_LNZ[i, n], bound_LNZ[i, n] = kernel_Z / kernel_Z[0], bound_Z / bound_Z[0]
    probe.save(
        f"probes_{k}",
        distance_D=distance_Z,
        attention_LND=stacked("weight_NZ"),
        content_LND=stacked("content_NZ"),
        logit_LND=stacked("logit_NZ"),
        cosine_LND=kernel_LNZ,
        bound_LND=bound_LNZ,
    )


def _receptive_field(probe: ProbeContext, k: Multiple) -> list[Row]:
    """Returns M3: gradient shares by octave, and the distances that hold 50 % and 90 % of it."""
    length = probe.ctx.tokens(k)
    rows_RT = probe.text(length)

    @jax.jit
    def program(params, rows_BT):
        def one(row_T):
            return gradient_by_distance(probe.config, params, row_T[:-1], row_T[-1])

        return jax.lax.map(one, rows_BT)

    norm_RZ = np.concatenate(
        over_batches(functools.partial(program, probe.params), probe.budget, rows_RT)
    )
    share_Z = (norm_RZ / norm_RZ.sum(1, keepdims=True)).mean(0, dtype=np.float64)
    probe.save(f"receptive_field_{k}", distance_D=np.arange(length), share_D=share_Z)
    rows = [
        probe.row(
            "M", "M3_gradient", length, f"distance:[{a},{b})", share_Z[a:b].sum(), len(rows_RT)
        )
        for a, b in octaves(length)
    ]
    for share in SHARES:
        reach = reach_of_share(share_Z, share)
        rows.append(probe.row("M", "M3_reach", length, f"share:{share:g}", reach, len(rows_RT)))
    return rows


def _needles(probe: ProbeContext, task: str, k: Multiple) -> list[Row]:
    """Returns M9 and M10 of one task."""
    layers = head_statistics.needle_heads(
        probe.config, probe.params, probe.instances(task, k), probe.budget
    )
    length, softmax = probe.ctx.tokens(k), [layer for layer in layers if layer is not None]
    n = softmax[0].weight_NA.shape[1] if softmax else 0
    rows = []
    for metric, measure in (
        ("M9_mass", lambda heads: heads.weight_NA.mean(1)),
        ("M10_margin", lambda heads: heads.margin_NA.mean(1, dtype=np.float64)),
        ("M10_predicted_reach", lambda heads: np.median(heads.reach_NA, axis=1)),
        ("M10_measured_reach", head_statistics.measured_reach),
        ("M10_agreement", head_statistics.agreement),
    ):
        values = [None if heads is None else measure(heads) for heads in layers]
        rows += probe.of_heads("M", metric, length, values, n, f" {task}")
    if softmax:
        blank_NA = np.full(softmax[0].weight_NA.shape, np.nan)
        arrays = {
            f"{name}_LNA": np.stack([getattr(f, f"{name}_NA") if f else blank_NA for f in layers])
            for name in ("weight", "margin", "reach")
        }
        probe.save(f"needles_{task}_{k}", distance_A=softmax[0].distance_A, **arrays)
    return rows
