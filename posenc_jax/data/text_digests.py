"""Digests of a corpus: names, sizes and SHA-256 of its texts, for the record of a result."""

import hashlib

from posenc_jax.data.corpora import Corpus
from posenc_jax.data.document_files import SPLITS

# Corpora of files. Their fingerprint can be computed from the list of all texts.
FILE_CORPORA = ("python_stdlib", "text_folder")


def list_texts(corpus: Corpus) -> list[dict]:
    """Returns split, name, bytes and sha256 of each text of a corpus of files, and of each dev and
    test text of any other corpus.
    """
    splits = SPLITS if corpus.name in FILE_CORPORA else ("dev", "test")
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
