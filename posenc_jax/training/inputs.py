"""Inputs of a run: corpus, tokenizer, token streams and the mixture of training windows."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from posenc_jax.data.corpora import Corpus, open_corpus
from posenc_jax.data.end_targets import EndTargets
from posenc_jax.data.packing import Example
from posenc_jax.data.pipeline import Source, TextWindows, batches, mixture
from posenc_jax.data.random_positions import RandomPositions
from posenc_jax.data.token_stream import TokenStream, open_stream
from posenc_jax.data.tokenizers import Tokenizer, open_tokenizer
from posenc_jax.tasks.filler import Filler
from posenc_jax.tasks.longtext import ClassWindows, LabelledCorpus, LabelTokenizer, open_labelled
from posenc_jax.tasks.offset_lookup import OffsetWindows, asked_offsets
from posenc_jax.tasks.retrieval_windows import Curriculum, RetrievalWindows
from posenc_jax.tasks.task_registry import RECALL, find
from posenc_jax.training.config import RunConfig
from posenc_jax.training.config_sections import DataSection
from posenc_jax.training.setting_bounds import WEIGHT

ROUNDING = 1e-9  # of shares that sum to 1


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The opened corpus of a run; `stream("train" | "dev" | "test")` reads one split of it."""

    corpus: Corpus | LabelledCorpus
    tokenizer: Tokenizer
    data_dir: Path

    def stream(self, split: str) -> TokenStream:
        """Returns the token stream of a split."""
        return open_stream(self.corpus, split, self.tokenizer, self.data_dir)


def open_inputs(config: RunConfig) -> Inputs:
    """Returns the opened inputs; ValueError, one line, for missing or invalid ones."""
    data = config.data
    _check_task(data)
    if data.task == "classification":
        labelled = open_labelled(data.corpus, data.data_dir, download=data.download)
        labels = LabelTokenizer(open_tokenizer(data.tokenizer), labelled.labels)
        return Inputs(labelled, labels, Path(data.data_dir))
    corpus = open_corpus(
        data.corpus, data.data_dir, folder=data.folder or None, download=data.download
    )
    tokenizer = open_tokenizer(data.tokenizer)
    if data.end_targets and tokenizer.end is None:
        raise ValueError(
            f"config.data.end_targets: the tokenizer {data.tokenizer} names no end token (EOS); "
            "set it to False"
        )
    return Inputs(corpus, tokenizer, Path(data.data_dir))


def _check_task(data: DataSection) -> None:
    if data.retrieval_share + data.offset_share > 1 + ROUNDING:
        raise ValueError(
            f"config.data.retrieval_share={data.retrieval_share} and "
            f"config.data.offset_share={data.offset_share} are more than all windows"
        )
    unread = {
        "classification": ("retrieval_share", "offset_share", "end_targets"),
        "language": ("text_weight",),
    }
    if data.task not in unread:
        raise ValueError(f"config.data.task must be {' or '.join(unread)}, not {data.task!r}")
    for name in unread[data.task]:
        if getattr(data, name):
            none = False if name == "end_targets" else 0
            raise ValueError(f"config.data.{name} must be {none} for config.data.task={data.task}")
    _check_curriculum(data)


def _check_curriculum(data: DataSection) -> None:
    """Raises ValueError for a setting of retrieval documents that has no effect in this run."""
    mixed = [name for name, _ in retrieval_tasks(data)] if data.retrieval_share else []
    recalls = [name for name in mixed if find(name).id == RECALL]
    idle = DataSection()
    for name, there, what in (
        ("length_warmup", mixed, "retrieval documents: set config.data.retrieval_share"),
        (
            "pairs_warmup",
            "mqar" in recalls,
            "mqar documents: name mqar in config.data.retrieval_mix",
        ),
        ("pair_askings", recalls, "recall documents: name mqar in config.data.retrieval_mix"),
    ):
        if getattr(data, name) != getattr(idle, name) and not there:
            raise ValueError(
                f"config.data.{name}={getattr(data, name)} is of {what}, or leave it at "
                f"{getattr(idle, name)}"
            )
    if data.pairs_warmup and data.min_pairs == data.max_pairs:
        raise ValueError(
            f"config.data.pairs_warmup={data.pairs_warmup} has nothing to grow: "
            f"config.data.min_pairs and max_pairs are both {data.min_pairs}; set them apart, or "
            f"leave it at {idle.pairs_warmup}"
        )


