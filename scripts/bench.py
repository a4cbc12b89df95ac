"""Runs a bench: python scripts/bench.py encodings --out=looks/costs.

    encodings   a training step, a forward pass, memory and parameters of every encoding, against nope
    rotation    RoPE by integer range reduction, against the plain float32 product and a table
    attention   attention under ALiBi, ours beside jax.nn and, if installed, PyTorch (extra: peers)
    step        a training step beside PyTorch, transformers and x-transformers (extra: peers)
    evaluation  scoring per token, and its memory, from the training length to 256 times that
    loop        whole training runs: the cost of checkpoints and of waiting for data
    decoding    greedy generation beside transformers with the same weights (extra: peers)

Candidates are timed side by side, round by round, and compared within a round; on a GPU or TPU in
bursts of runs. Prints a table; with --out also writes NAME.json (with versions and hardware),
NAME.csv and NAME.png. The flags of a bench are the fields of its settings in posenc_jax/bench/;
another flag is an error. Exit code 2 for wrong input.
"""  # noqa: E501

import dataclasses
import os
import shlex
import sys
from pathlib import Path

import installed  # noqa: F401
from absl import flags

from posenc_jax import cli

_READ = {
    "schemes": flags.DEFINE_string(
        "schemes",
        None,
        "Schemes with ';' between, a switch behind one as in 'nope with token_shift'; none: every "
        "registered one, and more",
    ),
    "train_length": flags.DEFINE_integer(
        "train_length", None, "Tokens per sequence", lower_bound=8
    ),
    "batch": flags.DEFINE_integer(
        "batch", None, "Sequences per step, or rows of attention", lower_bound=1
    ),
    "lengths": flags.DEFINE_list("lengths", None, "Tokens per tensor, e.g. 4096,65536"),
    "directions": flags.DEFINE_list("directions", None, "forward, forward+backward"),
    "heads": flags.DEFINE_integer("heads", None, "Heads of attention", lower_bound=1),
    "head_dim": flags.DEFINE_integer("head_dim", None, "Columns of a head", lower_bound=2),
    "candidates": flags.DEFINE_string(
        "candidates", None, "Names of the table with ';' between; none: all"
    ),
    "qk_norm": flags.DEFINE_bool(
        "qk_norm", None, "Queries and keys of RMS 1, or plain Gaussian ones"
    ),
    "dtype": flags.DEFINE_string("dtype", None, "float32 or bfloat16"),
    "compiled": flags.DEFINE_bool(
        "compiled", None, "Also the PyTorch reference under torch.compile"
    ),
    "layers": flags.DEFINE_integer("layers", None, "Layers of the model", lower_bound=1),
    "model_dim": flags.DEFINE_integer(
        "model_dim", None, "Width of the model, heads of 64", lower_bound=64
    ),
    "devices": flags.DEFINE_integer(
        "devices",
        None,
        "Devices over which a further row of our step splits the batch",
        lower_bound=1,
    ),
    "saves": flags.DEFINE_integer("saves", None, "Checkpoints of a training run", lower_bound=1),
    "models": flags.DEFINE_string(
        "models", None, "Models of the decoding bench with ';' between; none: all"
    ),
    "prompt_length": flags.DEFINE_integer(
        "prompt_length", None, "Tokens of the prompt", lower_bound=1
    ),
    "new_tokens": flags.DEFINE_integer(
        "new_tokens", None, "Tokens that are generated", lower_bound=1
    ),
    "rounds": flags.DEFINE_integer(
        "rounds", None, "Rounds, each with every candidate once", lower_bound=1
    ),
    "patience": flags.DEFINE_integer(
        "patience", None, "Seconds a single run may take before it is left out", lower_bound=1
    ),
    "seed": flags.DEFINE_integer("seed", None, "Seed of the data and of the order", lower_bound=0),
}
_OUT = flags.DEFINE_string("out", None, "Folder for the JSON, the CSV and the picture")


