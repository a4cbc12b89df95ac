"""C: long-text classification with labels as extra ids of the vocabulary (EVALUATION.md, sec. 4).

A document is read as BOS, its text, SEP; the class is the target at SEP. The id of a class is never
read, only predicted, so its row of the output head is a weight vector on the last token's final
state: logit_c = <x_last, head_c>, a linear classifier on the last token without a bias. Where
embedding and head share one table this stays true, as no input ever looks a class's row up. Training,
checkpoints and sharding are those of a language model; only the loss weights differ.
"""

import ast
import dataclasses
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from posenc_jax.data import document_files, tfds_sets
from posenc_jax.data.document_files import SPLITS, TextFile
from posenc_jax.data.packing import Example
from posenc_jax.data.tokenizers import Tokenizer

# Large enough for held-out documents of every length up to 2 kB, and in every Python from 3.11 on
# (some distributions ship tkinter apart).
PACKAGES = (
    "asyncio", "email", "http", "importlib", "multiprocessing", "unittest", "urllib", "xml"
)  # fmt: skip
STDLIB = ("stdlib_definitions", "stdlib_packages")
_SHARES = (0.6, 0.15, 0.25)  # of a package's documents; so much held out, as they are few
_SHORTEST = 64  # bytes; what is shorter is an alias or an empty class
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
    splits: dict[str, Sequence[tuple[str, bytes]]]
    classes: dict[str, np.ndarray]

    def documents(self, split: str) -> Sequence[tuple[str, bytes]]:
        """Random access to (name, text) of one split; ValueError if there is no such split."""
        if split not in self.splits:
            raise ValueError(f"split {split!r} is not one of {', '.join(self.splits)}")
        return self.splits[split]


def open_labelled(name: str, data_dir: str, *, download: bool) -> LabelledCorpus:
    """The labelled corpus of that name.

    name: "stdlib_packages" (whole files; which of PACKAGES is it from?), "stdlib_definitions" (the
    same question of top-level classes and functions), or a TFDS set with a class label such as
    "imdb_reviews", found or downloaded as `open_corpus` does. Raises ValueError, one line, for a
    name that is none of these or a set without labels.
    """
    if name in STDLIB:
        return stdlib_corpus(name, document_files.python_stdlib_files())
    if name in ("python_stdlib", "text_folder"):
        raise ValueError(
            f"data.corpus={name} has no labels; data.task=classification reads {', '.join(STDLIB)} or a "
            "TFDS set with a label such as imdb_reviews"
        )
    fingerprint, splits, labels, classes = tfds_sets.open_labelled(
        name, data_dir, download=download, also=STDLIB
    )
    corpus = LabelledCorpus(name, f"{fingerprint}+labels", labels, splits, classes)
    return _with_every_class(corpus)


def stdlib_corpus(name: str, text_files: Iterable[TextFile]) -> LabelledCorpus:
    """The labelled documents of PACKAGES among some files; ValueError if one is missing in a split.

    Files are split inside each package, so all documents of a file are on one side; a text that
    stands in several files is kept once, in the first split that has it. What names the package is
    taken out: the head of a file (licence, author, module docstring) is left away, and the name of
    every package, wherever it stands, is written `package`.
    """
    cut = _body if name == "stdlib_packages" else _definitions
    inside = {package: {} for package in PACKAGES}
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
    found = {split: [] for split in SPLITS}
    for label, package in enumerate(PACKAGES):
        for file, split in _balanced_split(inside[package]).items():
            found[split] += [(label, *document) for document in inside[package][file]]
    digest, seen = hashlib.sha256(name.encode()), set()
    texts, classes = {s: [] for s in SPLITS}, {s: [] for s in SPLITS}
    for split in SPLITS:
        for label, title, text in found[split]:
            if text not in seen:
                seen.add(text)
                texts[split].append((title, text))
                classes[split].append(label)
                digest.update(f"\0{split}\0{label}\0{title}\0".encode() + text)
    arrays = {s: np.array(classes[s], np.int32) for s in SPLITS}
    return _with_every_class(LabelledCorpus(name, digest.hexdigest(), PACKAGES, texts, arrays))


