"""Folders that are damaged, hostile or not understood: one line, nothing written, nothing executed."""

import json
import os
import pickle
import struct

import jax
import numpy as np
import pytest
from posenc_jax.interop import huggingface
from posenc_jax.interop.imported_run import ImportSettings, import_checkpoint

from support.checkpoint_folders import (
    SETTINGS,
    SHAPES,
    arrays,
    file_bytes,
    tensor_bytes,
    write_folder,
    write_shards,
)

FIRST, LAST = "model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight"
INDEX = "model.safetensors.index.json"


def settings(**changes):
    def damage(folder):
        write_folder(folder, {k: v for k, v in (SETTINGS | changes).items() if v != "absent"})

    return damage


def header(change):
    """A damaged header: `change` gets its dict and the data, and returns what is written instead."""

    def damage(folder):
        write_folder(folder)
        text, data = tensor_bytes(arrays())
        changed = change(text, data)
        (folder / "model.safetensors").write_bytes(
            changed if isinstance(changed, bytes) else file_bytes(*changed)
        )

    return damage


def entry(name=FIRST, **changes):
    return header(lambda text, data: (text | {name: text[name] | changes}, data))


def tensors(change):
    def damage(folder):
        write_folder(folder, tensors=change(arrays()))

    return damage


def content(name, content):
    def damage(folder):
        write_folder(folder)
        (folder / name).write_bytes(content)

    return damage


def gone(*names):
    def damage(folder):
        write_folder(folder)
        for name in names:
            (folder / name).unlink()

    return damage


def linked(name):
    def damage(folder):
        write_folder(folder)
        (folder.parent / "outside").write_bytes((folder / name).read_bytes())
        (folder / name).unlink()
        (folder / name).symlink_to(folder.parent / "outside")

    return damage


def shards(change):
    """A damaged index: `change` gets its weight_map and returns the new index."""

    def damage(folder):
        write_shards(folder)
        weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
        (folder / INDEX).write_text(json.dumps(change(weight_map, folder)))

    return damage


def escaping(path):
    def change(weight_map, folder):
        (folder.parent / "part-0.safetensors").write_bytes(
            (folder / "part-0.safetensors").read_bytes()
        )
        return {"weight_map": weight_map | {FIRST: path.format(up=folder.parent)}}

    return shards(change)


class Runs:
    """Unpickling it writes a file."""

    def __reduce__(self):
        return os.mkdir, (os.environ["EXECUTED"],)


def pickled(name):
    def damage(folder):
        write_folder(folder)
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps(Runs()))

    return damage


def link_of_index(folder):
    write_shards(folder)
    (folder / INDEX).rename(folder.parent / "index")
    (folder / INDEX).symlink_to(folder.parent / "index")


def both_shards(weight_map, folder):
    """One tensor in two files."""
    names = [n for n, file in weight_map.items() if file.startswith("part-1")]
    with_twin = {n: arrays()[n] for n in [*names, FIRST]}
    (folder / "part-1.safetensors").write_bytes(file_bytes(*tensor_bytes(with_twin)))
    return {"weight_map": weight_map}


def nan(x):
    x[FIRST][3, 3] = np.nan
    return x


def renamed(old, new):
    return tensors(lambda x: {new if name == old else name: a for name, a in x.items()})


def whole():
    text, data = tensor_bytes(arrays())
    return file_bytes(text, data)


