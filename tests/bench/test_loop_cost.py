"""What checkpoints cost a training run: real runs, one of which never saves."""

import numpy as np
import pytest
from posenc_jax.bench import loop_cost
from posenc_jax.checkpoints.manager import has_checkpoint

from support import runs


@pytest.mark.slow
def test_runs_that_save_are_compared_with_one_that_never_does(tmp_path, data_dir, monkeypatch):
    trained = []

    def short(scheme, saves):
        return runs.config(
            data_dir, scheme, train={"steps": 2 * saves + 1, "save_every": 2, "log_every": 1}
        )

    def kept(config, kind, workdir):
        trained.append((kind, workdir.name.split("-")[0], tmp_path / workdir.name))
        return run(config, kind, trained[-1][-1])

    run = loop_cost._run
    monkeypatch.setattr(loop_cost, "_config", short)
    monkeypatch.setattr(loop_cost, "_run", kept)
    outcome = loop_cost.measure(loop_cost.LoopSettings(saves=2, rounds=1))
    assert [row["implementation"] for row in outcome.rows] == [
        loop_cost.NEVER,
        loop_cost.ASIDE,
        loop_cost.WAITED,
    ]
    never, *others = outcome.rows
    assert never["ratio"] == 1
    assert never["save_share"] < min(row["save_share"] for row in others)
    assert all(0 <= row["data_wait_share"] <= 1 for row in outcome.rows)
    for kind, _, workdir in trained:
        assert has_checkpoint(workdir) == (kind != loop_cost.NEVER)
    assert sorted((r, kind) for kind, r, _ in trained) == sorted(
        (r, kind) for r in "0" for kind in (loop_cost.NEVER, loop_cost.ASIDE, loop_cost.WAITED)
    )


@pytest.mark.slow
def test_the_time_of_a_run_is_that_of_its_rows(tmp_path, data_dir):
    config = runs.config(data_dir, train={"steps": 5, "save_every": 2, "log_every": 1})
    found = loop_cost._run(config, loop_cost.WAITED, tmp_path / "x")
    rows = runs.rows(tmp_path / "x" / "metrics.jsonl")[1:]  # the first step is in no rate
    seconds = [config.train.batch_size * config.train.length / r["tokens_per_second"] for r in rows]
    np.testing.assert_allclose(found["seconds"], sum(seconds))
    saved = sum(s * r["save_share"] for s, r in zip(seconds, rows, strict=True))
    np.testing.assert_allclose(found["save_share"], saved / sum(seconds))
    np.testing.assert_allclose(
        found["tokens_per_second"], 4 * config.train.batch_size * config.train.length / sum(seconds)
    )


def test_no_round_and_no_save_are_refused():
    with pytest.raises(ValueError, match="a save and a round"):
        loop_cost.measure(loop_cost.LoopSettings(saves=0))
