"""The bench of attention: candidates, parity, windows, what is left out."""

import importlib.machinery
import importlib.util

import jax
import pytest
from posenc_jax.bench import attention_cost, pytorch
from posenc_jax.bench.timing import Pace


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("encodings", "--schemes=alibi;ropee"), "did you mean 'rope'"),
        (("rotation", "--schemes=rope"), "--schemes is not read by rotation"),
        (("rotations",), "step, evaluation, loop, decoding, not 'rotations'"),
    ],
)
def test_wrong_input_is_one_line_exit_code_two_and_nothing_written(
    tmp_path, forks, arguments, message
):
    run = forks.run("scripts/bench.py", *arguments, f"--out={tmp_path / 'out'}")
    assert run.returncode == 2, run.stdout + run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
    assert message in run.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.thorough
def test_the_attention_bench_shows_parity_first_and_keeps_every_candidate():
    outcome = attention_cost.measure(
        attention_cost.AttentionBenchSettings(
            lengths=(32,), directions=("forward",), heads=2, head_dim=8, rounds=2
        )
    )
    names = {row["implementation"] for row in outcome.rows}
    assert {"ours", "ours, nothing cut", "ours, dense", "jax.nn, dense ALiBi"} <= names
    for row in outcome.rows:
        assert (row["difference"] is None) == ("no bias" in row["implementation"])
        assert row["difference"] is None or row["difference"] < 1e-5
        assert row["peak_mb"] is None or row["peak_mb"] >= 0
        assert (row["planned_mb"] is None) == row["implementation"].startswith("torch")
    result = 32 * 2 * 8 * 4 / 1e6
    assert all(row["planned_mb"] >= result for row in outcome.rows if row["planned_mb"])
    if importlib.util.find_spec("torch") is None:
        assert any("torch" in line for line in outcome.settings["skipped"])
    with pytest.raises(ValueError, match="directions must be some of"):
        attention_cost.measure(attention_cost.AttentionBenchSettings(directions=("sideways",)))
    with pytest.raises(ValueError, match="dtype must be one of"):
        attention_cost.measure(attention_cost.AttentionBenchSettings(dtype="float16"))


@pytest.mark.slow
def test_windows_are_timed_beside_each_other_and_compared_with_their_own_definition(monkeypatch):
    monkeypatch.setattr(attention_cost, "WINDOW", 5)
    outcome = attention_cost.measure(
        attention_cost.AttentionBenchSettings(
            lengths=(32,),
            directions=("forward",),
            heads=2,
            head_dim=8,
            rounds=1,
            candidates=("ours, window", "jax.nn, window", "ours"),
        )
    )
    rows = {row["implementation"]: row for row in outcome.rows}
    for name in ("ours, window", "jax.nn, window"):
        assert rows[name]["difference_to"] == "ours, dense, window"
        assert rows[name]["difference"] < 1e-5
    assert rows["ours"]["difference_to"] == "ours, dense"


@pytest.mark.slow
def test_ratios_are_to_the_fold_where_there_is_one_and_rows_of_a_batch_follow(monkeypatch):
    monkeypatch.setattr(attention_cost, "KERNELS", {"splash": "cpu"})  # emulated
    monkeypatch.setattr(pytorch, "installed", lambda: False)
    outcome = attention_cost.measure(
        attention_cost.AttentionBenchSettings(
            lengths=(32,),
            batch=2,
            directions=("forward",),
            heads=2,
            head_dim=8,
            rounds=1,
            dtype="bfloat16",
        )
    )
    rows = {row["implementation"]: row for row in outcome.rows}
    assert {row["baseline"] for row in outcome.rows} == {"ours, folded into splash"}
    assert rows["ours, folded into splash"]["ratio"] == 1
    assert rows["ours, folded into splash"]["difference"] < 0.03
    assert rows["ours, folded into splash"]["difference_to"] == "ours, dense"
    assert "relative to ours, folded into splash in the same round" in outcome.caption
    assert {row["batch"] for row in outcome.rows} == {2}
    assert all(row["planned_mb"] >= 2 * 32 * 2 * 8 * 2 / 1e6 for row in outcome.rows)
    tensors = attention_cost._tensors(
        attention_cost.AttentionBenchSettings(batch=2, heads=2, head_dim=8, dtype="bfloat16"), 32
    )
    run = attention_cost._ours(tensors, True, True)["ours"]()
    assert [x.shape for x in run()] == [(2, 32, 2, 8)] * 4


