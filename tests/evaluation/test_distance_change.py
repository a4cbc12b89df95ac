"""M13 against the parameters that training begins with, and E8_longest against E8.

Thorough: runs are trained and evaluated.
"""

import jax
import numpy as np
import pytest
from posenc_jax.evaluation import evaluate, head_statistics, perplexity
from posenc_jax.model.decoder import Decoder
from posenc_jax.training.inputs import open_inputs
from posenc_jax.training.sharding import make_mesh
from posenc_jax.training.step import state_builder

from support import runs

SETTINGS = {"split": "dev", "stretch": None}


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    """(configuration, folder) of a trained run whose seed is not 0."""
    config = runs.config(data_dir, "alibi", train={"seed": 3}, evaluation={"multiples": (1, 2, 8)})
    folder = tmp_path_factory.mktemp("run")
    runs.finished(config, folder)
    return config, folder


def rows_of(run, *suites, **changes):
    path = evaluate.evaluate(run[1], suites=suites, multiples=None, **SETTINGS | changes)
    return {(r["metric"], r["k"], r["bucket"]): r["value"] for r in runs.rows(path)}


@pytest.mark.thorough
def test_the_change_of_distance_is_against_the_parameters_that_training_began_with(run):
    config, _ = run
    found = rows_of(run, "M1", "M13")
    inputs = open_inputs(config)
    model = config.model_config(inputs.tokenizer.vocab_size)
    mesh = make_mesh(1, 1)
    with jax.set_mesh(mesh):
        build, _ = state_builder(config, Decoder(model), mesh)
        params = jax.device_get(build(jax.random.key(3))["params"])
    L = config.train.length
    stretches_RT = perplexity.held_out_stretches(inputs.stream("dev"), 8 * L + L // 2, 32)
    for k in (1, 2, 8):
        rows_RT = stretches_RT[:, -(k * L + 1) : -1]
        sums = head_statistics.head_sums(model, params, rows_RT, 2048, k * L // 2)
        for layer, one in enumerate(sums):
            for head, before in enumerate(head_statistics.mean_distance(one)):
                name = f"head:{layer}.{head}"
                after = found["M1_mean_distance", k, name]
                change = found["M13_distance_change", k, name]
                assert change == pytest.approx(after - before, abs=1e-4), (k, name)
    changes = np.array([v for (metric, *_), v in found.items() if metric == "M13_distance_change"])
    assert len(changes) == 3 * model.num_layers * model.num_heads
    assert (np.abs(changes) > 1e-3).all()


@pytest.mark.slow
def test_the_window_is_checked_at_the_longest_length_too(run):
    found = rows_of(run, "E8_longest")
    free, cut = found["bpb_ctx", 8, "all"], found["bpb_window", 8, "all"]
    assert found["window_check", 8, "all"] == pytest.approx(cut - free)
    assert cut != free
    assert ("window_check", 4, "all") not in found


@pytest.mark.thorough
def test_where_4l_is_the_longest_length_it_is_e8(data_dir, tmp_path):
    config = runs.config(data_dir, "alibi", evaluation={"multiples": (1, 4)})
    runs.finished(config, tmp_path)
    path = evaluate.evaluate(tmp_path, suites=("E8_longest",), multiples=None, **SETTINGS)
    rows = [r for r in runs.rows(path) if r["metric"] == "window_check"]
    assert [(r["k"], r["item"]) for r in rows] == [(4, "E8")]
