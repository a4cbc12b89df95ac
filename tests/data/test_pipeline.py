"""Batches are a function of the step alone, whatever reads them."""

import dataclasses
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from posenc_jax.data.pipeline import ENDLESS, TextWindows, batches, mixture
from posenc_jax.data.tokenizers import open_tokenizer
from posenc_jax.tasks.filler import Filler
from posenc_jax.tasks.retrieval_windows import Curriculum, RetrievalWindows


@dataclasses.dataclass
class Counting:
    """Examples that say where they come from: (source, index)."""

    name: int
    size: int

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"tokens_T": np.array([self.name, index % self.size if self.size else index])}


@dataclasses.dataclass
class FakeStream:
    tokens: np.ndarray
    bos: int = 256
    pad: int = 258

    def __len__(self):
        return len(self.tokens)


def read(sources, seed=0, **changes) -> np.ndarray:
    """Tokens of the batches, [step, row, T]."""
    arguments = {
        "batch_size": 8,
        "first_step": 0,
        "last_step": 12,
        "process_index": 0,
        "process_count": 1,
        "num_threads": 2,
        "prefetch": 4,
    }
    found = [
        batch["tokens_BT"] for batch in batches(mixture(sources, seed), **(arguments | changes))
    ]
    return np.stack(found)


MIXTURE = [(Counting(0, 50), 0.75), (Counting(1, 7), 0.125), (Counting(2, ENDLESS), 0.125)]


def text_and_retrieval():
    tokenizer = open_tokenizer("bytes")
    draw = np.random.default_rng(0)
    stream = FakeStream(np.append(256, draw.integers(97, 123, 5000)))
    windows = RetrievalWindows(
        tokenizer,
        Filler(stream, tokenizer),
        tasks=(("passkey", 0.5), ("mqar", 0.5)),
        length=64,
        seed=0,
        split="train",
        curriculum=Curriculum((2, 8)),
        answer_weight=1.0,
    )
    return [(TextWindows(stream, 64), 0.75), (windows, 0.25)]


@pytest.mark.parametrize("threads", [0, 1, 2, 7])
@pytest.mark.parametrize("prefetch", [1, 16])
def test_order_does_not_depend_on_threads(threads, prefetch):
    expected = read(text_and_retrieval(), num_threads=1)
    found = read(text_and_retrieval(), num_threads=threads, prefetch=prefetch)
    assert found.shape == (12, 8, 64)
    assert (found == expected).all()


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_processes_hold_the_rows_of_one_global_batch(count):
    expected = read(MIXTURE)
    parts = [read(MIXTURE, process_count=count, process_index=p) for p in range(count)]
    assert all(part.shape[1] == 8 // count for part in parts)
    assert (np.concatenate(parts, axis=1) == expected).all()


@pytest.mark.parametrize("step", [0, 1, 5, 11])
def test_a_restart_at_any_step_continues_exactly(step):
    everything = read(MIXTURE)
    assert (read(MIXTURE, first_step=step) == everything[step:]).all()
    later = read(MIXTURE, first_step=step, process_count=2, process_index=1)
    assert (later == everything[step:, 4:]).all()


@pytest.mark.thorough
def test_a_restart_far_into_the_run_is_the_same_as_reading_on():
    everything = read(MIXTURE, last_step=400)
    assert (read(MIXTURE, first_step=390, last_step=400) == everything[390:]).all()


def test_rows_are_the_examples_of_the_mixture_in_order():
    small = read(MIXTURE, batch_size=4, last_step=24)
    large = read(MIXTURE, batch_size=8, last_step=12)
    assert (small.reshape(-1, 2) == large.reshape(-1, 2)).all()


def test_a_mixture_keeps_its_shares():
    names = read(MIXTURE, last_step=100)[..., 0].reshape(-1)
    assert np.bincount(names).tolist() == [600, 100, 100]
    for stop in range(80, 800, 80):
        assert abs((names[:stop] == 0).mean() - 0.75) < 0.02


def test_each_epoch_holds_every_window_once_in_a_new_order():
    indices = read([(Counting(0, 50), 1.0)], batch_size=5, last_step=30)[..., 1].reshape(3, 50)
    for epoch in indices:
        assert sorted(epoch) == list(range(50))
    for a, b in itertools.combinations(indices.tolist(), 2):
        assert a != b
    assert indices[0].tolist() != list(range(50))


def test_another_seed_is_another_order_in_every_epoch():
    source = [(Counting(0, 50), 1.0)]
    orders = [
        read(source, batch_size=5, last_step=20, seed=seed)[..., 1].reshape(2, 50)
        for seed in range(4)
    ]
    epochs = [tuple(epoch.tolist()) for order in orders for epoch in order]
    assert len(set(epochs)) == 8


def test_sources_and_neighbouring_seeds_share_no_order():
    pair = [(Counting(0, 50), 0.5), (Counting(1, 50), 0.5)]
    orders = []
    for seed in range(3):
        rows = read(pair, batch_size=10, last_step=10, seed=seed).reshape(-1, 2)
        orders += [tuple(rows[rows[:, 0] == name, 1].tolist()) for name in (0, 1)]
    assert [len(order) for order in orders] == [50] * 6
    assert len(set(orders)) == 6


def test_an_endless_source_is_read_in_order():
    found = read([(Counting(3, ENDLESS), 1.0)], batch_size=5, last_step=4)
    assert found[..., 1].reshape(-1).tolist() == list(range(20))


def test_a_source_of_share_zero_is_never_read():
    found = read([(Counting(0, 50), 1.0), (Counting(1, 9), 0.0)])
    assert (found[..., 0] == 0).all()
    assert (found == read([(Counting(0, 50), 1.0)])).all()


def test_batches_hold_every_array_of_an_example():
    sources = text_and_retrieval()
    (batch,) = batches(
        mixture(sources, 3),
        batch_size=4,
        first_step=7,
        last_step=8,
        process_index=0,
        process_count=1,
        num_threads=0,
        prefetch=1,
    )
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        "tokens_BT": ((4, 64), "int32"),
        "targets_BT": ((4, 64), "int32"),
        "positions_BT": ((4, 64), "int32"),
        "segments_BT": ((4, 64), "int32"),
        "weights_BT": ((4, 64), "float32"),
    }


def test_wrong_divisions_and_shares_are_refused():
    with pytest.raises(ValueError, match="a batch of 8 does not divide among 3 processes"):
        read(MIXTURE, process_count=3)
    with pytest.raises(ValueError, match="no source has a share above 0"):
        read([(Counting(0, 5), 0.0)])
    with pytest.raises(ValueError, match="share is -1"):
        read([(Counting(0, 5), -1)])
    with pytest.raises(ValueError, match="a text of 64 tokens has no window of length 64"):
        TextWindows(FakeStream(np.zeros(64, int)), 64)
    assert len(TextWindows(FakeStream(np.zeros(65, int)), 64)) == 1


def test_importing_the_data_room_is_cheap():
    code = (
        "import json, sys, posenc_jax.data, posenc_jax.data.tokenizers, posenc_jax.data.packing; "
        "print(json.dumps([m in sys.modules for m in ('tensorflow_datasets', 'grain', 'jax')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [False, False, False]
