"""Token stream of a split: one flat array of ids on disk; every document starts with BOS."""

import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from posenc_jax.data.tokenizers import Tokenizer

if TYPE_CHECKING:  # importing corpora imports TFDS, which a stream does not need
    from posenc_jax.data.corpora import Corpus


class TokenStream:
    """Ids of documents one after another, memory-mapped from a folder that `open_stream` wrote.

    tokens: ids, uint16 or uint32. starts: index of each document's BOS, and the total length at the
    end. bos, pad: the tokenizer's ids. fingerprint: SHA-256 of corpus, tokenizer and split.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        about = json.loads((folder / "about.json").read_text())
        self.bos, self.pad = about["bos"], about["pad"]
        self.fingerprint = about["fingerprint"]
        self.starts = np.load(folder / "starts.npy")
        dtype, count = np.dtype(about["dtype"]), int(self.starts[-1])
        if (folder / "tokens.bin").stat().st_size != count * dtype.itemsize:
            raise ValueError(
                f"{folder}/tokens.bin is damaged; remove {folder} to have it made again"
            )
        self.tokens = np.memmap(folder / "tokens.bin", dtype, "r", shape=(count,))

    def __len__(self) -> int:
        return len(self.tokens)

    @functools.cached_property
    def names(self) -> list[str]:
        """Names of the documents."""
        return json.loads((self._folder / "names.json").read_text())

    def document(self, index: int) -> np.ndarray:
        """Returns the ids (int32) of one document, BOS first."""
        return self.tokens[self.starts[index] : self.starts[index + 1]].astype(np.int32)


def open_stream(corpus: "Corpus", split: str, tokenizer: Tokenizer, data_dir: str) -> TokenStream:
    """Returns the token stream of a split; tokenizes it once, then reads it from data_dir/streams.

    Safe against kills and against other processes: the folder is written under another name and
    renamed when it is whole. Raises ValueError for text that the tokenizer cannot read.
    """
    documents = corpus.documents(split)
    key = f"{corpus.fingerprint} {tokenizer.fingerprint} {split}"
    fingerprint = hashlib.sha256(key.encode()).hexdigest()
    label = re.sub(r"[^\w.\-]+", "-", corpus.name)
    folder = pathlib.Path(data_dir).expanduser() / "streams" / f"{label}-{split}-{fingerprint[:16]}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = pathlib.Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
        try:
            _write(unfinished, documents, tokenizer, fingerprint)
            os.rename(unfinished, folder)
        except OSError:
            if not folder.exists():  # else another process was first, and its folder is whole
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return TokenStream(folder)


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
    about = {
        "dtype": dtype.name,
        "bos": tokenizer.bos,
        "pad": tokenizer.pad,
        "fingerprint": fingerprint,
    }
    (folder / "about.json").write_text(json.dumps(about))
