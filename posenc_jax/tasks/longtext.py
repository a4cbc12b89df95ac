"""Long-text classification (suite C): labelled corpora, labels as additional ids
(docs/evaluation.md).

An input is BOS, the text, SEP; the class is the target at SEP. The id of a class is never an input,
so its row of the output head acts as a linear classifier without bias on the last state:
logit_c = <x_last, head_c>. This also holds for a tied head, for no input looks up a class's row.
Training, checkpoints and sharding are those of a language model; only the loss weights differ.
"""

import ast
import dataclasses
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from posenc_jax.data import document_files, tfds_sets
from posenc_jax.data.document_files import SPLITS, TextFile
from posenc_jax.data.packing import Document, Example, pack
from posenc_jax.data.tokenizers import Tokenizer

# Each is large enough for held-out documents of every length up to 2 kB, and part of every Python
# from 3.11 on (some distributions ship tkinter separately).
PACKAGES = ("asyncio", "email", "http", "importlib", "multiprocessing", "unittest", "urllib", "xml")
STDLIB = ("stdlib_definitions", "stdlib_packages")
# Of a package's documents; large held-out shares, as there are few documents.
_SHARES = (0.6, 0.15, 0.25)
_SHORTEST = 64  # bytes; shorter ones are aliases or empty classes
NamedText = tuple[str, bytes]
_NAMES = re.compile("|".join(PACKAGES), re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class LabelledCorpus:
    """Documents of known class in the splits train, dev and test.

    labels: names of the classes. splits: (name, text) pairs. classes: of each split, the class of
    every document as an index into labels. fingerprint: SHA-256 of what was read, as for a Corpus.
    """

    name: str
    fingerprint: str
    labels: tuple[str, ...]
    splits: Mapping[str, Sequence[tuple[str, bytes]]]
    classes: dict[str, np.ndarray]

    def documents(self, split: str) -> Sequence[tuple[str, bytes]]:
        """Returns random access to (name, text) of one split; ValueError for an unknown split."""
        if split not in self.splits:
            raise ValueError(f"split {split!r} is not one of {', '.join(self.splits)}")
        return self.splits[split]


def open_labelled(name: str, data_dir: str, *, download: bool) -> LabelledCorpus:
    """Returns the labelled corpus of that name.

    name: "stdlib_packages" (whole files; the class is one of PACKAGES), "stdlib_definitions"
    (top-level classes and functions, the same classes), or a TFDS set with a class label such as
    "imdb_reviews", found or downloaded as `open_corpus` does. Raises ValueError, one line, for a
    name that is none of these or a set without labels.
    """
    if name in STDLIB:
        return stdlib_corpus(name, document_files.python_stdlib_files())
    if name in ("python_stdlib", "text_folder"):
        raise ValueError(
            f"data.corpus={name} has no labels; data.task=classification reads {', '.join(STDLIB)} "
            "or a TFDS set with a label such as imdb_reviews"
        )
    fingerprint, splits, labels, classes = tfds_sets.open_labelled(
        name, data_dir, download=download, also=STDLIB
    )
    corpus = LabelledCorpus(name, f"{fingerprint}+labels", labels, splits, classes)
    return _with_every_class(corpus)


def stdlib_corpus(name: str, text_files: Iterable[TextFile]) -> LabelledCorpus:
    """Returns the labelled documents of PACKAGES among some files; ValueError for a class without
    documents.

    Each package's files are split, so all documents of a file are in one split; a text of several
    files is kept once, in the first split that has it. Names of packages are removed: the head of a
    file (licence, author, module docstring) is cut off, and every name of a package becomes
    `package`.
    """
    cut = _body if name == "stdlib_packages" else _definitions
    inside: dict[str, dict[str, list[NamedText]]] = {package: {} for package in PACKAGES}
    for file in text_files:
        package, *rest = file.name.split("/")
        if rest and package in inside:
            masked = (
                (part, _NAMES.sub("package", text).encode())
                for part, text in cut(file.read().decode())
            )
            inside[package][file.name] = [
                (file.name + part, text) for part, text in masked if len(text) >= _SHORTEST
            ]
    documents: dict[str, list[tuple[int, str, bytes]]] = {split: [] for split in SPLITS}
    for label, package in enumerate(PACKAGES):
        for file_name, split in _balanced_split(inside[package]).items():
            documents[split] += [(label, *document) for document in inside[package][file_name]]
    digest, seen = hashlib.sha256(name.encode()), set()
    texts: dict[str, list[NamedText]] = {s: [] for s in SPLITS}
    classes: dict[str, list[int]] = {s: [] for s in SPLITS}
    for split in SPLITS:
        for label, title, text in documents[split]:
            if text not in seen:
                seen.add(text)
                texts[split].append((title, text))
                classes[split].append(label)
                digest.update(f"\0{split}\0{label}\0{title}\0".encode() + text)
    arrays = {s: np.array(classes[s], np.int32) for s in SPLITS}
    return _with_every_class(LabelledCorpus(name, digest.hexdigest(), PACKAGES, texts, arrays))


def _balanced_split(documents: dict[str, list]) -> dict[str, str]:
    """Returns the split of each file: largest files first, each to the split that lacks most
    documents.

    A split by hash needs hundreds of files; it would hold out a package of five files entirely or
    not at all. The hash of the name orders files of equal size.
    """
    lacking = {
        s: share * sum(map(len, documents.values()))
        for s, share in zip(SPLITS, _SHARES, strict=True)
    }
    split = {}
    for file in sorted(
        documents, key=lambda f: (-len(documents[f]), hashlib.sha256(f.encode()).hexdigest())
    ):
        split[file] = max(lacking, key=lacking.__getitem__)
        lacking[split[file]] -= len(documents[file])
    return split


def _body(source: str) -> Iterator[tuple[str, str]]:
    """Yields a file from its first statement on, without the comments and docstring at its head."""
    body = ast.parse(source).body
    docstring = body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
    body = body[1:] if docstring else body
    if body:
        yield "", "".join(source.splitlines(keepends=True)[_first_line(body[0]) - 1 :])


def _definitions(source: str) -> Iterator[tuple[str, str]]:
    """Yields the top-level classes and functions of a file, with their decorators."""
    lines = source.splitlines(keepends=True)
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield f":{node.name}", "".join(lines[_first_line(node) - 1 : node.end_lineno])


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])


