"""Bench of decoding: greedy generation from a prompt, beside transformers with the same weights."""

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.bench import pytorch
from posenc_jax.bench.peers import versions
from posenc_jax.bench.result import (
    BenchResult,
    Panel,
    aligned,
    failure_text,
    ms,
    ratio_point,
    with_quartiles,
)
from posenc_jax.bench.timing import interleaved, spread
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder
from posenc_jax.model.generate import Sampling, generate
from posenc_jax.results.near_names import near_names

OURS, THEIRS = "ours", "transformers, Llama"
HEAD_DIM = 64
# (layers, D, N, K, F, V) of Llamas with a tied head; the second is SmolLM2's (Allal et al. 2025).
SHAPES = {
    "4 layers of 256": (4, 256, 4, 4, 1024, 8192),
    "SmolLM2-135M": (30, 576, 9, 3, 1536, 49_152),
}
_FIELDS = ("num_layers", "model_dim", "num_heads", "num_kv_heads", "mlp_dim", "vocab_size")


@dataclasses.dataclass(frozen=True)
class DecodingSettings:
    """Settings of the decoding bench.

    Attributes:
      models: names of `SHAPES`, with random weights. prompt_length, new_tokens: of the one row, in
        tokens.
    """

    models: Sequence[str] = tuple(SHAPES)
    prompt_length: int = 128
    new_tokens: int = 64
    rounds: int = 7
    seed: int = 0


def measure(settings: DecodingSettings) -> BenchResult:
    """Returns the time of a prompt with its greedy continuation, in float32, on the same cores.

    Ours is `generate`; transformers is `generate` of its Llama with our weights, fused attention
    and its default cache. The time up to the first token is measured too. A row has the share of
    tokens that equal ours; a peer that is not installed or fails is listed with its reason.

    Raises:
      ValueError: an unknown model, or sizes below 1.
    """
    s = settings
    for name in s.models:
        if name not in SHAPES:
            raise ValueError(f"unknown model {name!r}{near_names(name, SHAPES)}")
    if min(s.prompt_length, s.new_tokens, s.rounds) < 1 or not s.models:
        raise ValueError("decoding needs a model, a token of a prompt, a new one and a round")
    rows, missing = [], {}
    for name in dict.fromkeys(s.models):
        rows += _rows(name, s, missing)
    skipped = [f"{name}: {why}" for name, why in missing.items()]
    used = dataclasses.asdict(s) | {
        "models": list(s.models),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "skipped": skipped,
        "peers": versions(),
    }
    whole = [row for row in rows if row["direction"] == "generation"]
    series = {
        name: [ratio_point(row["implementation"], row) for row in whole if row["model"] == name]
        for name in dict.fromkeys(s.models)
    }
    return BenchResult(
        "decoding",
        "Greedy decoding, relative to ours",
        f"A prompt of {s.prompt_length} tokens and {s.new_tokens} new ones, float32: medians of "
        f"{s.rounds} ratios taken in the same round, bars from first to third quartile.",
        used,
        tuple(rows),
        _table(rows, skipped),
        (Panel("time of prompt and continuation, relative to ours", series),),
    )


def _rows(model: str, s: DecodingSettings, missing: dict[str, str]) -> list[dict]:
    """Returns the rows of one model; peers that fail move to `missing`."""
    config, params = _random_model(model, s)
    prompt_T = np.random.default_rng(s.seed).integers(0, config.vocab_size, s.prompt_length)
    counts, rows = {"first token": 1, "generation": s.new_tokens}, []
    makers = {OURS: lambda: _ours(config, params, prompt_T)}
    if all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        makers[THEIRS] = lambda: _theirs(config, params, prompt_T)
    else:
        missing[THEIRS] = 'not installed; pip install -e ".[peers]"'
    runs, tokens = {}, {}
    for name, make in makers.items():
        try:
            run = make()
            tokens |= {(name, part): run(count) for part, count in counts.items()}
        except Exception as error:  # a peer: the row is missing
            if name == OURS:
                raise
            missing[name] = failure_text(error)
            continue
        runs |= {(name, part): lambda r=run, n=count: r(n) for part, count in counts.items()}
    seconds = interleaved(runs, rounds=s.rounds, seed=s.seed, warm_ups=1)
    for (name, part), seconds_R in seconds.items():
        rows.append(
            {
                "bench": "decoding",
                "implementation": name,
                "model": model,
                "parameters": sum(x.size for x in jax.tree.leaves(params)),
                "scheme": config.scheme_line,
                "length": s.prompt_length,
                "new_tokens": counts[part],
                "direction": part,
                "dtype": config.dtype,
                "rounds": s.rounds,
                **spread(seconds_R, seconds[OURS, part]),
                "tokens_per_second": counts[part] / float(np.median(seconds_R)),
                "equal_tokens": float((tokens[name, part] == tokens[OURS, part]).mean()),
            }
        )
    return rows


def _random_model(model: str, s: DecodingSettings) -> tuple[ModelConfig, dict]:
    sizes: dict[str, Any] = dict(zip(_FIELDS, SHAPES[model], strict=True))
    config = ModelConfig(
        scheme="rope",
        train_length=s.prompt_length + s.new_tokens,
        head_dim=HEAD_DIM,
        activation="swiglu",
        qk_norm=False,
        tied_head=True,
        embedding_scale=1.0,
        norm_epsilon=1e-5,
        dtype="float32",
        attention="auto",
        **sizes,
    )
    row = jnp.ones((1, 8), jnp.int32)
    return config, jax.jit(Decoder(config).init)(jax.random.key(s.seed), row, row, row)["params"]


def _ours(config: ModelConfig, params: dict, prompt_T: np.ndarray) -> Callable:
    """Returns a function of the number of new tokens that returns them."""

    def run(count: int) -> np.ndarray:
        return generate(
            params,
            config,
            [prompt_T],
            new_tokens=count,
            pad=0,
            sampling=Sampling(),
            key=jax.random.key(0),
        )[0]

    return run


def _theirs(config: ModelConfig, params: dict, prompt_T: np.ndarray) -> Callable:
    """Returns the same of transformers."""
    import torch

    from posenc_jax.bench.torch_reference import llama

    pytorch.match_jax_tf32()
    names = ("num_layers", "model_dim", "num_heads", "head_dim", "norm_epsilon")
    shape = {name: getattr(config, name) for name in names}
    length = config.train_length
    model = llama(params, shape, config.vocab_size, length, use_cache=True)
    model = model.to(pytorch.device()).eval()
    prompt_1T = torch.tensor(prompt_T[None], device=pytorch.device())

    def run(count: int) -> np.ndarray:
        with torch.inference_mode():
            out = model.generate(
                prompt_1T,
                attention_mask=torch.ones_like(prompt_1T),
                max_new_tokens=count,
                do_sample=False,
            )
        return out[0, len(prompt_T) :].cpu().numpy()

    return run


def _table(rows: list[dict], skipped: list[str]) -> str:
    lines = [
        [
            row["implementation"],
            row["model"],
            row["direction"],
            ms(row["min_ms"]),
            ms(row["median_ms"]),
            with_quartiles(row),
            f"{row['tokens_per_second']:.1f}",
            f"{100 * row['equal_tokens']:.0f}",
        ]
        for row in rows
    ]
    names = (
        "implementation",
        "model",
        "part",
        "min ms",
        "median ms",
        "x ours",
        "tokens/s",
        "equal tokens, %",
    )
    return "\n".join([aligned(names, lines), *(f"left out: {line}" for line in skipped)])