def main(name: str | None) -> None:
    """Runs one bench with the settings of the flags."""
    if name in ("attention", "step", "decoding"):
        # JAX would reserve three quarters of the GPU memory, which PyTorch in the same process
        # needs.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    sys.path.append(str(Path(__file__).parent.parent))  # configs/ lies beside the package
    from posenc_jax.bench import (
        attention_cost,
        decoding_cost,
        encoding_cost,
        evaluation_cost,
        loop_cost,
        rotation_cost,
        step_cost,
    )

    benches = {
        "encodings": (encoding_cost.measure, encoding_cost.EncodingSettings),
        "rotation": (rotation_cost.measure, rotation_cost.RotationSettings),
        "attention": (attention_cost.measure, attention_cost.AttentionBenchSettings),
        "step": (step_cost.measure, step_cost.StepSettings),
        "evaluation": (evaluation_cost.measure, evaluation_cost.EvaluationSettings),
        "loop": (loop_cost.measure, loop_cost.LoopSettings),
        "decoding": (decoding_cost.measure, decoding_cost.DecodingSettings),
    }
    if name not in benches:
        raise ValueError(f"name a bench first: {', '.join(benches)}, not {name!r}")
    measure, settings = benches[name]
    given = _given(name, [field.name for field in dataclasses.fields(settings)])
    out = Path(_OUT.value) if _OUT.value else None
    if out:
        _refuse_unwritable(out)
    result = measure(settings(**given))
    print(result.table)
    if out:
        for path in _written(result, out):
            print(path)


def _given(name: str, fields: list[str]) -> dict:
    """Returns the flags that were given, by field; other fields keep their defaults."""
    given = {flag: holder.value for flag, holder in _READ.items() if holder.value is not None}
    for flag in given:
        if flag not in fields:
            raise ValueError(f"--{flag} is not read by {name}, which reads {', '.join(fields)}")
    for flag in ("schemes", "candidates", "models"):
        if flag in given:
            given[flag] = tuple(s.strip() for s in given[flag].split(";") if s.strip())
    if "lengths" in given:
        given["lengths"] = cli.whole_numbers("lengths", given["lengths"])
    return given


def _refuse_unwritable(out: Path) -> None:
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ValueError(f"--out={out}: {nearest} is no folder that can be written to")


def _written(result, out: Path):
    from posenc_jax.results.files import write_json
    from posenc_jax.training.workdir import provenance

    out.mkdir(parents=True, exist_ok=True)
    record = {
        "bench": result.name,
        "command": shlex.join(["python", *_COMMAND]),
        "settings": dict(result.settings),
        **provenance(),
        "rows": list(result.rows),
    }
    write_json(out / f"{result.name}.json", record)
    figure = _figure(result)
    (out / f"{result.name}.csv").write_text(figure.csv())
    (out / f"{result.name}.png").write_bytes(figure.png())
    return [out / f"{result.name}{suffix}" for suffix in (".json", ".csv", ".png")]


def _figure(result):
    """Returns the panels of a result side by side, one line of points per label."""
    from posenc_jax.report import style
    from posenc_jax.report.figure import Figure, panels_of

    shown = [points for panel in result.panels for points in panel.series.values()]
    labels = list(dict.fromkeys(point[0] for points in shown for point in points))
    crowd = max(len(panel.series) for panel in result.panels)

    def draw(axes, panel):
        for index, (name, points) in enumerate(panel.series.items()):
            names, low, middle, high = zip(*points, strict=True)
            spacing = min(0.3, 0.8 / len(panel.series))
            shift = spacing * (index - (len(panel.series) - 1) / 2)
            y = [labels.index(label) + shift for label in names]
            look = {key: style.line_style(index)[key] for key in ("color", "marker")}
            axes.hlines(y, low, high, color=look["color"], linewidth=1.6)
            axes.plot(middle, y, label=name, linestyle="none", **look)
        axes.axvline(1, color=style.MUTED, linewidth=0.8)
        if panel.limit:
            axes.axvline(panel.limit, color=style.INK, linewidth=0.8, linestyle="--")
        axes.set_xlim(left=0)
        axes.set_title(panel.title)
        if len(panel.series) > 1:  # below, where no mark is
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.1)}
            axes.legend(ncols=len(panel.series), **below)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)

    height = 1.0 + 0.23 * len(labels) * max(1, crowd / 2)
    panels = panels_of(draw, [(panel,) for panel in result.panels], height)
    return Figure(result.name, result.title, result.caption, result.rows, panels, 2)


if __name__ == "__main__":
    _COMMAND = sys.argv[:]
    _NAME = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else None
    cli.run_main(lambda: main(_NAME))
