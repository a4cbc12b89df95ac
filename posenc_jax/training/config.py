"""Configuration of a run: frozen sections, checked when they are made, stored as JSON."""

import dataclasses
import functools
import json
import math
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posenc_jax.data.random_positions import FURTHEST
from posenc_jax.encodings import PlacedScheme
from posenc_jax.encodings.registry import plugin_modules
from posenc_jax.encodings.scheme_presets import line_of
from posenc_jax.model.config import ACTIVATIONS, Architecture, ModelConfig
from posenc_jax.model.layer_stack import period
from posenc_jax.results.files import read_json
from posenc_jax.results.near_names import near_names
from posenc_jax.training.config_sections import (
    DataSection,
    EvaluationSection,
    ModelSection,
    OptimizerSection,
    TrainSection,
)
from posenc_jax.training.setting_bounds import check_settings


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All settings of a run."""

    model: ModelSection = dataclasses.field(default_factory=ModelSection)
    data: DataSection = dataclasses.field(default_factory=DataSection)
    train: TrainSection = dataclasses.field(default_factory=TrainSection)
    optimizer: OptimizerSection = dataclasses.field(default_factory=OptimizerSection)
    evaluation: EvaluationSection = dataclasses.field(default_factory=EvaluationSection)

    def __post_init__(self):
        _check(self)

    @property
    def arm(self) -> str:
        """The arm's name: `train.arm`, or the scheme."""
        return self.train.arm or self.model.scheme

    @functools.cached_property
    def architecture(self) -> Architecture:
        """The decoder without its vocabulary; settings that are 0 take their usual values."""
        m = dataclasses.asdict(self.model)
        m.pop("imports")
        del m["vocab_size"]
        m["num_kv_heads"] = m["num_kv_heads"] or m["num_heads"]
        if not m["head_dim"]:
            m["head_dim"], rest = divmod(m["model_dim"], m["num_heads"])
            if rest:
                raise ValueError(
                    f"model.model_dim={m['model_dim']} does not divide over "
                    f"model.num_heads={m['num_heads']}; set model.head_dim or change one of them"
                )
        if not m["mlp_dim"]:
            wide = (
                8 * m["model_dim"] / 3 if ACTIVATIONS.get(m["activation"]) else 4 * m["model_dim"]
            )
            m["mlp_dim"] = 16 * math.ceil(wide / 16)
        return Architecture(
            train_length=self.placed_length, consecutive=not self.data.random_positions, **m
        )

    def model_config(self, vocab_size: int) -> ModelConfig:
        """Returns the decoder's configuration; ValueError for more ids than `model.vocab_size`."""
        rows = self.model.vocab_size or vocab_size
        if rows < vocab_size:
            raise ValueError(
                f"config.model.vocab_size={rows} is below the {vocab_size} ids of the tokenizer"
            )
        return ModelConfig(vocab_size=rows, **dataclasses.asdict(self.architecture))

    @property
    def placed(self) -> PlacedScheme:
        """The scheme, placed on the layers and heads of this run's decoder."""
        return self.architecture.placed

    @property
    def placed_length(self) -> int:
        """L of the scheme and of every measure: `train.length`, or that of the original run."""
        return self.train.original_length or self.train.length

    def to_json(self) -> str:
        """Returns the configuration as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def from_sections(sections: Mapping[str, Mapping]) -> RunConfig:
    """Returns a RunConfig from nested mappings; ValueError names an unknown key or a wrong type.

    A scheme's name (`encodings.scheme_presets`) is stored as the line that it stands for, and names
    the arm if nothing else does. `model.imports` becomes the modules that registered the encodings
    of the scheme; those that it names must have been imported, since no data of a run may start
    code.
    """
    built = built_sections(RunConfig, sections)
    model, train = built["model"], built["train"]
    if missing := [name for name in model.imports if name not in sys.modules]:
        raise ValueError(
            f"the encodings of {model.scheme!r} are registered by {', '.join(missing)}: add "
            f"--import={','.join(missing)}"
        )
    if (line := line_of(model.scheme)) != model.scheme:
        built["train"] = dataclasses.replace(train, arm=train.arm or model.scheme.strip())
    modules = tuple(filter(None, plugin_modules(line)))
    built["model"] = dataclasses.replace(model, scheme=line, imports=modules)
    return RunConfig(**built)


def built_sections(kind: type, sections: Mapping[str, Mapping]) -> dict[str, Any]:
    """Returns the sections of a configuration of type `kind`; ValueError as `from_sections`."""
    _known("config", sections, kind)
    built, kinds = {}, typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        values = sections.get(field.name, {})
        if not isinstance(values, Mapping):
            raise ValueError(f"config.{field.name} must be a section, not {values!r}")
        section = kinds[field.name]
        _known(f"config.{field.name}", values, section)
        hints = typing.get_type_hints(section)
        built[field.name] = section(
            **{k: _typed(f"config.{field.name}.{k}", v, hints[k]) for k, v in values.items()}
        )
    return built


def model_section(config: ModelConfig) -> ModelSection:
    """Returns the section of a run whose decoder is `config`."""
    names = {field.name for field in dataclasses.fields(ModelSection)} - {"imports"}
    return ModelSection(
        **{name: getattr(config, name) for name in names} | {"scheme": config.scheme_line}
    )


def check_encodings(config: RunConfig) -> None:
    """Raises ValueError for an encoding that no other command could load."""
    if "" in plugin_modules(config.model.scheme):
        raise ValueError(
            f"an encoding of {config.model.scheme!r} is registered by a file that other commands "
            "cannot import; register it in a module of its own, and import that there or with "
            "--import=MODULE"
        )


def read(path: Path) -> RunConfig:
    """Returns the configuration stored at `path`; ValueError, one line, for a damaged file."""
    return from_sections(read_json(path))


# Settings that change a run's numbers by rounding at most: a resume may change them.
CHANGEABLE = {
    "model": ("imports",),
    "data": ("data_dir", "download", "threads"),
    "train": (
        "data_devices",
        "fsdp_devices",
        "sequence_devices",
        "model_devices",
        "save_every",
        "keep",
        "wait_for_saves",
        "log_every",
        "stall_seconds",
        "wandb_project",
        "scan_layers",
        "remat",
        "loss_chunks",
    ),
    "evaluation": tuple(f.name for f in dataclasses.fields(EvaluationSection)),
}

# Settings that may differ between the processes of one run.
PER_HOST = {"data": ("data_dir", "download", "threads")}


def deciding(config: RunConfig) -> dict[str, dict]:
    """Returns, by section, the settings that identify a run: all but those of `CHANGEABLE`."""
    return {
        section: {
            key: value for key, value in values.items() if key not in CHANGEABLE.get(section, ())
        }
        for section, values in dataclasses.asdict(config).items()
    }


def differences(ours: RunConfig, theirs: RunConfig) -> list[str]:
    """Returns a line for each identifying setting in which two configurations differ."""
    a, b = deciding(ours), deciding(theirs)
    return [
        f"{section}.{key}: {a[section][key]!r} here, {b[section][key]!r} there"
        for section in a
        for key in a[section]
        if a[section][key] != b[section][key]
    ]


def _known(where: str, given: Mapping, section: type) -> None:
    names = [f.name for f in dataclasses.fields(section)]
    for key in given:
        if key not in names:
            raise ValueError(f"{where}.{key} is not a setting{near_names(key, names)}")


def _typed(where: str, value, hint):
    if isinstance(hint, types.GenericAlias):  # tuple[int, ...], tuple[str, ...]
        item = typing.get_args(hint)[0]
        if not isinstance(value, tuple | list) or not all(type(v) is item for v in value):
            wanted = "whole numbers" if item is int else "a list of names"
            raise ValueError(f"{where} must be {wanted}, not {value!r}")
        return tuple(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{where} must be {hint.__name__}, not {value!r}")
    return value


def _check(c: RunConfig) -> None:
    for section in dataclasses.fields(c):
        check_settings(section.name, getattr(c, section.name))
    if c.train.batch_size % c.train.accumulation:
        raise ValueError(
            f"config.train.batch_size={c.train.batch_size} does not divide into "
            f"config.train.accumulation={c.train.accumulation} slices"
        )
    _check_data(c)
    _check_lengths(c)
    chunked = c.train.loss_chunks > 1 or c.train.model_devices > 1
    if chunked and "head" in c.model.biases:
        raise ValueError(
            "config.model.biases with head needs whole logits: set config.train.loss_chunks and "
            "config.train.model_devices to 1"
        )
    if c.train.dev_every % c.train.save_every:
        raise ValueError(
            f"config.train.dev_every={c.train.dev_every} must be 0 or a multiple of "
            f"config.train.save_every={c.train.save_every}: a loss is that of a checkpoint"
        )
    layers = c.placed.layers
    if c.train.scan_layers and 2 * period(layers) > len(layers):
        raise ValueError(
            f"config.train.scan_layers: the {len(layers)} layers of config.model.num_layers hold "
            f"no two rounds of the {period(layers)} different ones of config.model.scheme; set it "
            "to False"
        )


def _check_data(c: RunConfig) -> None:
    if c.data.min_pairs > c.data.max_pairs:
        raise ValueError(
            f"config.data.min_pairs={c.data.min_pairs} exceeds "
            f"config.data.max_pairs={c.data.max_pairs}"
        )
    parts = c.data.length_warmup
    if not parts or parts[-1] != 1 or list(parts) != sorted(parts, reverse=True):
        raise ValueError(
            f"config.data.length_warmup={parts} must fall to 1: the last documents are as long as "
            "config.train.length"
        )
    if not c.evaluation.multiples:
        raise ValueError("config.evaluation.multiples must hold at least one length, in units of L")
    if c.data.corpus != "text_folder" and c.data.folder:
        raise ValueError(
            f"config.data.folder={c.data.folder} is read by config.data.corpus=text_folder only, "
            f"not by {c.data.corpus}"
        )
    if c.data.corpus == "text_folder" and not c.data.folder:
        raise ValueError("config.data.folder must name a folder of text for corpus text_folder")


def _check_lengths(c: RunConfig) -> None:
    t = c.train
    if not 0 <= t.original_length <= t.length:
        raise ValueError(
            f"config.train.original_length={t.original_length} must lie in [0, "
            f"config.train.length={t.length}]"
        )
    if t.original_length and not t.init_from:
        raise ValueError(
            f"config.train.original_length={t.original_length} is that of the run that "
            "config.train.init_from names; name one, or leave it 0"
        )
    longest = c.placed.longest()
    if longest is not None and longest < t.length:
        raise ValueError(
            f"config.train.length={t.length} exceeds the {longest} positions of {c.model.scheme!r}"
        )
    _check_random_positions(c, longest)
    c.architecture.attention_paths(t.length)


def _check_random_positions(c: RunConfig, longest: int | None) -> None:
    k = c.data.random_positions
    if not k:
        return
    if k * c.train.length > FURTHEST:
        raise ValueError(
            f"config.data.random_positions={k} at config.train.length={c.train.length} draws from "
            f"{k * c.train.length:,} positions, and int32 holds {FURTHEST:,}; make it smaller"
        )
    if longest is not None and longest < k * c.train.length:
        raise ValueError(
            f"config.data.random_positions={k} draws from {k * c.train.length} positions, and "
            f"{c.model.scheme!r} has {longest}; make it smaller"
        )
    parts = [p for layer in c.placed.layers for g in layer.groups for p in g.heads.parts()]
    if any(part.columns(c.placed.whole) for part in parts):
        raise ValueError(
            f"config.data.random_positions={k}: {c.model.scheme!r} takes positions as cells of a "
            "grid; set it to 0"
        )
