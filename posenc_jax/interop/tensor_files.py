"""Safetensors files: a checked header, tensors read and written one at a time, nothing executed.

The format is 8 bytes of header length, a JSON header, and raw arrays. It is read here with NumPy
and not with the library `safetensors`: a tensor at a time needs no more memory than the tensor,
every refusal is one line in our words, and imports need no further package.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import ml_dtypes
import numpy as np

from posenc_jax.results.files import replacing

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
FLOATS = ("F32", "F16", "BF16")
MAX_HEADER = 100_000_000  # bytes, as in the library
_LENGTH = 8  # bytes that hold the length of the header


class ReadableTensor(Protocol):
    """A tensor of a checkpoint that is read when it is asked for."""

    @property
    def path(self) -> Path: ...

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self) -> np.ndarray: ...


class StoredTensor(NamedTuple):
    """Where a tensor lies: `start` and `stop` are bytes of the file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def read(self) -> np.ndarray:
        """Returns the array, float32 for floats.

        Raises:
          ValueError: a tensor of another type than `FLOATS`, or one that holds NaN or infinities.
        """
        if self.dtype not in FLOATS:
            raise ValueError(
                f"{self.path.name}: type {self.dtype} is not one of {', '.join(FLOATS)}"
            )
        count = (self.stop - self.start) // np.dtype(DTYPES[self.dtype]).itemsize
        flat = np.fromfile(self.path, DTYPES[self.dtype], count, offset=self.start)
        if flat.size != count:
            raise ValueError(f"{self.path.name}: cut off while it was read")
        wide = flat.astype(np.float32, copy=False)
        if not np.isfinite(wide).all():
            raise ValueError(f"{self.path.name}: a weight is NaN or infinite")
        return wide.reshape(self.shape)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a safetensors file by name.

    Raises:
      ValueError: anything that is not a whole, well-formed file: lengths, JSON, types, shapes, and
        offsets that overlap, leave gaps or leave the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(_LENGTH)
        length = int.from_bytes(first, "little")
        if first[:4] in (b"\x80\x02}q", b"PK\x03\x04") or first[:2] in (b"\x80\x02", b"\x80\x04"):
            raise ValueError(f"{path.name} is a pickle, not a safetensors file; it is not opened")
        if len(first) < _LENGTH or not 2 <= length <= min(size - _LENGTH, MAX_HEADER):
            raise ValueError(
                f"{path.name} is no whole safetensors file: {size} bytes, a header of {length}"
            )
        text = file.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: the header is not JSON ({_short(error)})") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path.name}: the header is not a JSON object")
    header.pop("__metadata__", None)
    first_byte = _LENGTH + length
    tensors = {name: _stored(path, name, entry, first_byte) for name, entry in header.items()}
    _check_extents(path, tensors, first_byte, size)
    return tensors


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:80] or type(error).__name__


def _unique(pairs: list) -> dict:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("a name stands twice")
    return dict(pairs)


def _stored(path: Path, name: str, entry, first_byte: int) -> StoredTensor:
    where = f"{path.name}: tensor {name[:80]!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{where} must have dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{where} has the type {dtype!r}; known: {', '.join(DTYPES)}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2 or len(shape) > 8:
        raise ValueError(
            f"{where}: shape {shape!r:.80} and offsets {offsets!r:.80} must be whole numbers"
        )
    bytes_ = np.dtype(DTYPES[dtype]).itemsize
    for n in shape:
        bytes_ *= n
    if offsets[1] - offsets[0] != bytes_:
        raise ValueError(
            f"{where}: {shape} of {dtype} takes {bytes_} bytes, not {offsets[1] - offsets[0]}"
        )
    return StoredTensor(path, dtype, tuple(shape), *(first_byte + n for n in offsets))


def _naturals(numbers) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**62 for n in numbers)


def _check_extents(path: Path, tensors: dict, first_byte: int, size: int) -> None:
    end = first_byte
    for name, one in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if one.start != end:
            what = "overlaps another" if one.start < end else "follows a gap"
            raise ValueError(f"{path.name}: tensor {name[:80]!r} {what}")
        end = one.stop
    if end != size:
        raise ValueError(f"{path.name}: the tensors end at byte {end}, the file at {size}")


def write_file(
    path: Path,
    shapes: dict[str, tuple[int, ...]],
    dtype: str,
    arrays: Iterable[tuple[str, Callable[[], np.ndarray]]],
) -> None:
    """Writes a safetensors file, one array in memory at a time, and renames it when it is whole.

    Args:
      shapes: of all tensors, in the order of the file. dtype: of every tensor, one of `FLOATS`.
      arrays: (name, function that returns the array) of every tensor, in the same order.
    """
    kind, header, end = np.dtype(DTYPES[dtype]), {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + kind.itemsize * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(_LENGTH, "little") + text)
        for (name, shape), (given, array) in zip(shapes.items(), arrays, strict=True):
            whole = np.ascontiguousarray(array(), kind)
            assert given == name and whole.shape == tuple(shape)  # noqa: PT018
            whole.tofile(file)


def lossless_dtype(arrays: Iterator[np.ndarray]) -> str:
    """Returns "BF16" if bfloat16 holds every number of the float32 arrays exactly, else "F32"."""
    exact = all(
        not (np.ascontiguousarray(x, np.float32).view(np.uint32) & 0xFFFF).any() for x in arrays
    )
    return "BF16" if exact else "F32"