@pytest.mark.thorough
def test_on_a_gpu_what_fails_is_listed_and_each_peak_says_who_counted(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # where nothing of cuDNN compiles
    outcome = attention_cost.measure(
        attention_cost.AttentionBenchSettings(
            lengths=(32,),
            directions=("forward+backward",),
            heads=2,
            head_dim=8,
            rounds=1,
            dtype="bfloat16",
        )
    )
    rows = {row["implementation"]: row for row in outcome.rows}
    skipped = "\n".join(outcome.settings["skipped"])
    for name in ("ours, folded into cudnn", "jax.nn, cuDNN, no bias", "jax.nn, cuDNN, dense ALiBi"):
        assert name not in rows
        assert f"{name}, forward+backward, 32 tokens: " in skipped
    assert {row["baseline"] for row in outcome.rows} == {"ours, flash"}  # emulated
    assert {"ours, flash, nothing cut", "ours, flash, no bias"} <= set(rows)
    assert rows["ours, flash"]["difference"] < 0.03
    for name, row in rows.items():
        assert row["peak_source"] == ("system" if name.startswith("torch") else "compiler")
    assert rows["ours"]["peak_mb"] == rows["ours"]["planned_mb"] > 0
    bias = 2 * 32 * 32 * 2 / 1e6
    dense = rows["jax.nn, dense ALiBi"]
    assert dense["peak_mb"] == pytest.approx(dense["planned_mb"] + bias)


@pytest.mark.thorough
def test_the_attention_bench_measures_the_candidates_that_are_named():
    how = {"lengths": (40,), "directions": ("forward",), "heads": 3, "head_dim": 24, "rounds": 1}
    outcome = attention_cost.measure(
        attention_cost.AttentionBenchSettings(
            **how, candidates=("ours, nothing cut", "jax.nn, no bias")
        )
    )
    assert [row["implementation"] for row in outcome.rows] == [
        "ours, nothing cut",
        "jax.nn, no bias",
    ]
    assert {row["baseline"] for row in outcome.rows} == {"ours, nothing cut"}
    assert {(row["heads"], row["head_dim"]) for row in outcome.rows} == {(3, 24)}
    assert outcome.rows[0]["difference_to"] == "ours, dense"  # which was not timed
    assert 0 < outcome.rows[0]["difference"] < 1e-5
    with pytest.raises(ValueError, match=r"no candidate 'ours, flesh' here; there are .*ours, no"):
        attention_cost.measure(
            attention_cost.AttentionBenchSettings(**how, candidates=("ours, flesh",))
        )


@pytest.mark.slow
def test_candidates_that_are_not_there_at_every_length_are_left_out_where_they_are_not(monkeypatch):
    monkeypatch.setattr(attention_cost, "DENSE_LIMIT", 2 * 40**2)
    monkeypatch.setattr(pytorch, "installed", lambda: False)
    how = {"directions": ("forward",), "heads": 2, "head_dim": 8, "rounds": 1}
    named = "ours, dense", "jax.nn, no bias"
    outcome = attention_cost.measure(
        attention_cost.AttentionBenchSettings(**how, lengths=(32, 48), candidates=named)
    )
    assert [(row["implementation"], row["length"]) for row in outcome.rows] == [
        (name, 32) for name in named
    ]
    why = "forward, 48 tokens: all its logits are too many"
    assert outcome.settings["skipped"] == [f"{name}, {why}" for name in sorted(named)]
    with pytest.raises(ValueError, match=f"nothing to time: jax.nn, no bias, {why}"):
        attention_cost.measure(
            attention_cost.AttentionBenchSettings(**how, lengths=(48,), candidates=named[1:])
        )


@pytest.mark.slow
def test_the_attention_bench_in_bfloat16_is_right_to_its_rounding():
    outcome = attention_cost.measure(
        attention_cost.AttentionBenchSettings(
            lengths=(32,),
            directions=("forward+backward",),
            heads=2,
            head_dim=8,
            rounds=1,
            dtype="bfloat16",
        )
    )
    rows = {row["implementation"]: row for row in outcome.rows}
    assert {"ours", "jax.nn, dense ALiBi"} <= set(rows)
    for row in rows.values():
        assert row["difference"] is None or row["difference"] < 0.03
    assert rows["ours"]["dtype"] == "bfloat16"


def test_a_candidate_is_left_out_once_it_would_take_too_long():
    pace = Pace(patience=60)
    pace.record("dense", 1024, 4.0)
    assert pace.left_out(2048, ["dense", "new"]) == {}
    assert "about 64 s" in pace.left_out(4096, ["dense"])["dense"]  # quadratic until it is known
    pace.record("dense", 2048, 8.0)  # linear, as it turns out
    assert pace.left_out(4096, ["dense"]) == {}
    assert "about 64 s" in pace.left_out(16_384, ["dense"])["dense"]
