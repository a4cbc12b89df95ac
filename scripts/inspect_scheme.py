"""Analyses a scheme before training: python scripts/inspect_scheme.py --scheme=rope+alibi
--train_length=1024 --length=16384 --out=looks/x.

Prints a table of heads and warnings; with --out also writes reach.json and figures (PNG and CSV).
Exit code 2 for wrong input.
"""

import dataclasses
import json
from pathlib import Path

import installed  # noqa: F401
from absl import flags

from posenc_jax import cli

_SCHEME = flags.DEFINE_string(
    "scheme", None, "Scheme, a line of the scheme grammar, or a preset", required=True
)
_LAYERS = flags.DEFINE_integer(
    "num_layers", 0, "Layers; 0: one period of the scheme", lower_bound=0
)
_HEADS = flags.DEFINE_integer("num_heads", 8, "Query heads", lower_bound=1, upper_bound=1024)
_HEAD_DIM = flags.DEFINE_integer("head_dim", 64, "Dims per head", lower_bound=1, upper_bound=2**16)
_TRAIN = flags.DEFINE_integer("train_length", 1024, "L, tokens", lower_bound=2, upper_bound=2**30)
_LENGTH = flags.DEFINE_integer(
    "length", 16384, "Number of keys, tokens", lower_bound=2, upper_bound=2**24
)
_MARGINS = flags.DEFINE_list("margins", ["10", "20", "30"], "Content margins, nats")
_BOUND = flags.DEFINE_float(
    "bound", 8.0, "Largest |content logit|, for the windows of attention", lower_bound=0.0
)
_STRETCH = flags.DEFINE_string(
    "stretch", None, "Length extension of the trained scheme, yarn:4, as in scripts/evaluate.py"
)
_OUT = flags.DEFINE_string("out", None, "Folder for reach.json and the pictures")