# What is wrong -> how, and words of the message.
CASES = {
    # The header of the weights.
    "empty": (content("model.safetensors", b""), "no whole"),
    "seven bytes": (content("model.safetensors", b"1234567"), "no whole"),
    "length alone": (content("model.safetensors", struct.pack("<Q", 100)), "no whole"),
    "header past the file": (
        content("model.safetensors", struct.pack("<Q", 10**6) + b"{}"),
        "no whole",
    ),
    "oversized header": (
        content("model.safetensors", struct.pack("<Q", 2**63) + b"{}"),
        "no whole",
    ),
    "header of 2^64-1": (content("model.safetensors", b"\xff" * 16), "no whole"),
    "no header": (content("model.safetensors", struct.pack("<Q", 0)), "no whole"),
    "header not JSON": (
        content("model.safetensors", struct.pack("<Q", 8) + b"{'a': 1}"),
        "not JSON",
    ),
    "header not UTF-8": (
        content("model.safetensors", struct.pack("<Q", 4) + b"{\xff\xfe}"),
        "not JSON",
    ),
    "header a list": (
        content("model.safetensors", struct.pack("<Q", 2) + b"[]"),
        "not a JSON object",
    ),
    "deep header": (content("model.safetensors", file_bytes(b"[" * 100_000, b"")), "not JSON"),
    "a name twice": (
        header(lambda t, d: (json.dumps(t).replace(LAST, FIRST).encode(), d)),
        "twice",
    ),
    "cut data": (content("model.safetensors", whole()[:-1]), "end at byte"),
    "half of the data": (content("model.safetensors", whole()[:-400]), "end at byte"),
    "bytes behind": (content("model.safetensors", whole() + b"x"), "end at byte"),
    "overlap": (entry(LAST, data_offsets=[0, 192]), "overlaps|gap"),
    "gap": (
        header(
            lambda t, d: (
                t | {LAST: t[LAST] | {"data_offsets": [n + 4 for n in t[LAST]["data_offsets"]]}},
                d + b"1234",
            )
        ),
        "gap",
    ),
    "backward offsets": (entry(data_offsets=[352, 0]), "takes"),
    "negative offset": (entry(data_offsets=[-352, 0]), "whole numbers"),
    "huge offset": (entry(data_offsets=[2**70, 2**70 + 352]), "whole numbers"),
    "fractional offset": (entry(data_offsets=[0.0, 352.0]), "whole numbers"),
    "three offsets": (entry(data_offsets=[0, 352, 352]), "whole numbers"),
    "offset of another size": (entry(data_offsets=[0, 348]), "takes"),
    "negative dim": (entry(shape=[-11, -8]), "whole numbers"),
    "huge shape": (entry(shape=[2**40, 2**40]), "takes"),
    "shape true": (entry(shape=[True, 88]), "whole numbers"),
    "shape a word": (entry(shape="11,8"), "whole numbers"),
    "many dims": (entry(shape=[11, 8] + [1] * 60), "whole numbers"),
    "unknown type": (entry(dtype="F8_E4M3"), "type"),
    "type a list": (entry(dtype=["F32"]), "type"),
    "whole numbers for weights": (entry(dtype="I32"), "type"),
    "another key": (entry(code="import os"), "dtype, shape and data_offsets"),
    "entry a list": (header(lambda t, d: (t | {FIRST: [0, 352]}, d)), "dtype, shape"),
    "NaN": (tensors(nan), "NaN"),
    "a pickle by that name": (content("model.safetensors", pickle.dumps({"a": 1})), "pickle"),
    "a zip by that name": (content("model.safetensors", b"PK\x03\x04" + b"\0" * 100), "pickle"),
    # Tensors that do not fit the model.
    "missing tensor": (tensors(lambda x: {n: a for n, a in x.items() if n != LAST}), "no tensor"),
    "left-over tensor": (
        tensors(lambda x: x | {"model.extra": np.zeros(3, np.float32)}),
        "no place",
    ),
    "another layer": (
        tensors(lambda x: x | {"model.layers.1.mlp.up_proj.weight": np.zeros((6, 8), np.float32)}),
        "no place",
    ),
    "another shape": (tensors(lambda x: x | {LAST: np.zeros((8, 7), np.float32)}), "shape"),
    "transposed": (tensors(lambda x: x | {LAST: np.zeros((6, 8), np.float32)}), "shape"),
    "no tensors": (tensors(lambda x: {"model.norm.weight": x["model.norm.weight"]}), "no tensor"),
    "another name": (renamed(FIRST, "../../etc/passwd"), "no tensor"),
    "a tied head that differs": (tensors(lambda x: x | {"lm_head.weight": x[FIRST] + 1}), "ties"),
    "adapter": (
        tensors(lambda x: x | {"base_model.lora_A.weight": np.zeros((2, 2), np.float32)}),
        "no place",
    ),
    # Files and links.
    "no config": (gone("config.json"), "no file config.json"),
    "no weights": (gone("model.safetensors"), "no file model.safetensors"),
    "pickled weights": (pickled("pytorch_model.bin"), "pickled"),
    "pickled weights .pt": (pickled("model.pt"), "pickled"),
    "pickled weights .pkl": (pickled("weights.pkl"), "pickled"),
    "linked weights": (linked("model.safetensors"), "link"),
    "linked config": (linked("config.json"), "link"),
    "linked index": (link_of_index, "link"),
    "config a folder": (
        lambda folder: (folder / "config.json").mkdir(parents=True),
        "no file config.json",
    ),
    "config not JSON": (content("config.json", b"{"), "not JSON"),
    "config a list": (content("config.json", b"[1]"), "JSON dict"),
    "config not UTF-8": (content("config.json", b"\xff\xfe{}"), "UTF-8"),
    "deep config": (content("config.json", b"[" * 100_000), "nested"),
    # The index.
    "index without map": (shards(lambda m, _: {"metadata": {}}), "weight_map"),
    "index of a list": (shards(lambda m, _: {"weight_map": list(m)}), "weight_map"),
    "path up": (escaping("../part-0.safetensors"), "not the name of a file"),
    "absolute path": (escaping("{up}/part-0.safetensors"), "not the name of a file"),
    "path down": (escaping("a/../../part-0.safetensors"), "not the name of a file"),
    "backslashes": (escaping("..\\part-0.safetensors"), "not the name of a file"),
    "two dots": (escaping(".."), "not the name of a file"),
    "file a number": (
        shards(lambda m, _: {"weight_map": m | {FIRST: 3}}),
        "not the name of a file",
    ),
    "file absent": (
        shards(lambda m, _: {"weight_map": m | {FIRST: "gone.safetensors"}}),
        "no file gone",
    ),
    "file a pickle": (
        shards(
            lambda m, f: (
                (f / "x.bin").write_bytes(pickle.dumps(1)) and {"weight_map": m | {FIRST: "x.bin"}}
            )
        ),
        "no safetensors",
    ),
    "index misses a tensor": (
        shards(lambda m, _: {"weight_map": {n: f for n, f in m.items() if n != FIRST}}),
        "disagree",
    ),
    "index names the wrong file": (
        shards(lambda m, _: {"weight_map": m | {FIRST: "part-1.safetensors"}}),
        "disagree",
    ),
    "a tensor in two files": (shards(both_shards), "disagree"),
    # Settings that are unknown, or do not fit.
    "unknown model": (settings(model_type="gpt5"), "model_type"),
    "no model": (settings(model_type="absent"), "model_type"),
    "model a list": (settings(model_type=["llama"]), "model_type"),
    "unknown setting": (settings(attention_sinks=4), "attention_sinks=4"),
    "quantised": (settings(quantization_config={"bits": 4}), "quantization_config"),
    "missing setting": (settings(hidden_size="absent"), "has no hidden_size"),
    "a word for a number": (settings(hidden_size="8"), "hidden_size"),
    "true for a number": (settings(num_hidden_layers=True), "num_hidden_layers"),
    "negative number": (settings(intermediate_size=-6), "intermediate_size"),
    "huge number": (settings(num_hidden_layers=2**40), "num_hidden_layers"),
    "many layers": (settings(num_hidden_layers=2**29), "more than 4096"),
    "zero heads": (settings(num_attention_heads=0), "heads"),
    "heads that do not divide": (settings(num_attention_heads=3), "divide"),
    "keys that do not divide": (settings(num_attention_heads=4, num_key_value_heads=3), "divide"),
    "unknown activation": (settings(hidden_act="xielu"), "hidden_act"),
    "NaN setting": (
        content("config.json", json.dumps(SETTINGS | {"rms_norm_eps": float("nan")}).encode()),
        "rms_norm_eps",
    ),
    "unknown rope": (settings(rope_scaling={"type": "spiral", "factor": 2.0}), "spiral"),
    "rope without factor": (settings(rope_scaling={"type": "linear"}), "factor"),
    "unknown rope setting": (
        settings(rope_scaling={"type": "linear", "factor": 2.0, "twist": 1}),
        "twist=1",
    ),
    "two ropes": (
        settings(
            rope_scaling={"type": "linear", "factor": 2.0},
            rope_parameters={"rope_type": "linear", "factor": 4.0},
        ),
        "disagree",
    ),
    "rope a word": (settings(rope_scaling="linear"), "object"),
    "odd rotary dims": (settings(partial_rotary_factor=0.8), "odd"),
}


def test_there_are_sixty_cases_and_the_undamaged_folders_load(tmp_path):
    assert len(CASES) >= 60
    one, _, _ = huggingface.load(write_folder(tmp_path / "one"))
    two, params, _ = huggingface.load(write_shards(tmp_path / "two"))
    assert one == two
    sizes = (int(np.prod(shape)) for shape in SHAPES.values())
    assert sum(x.size for x in jax.tree.leaves(params)) == sum(sizes)


@pytest.mark.parametrize("name", CASES)
def test_a_bad_folder_is_refused_in_one_line_and_nothing_is_written(name, tmp_path, monkeypatch):
    monkeypatch.setenv("EXECUTED", str(tmp_path / "executed"))
    damage, words = CASES[name]
    damage(tmp_path / "checkpoint")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=words) as raised:
        import_checkpoint(
            tmp_path / "checkpoint", tmp_path / "run", ImportSettings(tokenizer="bytes")
        )
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 700
    assert sorted(tmp_path.rglob("*")) == before


def test_a_pickle_that_would_run_is_one(tmp_path, monkeypatch):
    monkeypatch.setenv("EXECUTED", str(tmp_path / "executed"))
    pickle.loads(pickle.dumps(Runs()))
    assert (tmp_path / "executed").exists()
