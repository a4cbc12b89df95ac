"""A committed run, drawn at random, is made again by its command: its parameters and rows are the
same bits.

Other versions or another processor round differently, so the test is skipped there and says why.

Slow: a run is trained and evaluated.
"""

import gzip
import json
import os
import random
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from posenc_jax.results.environment import environment
from posenc_jax.training.workdir import provenance

ROOT = Path(__file__).resolve().parents[2]
STUDIES = ("quickstart", "recipes")
TRAINED_AS = ("arm", "seed", "tokens", "corpus_fingerprint", "data_chain", "chain", "state_sha256")


def unlike_here(recorded):
    """What of versions and hardware differs from this machine, in words; "" if nothing does."""
    here = provenance()
    versions = {k: (v, here["versions"].get(k)) for k, v in recorded["versions"].items()}
    unlike = [f"{k} {there}, here {now}" for k, (there, now) in versions.items() if there != now]
    processors = [x["hardware"].partition(" x ")[2] for x in (recorded, here)]
    if processors[0] != processors[1]:
        unlike.append(f"{processors[0]}, here {processors[1]}")
    return "; ".join(unlike)


def made_again(recorded, workdir):
    """The folder of the run that its command trains and evaluates here."""
    unset = {k: v for k, v in os.environ.items() if k not in environment()}
    variables = unset | recorded["environment"]
    variables["JAX_COMPILATION_CACHE_DIR"] = str(workdir / "compiled")
    train = shlex.split(recorded["command"])
    assert (train[0], train[-1][:10]) == ("python", "--workdir="), train
    evaluate = ["python", "scripts/evaluate.py", "--split=dev", ""]
    for command in (train, evaluate):
        command = [sys.executable, *command[1:-1], f"--workdir={workdir / 'run'}"]
        subprocess.run(command, cwd=ROOT, env=variables, check=True, capture_output=True)
    return workdir / "run"


def rows(lines, run):
    """Every row of a run as text, without the fields that only a run folder has."""
    read = [json.loads(line) for line in lines]
    return {
        json.dumps({k: v for k, v in row.items() if k not in ("run", "item", "stamp")})
        for row in read
        if row["run"] == run
    }


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_a_run_drawn_at_random_is_made_again_bit_for_bit(study, tmp_path):
    folder = ROOT / "results" / study
    recorded = random.SystemRandom().choice(json.loads((folder / "runs.json").read_text()))
    print(f"drawn: {recorded['name']} of results/{study}")
    if unlike := unlike_here(recorded):
        pytest.skip(f"{recorded['name']} was made with {unlike}")
    run = made_again(recorded, tmp_path)
    again = json.loads((run / "run.json").read_text())
    assert {k: again[k] for k in TRAINED_AS} == {k: recorded[k] for k in TRAINED_AS}
    with gzip.open(folder / "rows.jsonl.gz", "rt") as file:
        committed = rows(file, recorded["name"])
    lines = (run / "evaluation_dev/rows.jsonl").read_text().splitlines()
    measured = rows(lines, json.loads(lines[0])["run"])
    assert measured
    assert measured <= committed
    metrics = {json.loads(row)["metric"] for row in measured}
    assert {row for row in committed if json.loads(row)["metric"] in metrics} == measured
