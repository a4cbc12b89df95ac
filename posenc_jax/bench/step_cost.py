"""What a training step costs under each encoding, beside the same model in plain PyTorch and other people's."""

import dataclasses
import functools
import importlib.util
import sys
from collections.abc import Sequence

import jax
import numpy as np

from posenc_jax.bench import pytorch
from posenc_jax.bench.encoding_cost import VOCABULARY, random_batch
from posenc_jax.bench.peak_memory import peak, planned_bytes
from posenc_jax.bench.peers import versions
from posenc_jax.bench.result import BenchResult, Panel, aligned, failure, ms, with_quartiles
from posenc_jax.bench.timing import interleaved, spread
from posenc_jax.evaluation.cpu_devices import use_all_cores
from posenc_jax.model.decoder import Decoder
from posenc_jax.training.config import RunConfig
from posenc_jax.training.config_sections import ModelSection, TrainSection
from posenc_jax.training.sharding import make_mesh
from posenc_jax.training.step import learning_rate_schedule, make_step, state_builder

BASELINE = ("ours", "nope")
SCHEMES = ("nope", "rope", "alibi", "rope+alibi")
HEAD_DIM = 64
CHECKED = 3  # updates over which a twin's losses are compared with ours
_NOT_INSTALLED = 'not installed; pip install -e ".[peers]"'


def measure(
    *,
    schemes: Sequence[str] = SCHEMES,
    train_length: int = 512,
    batch: int = 4,
    layers: int = 2,
    model_dim: int = 256,
    dtype: str = "float32",
    rounds: int = 9,
    compiled: bool = True,
    devices: int | None = None,
    seed: int = 0,
) -> BenchResult:
    """Returns time and peak memory of whole training steps: loss, gradients, clipping, AdamW.

    Ours is the step that training runs. Where PyTorch is installed, its twin (posenc_jax.bench.torch_reference) starts from
    the same weights and reads the same batch; parity is the largest relative difference of the loss over
    the first updates. Decoders of an architecture of their own have no parity. Losses and norms stay on the
    device while the clock runs; memory is counted as in the attention bench. A peer that cannot be compiled
    or run is listed with its reason.

    Args:
      schemes: in the scheme language; peers join for those they know. train_length, batch: T and B.
      layers, model_dim: of every model, with heads of `HEAD_DIM`. dtype: of `DTYPES`; in bfloat16 ours
        computes as `model.dtype` says and PyTorch under `torch.autocast`, both with float32 weights.
      compiled: also the twin through `torch.compile`.
      devices: over which another row of ours splits the batch; 1: no such row. None: on CPU a device for
        each core as far as the batch divides, elsewhere 1. On CPU to be called before JAX has computed.

    Raises:
      ValueError: a scheme, length, batch, width or dtype that a decoder does not take.
    """
    if model_dim % HEAD_DIM:
        raise ValueError(f"model_dim must be a multiple of {HEAD_DIM}, a head, not {model_dim}")
    devices = _devices(devices, batch)
    schemes = tuple(dict.fromkeys((BASELINE[1], *schemes)))
    model = ModelSection(
        qk_norm=False, num_layers=layers, model_dim=model_dim, num_heads=model_dim // HEAD_DIM,
        head_dim=HEAD_DIM, dtype=dtype,
    )  # fmt: skip
    train = TrainSection(length=train_length, batch_size=batch, data_devices=1)
    ours = {
        scheme: _Ours(RunConfig(model=dataclasses.replace(model, scheme=scheme), train=train), seed)
        for scheme in schemes
    }
    makers = {("ours", scheme): lambda it=subject: it for scheme, subject in ours.items()}
    split = f"ours, {devices} devices"
    if devices > 1:
        over = dataclasses.replace(train, data_devices=devices)
        makers |= {
            (split, scheme): functools.partial(_Ours, dataclasses.replace(subject.config, train=over), seed)
            for scheme, subject in ours.items()
        }  # fmt: skip
    theirs, missing = _peers(ours, compiled)
    runs, losses, looks = _first_steps(makers | theirs, missing)
    own_weights = {name for name in runs if name[0] in ("transformers, BLOOM", "x-transformers")}
    seconds = interleaved(runs, rounds=rounds, seed=seed)
    rows = []
    for name, seconds_R in seconds.items():
        same = seconds["ours", name[1]]
        # An optimizer of theirs without our schedule agrees on the first loss only.
        checked = 1 if name[0].startswith("transformers") else CHECKED
        pairs = zip(losses[name][:checked], losses["ours", name[1]], strict=False)
        taken, source = looks[name]
        rows.append({
            "bench": "step", "implementation": name[0], "scheme": name[1], "length": train_length,
            "direction": "step", "batch": batch, "dtype": dtype, "rounds": rounds,
            **spread(seconds_R, seconds[BASELINE]),
            **_ratios("same", seconds_R, same),
            **_ratios("split", seconds_R, seconds.get((split, name[1]))),
            "peak_mb": None if taken is None else taken / 1e6, "peak_source": source,
            "difference": None if name in own_weights else max(abs(a / b - 1) for a, b in pairs),
        })  # fmt: skip
    settings = {
        "schemes": list(schemes), "train_length": train_length, "batch": batch, "rounds": rounds,
        "compiled": compiled, "devices": devices, "seed": seed, "num_layers": layers, "model_dim": model_dim,
        "num_heads": model.num_heads, "head_dim": HEAD_DIM, "dtype": dtype, "vocab_size": VOCABULARY,
        "parameters": ours[BASELINE[1]].parameters,
        "skipped": [f"{', '.join(name)}: {why}" for name, why in missing.items()], "peers": versions(),
    }  # fmt: skip
    return BenchResult(
        "step",
        "A training step, relative to ours under nope",
        f"{layers} layers, model dim {model_dim}, {model.num_heads} heads of {HEAD_DIM}, {train_length} tokens, "
        f"batch {batch}, {dtype}: medians of {rounds} ratios taken in the same round, bars from first to third "
        f"quartile; peak memory by {', '.join(sorted({row['peak_source'] for row in rows}))}.",
        settings,
        tuple(rows),
        _table(rows, settings["skipped"], split if devices > 1 else None),
        (Panel("time of a step, relative to ours under nope", _series(rows)),),
    )


