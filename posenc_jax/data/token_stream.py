"""Token stream of a split: one flat array of ids on disk; every document starts with BOS."""

import functools
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
import sys
import weakref
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from posenc_jax.data.tokenizers import Tokenizer
from posenc_jax.results import manifest
from posenc_jax.results.files import sync_folder
from posenc_jax.results.locks import locked
from posenc_jax.results.manifest import Corrupted
from posenc_jax.results.record_schema import STREAM


class TokenFile:
    """Ids in a file, read by slices.

    It is read, not mapped: a mapped file that somebody shortens ends the process with SIGBUS.

    Args:
      path: the file. dtype: of its ids.
    """

    def __init__(self, path: pathlib.Path, dtype: str):
        self._path, self.dtype = path, np.dtype(dtype)
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._count = os.fstat(self._file).st_size // self.dtype.itemsize

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, part: slice) -> np.ndarray:
        """Returns the ids of a slice of step 1; ValueError if the file is now shorter."""
        start, stop, _ = part.indices(self._count)
        size = max(stop - start, 0) * self.dtype.itemsize
        content = bytearray()
        while len(content) < size:
            at = start * self.dtype.itemsize + len(content)
            try:
                piece = os.pread(self._file, size - len(content), at)
            except OSError as error:
                raise ValueError(f"{self._path} cannot be read: {error.strerror}") from None
            if not piece:
                raise ValueError(f"{self._path} was shortened while it was read; start again")
            content += piece
        return np.frombuffer(content, self.dtype)


class TokenStream:
    """Ids of documents one after another, in a folder that `open_stream` wrote.

    tokens: ids, uint16 or uint32, read by slices. starts: index of each document's BOS, and the
    total length at the end. bos, pad: the tokenizer's ids. fingerprint: SHA-256 of corpus,
    tokenizer and split.

    Raises:
      Corrupted: the folder is not whole, or any bit of it was changed.
    """

    def __init__(self, folder: pathlib.Path):
        about = manifest.checked(manifest.verify(folder), STREAM, manifest.NAME)
        self._folder = folder
        self.bos, self.pad = about["bos"], about["pad"]
        self.fingerprint = about["fingerprint"]
        self.starts = np.load(folder / "starts.npy")
        self.tokens = TokenFile(folder / "tokens.bin", about["dtype"])

    def __len__(self) -> int:
        return len(self.tokens)

    @functools.cached_property
    def names(self) -> list[str]:
        """Names of the documents."""
        return json.loads((self._folder / "names.json").read_text())

    def document(self, index: int) -> np.ndarray:
        """Returns the ids (int32) of one document, BOS first."""
        return self.tokens[self.starts[index] : self.starts[index + 1]].astype(np.int32)


class TextSource(Protocol):
    """The part of a corpus that its token stream reads."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def documents(self, split: str) -> Sequence[tuple[str, bytes]]: ...


def open_stream(
    corpus: TextSource, split: str, tokenizer: Tokenizer, data_dir: str | pathlib.Path
) -> TokenStream:
    """Returns the token stream of a split; tokenizes it once, then reads it from data_dir/streams.

    A damaged stream is reported on stderr and made again. Kills and other processes do no harm: one
    process writes under another name, and renames the folder when it is whole.

    Raises:
      ValueError: text that the tokenizer cannot read.
    """
    documents = corpus.documents(split)
    key = f"{corpus.fingerprint} {tokenizer.fingerprint} {split}"
    fingerprint = hashlib.sha256(key.encode()).hexdigest()
    label = re.sub(r"[^\w.\-]+", "-", corpus.name)
    root = pathlib.Path(data_dir).expanduser()
    folder = root / "streams" / f"{label}-{split}-{fingerprint[:16]}"
    try:
        return _opened(folder, fingerprint)
    except Corrupted:
        folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(root / f".{folder.name}.lock", wait=True):
        try:
            return _opened(folder, fingerprint)  # another process was first
        except Corrupted as fault:
            if folder.exists():
                print(f"{folder} is damaged ({fault}); it is made again", file=sys.stderr)
        _replace(folder, documents, tokenizer, fingerprint)
        return _opened(folder, fingerprint)


def _opened(folder: pathlib.Path, fingerprint: str) -> TokenStream:
    stream = TokenStream(folder)
    if stream.fingerprint != fingerprint:
        raise Corrupted("it is the stream of another text or tokenizer")
    return stream


def _replace(folder: pathlib.Path, documents, tokenizer: Tokenizer, fingerprint: str) -> None:
    """Writes a stream under another name and renames it; processes that read the old one go on."""
    name = secrets.token_hex(4)
    unfinished, old = (folder.with_name(f".{word}-{name}") for word in ("unfinished", "damaged"))
    try:
        unfinished.mkdir()  # not tempfile's, which other users could not read
        _write(unfinished, documents, tokenizer, fingerprint)
        if folder.exists():
            folder.rename(old)
        unfinished.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _write(
    folder: pathlib.Path,
    documents: Sequence[tuple[str, bytes]],
    tokenizer: Tokenizer,
    fingerprint: str,
) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    starts, names = [0], []
    with (folder / "tokens.bin").open("wb") as file:
        for name, text in documents:
            try:
                ids = tokenizer.encode(text)
            except UnicodeDecodeError as error:
                raise ValueError(f"document {name} is not UTF-8: byte {error.start}") from None
            file.write(np.concatenate([[tokenizer.bos], ids]).astype(dtype).tobytes())
            starts.append(starts[-1] + 1 + len(ids))
            names.append(name)
    np.save(folder / "starts.npy", np.array(starts, np.int64))
    (folder / "names.json").write_text(json.dumps(names))
    about = {"dtype": dtype.name, "bos": tokenizer.bos, "pad": tokenizer.pad}
    manifest.seal(folder, about | {"fingerprint": fingerprint})
