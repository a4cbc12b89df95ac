"""Hugging Face folders (config.json and safetensors) as our decoder's parameters, and back.

`load` reads a folder without running anything in it, a tensor at a time. `save` writes a folder
that transformers loads. Families: `posenc_jax.interop.families`.
"""

import dataclasses
import functools
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.data.imported_tokenizer import ImportedTokenizer
from posenc_jax.encodings import inverse_frequencies
from posenc_jax.interop.checkpoint_folder import CONFIG, WEIGHTS, read_settings, read_tensors
from posenc_jax.interop.families import FAMILIES
from posenc_jax.interop.family import Family, canonical, config_of, layers_of
from posenc_jax.interop.json_settings import JsonSettings
from posenc_jax.interop.tensor_files import ReadableTensor, StoredTensor, lossless_dtype, write_file
from posenc_jax.interop.weight_layouts import PLUS_TYPE, Rule, expected_shapes
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder
from posenc_jax.results.files import write_json
from posenc_jax.results.near_names import near_names

# A configuration has no ids of special tokens, and those that a family assumes may lie past V.
_NO_SPECIAL_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))


class Loaded(NamedTuple):
    """A checkpoint: `Decoder(config).apply({"params": params}, tokens_BT, pos_BT, seg_BT)`.

    params: float32 NumPy arrays. tokenizer: None where the folder has none.
    """

    config: ModelConfig
    params: dict
    tokenizer: ImportedTokenizer | None


def load(folder: Path | str, longest: int = 0) -> Loaded:
    """Returns a Hugging Face checkpoint.

    Args:
      folder: with config.json, model.safetensors or an index of several, and maybe tokenizer.json.
      longest: the longest sequence that will be read, in tokens, for RoPE scalings that depend on
        it (dynamic, longrope); 0: no longer than the original length.

    Raises:
      ValueError: in one line, anything that is not understood, damaged or missing.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    stored = read_tensors(folder)
    family, config = read_config(settings, str(folder / CONFIG), stored, longest)
    params = read_parameters(family, config, stored)
    return Loaded(config, params, _tokenizer(folder))


def read_config(
    settings: dict, where: str, stored: Mapping[str, ReadableTensor], longest: int = 0
) -> tuple[Family, ModelConfig]:
    """Returns the family and the configuration that a config.json describes.

    Args:
      where: its name in messages. stored: the tensors; the type of the embedding table counts.
    """
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(
            f"{where}: model_type {kind!r:.60} is not known{near_names(str(kind), FAMILIES)}"
        )
    family, s = FAMILIES[kind], JsonSettings(settings, where)
    try:
        config = config_of(family.read(s, longest))
        s.finish()
        config.placed.check()
    except ValueError as error:
        raise ValueError(f"{where}: {error}".replace(f"{where}: {where}", where)) from None
    return family, config


@functools.cache
def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter of a decoder by its path; nothing is computed."""
    row = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    tree = jax.eval_shape(Decoder(config).init, jax.random.key(0), row, row, row)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(key.key) for key in path): leaf.shape for path, leaf in leaves}


def rules_of(family: Family, config: ModelConfig) -> Iterator[Rule]:
    """Yields the family's rules with the layers written out, for the parameters that are there.

    Raises:
      ValueError: a parameter that no rule names.
    """
    there, covered = parameter_shapes(config), set()
    for rule in family.rules:
        layered = "{i}" in rule.theirs[0]
        for i in range(config.num_layers if layered else 1):
            ours = tuple(f"layer_{i}/{name}" if layered else name for name in rule.ours)
            if set(ours) <= set(there):
                covered |= set(ours)
                theirs = tuple(name.replace("{i}", str(i)) for name in rule.theirs)
                yield rule._replace(theirs=_each_expert(theirs, config), ours=ours)
    if missing := sorted(set(there) - covered):
        raise ValueError(f"{family.model_type} has no tensor for {missing[0]}")


def _each_expert(theirs: tuple[str, ...], config: ModelConfig) -> tuple[str, ...]:
    if "{e}" not in theirs[0]:
        return theirs
    return tuple(theirs[0].replace("{e}", str(e)) for e in range(config.experts))


def read_parameters(
    family: Family, config: ModelConfig, stored: Mapping[str, ReadableTensor]
) -> dict:
    """Returns the parameters as nested dicts, reading one rule's tensors at a time.

    Raises:
      ValueError: a tensor that is missing, left over, or of another shape or type. Shapes are
        compared before anything is read.
    """
    if not any(name.startswith(family.base) for name in stored):
        stored = {_with_base(name, family.base): one for name, one in stored.items()}
    shapes, plan, used = parameter_shapes(config), [], set()
    for rule in rules_of(family, config):
        found = [_present(name, stored) for name in rule.theirs]
        ours = [shapes[name] for name in rule.ours]
        for name, shape in zip(found, expected_shapes(rule, ours), strict=True):
            if rule.layout is PLUS_TYPE and shape[0] == 1:  # any number of token types
                shape = (max(stored[name].shape[0], 1), *shape[1:])
            if stored[name].shape != shape:
                raise ValueError(
                    f"{stored[name].path.name}: tensor {name!r} has the shape "
                    f"{stored[name].shape}; config.json asks for {shape}"
                )
        plan.append((rule, found, ours))
        used |= set(found)
    _check_left_over(family, config, stored, used)
    params: dict = {}
    for rule, found, ours in plan:
        arrays = rule.layout.theirs_to_ours([stored[name].read() for name in found], ours)
        for path, array in zip(rule.ours, arrays, strict=True):
            *parents, leaf = path.split("/")
            place = params
            for parent in parents:
                place = place.setdefault(parent, {})
            place[leaf] = np.ascontiguousarray(array)
    return params


