"""Faults on purpose: the table fails when a check is missing, and small runs survive the rest.

Ten kills of forked trainers and one of a real one in the default run; ten of every fault are slow.
"""

import dataclasses
import gzip
import hashlib
import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults import bad_inputs, corrupted_checkpoints, disk, kills, repeated_kills
from faults.small_run import STEPS, SmallRun, record
from faults.suite import FAULTS, chosen
from faults.trial import Trial, failed, stored, table

from posenc_jax.checkpoints import manifest
from posenc_jax.checkpoints.hash_chain import START, HashChain, _batch_fingerprints
from posenc_jax.training.config import from_sections
from posenc_jax.training.sharding import make_mesh
from posenc_jax.training.workdir import check_owner, check_same_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One undisturbed run of 30 steps, which all the others are compared with."""
    with SmallRun(tmp_path_factory.mktemp("faults")) as small:
        small.reference()
        yield small


def injected(fault, run, trials, seed=0):
    done = list(fault(run, trials, random.Random(seed)))
    if done[0].skipped:
        pytest.skip(done[0].skipped)
    assert failed(done) == []
    return done


@pytest.mark.thorough
@pytest.mark.parametrize(
    "fault",
    [
        corrupted_checkpoints.flipped,
        corrupted_checkpoints.truncated,
        corrupted_checkpoints.deleted,
        corrupted_checkpoints.hostile,
    ],
)
def test_damage_of_every_kind_to_every_file_is_seen(run, fault):
    done = injected(fault, run, 40)
    assert len(done) == 40
    assert len({trial.detail.split(":")[0] for trial in done}) > 7  # files by their names


def test_the_table_fails_when_the_digests_are_not_compared(run, monkeypatch):
    monkeypatch.setattr(manifest, "_compare", lambda *args: None)
    done = list(corrupted_checkpoints.flipped(run, 40, random.Random(0)))
    assert len(failed(done)) > 20
    assert "FAILED" in table(done)


def test_a_run_is_unlike_the_undisturbed_one_when_a_single_leaf_is(run, tmp_path):
    shutil.copytree(run.folder / "undisturbed", tmp_path / "x")
    assert run.wrong(tmp_path / "x") == 0
    changed = record(tmp_path / "x")
    changed["state_sha256"]["step"] = "0" * 64
    (tmp_path / "x" / "run.json").write_text(json.dumps(changed))
    assert run.wrong(tmp_path / "x") == 1
    (tmp_path / "x" / "run.json").unlink()
    assert run.wrong(tmp_path / "x") > 10


@pytest.mark.thorough
def test_ten_kills_at_any_moment_leave_the_bits_of_the_undisturbed_run(run):
    done = injected(repeated_kills.killed_in_chains, run, 10)
    assert len(done) == 10
    assert len({trial.fault for trial in done}) > 2  # moments of several kinds


@pytest.mark.thorough
def test_a_real_trainer_that_is_killed_ends_bit_for_bit_as_one_that_was_left_alone(run):
    workdir = run.fresh("killed")
    process = run.start(workdir)
    kills.await_seen(process, lambda w: kills.last_logged(w) >= 12, workdir, 0.001)
    process.kill()
    process.communicate()
    trial = kills._resumed(run, workdir, "kill", "")
    assert (trial.wrong, trial.undetected) == (0, False)
    assert failed([trial]) == []


def test_a_forked_trainer_is_the_run_that_a_started_one_is(run):
    workdir = run.fresh("forked")
    out, err = run.fork(workdir).communicate()
    assert run.wrong(workdir) == 0
    assert "attention over 32 tokens" in out
    assert "Traceback" not in err


def test_with_its_last_checkpoint_damaged_a_run_goes_on_from_the_one_before(run):
    (trial,) = injected(corrupted_checkpoints.gone_on, run, 1)
    assert trial.lost_steps == 5
    assert f"checkpoints/{STEPS} is damaged" in trial.said


def test_with_all_damaged_a_trainer_stops_with_the_remedy(run):
    (trial,) = injected(corrupted_checkpoints.all_damaged, run, 1)
    assert "bring one back from a copy" in trial.said


def test_a_folder_that_may_not_be_written_is_one_line(run):
    (trial,) = injected(disk.read_only, run, 1)
    assert "Read-only file system" in trial.said


def test_typed_settings_of_random_value_are_refused_by_real_trainers_in_seconds(run):
    done = injected(bad_inputs.settings_typed, run, 15)
    refused = [trial for trial in done if trial.said]
    assert len(refused) > 7
    assert max(trial.seconds for trial in refused) < 5  # of the CPU, imports left out


def test_500_configs_of_random_values_are_read_or_refused_by_name(run):
    done = injected(bad_inputs.settings, run, 500)
    assert 300 < sum(bool(trial.said) for trial in done) < 500  # most are nonsense, some are not


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAULTS if name not in ("settings", "flip")])
def test_ten_of_every_fault(run, name):
    injected(FAULTS[name], run, 1 if name == "workers" else 10, seed=1)  # six in one, minutes each


def test_a_table_counts_trials_and_says_what_did_not_hold():
    rows = [
        Trial("kill", lost_steps=3), Trial("kill", wrong=2), Trial("flip", seconds=0.16, peak_mb=301.2), Trial("stop", lost_steps=6),
        Trial("cut", lost_steps=4), Trial("cut", lost_steps=10, save_cut=True),
        Trial("late", lost_steps=11, save_cut=True), Trial("disk full", skipped="no mount"),
    ]  # fmt: skip
    assert table(rows).splitlines()[2:] == [
        "| kill | 2 | 1 | 0 | 3 | - | - | - | FAILED |",
        "| flip | 1 | 0 | 0 | 0 | - | 0.2 | 301 | held |",
        "| stop | 1 | 0 | 0 | 6 | - | - | - | FAILED |",
        "| cut | 2 | 0 | 0 | 4 | 10 | - | - | held |",
        "| late | 1 | 0 | 0 | - | 11 | - | - | FAILED |",
        "| disk full | 0 | - | - | - | - | - | - | skipped: no mount |",
    ]
    assert failed(rows) == [rows[1], rows[3], rows[6]]
    with pytest.raises(ValueError, match="--only=flp is no fault; did you mean 'flip"):
        chosen(["flp"])


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_stored_rows_are_the_trials_again(tmp_path, name):
    rows = [Trial("kill", "x", lost_steps=3, save_cut=True), Trial("flip", seconds=0.5)]
    text = "".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows)
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())  # fmt: skip
    assert stored(tmp_path / name) == rows
    (tmp_path / "x").write_text('{"faults": 1}\n')
    with pytest.raises(ValueError, match="holds no trials"):
        stored(tmp_path / "x")


def batch_on(mesh, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (1, 8, 16), dtype=np.int32)
    return {"tokens_BT": jax.device_put(x, jax.NamedSharding(mesh, jax.P(None, "data", None)))}


def links(mesh, asked, losses):
    """Links after the steps in `asked`, of a chain that is handed on at every one of them."""
    stored, found, chain = None, [], HashChain(None)
    for step, loss in enumerate(losses, 1):
        chain.add(step, batch_on(mesh, step), {"loss": jnp.float32(loss), "grad_norm": jnp.float32(1)})  # fmt: skip
        if step in asked:
            stored = chain.through(step)
            found.append(stored)
            chain = HashChain(stored)
    return found


def test_a_chain_handed_on_is_the_chain_of_one_run_and_sees_one_changed_bit():
    mesh, losses = make_mesh(1, 1), [5.0, 4.0, 3.0, 2.0]
    whole = links(mesh, (4,), losses)[-1]
    assert links(mesh, (1, 3, 4), losses)[-1] == whole
    other = links(mesh, (4,), [5.0, float(np.nextafter(np.float32(4), np.float32(9))), 3.0, 2.0])
    assert other[-1]["chain"] != whole["chain"]
    assert other[-1]["data_chain"] == whole["data_chain"]
    assert len({links(mesh, (n,), losses)[-1]["chain"] for n in (1, 2, 3, 4)} | {START}) == 5


def test_the_chain_of_the_data_is_the_same_on_every_mesh():
    found = {links(make_mesh(d, m), (3,), [1.0, 2.0, 3.0])[-1]["data_chain"] for d, m in ((1, 1), (8, 1), (2, 4))}  # fmt: skip
    assert len(found) == 1


def test_a_link_is_sha256_of_the_one_before_and_the_bits_of_the_step():
    batch = batch_on(make_mesh(1, 1), 1)
    words = np.asarray(_batch_fingerprints(batch)).tobytes()
    before = bytes.fromhex(START)
    bits = np.float32(5).tobytes() + np.float32(1).tobytes()
    assert links(make_mesh(1, 1), (1,), [5.0])[-1] == {
        "chain": hashlib.sha256(before + words + bits).hexdigest(),
        "data_chain": hashlib.sha256(before + words).hexdigest(),
    }


OTHERS = [
    ({"optimizer": {"clip_norm": 2.0}}, {}, r"optimizer.clip_norm: 1.0 here, 2.0 there"),
    ({"train": {"seed": 1}}, {}, r"train.seed: 0 here, 1 there"),
    ({"model": {"dtype": "bfloat16"}}, {}, r"model.dtype: 'float32' here, 'bfloat16' there"),
    ({}, {"corpus_fingerprint": "b" * 64}, r"corpus_fingerprint: aaaaaaaaaaaa here, bbbbbbbbbbbb there"),
    ({}, {"tokenizer_fingerprint": "b" * 64}, r"tokenizer_fingerprint: aaaaaaaaaaaa here, bbbbbbbbbbbb there"),
]  # fmt: skip


@pytest.mark.parametrize(("sections", "prints", "said"), OTHERS)
def test_a_checkpoint_of_another_config_seed_dtype_text_or_tokenizer_is_refused(
    tmp_path, sections, prints, said
):
    def owner(sections, **prints):
        same = {"corpus_fingerprint": "a" * 64, "tokenizer_fingerprint": "a" * 64}
        return {"config": json.loads(from_sections(sections).to_json()), **same, **prints}

    check_owner(tmp_path, 8, owner({}), owner({}))
    with pytest.raises(ValueError, match=rf"checkpoint 8 .* another run \({said}"):
        check_owner(tmp_path, 8, owner({}), owner(sections, **prints))
    if sections:
        (tmp_path / "config.json").write_text(from_sections(sections).to_json())
        with pytest.raises(ValueError, match=said):
            check_same_config(tmp_path, from_sections({}))
