"""The bench of rotations beside other implementations."""

import csv
import json

import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.bench import rotation_cost

from support import oracles


def test_what_ours_is_compared_with_turns_as_rope_does():
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 8)).astype(np.float32)
    pos = np.array([[5, 0, 31]])
    freq_h = 10_000.0 ** (-np.arange(0, 8, 2) / 8)
    tables = [jnp.asarray(x) for x in rotation_cost.tables(freq_h, np.arange(32))]
    for name, turn in rotation_cost.rotations_by_name(freq_h).items():
        got = turn(jnp.asarray(x), jnp.asarray(pos), *tables)
        for t, n in np.ndindex(3, 2):
            want = oracles.rope_vector(x[0, t, n], pos[0, t])
            np.testing.assert_allclose(got[0, t, n], want, atol=5e-6, err_msg=name)


@pytest.mark.thorough
def test_the_rotation_bench_keeps_every_row_and_says_what_made_them(tmp_path, forks):
    run = forks.run(
        "scripts/bench.py", "rotation", "--lengths=16", "--rounds=2", f"--out={tmp_path / 'out'}"
    )
    assert run.returncode == 0, run.stderr
    record = json.loads((tmp_path / "out" / "rotation.json").read_text())
    assert len(record["rows"]) == 4 * 2 * 2  # implementations, dtypes, directions
    assert record["settings"]["rounds"] == 2
    assert "jax" in record["versions"]
    assert record["command"].startswith("python scripts/bench.py rotation --lengths=16")
    with open(tmp_path / "out" / "rotation.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(record["rows"])
    assert (tmp_path / "out" / "rotation.png").read_bytes().startswith(b"\x89PNG")
    errors = {row["implementation"]: row["angle_error"] for row in record["rows"]}
    assert errors["ours"] < 1e-6 < 1e-2 < errors["float32 product"]
    assert max(errors["table"], errors["polynomial"]) < 1e-6