def _balanced_split(documents: dict[str, list]) -> dict[str, str]:
    """The split of each file: fullest files first, each to the split that lacks most documents.

    By hash alone, as where there are hundreds of files, a package of five would be held out almost
    whole or not at all. The hash of the name decides between equally full files.
    """
    lacking = {s: share * sum(map(len, documents.values())) for s, share in zip(SPLITS, _SHARES, strict=True)}  # fmt: skip
    split = {}
    for file in sorted(
        documents, key=lambda f: (-len(documents[f]), hashlib.sha256(f.encode()).hexdigest())
    ):
        split[file] = max(lacking, key=lacking.get)
        lacking[split[file]] -= len(documents[file])
    return split


def _body(source: str) -> Iterator[tuple[str, str]]:
    """A file from its first statement on: comments and docstring of the head are left away."""
    body = ast.parse(source).body
    docstring = body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
    body = body[1:] if docstring else body
    if body:
        yield "", "".join(source.splitlines(keepends=True)[_first_line(body[0]) - 1 :])


def _definitions(source: str) -> Iterator[tuple[str, str]]:
    """The top-level classes and functions of a file, each with its decorators."""
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
                f"data.corpus={corpus.name} has no document of class {corpus.labels[missing[0]]} in {split}; "
                "every class is needed in train, dev and test"
            )
    return corpus


class LabelTokenizer:
    """A tokenizer with an id for each class after its own; these stand for no byte.

    labels_C: ids of the classes. Everything else is the base's, whose ids keep their meaning.
    """

    def __init__(self, base: Tokenizer, labels: Sequence[str]):
        self.bos, self.sep, self.pad, self.ans = base.bos, base.sep, base.pad, base.ans
        self.labels_C = base.vocab_size + np.arange(len(labels), dtype=np.int32)
        self.vocab_size = base.vocab_size + len(labels)
        self.byte_lengths_V = np.concatenate([base.byte_lengths_V, np.zeros(len(labels), np.int32)])
        self.byte_lengths_V.flags.writeable = False
        self.fingerprint = f"{base.fingerprint}+labels:{','.join(labels)}"
        self._base = base

    def encode(self, text: bytes) -> np.ndarray:
        """Ids (int32) of a text, without any special id."""
        return self._base.encode(text)

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids stand for; special ids and classes stand for none."""
        return self._base.decode(i for i in ids if i < self._base.vocab_size)


def inputs_of(text: bytes, tokenizer: Tokenizer, longest: int) -> np.ndarray:
    """BOS, the text, SEP: at most `longest` ids (int32), of a longer text its beginning."""
    ids = tokenizer.encode(text)[: longest - 2]
    return np.concatenate([[tokenizer.bos], ids, [tokenizer.sep]], dtype=np.int32)


class ClassWindows:
    """Training windows of one class: one document each, its beginning if it exceeds the length.

    text_weight: what all text targets of a document count together, their mean loss being an
    auxiliary language-modelling loss (Radford et al. 2018, eq. 5: lambda); its class counts 1.
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
        self._places = np.flatnonzero(corpus.classes[split] == label)
        self._tokenizer, self._target = tokenizer, tokenizer.labels_C[label]
        self._length, self._text_weight = length, text_weight

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Example:
        _, text = self._documents[int(self._places[index])]
        ids = inputs_of(text, self._tokenizer, self._length)
        n, length = len(ids), self._length
        example = {
            "tokens_T": np.full(length, self._tokenizer.pad, np.int32),
            "targets_T": np.full(length, self._tokenizer.pad, np.int32),
            "positions_T": np.zeros(length, np.int32),
            "segments_T": np.zeros(length, np.int32),
            "weights_T": np.zeros(length, np.float32),
        }
        example["tokens_T"][:n] = ids
        example["targets_T"][:n] = np.append(ids[1:], self._target)
        example["positions_T"][:n] = np.arange(n)
        example["segments_T"][:n] = 1
        # The target before the last is SEP, which says where the text was cut and is no text.
        example["weights_T"][: n - 2] = self._text_weight / max(n - 2, 1)
        example["weights_T"][n - 1] = 1
        return example
