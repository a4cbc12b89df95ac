"""Corpora: our TFDS builders for text files, and `open_corpus` for these and for TFDS's sets.

A corpus is written once as array_record below data_dir and then read by random access, without
TensorFlow. Our corpora are stored under the hash of their contents, so that another interpreter or
an edited folder is prepared again. One process prepares, others wait for it; what was changed on
disk since is prepared again.
"""

import contextlib
import dataclasses
import io
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence

import tensorflow_datasets as tfds

from posenc_jax.data import document_files, tfds_sets
from posenc_jax.data.document_files import SPLITS, TextFile
from posenc_jax.data.tfds_sets import Documents
from posenc_jax.results import manifest
from posenc_jax.results.locks import locked
from posenc_jax.results.manifest import Corrupted


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents in the splits train, dev and test.

    fingerprint: SHA-256 over the names and contents of all splits; for TFDS's own sets, which may
    hold terabytes, over what their dataset_info records (version, and examples and bytes of every
    shard).
    """

    name: str
    fingerprint: str
    splits: dict[str, Documents]

    def documents(self, split: str) -> Sequence[tuple[str, bytes]]:
        """Random access to (name, text) of one split; ValueError if there is no such split."""
        if split not in self.splits:
            raise ValueError(f"split {split!r} is not one of {', '.join(self.splits)}")
        return self.splits[split]


class _FileBuilder(tfds.core.GeneratorBasedBuilder):
    """One record for each text file, in a folder named after the hash of all files."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, text_files: Sequence[TextFile], root: pathlib.Path):
        self._text_files = text_files
        super().__init__(data_dir=str(root), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = tfds.features.FeaturesDict({"text": text, "name": text})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        for file in self._text_files:
            if file.split == split:
                yield file.name, {"text": file.read(), "name": file.name}


class PythonStdlib(_FileBuilder):
    """Source text of the running interpreter's standard library, split by top-level module."""


class TextFolder(_FileBuilder):
    """The UTF-8 .txt and .md files below a folder."""


def open_corpus(
    name: str, data_dir: str, *, folder: str | None = None, download: bool = False
) -> Corpus:
    """Returns the corpus of that name; our own are prepared below data_dir first.

    name: "python_stdlib", "text_folder" (reads `folder`), or a TFDS set such as "pg19" or
    "wiki40b/en", which is downloaded only if `download`. Raises ValueError, one line, for
    a name, folder or file that the user can correct.
    """
    # TFDS expands a leading ~, and the rest of the code does not.
    data_dir = os.path.abspath(os.path.expanduser(data_dir))
    if name == "python_stdlib":
        return _corpus_of_files(name, PythonStdlib, document_files.python_stdlib_files(), data_dir)
    if name == "text_folder":
        return _corpus_of_files(
            name, TextFolder, document_files.text_folder_files(folder), data_dir
        )
    fingerprint, splits = tfds_sets.open_public(
        name, data_dir, download=download, also=("python_stdlib", "text_folder")
    )
    return Corpus(name, fingerprint, splits)


def _corpus_of_files(
    name: str, builder_class: type, text_files: Sequence[TextFile], data_dir: str
) -> Corpus:
    fingerprint = document_files.fingerprint(text_files)
    root = pathlib.Path(data_dir, f"{name}-{fingerprint[:16]}")
    try:
        _verify(root)
    except Corrupted:
        os.makedirs(data_dir, exist_ok=True)
        with locked(pathlib.Path(data_dir, f".{root.name}.lock"), wait=True):
            _prepare(root, lambda: builder_class(text_files=text_files, root=root))
    # A new builder reads the files on disk, whichever process wrote them.
    builder = builder_class(text_files=text_files, root=root)
    splits = {}
    for split in SPLITS:
        source = builder.as_data_source(split)
        splits[split] = Documents(source, "text", "name", split, 0, len(source))
    return Corpus(name, fingerprint, splits)


def _verify(root: pathlib.Path) -> None:
    """Raises Corrupted unless a corpus is prepared below `root` and no bit of it was changed."""
    if not root.exists():
        raise Corrupted("it is not prepared")
    manifest.verify(root)


def _prepare(root: pathlib.Path, make_builder: Callable[[], tfds.core.DatasetBuilder]) -> None:
    """Prepares a corpus, unless another process was first; makes a damaged one again."""
    try:
        return _verify(root)
    except Corrupted as fault:
        if root.exists():
            print(f"{root} is damaged ({fault}); it is prepared again", file=sys.stderr)
            shutil.rmtree(root)
    # TFDS prints progress bars and a message about a download, though nothing is downloaded.
    silence = io.StringIO()
    builder = make_builder()
    try:
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            builder.download_and_prepare()
    except OSError:
        # Where files cannot be locked another process may be first; TFDS renames a whole folder
        # into place.
        if not builder.data_path.exists():
            raise
    manifest.seal(root, {})