def main() -> None:
    """Prints the analysis of a scheme."""
    import jax

    from posenc_jax.attention.blockwise.cutoff import cutoff_windows
    from posenc_jax.encodings import extend_length, parse
    from posenc_jax.encodings.analysis import (
        analyze_heads,
        angle_errors,
        initial_parameters,
        scheme_warnings,
    )
    from posenc_jax.encodings.scheme_presets import line_of

    trained = placed = _placed(scheme := parse(_SCHEME.value))
    if _STRETCH.value:
        rule = {"length": _LENGTH.value, "train_length": _TRAIN.value}
        placed = _placed(extend_length(scheme, _STRETCH.value, **rule))
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
    heads = analyze_heads(placed, params, _LENGTH.value, margins, trained)
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
    grids = {
        n
        for layer in placed.layers
        for g in layer.groups
        for p in g.heads.parts()
        if (n := p.columns(g.context))
    }
    for columns in sorted(grids):
        warnings.append(
            f"positions are read on a grid of {columns} columns; distances in this table run in "
            "raster order"
        )
    if any(
        getattr(g.heads.rotation, "stretch", None) for layer in trained.layers for g in layer.groups
    ):
        warnings.append(
            "the stretch in the scheme counts as trained; for a reading of a run trained without "
            "it, give --stretch"
        )
    gated = sum(layer.gated for layer in placed.layers)
    if gated:
        warnings.append(f"a bias is computed from tokens in {gated} layers: it is shown for x = 0")
    tempered = sum(layer.tempered_by_tokens for layer in placed.layers)
    if tempered:
        warnings.append(
            f"a temperature is computed from tokens in {tempered} layers: it is shown for x = 0"
        )

    stretched = f" under {_STRETCH.value}" if _STRETCH.value else ""
    print(
        f"{line_of(_SCHEME.value)}{stretched}   L = {_TRAIN.value:,}   {_LENGTH.value:,} keys in "
        f"sight   {_HEADS.value} heads of {_HEAD_DIM.value}"
    )
    print(_table(heads, margins, window_N))
    print(_COLUMNS)
    for waves, error in errors.items():
        shown = ", ".join(f"{name} {value:.1e}" for name, value in error.items())
        print(
            f"angle error to position {_LENGTH.value:,} ({len(waves)} pairs, {min(waves):.3g} to "
            f"{max(waves):,.0f} tokens): {shown} rad"
        )
    for line in warnings:
        print(f"! {line}")
    if not warnings:
        print("nothing stands out")
    if _OUT.value:
        out = Path(_OUT.value)
        out.mkdir(parents=True, exist_ok=True)
        record = {
            "scheme": line_of(_SCHEME.value),
            "stretch": _STRETCH.value,
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


def _placed(scheme):
    return scheme.place(
        num_layers=_LAYERS.value or len(scheme.layers),
        num_heads=_HEADS.value,
        head_dim=_HEAD_DIM.value,
        model_dim=_HEADS.value * _HEAD_DIM.value,
        train_length=_TRAIN.value,
    )


def _table(heads, margins, window_N) -> str:
    names = [
        "layer",
        "head",
        "slope",
        "lost by L",
        "tau",
        *(f"horizon {m:g}" for m in margins),
        "sight",
        "blind f32",
        "blind bf16",
        f"window |z|<={_BOUND.value:g}",
        "pairs unseen",
    ]
    lines = [names]
    for h, w in zip(heads, window_N, strict=True):
        blind = ["-" if h.blind[n] is None else f"{h.blind[n]:,}" for n in ("float32", "bfloat16")]
        unseen = f"{h.unseen_pairs} of {len(h.wavelengths)}" if h.wavelengths else "-"
        reach = [_tokens(h.horizon[m]) for m in margins]
        lines.append(
            [
                str(h.layer),
                str(h.head),
                f"{h.slope:.4g}",
                f"{h.bias_over_L:.3g}",
                f"{h.temperature:.3g}",
                *reach,
                "all" if h.sight is None else f"{h.sight:,}",
                *blind,
                "-" if w is None else f"{w:,}",
                unseen,
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    return "\n".join(
        "  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in lines
    )


_COLUMNS = """slope: bias lost from distance 0 to 1, nats. lost by L: bias lost from distance 0 to L, nats, as trained.
tau: temperature of the last query for the farthest key.
horizon m: the largest distance at which a needle whose content logit is m nats above all other keys keeps
  weight 1/2 among all keys; temperature and rotation change m; none: not even at distance 0.
sight: the window of the scheme, tokens. blind: the largest distance with a weight above 0 in that dtype; -: all.
window: keys further back weigh less than 2^-24 together if content logits are within the bound; -: none.
pairs unseen: rotary pairs that turn less than once within L, without those that a stretch keeps within the
  trained arc."""  # noqa: E501


def _tokens(horizon: int | None) -> str:
    if horizon is None:
        return "-"
    return "none" if horizon < 0 else f"{horizon:,}"


def _pictures(placed, params, heads, out: Path):
    """Writes the figures of each distinct layer and yields their paths."""
    import jax
    import numpy as np

    from posenc_jax.encodings.analysis import (
        rotation_curves,
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
        yield from _written(
            inspection_figures.similarity_figure(
                grid_G, absolute_similarity(placed, learned, grid_G), train_length
            ),
            out,
        )
    yield from _written(inspection_figures.stretch_figure(rope_scaling_ratios(placed)), out)
    kinds = list(dict.fromkeys(placed.layers))
    for layer in kinds:
        number = placed.layers.index(layer)
        of_layer = [h for h in heads if h.layer == number]
        turning = {}  # rotation and wavelengths -> groups
        for group in layer.groups:
            if group.heads.rotation and (waves := group.heads.rotation.wavelengths(group.context)):
                turning.setdefault((group.heads.rotation, waves), []).append(group)
        rotations, curves = {}, {}
        for (_, waves), groups in turning.items():
            numbers = (str(n) for group in groups for n in range(group.first, group.stop))
            rotations[name := f"heads {', '.join(numbers)}"] = waves
            curves[name] = rotation_curves(groups[0], distance_S)
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
