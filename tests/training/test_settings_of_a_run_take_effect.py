"""Every setting of optimizer, data and training changes what it is there to change."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from posenc_jax.model.decoder import Decoder
from posenc_jax.training.config_sections import DataSection, OptimizerSection
from posenc_jax.training.inputs import open_inputs, training_batches
from posenc_jax.training.sharding import make_mesh
from posenc_jax.training.step import learning_rate_schedule, make_step, state_builder

from support import runs

OPTIMIZER = {
    "name": "muon",
    "learning_rate": 0.02,
    "muon_learning_rate": 0.1,
    "warmup_steps": 1,
    "final_fraction": 0.9,
    "beta1": 0.5,
    "beta2": 0.5,
    "epsilon": 0.1,
    "weight_decay": 5.0,
    "clip_norm": 0.01,
}


@functools.cache
def after_four_steps(**optimizer):
    """Parameters after four updates on fixed tokens, the last one on the way down."""
    config = runs.config("unused", train={"steps": 4}, model={"num_layers": 1}, optimizer=optimizer)
    tokens = np.random.default_rng(0).integers(0, 256, (4, 1, 4, 17), dtype=np.int32)
    ones = np.ones((1, 4, 16), np.int32)
    mesh = make_mesh(1, 1)
    with jax.set_mesh(mesh):
        model = Decoder(config.model_config(260))
        build, _ = state_builder(config, model, mesh)
        state, step = build(jax.random.key(0)), make_step(config, model)
        for batch in tokens:
            state, _ = step(
                state,
                {
                    "tokens_BT": batch[..., :-1],
                    "targets_BT": batch[..., 1:],
                    "positions_BT": ones * np.arange(16, dtype=np.int32),
                    "segments_BT": ones,
                    "weights_BT": ones.astype(np.float32),
                },
            )
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(jax.device_get(state["params"]))])


@pytest.mark.thorough
@pytest.mark.parametrize("knob", [f.name for f in dataclasses.fields(OptimizerSection)])
def test_every_setting_of_the_optimizer_changes_the_update(knob):
    base = {"warmup_steps": 2, "name": "muon" if knob == "muon_learning_rate" else "adamw"}
    one, two = after_four_steps(**base), after_four_steps(**base | {knob: OPTIMIZER[knob]})
    assert np.abs(one - two).max() > 1e-6


DATA = {
    "retrieval_share": 0.9,
    "passkey_share": 0.9,
    "answer_weight": 2.0,
    "min_pairs": 3,
    "max_pairs": 2,
    "retrieval_mix": "mqar",
    "offset_share": 0.3,
    "pairs_warmup": 0.9,
    "pair_askings": 2,
    "length_warmup": (2, 1),
    "random_positions": 8,
    "end_targets": True,
}


ELSEWHERE = {
    "corpus",
    "folder",
    "tokenizer",
    "download",  # tests/data/test_corpora.py, test_tokenizers.py, test_tfds_sets.py
    "task",
    "text_weight",  # tests/tasks/test_longtext.py
    "data_dir",
    "threads",  # where and how fast: tests/data/test_pipeline.py shows that they change no number
}


@pytest.mark.thorough
@pytest.mark.parametrize(
    "knob", [f.name for f in dataclasses.fields(DataSection) if f.name not in ELSEWHERE]
)
def test_every_setting_of_the_data_changes_the_batches(data_dir, knob):
    def first_batches(**changes):
        config = runs.config(data_dir, data={"retrieval_share": 0.5, **changes})
        feed = training_batches(
            config, open_inputs(config), first_step=0, process_index=0, process_count=1
        )
        return [next(feed) for _ in range(4)]

    one, two = first_batches(), first_batches(**{knob: DATA[knob]})
    assert any(not np.array_equal(a[k], b[k]) for a, b in zip(one, two, strict=True) for k in a)


@pytest.mark.parametrize("changed", [{"seed": 7}, {"length": 40}, {"batch_size": 16}])
def test_seed_length_and_batch_size_change_the_batches(data_dir, changed):
    one, two = (
        next(training_batches(c, open_inputs(c), first_step=0, process_index=0, process_count=1))
        for c in (runs.config(data_dir), runs.config(data_dir, train=changed))
    )
    a, b = one["tokens_BT"], two["tokens_BT"]
    assert a.shape != b.shape or not np.array_equal(a, b)


def test_the_number_of_steps_stretches_the_schedule():
    short, long = (
        learning_rate_schedule(runs.config("unused", train={"steps": n}), 1.0) for n in (20, 40)
    )
    assert short(19) < long(19)


@pytest.mark.thorough
def test_arm_tier_logging_and_saving_are_as_asked(tmp_path, data_dir):
    asked = {"arm": "mine", "tier": "gpu", "steps": 12, "log_every": 4, "save_every": 3, "keep": 3}
    rows = runs.finished(runs.config(data_dir, train=asked), tmp_path / "x")
    assert [row["step"] for row in rows] == [4, 8, 12]
    saved = sorted(
        int(p.name) for p in (tmp_path / "x" / "checkpoints").iterdir() if p.name.isdigit()
    )
    assert saved == [6, 9, 12]
    record = json.loads((tmp_path / "x" / "run.json").read_text())
    assert (record["arm"], record["tier"]) == ("mine", "gpu")
    assert record["finished"]