def _with_every_class(corpus: LabelledCorpus) -> LabelledCorpus:
    for split, classes in corpus.classes.items():
        missing = sorted(set(range(len(corpus.labels))) - set(classes.tolist()))
        if missing:
            raise ValueError(
                f"data.corpus={corpus.name} has no document of class {corpus.labels[missing[0]]} "
                f"in {split}; every class is needed in train, dev and test"
            )
    return corpus


class LabelTokenizer:
    """A tokenizer with an additional id, without bytes, for each class.

    labels_C: ids of the classes. All other ids are those of the base tokenizer.
    """

    def __init__(self, base: Tokenizer, labels: Sequence[str]):
        self.bos, self.sep, self.pad, self.ans = base.bos, base.sep, base.pad, base.ans
        self.first_symbol, self.ends, self.end = base.first_symbol, base.ends, base.end
        self.labels_C = base.vocab_size + np.arange(len(labels), dtype=np.int32)
        self.vocab_size = base.vocab_size + len(labels)
        self.byte_lengths_V = np.concatenate([base.byte_lengths_V, np.zeros(len(labels), np.int32)])
        self.byte_lengths_V.flags.writeable = False
        self.fingerprint = f"{base.fingerprint}+labels:{','.join(labels)}"
        self._base = base

    def encode(self, text: bytes) -> np.ndarray:
        """Returns the ids (int32) of a text, without special ids."""
        return self._base.encode(text)

    def decode(self, ids: Iterable[int]) -> bytes:
        """Returns the bytes of ids; special ids and classes have none."""
        return self._base.decode(i for i in ids if i < self._base.vocab_size)


def inputs_of(text: bytes, tokenizer: Tokenizer, longest: int) -> np.ndarray:
    """Returns BOS, the text, SEP as ids (int32); cuts a text to `longest` ids in all."""
    ids = tokenizer.encode(text)[: longest - 2]
    return np.concatenate([[tokenizer.bos], ids, [tokenizer.sep]], dtype=np.int32)


class ClassWindows:
    """Training windows of one class: one document each, cut to the length.

    text_weight: weight of the mean loss of a document's text targets, an auxiliary
    language-modelling loss (Radford et al. 2018, eq. 5: lambda); the class has weight 1.
    """

    def __init__(
        self,
        corpus: LabelledCorpus,
        tokenizer: LabelTokenizer,
        *,
        split: str,
        label: int,
        length: int,
        text_weight: float,
    ):
        self._documents = corpus.documents(split)
        self._numbers = np.flatnonzero(corpus.classes[split] == label)
        self._tokenizer, self._target = tokenizer, tokenizer.labels_C[label]
        self._length, self._text_weight = length, text_weight

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Example:
        _, text = self._documents[int(self._numbers[index])]
        ids = inputs_of(text, self._tokenizer, self._length)
        n = len(ids)
        weights = np.full(n, self._text_weight / max(n - 2, 1), np.float32)
        weights[-1] = 0  # SEP as a target marks the cut and is no text
        example = pack([Document(ids, weights)], self._length, self._tokenizer.pad)
        example["targets_T"][n - 1], example["weights_T"][n - 1] = self._target, 1
        return example
