"""Bench of a training step under each encoding, beside the same model in PyTorch and peer
decoders.
"""

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
from posenc_jax.evaluation.cpu_devices import use_all_cores
from posenc_jax.model.decoder import Decoder
from posenc_jax.training.config import RunConfig
from posenc_jax.training.config_sections import ModelSection, TrainSection
from posenc_jax.training.sharding import make_mesh
from posenc_jax.training.step import learning_rate_schedule, make_step, state_builder

BASELINE = ("ours", "nope")
SCHEMES = ("nope", "rope", "alibi", "rope+alibi")
HEAD_DIM = 64
CHECKED = 3  # updates over which the losses of the PyTorch reference are compared with ours
_NOT_INSTALLED = 'not installed; pip install -e ".[peers]"'


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """Settings of the step bench.

    Attributes:
      schemes: lines of the scheme grammar; peers run the schemes that they implement. train_length,
        batch: T and B.
      layers, model_dim: of every model, with heads of `HEAD_DIM`. dtype: of `DTYPES`; in bfloat16
        ours computes under `model.dtype` and PyTorch under `torch.autocast`, both with float32
        weights.
      compiled: also measure the PyTorch reference under `torch.compile`.
      devices: number of devices for another row of ours, with the batch split over them; 1: no such
        row.
        None: on CPU the largest number of cores that divides the batch, elsewhere 1.
    """

    schemes: Sequence[str] = SCHEMES
    train_length: int = 512
    batch: int = 4
    layers: int = 2
    model_dim: int = 256
    dtype: str = "float32"
    rounds: int = 9
    compiled: bool = True
    devices: int | None = None
    seed: int = 0


def measure(settings: StepSettings) -> BenchResult:
    """Returns time and peak memory of whole training steps: loss, gradients, clipping, AdamW.

    Ours is the step of training. The PyTorch reference (posenc_jax.bench.torch_reference), if
    PyTorch is installed, starts from the same weights and has the same batch; parity is the largest
    relative difference of the loss over the first updates. Peers with another architecture have no
    parity. Losses and norms stay on the device while the time is taken; memory is counted as in the
    attention bench. A peer that fails is listed with its reason. On CPU, call this before JAX has
    computed anything.

    Raises:
      ValueError: a scheme, length, batch, width or dtype that a decoder does not take.
    """
    s = settings
    if s.model_dim % HEAD_DIM:
        raise ValueError(f"model_dim must be a multiple of {HEAD_DIM}, a head, not {s.model_dim}")
    devices = _devices(s.devices, s.batch)
    schemes = tuple(dict.fromkeys((BASELINE[1], *s.schemes)))
    model = ModelSection(
        qk_norm=False,
        num_layers=s.layers,
        model_dim=s.model_dim,
        num_heads=s.model_dim // HEAD_DIM,
        head_dim=HEAD_DIM,
        dtype=s.dtype,
    )
    train = TrainSection(length=s.train_length, batch_size=s.batch, data_devices=1)
    ours = {
        scheme: _Ours(
            RunConfig(model=dataclasses.replace(model, scheme=scheme), train=train), s.seed
        )
        for scheme in schemes
    }
    makers = {("ours", scheme): lambda step=step: step for scheme, step in ours.items()}
    split = f"ours, {devices} devices"
    if devices > 1:
        over = dataclasses.replace(train, data_devices=devices)
        makers |= {
            (split, scheme): functools.partial(
                _Ours, dataclasses.replace(step.config, train=over), s.seed
            )
            for scheme, step in ours.items()
        }
    theirs, missing = _peers(ours, s.compiled)
    calls, losses, peaks = _first_steps(makers | theirs, missing)
    own_weights = {name for name in calls if name[0] in ("transformers, BLOOM", "x-transformers")}
    seconds = interleaved(calls, rounds=s.rounds, seed=s.seed)
    rows = []
    for name, seconds_R in seconds.items():
        same = seconds["ours", name[1]]
        # The optimizer of transformers has not our schedule: only the first loss agrees.
        checked = 1 if name[0].startswith("transformers") else CHECKED
        pairs = zip(losses[name][:checked], losses["ours", name[1]], strict=False)
        taken, source = peaks[name]
        rows.append(
            {
                "bench": "step",
                "implementation": name[0],
                "scheme": name[1],
                "length": s.train_length,
                "direction": "step",
                "batch": s.batch,
                "dtype": s.dtype,
                "rounds": s.rounds,
                **spread(seconds_R, seconds[BASELINE]),
                **_ratios("same", seconds_R, same),
                **_ratios("split", seconds_R, seconds.get((split, name[1]))),
                "peak_mb": None if taken is None else taken / 1e6,
                "peak_source": source,
                "difference": None
                if name in own_weights
                else max(abs(a / b - 1) for a, b in pairs),
            }
        )
    used = {
        "schemes": list(schemes),
        "train_length": s.train_length,
        "batch": s.batch,
        "rounds": s.rounds,
        "compiled": s.compiled,
        "devices": devices,
        "seed": s.seed,
        "num_layers": s.layers,
        "model_dim": s.model_dim,
        "num_heads": model.num_heads,
        "head_dim": HEAD_DIM,
        "dtype": s.dtype,
        "vocab_size": VOCABULARY,
        "parameters": ours[BASELINE[1]].parameters,
        "skipped": [f"{', '.join(name)}: {why}" for name, why in missing.items()],
        "peers": versions(),
    }
    return BenchResult(
        "step",
        "A training step, relative to ours under nope",
        f"{s.layers} layers, model dim {s.model_dim}, {model.num_heads} heads of {HEAD_DIM}, "
        f"{s.train_length} tokens, batch {s.batch}, {s.dtype}: medians of {s.rounds} ratios taken "
        "in the same round, bars from first to third quartile; peak memory by "
        f"{', '.join(sorted({row['peak_source'] for row in rows}))}.",
        used,
        tuple(rows),
        _table(rows, used["skipped"], split if devices > 1 else None),
        (Panel("time of a step, relative to ours under nope", _series(rows)),),
    )