def training_batches(
    config: RunConfig, inputs: Inputs, *, first_step: int, process_index: int, process_count: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batch of each step from `first_step` on; the step number is the only state."""
    data, train = config.data, config.train
    labelled = data.task == "classification"
    sources = _class_windows(config, inputs) if labelled else _text_windows(config, inputs)
    rows = mixture(sources, train.seed)
    if data.end_targets:
        end = inputs.tokenizer.end
        assert end is not None, "open_inputs refuses a tokenizer without an end token"
        rows = rows.map(EndTargets(end, inputs.tokenizer.pad))
    if data.random_positions:
        rows = rows.map_with_index(
            RandomPositions(data.random_positions * train.length, train.seed)
        )
    return batches(
        rows,
        batch_size=train.batch_size,
        first_step=first_step,
        last_step=train.steps,
        process_index=process_index,
        process_count=process_count,
        num_threads=data.threads,
        prefetch=8,
    )


def dev_examples(config: RunConfig, inputs: Inputs) -> list[Example]:
    """Returns `train.dev_windows` windows of the dev split, spread evenly over its text, or over
    each class.

    They are equal for every seed and arm of one length. A mixture gives text windows only, as in
    the choice of learning rates.

    Raises:
      ValueError: the split has too few windows, or the run trains on no text.
    """
    data, train = config.data, config.train
    if data.task == "classification":
        sources = [source for source, _ in _class_windows(config, inputs, split="dev")]
    elif 1 - data.retrieval_share - data.offset_share > ROUNDING:
        sources = [TextWindows(inputs.stream("dev"), train.length)]
    else:
        raise ValueError(
            f"config.train.dev_every={train.dev_every} measures text, and config.data has none: "
            "its retrieval_share and offset_share are all windows; set dev_every=0"
        )
    examples = []
    for number, source in enumerate(sources):
        wanted = len(range(number, train.dev_windows, len(sources)))
        if len(source) < wanted:
            raise ValueError(
                f"config.train.dev_windows={train.dev_windows} asks for {wanted} windows of "
                f"{train.length} tokens where the dev split has {len(source)}"
            )
        examples += [source[i * len(source) // wanted] for i in range(wanted)]
    return examples


def _text_windows(config: RunConfig, inputs: Inputs) -> list[tuple[Source, float]]:
    data, train = config.data, config.train
    stream = inputs.stream("train")
    sources: list[tuple[Source, float]] = []
    text_share = 1 - data.retrieval_share - data.offset_share
    if text_share > ROUNDING:
        sources.append((TextWindows(stream, train.length), text_share))
    if data.retrieval_share > 0:
        filler = Filler(stream, inputs.tokenizer)
        windows = RetrievalWindows(
            inputs.tokenizer,
            filler,
            tasks=retrieval_tasks(data),
            length=train.length,
            seed=train.seed,
            split="train",
            curriculum=Curriculum(
                pairs=(data.min_pairs, data.max_pairs),
                askings=data.pair_askings,
                # 0: a fine-tuned run starts at the end of the curriculum.
                windows=0
                if train.init_from
                else round(data.retrieval_share * train.batch_size * train.steps),
                pairs_warmup=data.pairs_warmup,
                divisors=data.length_warmup,
            ),
            answer_weight=data.answer_weight,
        )
        sources.append((windows, data.retrieval_share))
    if data.offset_share > 0:
        offsets = OffsetWindows(
            Filler(None, inputs.tokenizer, corpus=False),
            offsets=asked_offsets(
                config.placed_length
            ),  # fine-tuning keeps the cues of the original run
            length=train.length,
            seed=train.seed,
            split="train",
            answer_weight=data.answer_weight,
            pad=inputs.tokenizer.pad,
        )
        sources.append((offsets, data.offset_share))
    return sources


def _class_windows(
    config: RunConfig, inputs: Inputs, split: str = "train"
) -> list[tuple[Source, float]]:
    """Returns a source for each class, with equal shares; ValueError for inputs without classes."""
    corpus, tokenizer = inputs.corpus, inputs.tokenizer
    if not isinstance(corpus, LabelledCorpus) or not isinstance(tokenizer, LabelTokenizer):
        raise ValueError(f"data.corpus={config.data.corpus} was opened without its classes")
    return [
        (
            ClassWindows(
                corpus,
                tokenizer,
                split=split,
                label=label,
                length=config.train.length,
                text_weight=config.data.text_weight,
            ),
            1 / len(corpus.labels),
        )
        for label in range(len(corpus.labels))
    ]


def retrieval_tasks(data: DataSection) -> tuple[tuple[str, float], ...]:
    """Returns (task, share) of retrieval documents; ValueError for a wrong name or share."""
    if not data.retrieval_mix:
        shares = (("passkey", data.passkey_share), ("mqar", 1 - data.passkey_share))
        return tuple((name, share) for name, share in shares if share > 0)
    tasks: list[tuple[str, float]] = []
    for part in data.retrieval_mix.split(","):
        name, _, share = part.strip().partition(":")
        try:
            find(name)
            weight = float(share or 1)
        except ValueError as error:
            raise ValueError(f"config.data.retrieval_mix={data.retrieval_mix}: {error}") from None
        least, most = WEIGHT
        if not least <= weight <= most:
            raise ValueError(
                f"config.data.retrieval_mix={data.retrieval_mix}: the share of {name} must lie in "
                f"[{least}, {most}], not {share}"
            )
        tasks.append((name, weight))
    if any(find(name).sentences for name, _ in tasks):
        raise ValueError(
            "config.data.retrieval_mix lies in corpus text; leave passkey_sentences out"
        )
    return tuple(tasks)


def unigram_bits_per_byte(train: TokenStream, held: TokenStream, tokenizer: Tokenizer) -> float:
    """Returns bits per byte of a held-out split under the token frequencies of the training split.

    The baseline of a model that has learnt nothing else: add-one smoothed, at most 10 M tokens of
    each.
    """
    text = tokenizer.byte_lengths_V > 0
    seen_V, held_V = (
        np.bincount(s.tokens[:10_000_000], minlength=tokenizer.vocab_size) * text
        for s in (train, held)
    )
    nats_V = -np.log((seen_V + 1) / (seen_V + 1)[text].sum())
    return float((held_V * nats_V).sum() / (held_V * tokenizer.byte_lengths_V).sum() / np.log(2))
