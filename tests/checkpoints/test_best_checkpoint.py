"""The checkpoint of lowest dev loss: kept beside the last ones, read when asked for, refused when damaged.

Thorough: checkpoints are saved and damaged in every test; test_manager.py does so by default.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.checkpoints.manager import CheckpointManager
from posenc_jax.results.manifest import Corrupted
from posenc_jax.training.sharding import make_mesh

from support.stored_steps import chosen, steps

pytestmark = pytest.mark.thorough


def saved(workdir, losses, keep=1):
    """Checkpoints of steps 1, 2, ... with the dev losses given; "none" where nothing was measured."""
    with CheckpointManager(workdir, keep) as checkpoints:
        for step, loss in enumerate(losses, 1):
            state = {
                "params": {
                    "up_DF": jax.device_put(
                        np.full(4, step, np.float32), jax.NamedSharding(make_mesh(1, 1), jax.P())
                    )
                }
            }
            checkpoints.save(step, state, {} if loss == "none" else {"dev_loss": loss})
    return workdir


def damage(workdir, step):
    next((workdir / "checkpoints" / str(step) / "state").rglob("manifest.ocdbt")).unlink()


@pytest.mark.parametrize(
    ("losses", "keep", "want"),
    [
        ((3.0, 2.0, 2.5, 2.6), 1, [2, 4]),
        ((3.0, 2.0, 2.5, 2.6), 2, [2, 3, 4]),
        ((3.0, 2.5, 2.0), 1, [3]),
        ((3.0, 2.0, 2.0, 2.0), 1, [2, 4]),
        ((math.nan, 3.0, math.nan, None, "none", -math.inf, "none"), 1, [2, 7]),
        (("none", None, math.nan), 1, [3]),
    ],
)
def test_the_lowest_dev_loss_outlives_retention_and_no_number_is_never_lowest(
    tmp_path, losses, keep, want
):
    assert steps(saved(tmp_path, losses, keep)) == want


def test_the_best_is_kept_and_found_by_a_process_that_did_not_save_it(tmp_path):
    workdir = saved(tmp_path, (3.0, 2.0, 2.5))
    assert steps(workdir) == [2, 3]
    with CheckpointManager(workdir, 1) as checkpoints:
        assert checkpoints.latest() == 3
        checkpoints.save(4, {"params": {"up_DF": jnp.zeros(4)}}, {"dev_loss": 2.2})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4]
        checkpoints.save(5, {"params": {"up_DF": jnp.zeros(4)}}, {"dev_loss": 1.9})
    assert steps(workdir) == [5]


def test_a_reader_gets_what_it_names_or_a_line_that_says_what_is_there(tmp_path):
    workdir = saved(tmp_path, (2.0, "none", 2.5))
    assert [chosen(workdir, which) for which in ("last", "best", "1", "3")] == [3, 1, 1, 3]
    for which, message in (
        ("2", "no checkpoint in .* is 2; steps there: 1, 3"),
        ("01", "is 01"),
        ("bset", "last, best or the number of a step, not 'bset'"),
        ("-1", "not '-1'"),
    ):
        with pytest.raises(ValueError, match=message):
            chosen(workdir, which)
    with pytest.raises(ValueError, match=r"has a dev loss .config\.train\.dev_every.*there: 2"):
        chosen(saved(tmp_path / "other", ("none", "none")), "best")


def test_a_damaged_best_is_refused_by_a_reader_and_set_aside_by_the_next_leg(tmp_path, capsys):
    workdir = saved(tmp_path, (2.0, 2.2, 2.5, 2.4), keep=3)
    assert steps(workdir) == [1, 2, 3, 4]
    damage(workdir, 1)
    with pytest.raises(Corrupted, match=r"checkpoints/1 is damaged: .*is missing; run train\.py"):
        chosen(workdir, "best")
    with pytest.raises(Corrupted, match="checkpoints/1 is damaged"):
        chosen(workdir, "1")
    assert chosen(workdir, "last") == 4
    assert steps(workdir) == [1, 2, 3, 4]
    with CheckpointManager(workdir, 1) as checkpoints:
        assert checkpoints.latest() == 4
        assert "it is now 1.damaged; step 2 is the best undamaged one" in capsys.readouterr().err
        checkpoints.save(5, {"params": {"up_DF": jnp.zeros(4)}}, {"dev_loss": 2.3})
    assert steps(workdir) == [2, 5]
    assert chosen(workdir, "best") == 2


def test_the_best_serves_where_every_later_one_is_damaged(tmp_path, capsys):
    workdir = saved(tmp_path, (2.0, 2.2, 2.5))
    damage(workdir, 3)
    with CheckpointManager(workdir, 1) as checkpoints:
        assert checkpoints.latest() == 1
    assert "step 1 is the last undamaged one" in capsys.readouterr().err