def _devices(asked: int | None, batch: int) -> int:
    """Returns the number of devices for a batch; None: on CPU the largest that divides it,
    elsewhere 1.

    Raises:
      ValueError: a number that does not divide the batch, or more devices than there are.
    """
    if asked != 1:
        use_all_cores()
    available = jax.device_count()
    if asked is None:
        on_cpu = jax.default_backend() == "cpu"
        return max(n for n in range(1, available + 1) if batch % n == 0) if on_cpu else 1
    if not 1 <= asked <= available or batch % asked:
        raise ValueError(
            f"{asked} devices: there are {available}, and they must divide a batch of {batch}"
        )
    return asked


def _ratios(name: str, seconds_R: np.ndarray, other_R: np.ndarray | None) -> dict:
    if other_R is None:
        return {}
    ratios = spread(seconds_R, other_R)
    return {f"{name}_{k}": v for k, v in ratios.items() if k.startswith("ratio")}


def _first_steps(makers: dict, missing: dict) -> tuple[dict, dict, dict]:
    """Returns (calls, losses, peak memory) by (name, scheme); peers that fail move to `missing`."""
    calls, losses, peaks = {}, {}, {}
    for name, make in makers.items():
        print(f"first steps: {', '.join(name)}", file=sys.stderr, flush=True)
        try:
            call = make()
            first = [float(call()[0]) for _ in range(CHECKED)]
            peaks[name] = peak(call)
        except Exception as error:  # a peer: the row is missing
            if name[0].startswith("ours"):
                raise
            missing[name] = failure_text(error)
            continue
        finally:
            pytorch.release_memory()
        calls[name], losses[name] = call, first
    return calls, losses, peaks


class _Ours:
    """Our training step: a call trains once and returns (loss, gradient norm), on the device."""

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
        )  # copies: the step donates the state
        self.parameters = sum(x.size for x in jax.tree.leaves(self.params))

    def __call__(self) -> tuple[jax.Array, jax.Array]:
        self._state, metrics = self._step(self._state, self.batch)
        return metrics["loss"], metrics["grad_norm"]


def _peers(ours: dict[str, _Ours], compiled: bool) -> tuple[dict, dict]:
    """Returns makers of the peers' training steps by (name, scheme), and why others are missing."""
    if not pytorch.installed():
        return {}, {("torch",): _NOT_INSTALLED}
    from posenc_jax.bench import torch_reference

    makers, missing = {}, {}
    for scheme in (s for s in ours if s in torch_reference.SCHEMES):
        step = ours[scheme]
        config = step.config
        schedule = learning_rate_schedule(config, config.optimizer.learning_rate)
        rates = jax.vmap(schedule)(np.arange(config.train.steps)).tolist()
        for name, by_compiler in {"PyTorch twin": False, "PyTorch twin, compiled": True}.items():
            if by_compiler and not compiled:
                continue
            makers[name, scheme] = functools.partial(
                torch_reference.TorchReference,
                step.params,
                scheme,
                step.shape,
                step.batch["tokens_BT"][0],
                step.batch["targets_BT"][0],
                dataclasses.asdict(config.optimizer),
                rates,
                config.model.dtype,
                by_compiler,
            )
    if any(importlib.util.find_spec(name) is None for name in ("transformers", "x_transformers")):
        missing["transformers, x-transformers",] = _NOT_INSTALLED
        return makers, missing
    rope = ours.get("rope") or ours[BASELINE[1]]  # the parameters are the same under all of SCHEMES
    more = torch_reference.peer_steps(
        rope.params,
        rope.shape,
        VOCABULARY,
        rope.batch["tokens_BT"][0],
        rope.batch["targets_BT"][0],
        rope.config.model.dtype,
    )
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
        lines.append(
            [
                row["implementation"],
                row["scheme"],
                "-" if row["difference"] is None else f"{row['difference']:.1e}",
                ms(row["min_ms"]),
                ms(row["median_ms"]),
                with_quartiles(row),
                *ratios,
                "-" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}",
                row["peak_source"],
            ]
        )
    names = (
        "implementation",
        "scheme",
        "difference",
        "min ms",
        "median ms",
        "x ours, nope",
        *others.values(),
        "peak MB",
        "peak by",
    )
    return "\n".join([aligned(names, lines), *(f"left out: {line}" for line in skipped)])


def _series(rows: list[dict]) -> dict[str, list]:
    labelled = [(f"{row['implementation']}: {row['scheme']}", row) for row in rows]
    labelled.sort(key=lambda pair: pair[1]["ratio"])
    return {"step": [ratio_point(name, row) for name, row in labelled]}
