"""Bench of encodings: compares them with nope by the time of a training step and of a forward pass,
by memory and by added parameters.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.bench.peak_memory import memory_plan
from posenc_jax.bench.result import BenchResult, Panel, aligned, ratio_point, with_quartiles
from posenc_jax.bench.timing import interleaved, spread
from posenc_jax.encodings import REGISTRY, Temperature
from posenc_jax.encodings.scheme_presets import PRESETS
from posenc_jax.model.decoder import Decoder
from posenc_jax.results.near_names import near_names
from posenc_jax.training.config import RunConfig
from posenc_jax.training.config_sections import ModelSection, TrainSection
from posenc_jax.training.sharding import make_mesh
from posenc_jax.training.step import make_step, state_builder

BASELINE, _WITH = "nope", " with "
COMBINATIONS = (  # schemes that combine several parts
    "rope+alibi",
    "rope|alibi",
    "rope+alibi|nope~logn",
    "rope+alibi,nope~logn",
    "rope+window,nope~logn",
    "prope+log(c=2.0,t=10.0)~scale_invariant",
    "rope+forget",
    "rope+t5",
    "rope+linear",
    "alibi&log(c=2.0)",
    PRESETS["nape"],
    "pope+alibi",
)
# Switches of the model that may follow a scheme after " with ".
SWITCHES = ("output_gate", "sink_logit", "token_shift")
SHAPE: dict[str, Any] = {"num_layers": 2, "model_dim": 128, "num_heads": 4, "head_dim": 32}
VOCABULARY = 256
GROUP = 4  # schemes whose runs are interleaved in one timing, together with nope
# "direction" of the training step in rows. The time includes the optimizer; committed rows have
# this name.
STEP = "forward+backward"


def all_schemes() -> tuple[str, ...]:
    """Returns one line for each encoding (temperatures as "nope~name"), each of COMBINATIONS, and
    nope with each switch.
    """
    alone = (
        f"{BASELINE}~{name}" if issubclass(part, Temperature) else name
        for name, part in REGISTRY.items()
    )
    return (*alone, *COMBINATIONS, *(f"{BASELINE}{_WITH}{switch}" for switch in SWITCHES))


@dataclasses.dataclass(frozen=True)
class EncodingSettings:
    """Settings of the encoding bench.

    schemes: lines of the scheme grammar; empty means `all_schemes()`. Switches of the model may
    follow a scheme: "rope with token_shift", "nope with output_gate+sink_logit".
    """

    schemes: tuple[str, ...] = ()
    train_length: int = 512
    batch: int = 4
    rounds: int = 9
    seed: int = 0


def measure(settings: EncodingSettings) -> BenchResult:
    """Returns the cost of schemes relative to nope, on the first device.

    Timed are the training step (forward, backward, optimizer) and the forward pass of a decoder of
    2 layers, a few schemes at a time together with nope. Memory is what the compiler plans for
    temporaries.

    Raises:
      ValueError: a scheme, switch, length or batch that a decoder does not take, before anything
        compiles.
    """
    train_length, batch = settings.train_length, settings.batch
    rounds, seed = settings.rounds, settings.seed
    schemes = tuple(s for s in dict.fromkeys(settings.schemes or all_schemes()) if s != BASELINE)
    configs = [_run_config(scheme, train_length, batch) for scheme in schemes]
    mesh = make_mesh(1, 1)
    for config in configs:  # traces every scheme first, so that an error comes at once
        with jax.set_mesh(mesh):
            state_builder(config, Decoder(config.model_config(VOCABULARY)), mesh)
    nope = _compiled(BASELINE, train_length, batch, seed, mesh)
    rows, nope_seconds = [], {STEP: [], "forward": []}
    for first in range(0, len(schemes), GROUP):
        group = schemes[first : first + GROUP]
        print(
            f"{first + 1} to {first + len(group)} of {len(schemes)}: {'; '.join(group)}",
            file=sys.stderr,
            flush=True,
        )
        compiled = [nope, *(_compiled(s, train_length, batch, seed, mesh) for s in group)]
        for direction, taken in nope_seconds.items():
            seconds = interleaved(
                {s.scheme: s.calls[direction] for s in compiled}, rounds=rounds, seed=seed
            )
            taken.append(seconds[BASELINE])
            rows += [
                _row(s, nope, direction, train_length, seconds[s.scheme], seconds[BASELINE])
                for s in compiled[1:]
            ]
    for direction, taken in nope_seconds.items():  # the row of the baseline: all its rounds
        if not taken:
            taken.append(
                interleaved({BASELINE: nope.calls[direction]}, rounds=rounds, seed=seed)[BASELINE]
            )
        all_R = np.concatenate(taken)
        rows.append(_row(nope, nope, direction, train_length, all_R, all_R))
    rows.sort(key=lambda row: (row["direction"] == "forward", row["ratio"]))
    return BenchResult(
        "encodings",
        "Cost of encodings, hybrids and model switches relative to nope",
        "Time and compiler temporaries of a 2-layer decoder (model dim 128, 4 heads of 32) at "
        f"{train_length} tokens, batch {batch}: medians of {rounds} ratios to nope in the same "
        "round, bars from first to third quartile.",
        {"train_length": train_length, "batch": batch, "rounds": rounds, "seed": seed}
        | SHAPE
        | {"vocab_size": VOCABULARY, "group": GROUP},
        tuple(rows),
        _table(rows),
        _panels(rows),
    )


@dataclasses.dataclass(frozen=True)
class _CompiledScheme:
    scheme: str
    parameters: int
    calls: dict[str, Callable]  # by direction: a function that executes it once
    temp_bytes: dict[str, int]


def _run_config(scheme: str, train_length: int, batch: int) -> RunConfig:
    line, _, asked = scheme.partition(_WITH)
    switches = [word.strip() for word in asked.split("+")] if asked else []
    for word in switches:
        if word not in SWITCHES:
            raise ValueError(f"{scheme!r}: no switch {word!r}{near_names(word, list(SWITCHES))}")
    shape = SHAPE | dict.fromkeys(switches, True)
    return RunConfig(
        model=ModelSection(scheme=line, **shape),
        train=TrainSection(length=train_length, batch_size=batch, data_devices=1),
    )


def _compiled(scheme: str, train_length: int, batch: int, seed: int, mesh) -> _CompiledScheme:
    """Returns the compiled step and forward pass of one scheme, each with its inputs."""
    config = _run_config(scheme, train_length, batch)
    model = Decoder(config.model_config(VOCABULARY))
    with jax.set_mesh(mesh):
        build, _ = state_builder(config, model, mesh)
        state = build(jax.random.key(seed))
        data = random_batch(train_length, batch, seed, mesh)
        step = make_step(config, model).lower(state, data).compile()

        @jax.jit
        def logits(params, data):
            names = ("tokens_BT", "positions_BT", "segments_BT")
            return model.apply({"params": params}, *(data[name][0] for name in names))[0]

        forward = logits.lower(state["params"], data).compile()

    def train():
        nonlocal state  # the step donates the old state
        state, _ = step(state, data)
        return state

    return _CompiledScheme(
        scheme,
        sum(x.size for x in jax.tree.leaves(state["params"])),
        {STEP: train, "forward": lambda: forward(state["params"], data)},
        {
            STEP: memory_plan(step).temp_size_in_bytes,
            "forward": memory_plan(forward).temp_size_in_bytes,
        },
    )


def random_batch(train_length: int, batch: int, seed: int, mesh) -> dict[str, jax.Array]:
    """Returns a batch of random tokens for a training step.

    Its arrays are [1, B, T], one slice: the step's names leave out the first dim.
    """
    shape = (1, batch, train_length)
    tokens = np.random.default_rng(seed).integers(VOCABULARY, size=shape, dtype=np.int32)
    arrays = {
        "tokens_BT": tokens,
        "targets_BT": np.roll(tokens, -1, axis=-1),
        "positions_BT": np.broadcast_to(np.arange(train_length, dtype=np.int32), shape),
        "segments_BT": np.ones(shape, np.int32),
        "weights_BT": np.ones(shape, np.float32),
    }
    sharding = jax.NamedSharding(mesh, jax.P(None, "data", None))
    return {name: jax.device_put(jnp.asarray(x), sharding) for name, x in arrays.items()}


def _row(compiled, nope, direction, train_length, seconds_R, nope_R) -> dict:
    temp, temp_nope = compiled.temp_bytes[direction], nope.temp_bytes[direction]
    return {
        "bench": "encodings",
        "scheme": compiled.scheme,
        "length": train_length,
        "direction": direction,
        **spread(seconds_R, nope_R),
        "rounds": len(seconds_R),
        "temp_mb": temp / 1e6,
        "temp_ratio": temp / temp_nope,
        "parameters_added": compiled.parameters - nope.parameters,
    }


def _table(rows: list[dict]) -> str:
    forward = {row["scheme"]: row for row in rows if row["direction"] == "forward"}
    lines = []
    for step in (row for row in rows if row["direction"] == STEP):
        forward_row = forward[step["scheme"]]
        lines.append(
            [
                step["scheme"],
                f"{step['median_ms']:.1f}",
                with_quartiles(step),
                f"{forward_row['median_ms']:.1f}",
                with_quartiles(forward_row),
                f"{step['temp_mb']:.1f}",
                f"{step['temp_ratio']:.2f}",
                f"{step['parameters_added']:,}",
            ]
        )
    names = (
        "scheme",
        "step ms",
        "x nope",
        "forward ms",
        "x nope",
        "temp MB",
        "x nope",
        "parameters +",
    )
    return aligned(names, lines)


def _panels(rows: list[dict]) -> tuple[Panel, ...]:
    steps = [row for row in rows if row["direction"] == STEP]
    forward = {row["scheme"]: row for row in rows if row["direction"] == "forward"}

    memory = [(row["scheme"], *(row["temp_ratio"],) * 3) for row in steps]
    return (
        Panel(
            "time, relative to nope",
            {
                "training step": [ratio_point(row["scheme"], row) for row in steps],
                "forward pass": [
                    ratio_point(row["scheme"], forward[row["scheme"]]) for row in steps
                ],
            },
        ),
        Panel("temporaries of the step, relative to nope", {"memory": memory}),
    )
