"""Analyses a scheme before training: python scripts/inspect_scheme.py --scheme=rope+alibi --train_length=1024 --length=16384 --out=looks/x.

Prints a table of heads and warnings; with --out also writes reach.json and figures (PNG and CSV). Exit code
2 for wrong input.
"""

import dataclasses
import json
from pathlib import Path

from absl import flags

from posenc_jax import cli

_SCHEME = flags.DEFINE_string(
    "scheme", None, "Scheme, in the scheme language, or a preset", required=True
)
_LAYERS = flags.DEFINE_integer(
    "num_layers", 0, "Layers; 0: one period of the scheme", lower_bound=0
)
_HEADS = flags.DEFINE_integer("num_heads", 8, "Query heads", lower_bound=1)
_HEAD_DIM = flags.DEFINE_integer("head_dim", 64, "Dims per head", lower_bound=1)
_TRAIN = flags.DEFINE_integer("train_length", 1024, "L, tokens", lower_bound=2)
_LENGTH = flags.DEFINE_integer("length", 16384, "Number of keys, tokens", lower_bound=2)
_MARGINS = flags.DEFINE_list("margins", ["10", "20", "30"], "Content margins, nats")
_BOUND = flags.DEFINE_float(
    "bound", 8.0, "Largest |content logit|, for the windows of attention", lower_bound=0.0
)
_OUT = flags.DEFINE_string("out", None, "Folder for reach.json and the pictures")


def main() -> None:
    """Prints the analysis of a scheme."""
    import jax

    from posenc_jax.attention.blockwise.cutoff import cutoff_windows
    from posenc_jax.encodings import parse
    from posenc_jax.encodings.analysis import (
        analyze_heads,
        angle_errors,
        initial_parameters,
        scheme_warnings,
    )
    from posenc_jax.encodings.scheme_presets import line_of

    scheme = parse(_SCHEME.value)
    placed = scheme.place(
        num_layers=_LAYERS.value or len(scheme.layers),
        num_heads=_HEADS.value,
        head_dim=_HEAD_DIM.value,
        model_dim=_HEADS.value * _HEAD_DIM.value,
        train_length=_TRAIN.value,
    )
    if placed.longest() is not None and _LENGTH.value > placed.longest():
        raise ValueError(
            f"--length={_LENGTH.value} exceeds the {placed.longest()} positions of {_SCHEME.value}"
        )
    try:
        margins = tuple(float(m) for m in _MARGINS.value)
    except ValueError:
        raise ValueError(f"--margins must be numbers, not {','.join(_MARGINS.value)!r}") from None
    if not margins or not all(0 < m < 700 for m in margins):
        raise ValueError(f"--margins must lie between 0 and 700 nats, not {margins}")
    params = initial_parameters(placed, jax.random.key(0))
    heads = analyze_heads(placed, params, _LENGTH.value, margins)
    window_N = [
        None if layer.form or n >= _LENGTH.value else int(n)
        for layer, learned in zip(placed.layers, params, strict=True)
        for n in cutoff_windows(layer, learned, _BOUND.value, _LENGTH.value)
    ]
    errors = {
        w: angle_errors(w, _LENGTH.value) for w in {h.wavelengths for h in heads if h.wavelengths}
    }
    warnings = scheme_warnings(heads, _LENGTH.value, _TRAIN.value)
    if any(params) or (placed.absolute is not None and placed.absolute.learns):
        warnings.append("learned parts are shown at their initial values")
    grids = {n for layer in placed.layers for g in layer.groups for p in g.heads.parts() if (n := p.columns(g.context))}  # fmt: skip
    for columns in sorted(grids):
        warnings.append(
            f"positions are read on a grid of {columns} columns; distances in this table run in raster order"
        )
    gated = sum(layer.gated for layer in placed.layers)
    if gated:
        warnings.append(
            f"tokens decide a bias in {gated} layers: it is shown for tokens at rest, x = 0"
        )
    tempered = sum(layer.tempered_by_tokens for layer in placed.layers)
    if tempered:
        warnings.append(
            f"tokens decide a temperature in {tempered} layers: it is shown for tokens at rest, x = 0"
        )

    print(f"{line_of(_SCHEME.value)}   L = {_TRAIN.value:,}   {_LENGTH.value:,} keys in sight   {_HEADS.value} heads of {_HEAD_DIM.value}")  # fmt: skip
    print(_table(heads, margins, window_N))
    for waves, error in errors.items():
        shown = ", ".join(f"{name} {value:.1e}" for name, value in error.items())
        print(f"angle error to position {_LENGTH.value:,} ({len(waves)} pairs, {min(waves):.3g} to {max(waves):,.0f} tokens): {shown} rad")  # fmt: skip
    for line in warnings:
        print(f"! {line}")
    if _OUT.value:
        out = Path(_OUT.value)
        out.mkdir(parents=True, exist_ok=True)
        record = {
            "scheme": line_of(_SCHEME.value),
            "train_length": _TRAIN.value,
            "length": _LENGTH.value,
            "content_bound": _BOUND.value,
            "heads": [
                dataclasses.asdict(h) | {"window": w} for h, w in zip(heads, window_N, strict=True)
            ],
            "angle_errors": [{"wavelengths": list(w), **e} for w, e in errors.items()],
            "warnings": warnings,
        }
        (out / "reach.json").write_text(json.dumps(record, indent=2) + "\n")
        for path in _pictures(placed, params, heads, out):
            print(path)


