"""GGUF files (llama.cpp): a checked header, and tensors that are dequantised one at a time.

Nothing in a file is trusted. Every count, length, type and offset is checked against the size of
the file before it is used, and only then does the package `gguf` see the bytes of one tensor.
Layout: the GGUF specification in the repository ggml-org/ggml, versions 2 and 3, little endian.
"""

import dataclasses
import itertools
import math
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
# Of names, metadata and the list of tensors; vocabularies of 256k ids need half of it.
_HEADER_BYTES = 2**26
_LONGEST_NAME = 2**16
_ITEMS = 2**22  # of one array in the metadata
_TENSORS = 2**17
_DIMS = 4
_LARGEST_ALIGNMENT = 2**20
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    _BOOL: "u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


@dataclasses.dataclass(frozen=True)
class QuantisedTensor:
    """Where a tensor lies in the file.

    Attributes:
      shape: in NumPy's order, slowest dim first. kind: number of its type in GGML. start: byte of
        the file. size: bytes.
    """

    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


class GgufFile:
    """An opened GGUF file.

    Attributes:
      path: of the file. metadata: values by key: str, bool, int, float, lists of str, arrays of
        numbers.
      tensors: by name.

    Raises:
      ValueError: no GGUF file, or one with anything that does not add up, in one line.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise ValueError(f"{path} is no file")
        try:
            with path.open("rb") as file:
                self.metadata, self.tensors = _Header(file, os.fstat(file.fileno()).st_size).read()
        except _Fault as fault:
            raise ValueError(f"{path}: {fault}") from None

    def array(self, name: str) -> np.ndarray:
        """Returns one tensor, float32, dequantised.

        Raises:
          ValueError: no such tensor, a type that the package cannot dequantise, NaN or infinity.
        """
        from gguf import GGMLQuantizationType  # an extra: interop
        from gguf.quants import dequantize

        if name not in self.tensors:
            raise ValueError(f"{self.path} has no tensor {name!r}")
        stored = self.tensors[name]
        with self.path.open("rb") as file:
            file.seek(stored.start)
            raw = np.frombuffer(file.read(stored.size), np.uint8)
        if raw.size != stored.size:
            raise ValueError(f"{self.path} became shorter while it was read")
        rows = raw.reshape(math.prod(stored.shape[:-1]), -1)
        kind = GGMLQuantizationType(stored.kind)
        try:
            with np.errstate(all="ignore"):  # a check of the values follows
                values = dequantize(rows, kind)
        except NotImplementedError:
            raise ValueError(
                f"{self.path}: {name} is {kind.name}, which gguf cannot dequantise"
            ) from None
        if not np.isfinite(values).all():
            raise ValueError(f"{self.path}: {name} holds NaN or infinity")
        return np.ascontiguousarray(values.reshape(stored.shape), np.float32)


class _Fault(Exception):
    """What is wrong with a file, without its path."""


class _Header:
    """Reads a header from the front; every read is checked against the end of the file."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._size, self._at = file, size, 0

    def read(self) -> tuple[dict[str, object], dict[str, QuantisedTensor]]:
        if self._bytes(4, "the magic") != _MAGIC:
            raise _Fault("no GGUF file: it does not begin with GGUF")
        version = self._number("<u4", "the version")
        if version not in _VERSIONS:
            big_endian = ", or a big-endian file" if version >> 24 else ""
            raise _Fault(f"GGUF version {version}; versions 2 and 3 are read{big_endian}")
        tensors = self._count(_TENSORS, 4 + 8 + 8 + 4 + 8, "tensors")
        metadata = self._metadata(self._count(_ITEMS, 8 + 4 + 1, "metadata"))
        return metadata, self._tensors(tensors, _alignment(metadata))

    def _metadata(self, count: int) -> dict[str, object]:
        metadata: dict[str, object] = {}
        for _ in range(count):
            key = self._string("a key of the metadata", _LONGEST_NAME)
            if key in metadata:
                raise _Fault(f"{key!r} stands twice in the metadata")
            metadata[key] = self._value(self._number("<u4", key), key)
        return metadata

    def _value(self, kind: int, key: str) -> object:
        if kind == _STRING:
            return self._string(key)
        if kind == _ARRAY:
            return self._array(key)
        return self._numbers(kind, 1, key).tolist()[0]

    def _array(self, key: str) -> list[str] | np.ndarray:
        kind = self._number("<u4", key)
        if kind == _ARRAY:
            raise _Fault(f"{key!r} is an array of arrays, which no model uses")
        width = 8 if kind == _STRING else np.dtype(self._scalar(kind, key)).itemsize
        count = self._count(_ITEMS, width, key)
        if kind == _STRING:
            return [self._string(key) for _ in range(count)]
        return self._numbers(kind, count, key)

    def _numbers(self, kind: int, count: int, key: str) -> np.ndarray:
        dtype = np.dtype(self._scalar(kind, key))
        values = np.frombuffer(self._bytes(count * dtype.itemsize, key), dtype)
        if kind == _BOOL and values.size and values.max() > 1:
            raise _Fault(f"{key!r} is a truth value other than 0 and 1")
        if dtype.kind == "f" and not np.isfinite(values).all():
            raise _Fault(f"{key!r} is not finite")
        return values.astype(bool) if kind == _BOOL else values

    def _tensors(self, count: int, alignment: int) -> dict[str, QuantisedTensor]:
        described = [self._tensor(alignment) for _ in range(count)]
        begin = -(-self._at // alignment) * alignment
        tensors: dict[str, QuantisedTensor] = {}
        for name, stored in described:
            if name in tensors:
                raise _Fault(f"the tensor {name!r} stands twice")
            tensors[name] = dataclasses.replace(stored, start=begin + stored.start)
        _check_places(tensors, self._size)
        return tensors

    def _tensor(self, alignment: int) -> tuple[str, QuantisedTensor]:
        name = self._string("a tensor's name", _LONGEST_NAME)
        dims = self._number("<u4", name)
        if not 1 <= dims <= _DIMS:
            raise _Fault(f"{name!r} has {dims} dims, not 1 to {_DIMS}")
        shape = tuple(self._number("<u8", name) for _ in range(dims))[::-1]
        kind, offset = self._number("<u4", name), self._number("<u8", name)
        if min(shape) < 1 or math.prod(shape) > 8 * self._size:  # no type has under a bit a weight
            raise _Fault(f"{name!r} has shape {list(shape)}, which the file cannot hold")
        if offset % alignment:
            raise _Fault(f"{name!r} lies at {offset}, which is no multiple of {alignment}")
        return name, QuantisedTensor(shape, kind, offset, _stored_bytes(name, shape, kind))

    def _string(self, what: str, longest: int = _HEADER_BYTES) -> str:
        length = self._number("<u8", what)
        if length > longest:
            raise _Fault(f"{what} has {length} bytes, more than {longest}")
        try:
            return self._bytes(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise _Fault(f"{what} is not UTF-8") from None

    def _count(self, most: int, width: int, what: str) -> int:
        """Returns a count of things of at least `width` bytes, once the file can hold them."""
        count = self._number("<u8", what)
        if count > most or count * width > self._size - self._at:
            raise _Fault(f"{count} entries of {what!r} are more than the file can hold")
        return count

    def _number(self, dtype: str, what: str) -> int:
        return int(np.frombuffer(self._bytes(np.dtype(dtype).itemsize, what), dtype)[0])

    def _scalar(self, kind: int, key: str) -> str:
        if kind not in _SCALARS:
            raise _Fault(f"{key!r} has type {kind}, which GGUF does not define")
        return _SCALARS[kind]

    def _bytes(self, count: int, what: str) -> bytes:
        if count > self._size - self._at:
            raise _Fault(f"it ends inside {what!r}: cut off, or its lengths are wrong")
        if self._at + count > _HEADER_BYTES:
            raise _Fault(f"its header has more than {_HEADER_BYTES} bytes, at {what!r}")
        self._at += count
        return self._file.read(count)


def _alignment(metadata: dict[str, object]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if (
        type(alignment) is not int
        or not 8 <= alignment <= _LARGEST_ALIGNMENT
        or alignment & (alignment - 1)
    ):
        raise _Fault(f"general.alignment is {alignment!r}, not a power of two of at least 8")
    return alignment


def _stored_bytes(name: str, shape: tuple[int, ...], kind: int) -> int:
    from gguf.constants import GGML_QUANT_SIZES

    if kind not in GGML_QUANT_SIZES:
        raise _Fault(f"{name!r} has type {kind}, which GGML does not define")
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        raise _Fault(f"{name!r} has rows of {shape[-1]}, which blocks of {block} do not divide")
    return math.prod(shape) // block * block_bytes


def _check_places(tensors: dict[str, QuantisedTensor], size: int) -> None:
    """Raises for a tensor past the end of the file, and for two that share a byte."""
    order = sorted(tensors.items(), key=lambda item: item[1].start)
    for name, stored in order:
        if stored.start + stored.size > size:
            raise _Fault(f"{name!r} ends at byte {stored.start + stored.size} of {size}")
    for (name, stored), (after, following) in itertools.pairwise(order):
        if stored.start + stored.size > following.start:
            raise _Fault(f"{name!r} and {after!r} share bytes")
