"""A Hugging Face folder on disk: config.json and the tensors of its safetensors files, checked."""

import json
from pathlib import Path

from posenc_jax.interop.tensor_files import StoredTensor, read_header
from posenc_jax.results.files import read_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
MAX_JSON = 50_000_000  # bytes


def read_settings(folder: Path) -> dict:
    """Returns config.json of a folder.

    Raises:
      ValueError: no such folder or file, a link, or no JSON object.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    return read_small_json(plain_file(folder, CONFIG))


def read_small_json(path: Path) -> dict:
    """Returns a JSON object; ValueError for one of more than `MAX_JSON` bytes."""
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; at most {MAX_JSON} are read")
    return read_json(path)


def plain_file(folder: Path, name: str) -> Path:
    """Returns the path of a file directly in a folder.

    Raises:
      ValueError: a name with a folder in it, no such file, or a link, which may lead anywhere.
    """
    if (
        not isinstance(name, str)
        or Path(name).name != name
        or name in ("", ".", "..")
        or "\0" in name
        or "\\" in name
    ):
        raise ValueError(f"{folder}: {name!r:.80} is not the name of a file in this folder")
    path = folder / name
    if path.is_symlink():
        raise ValueError(
            f"{path} is a link; copy the folder with its targets (cp -rL) and import the copy"
        )
    if not path.is_file():
        raise ValueError(f"{folder} holds no file {name}")
    return path


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a folder by name, from one file or from the files of an index.

    Raises:
      ValueError: no safetensors file, an index that leads out of the folder, misses a tensor or
        disagrees with a file, or a damaged file.
    """
    if (folder / INDEX).is_symlink() or (folder / INDEX).exists():
        return _indexed(folder)
    if (folder / WEIGHTS).is_symlink() or (folder / WEIGHTS).exists():
        return read_header(plain_file(folder, WEIGHTS))
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ValueError(
            f"{folder} holds pickled weights ({pickles[0]}), which can run code and are not "
            f"opened; convert them to {WEIGHTS}"
        )
    raise ValueError(f"{folder} holds no file {WEIGHTS} or {INDEX}")


def _indexed(folder: Path) -> dict[str, StoredTensor]:
    where = plain_file(folder, INDEX)
    files = read_small_json(where).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{where} has no weight_map from tensors to files")
    tensors: dict[str, StoredTensor] = {}
    for name in dict.fromkeys(map(json.dumps, files.values())):
        shard = json.loads(name)
        path = plain_file(folder, shard)
        if path.suffix != ".safetensors":
            raise ValueError(f"{where} names {shard!r:.80}, which is no safetensors file")
        there = read_header(path)
        wrong = sorted(set(there) ^ {key for key, file in files.items() if file == shard})
        if wrong:
            raise ValueError(f"{where} and {shard} disagree on tensor {wrong[0][:80]!r}")
        tensors |= there
    return tensors