def _devices(asked: int | None, batch: int) -> int:
    """Returns over how many devices a batch is split: those asked for, or the most that divide it on CPU.

    Raises:
      ValueError: a number that does not divide the batch, or more devices than there are.
    """
    if asked != 1:
        use_all_cores()
    there = jax.device_count()
    if asked is None:
        on_cpu = jax.default_backend() == "cpu"
        return max(n for n in range(1, there + 1) if batch % n == 0) if on_cpu else 1
    if not 1 <= asked <= there or batch % asked:
        raise ValueError(
            f"{asked} devices: there are {there}, and they must divide a batch of {batch}"
        )
    return asked


def _ratios(name: str, seconds_R: np.ndarray, other_R: np.ndarray | None) -> dict:
    if other_R is None:
        return {}
    said = spread(seconds_R, other_R)
    return {f"{name}_{k}": v for k, v in said.items() if k.startswith("ratio")}


def _first_steps(makers: dict, missing: dict) -> tuple[dict, dict, dict]:
    """Returns (runs, losses, looks) by (name, scheme); a peer that fails goes to `missing`."""
    runs, losses, looks = {}, {}, {}
    for name, make in makers.items():
        print(f"first steps: {', '.join(name)}", file=sys.stderr, flush=True)
        try:
            run = make()
            first = [float(run()[0]) for _ in range(CHECKED)]
            looks[name] = peak(run)
        except Exception as error:  # their compiler, their version: a missing row, not our end
            if name[0].startswith("ours"):
                raise
            missing[name] = failure(error)
            continue
        finally:
            pytorch.release_memory()
        runs[name], losses[name] = run, first
    return runs, losses, looks


