"""Digests of a corpus: names, sizes and SHA-256 of its texts, for the record of a result."""

import hashlib

from posenc_jax.data.corpora import Corpus
from posenc_jax.data.document_files import SPLITS

OF_FILES = ("python_stdlib", "text_folder")  # their fingerprint follows from the list


def list_texts(corpus: Corpus) -> list[dict]:
    """Returns split, name, bytes, sha256 of texts: all of files, held-out ones of other sets."""
    splits = SPLITS if corpus.name in OF_FILES else ("dev", "test")
    return [
        {
            "split": split,
            "name": name,
            "bytes": len(text),
            "sha256": hashlib.sha256(text).hexdigest(),
        }
        for split in splits
        for name, text in sorted(corpus.documents(split))
    ]