def _with_base(name: str, base: str) -> str:
    return name if name.startswith(("lm_head.", "embed_out.", "cls.")) else base + name


def _present(alternatives: str, stored: Mapping) -> str:
    for name in alternatives.split("|"):
        if name in stored:
            return name
    raise ValueError(f"there is no tensor {alternatives.split('|')[0]!r} among {len(stored)}")


def _check_left_over(family: Family, config: ModelConfig, stored: Mapping, used: set[str]) -> None:
    """Raises ValueError for a tensor that no rule used; a tied head must equal the embedding."""
    for name in sorted(set(stored) - used):
        if name.endswith("embed_positions.weight"):
            _check_sinusoids(stored[name], config)
        if any(re.fullmatch(f"({re.escape(family.base)})?{one}", name) for one in family.unused):
            continue
        if config.tied_head and name in ("lm_head.weight", "embed_out.weight"):
            table = _present(family.rules[0].theirs[0], stored)
            if np.array_equal(stored[name].read(), stored[table].read()):
                continue
            raise ValueError(
                f"{stored[name].path.name}: config.json ties {name!r} to {table!r}, and they differ"
            )
        raise ValueError(
            f"{stored[name].path.name}: tensor {name[:80]!r} has no place in a {family.model_type}"
        )


def _check_sinusoids(table: StoredTensor, config: ModelConfig) -> None:
    """Raises ValueError for a table of rotation angles (RoFormer's) that is not the usual one."""
    angle_Lh = np.arange(table.shape[0])[:, None] * inverse_frequencies(config.head_dim, 10_000.0)
    want_LH = np.concatenate([np.sin(angle_Lh), np.cos(angle_Lh)], 1)
    if table.shape != want_LH.shape or np.abs(table.read() - want_LH).max() > 1e-3:
        raise ValueError(
            f"{table.path.name}: the table of positions does not hold the sinusoids of base 10000"
        )


def _tokenizer(folder: Path):
    if importlib.util.find_spec("posenc_jax.interop.tokenizer_json") is None:
        return None
    from posenc_jax.interop import tokenizer_json

    return tokenizer_json.load(folder)


def export_settings(config: ModelConfig) -> tuple[Family, dict]:
    """Returns the family that has this configuration, and its config.json.

    Raises:
      ValueError: transformers has no such model; names what the nearest family lacks.
    """
    layers_of(config)
    wanted, lacking = canonical(config), {}
    for name, family in FAMILIES.items():
        try:
            settings = {"model_type": name, "architectures": [family.model_class]} | family.write(
                config
            )
            _, got = read_config(settings, CONFIG, {})
            got = canonical(got)
            if got == wanted:
                return family, settings
            lacking[name] = _differing(got, wanted)
        except ValueError as error:
            lacking[name] = [str(error)] * len(vars(wanted))  # farther than any that can be read
    nearest = min(lacking, key=lambda name: len(lacking[name]))
    lacking[nearest] = list(dict.fromkeys(lacking[nearest]))
    raise ValueError(
        f"transformers has no model with this configuration; {nearest}, the nearest, differs in "
        f"{', '.join(lacking[nearest])}"
    )


def _differing(one: ModelConfig, other: ModelConfig) -> list[str]:
    names = [field.name for field in dataclasses.fields(ModelConfig)]
    return [name for name in names if getattr(one, name) != getattr(other, name)]


def save(config: ModelConfig, params: dict, folder: Path | str) -> None:
    """Writes config.json and model.safetensors, which transformers loads and `load` reads back.

    Weights are written in bfloat16 if every weight is exact in it, else in float32.

    Raises:
      ValueError: a configuration that no family of transformers has, parameters of another shape,
        or a folder that is not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there and not empty; choose another folder")
    family, settings = export_settings(config)
    shapes = parameter_shapes(config)
    flat = {
        "/".join(str(key.key) for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    if {name: tuple(x.shape) for name, x in flat.items()} != shapes:
        raise ValueError("the parameters do not have the names and shapes of this configuration")
    theirs, sources = {}, []
    for rule in rules_of(family, config):
        ours = [shapes[name] for name in rule.ours]
        for k, (name, shape) in enumerate(
            zip(rule.theirs, expected_shapes(rule, ours), strict=True)
        ):
            names = name.split("|")
            name = names[min(family.alternative(config), len(names) - 1)]
            theirs[name] = shape
            sources.append(
                (
                    name,
                    lambda rule=rule, ours=ours, k=k: rule.layout.ours_to_theirs(
                        [np.asarray(flat[n]) for n in rule.ours], ours
                    )[k],
                )
            )
    dtype = lossless_dtype(np.asarray(x) for x in flat.values())
    if "torch_dtype" in settings and dtype != "BF16":
        raise ValueError(
            f"model.embedding_scale={config.embedding_scale} is rounded to bfloat16, and the "
            "weights are not"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / WEIGHTS, theirs, dtype, sources)
    write_json(
        folder / CONFIG,
        settings
        | _NO_SPECIAL_TOKENS
        | {"torch_dtype": {"BF16": "bfloat16", "F32": "float32"}[dtype]},
    )