class _Ours:
    """Our training step: calling it trains once and returns (loss, gradient norm), on the device."""

    def __init__(self, config: RunConfig, seed: int):
        self.config = config
        model = Decoder(config.model_config(VOCABULARY))
        names = ("num_layers", "model_dim", "num_heads", "head_dim", "norm_epsilon")
        self.shape = {name: getattr(model.config, name) for name in names}
        mesh = make_mesh(config.train.data_devices, 1)
        with jax.set_mesh(mesh):
            build, _ = state_builder(self.config, model, mesh)
            self._state = build(jax.random.key(seed))
            self.batch = random_batch(config.train.length, config.train.batch_size, seed, mesh)
            self._step = make_step(self.config, model).lower(self._state, self.batch).compile()
        self.planned_bytes = planned_bytes(self._step)
        self.params = jax.tree.map(
            np.array, self._state["params"]
        )  # copies: the step takes the state
        self.parameters = sum(x.size for x in jax.tree.leaves(self.params))

    def __call__(self) -> tuple[jax.Array, jax.Array]:
        self._state, metrics = self._step(self._state, self.batch)
        return metrics["loss"], metrics["grad_norm"]


def _peers(ours: dict[str, _Ours], compiled: bool) -> tuple[dict, dict]:
    """Returns (makers, missing): what makes training steps, by (name, scheme), and why others are not there."""
    if not pytorch.installed():
        return {}, {("torch",): _NOT_INSTALLED}
    from posenc_jax.bench import torch_reference

    makers, missing = {}, {}
    for scheme in (s for s in ours if s in torch_reference.SCHEMES):
        subject = ours[scheme]
        config = subject.config
        schedule = learning_rate_schedule(config, config.optimizer.learning_rate)
        rates = jax.vmap(schedule)(np.arange(config.train.steps)).tolist()
        for name, how in {"PyTorch twin": False, "PyTorch twin, compiled": True}.items():
            if how and not compiled:
                continue
            makers[name, scheme] = functools.partial(
                torch_reference.TorchReference, subject.params, scheme, subject.shape,
                subject.batch["tokens_BT"][0], subject.batch["targets_BT"][0],
                dataclasses.asdict(config.optimizer), rates, config.model.dtype, how,
            )  # fmt: skip
    if any(importlib.util.find_spec(name) is None for name in ("transformers", "x_transformers")):
        missing["transformers, x-transformers",] = _NOT_INSTALLED
        return makers, missing
    rope = ours.get("rope") or ours[BASELINE[1]]  # the parameters are the same under all of SCHEMES
    more = torch_reference.peer_steps(
        rope.params, rope.shape, VOCABULARY, rope.batch["tokens_BT"][0],
        rope.batch["targets_BT"][0], rope.config.model.dtype,
    )  # fmt: skip
    return makers | {name: make for name, make in more.items() if name[1] in ours}, missing


def _table(rows: list[dict], skipped: list[str], split: str | None) -> str:
    lines = []
    others = {"same": "x ours, same scheme"} | ({"split": f"x {split}"} if split else {})
    for row in sorted(rows, key=lambda row: row["ratio"]):
        ratios = [
            with_quartiles(
                {k.removeprefix(f"{to}_"): v for k, v in row.items() if k.startswith(f"{to}_")}
            )
            for to in others
        ]
        lines.append([
            row["implementation"], row["scheme"],
            "-" if row["difference"] is None else f"{row['difference']:.1e}",
            ms(row["min_ms"]), ms(row["median_ms"]), with_quartiles(row), *ratios,
            "-" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}", row["peak_source"],
        ])  # fmt: skip
    names = ("implementation", "scheme", "difference", "min ms", "median ms", "x ours, nope", *others.values(), "peak MB", "peak by")  # fmt: skip
    return "\n".join([aligned(names, lines), *(f"left out: {line}" for line in skipped)])


def _series(rows: list[dict]) -> dict[str, list]:
    labelled = [(f"{row['implementation']}: {row['scheme']}", row) for row in rows]
    labelled.sort(key=lambda pair: pair[1]["ratio"])
    return {
        "step": [(name, row["ratio_q1"], row["ratio"], row["ratio_q3"]) for name, row in labelled]
    }