def _table(heads, margins, window_N) -> str:
    names = ["layer", "head", "slope", "slope x L", "tau", *(f"horizon {m:g}" for m in margins), "sight", "blind f32", "blind bf16", f"window |z|<={_BOUND.value:g}", "pairs unseen"]  # fmt: skip
    lines = [names]
    for h, w in zip(heads, window_N, strict=True):
        blind = ["-" if h.blind[n] is None else f"{h.blind[n]:,}" for n in ("float32", "bfloat16")]
        unseen = f"{h.unseen_pairs} of {len(h.wavelengths)}" if h.wavelengths else "-"
        reach = [_tokens(h.horizon[m]) for m in margins]
        lines.append([str(h.layer), str(h.head), f"{h.slope:.4g}", f"{h.slope_times_length:.3g}", f"{h.temperature:.3g}", *reach, "all" if h.sight is None else f"{h.sight:,}", *blind, "-" if w is None else f"{w:,}", unseen])  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    return "\n".join(
        "  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in lines
    )


def _tokens(horizon: int | None) -> str:
    if horizon is None:
        return "-"
    return "none" if horizon < 0 else f"{horizon:,}"


def _pictures(placed, params, heads, out: Path):
    """Writes the figures of each distinct layer and yields their paths."""
    import jax
    import numpy as np

    from posenc_jax.encodings.analysis import (
        decay_bound,
        rotary_kernel,
        temperature_of_distance,
        temperature_of_position,
    )
    from posenc_jax.encodings.scheme_arrays import (
        absolute_similarity,
        planar_arrays,
        rope_scaling_ratios,
        scheme_arrays,
    )
    from posenc_jax.report import inspection_figures, scheme_figures

    length, train_length = _LENGTH.value, _TRAIN.value
    distance_S = np.unique(
        np.r_[np.arange(min(length, 64)), np.geomspace(1, length - 1, 200)].astype(int)
    )
    grid_G = np.unique(np.linspace(0, min(2 * train_length, length - 1), 49).astype(int))
    _, arrays = scheme_arrays(placed, params, distance_S, grid_G)
    if placed.absolute is not None:
        learned = placed.init_absolute(jax.random.key(0))
        yield from _written(inspection_figures.similarity_figure(grid_G, absolute_similarity(placed, learned, grid_G), train_length), out)  # fmt: skip
    yield from _written(inspection_figures.stretch_figure(rope_scaling_ratios(placed)), out)
    kinds = list(dict.fromkeys(placed.layers))
    for layer in kinds:
        number = placed.layers.index(layer)
        of_layer = [h for h in heads if h.layer == number]
        waves = list(dict.fromkeys(h.wavelengths for h in of_layer if h.wavelengths))
        rotations = {
            f"heads {', '.join(str(h.head) for h in of_layer if h.wavelengths == w)}": w
            for w in waves
        }
        curves = {
            name: (rotary_kernel(w, distance_S), decay_bound(w, distance_S))
            for name, w in rotations.items()
        }
        learned = params[number]
        tau_NS = temperature_of_distance(layer, learned, length)[:, distance_S]
        pictures = [
            scheme_figures.bias_figure(grid_G, arrays["grid_bias_LNGG"][number], train_length),
            scheme_figures.rotation_figure(rotations, train_length, length / train_length),
            inspection_figures.kernel_figure(
                distance_S, arrays["bias_LNS"][number], curves, train_length
            ),
            inspection_figures.temperature_figure(
                distance_S,
                temperature_of_position(layer, learned, distance_S),
                tau_NS,
                train_length,
            ),
        ]
        if layer.form is None:
            pictures.append(
                inspection_figures.horizon_figure(
                    [h.horizon for h in of_layer], length, train_length
                )
            )
        on_grid = [p.columns(g.context) for g in layer.groups for p in g.heads.parts()]
        for columns in dict.fromkeys(n for n in on_grid if n is not None):
            pictures.append(
                inspection_figures.plane_figure(**planar_arrays(layer, learned, columns, 16))
            )
        for picture in pictures:
            yield from _written(picture, out, "" if len(kinds) == 1 else f"layer{number}_")


def _written(figure, out: Path, before: str = ""):
    """Writes a figure and its CSV, if there is anything to draw, and yields its path."""
    if figure.panels:
        (out / f"{before}{figure.name}.csv").write_text(figure.csv())
        (out / f"{before}{figure.name}.png").write_bytes(figure.png())
        yield out / f"{before}{figure.name}.png"


if __name__ == "__main__":
    cli.run_main(main)
