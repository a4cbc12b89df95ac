"""The benches: who is compared with whom, and that a table leaves nothing out."""

import csv
import importlib.machinery
import importlib.util
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
from support import oracles
import pytest

from posenc_jax.bench import (
    attention_cost,
    encoding_cost,
    evaluation_cost,
    pytorch,
    rotation_cost,
    step_cost,
)
from posenc_jax.bench.peak_memory import Compiled, peak, peak_bytes, planned_bytes
from posenc_jax.bench.timing import LONGEST_BURST, WARM_UPS, Pace, interleaved, spread
from posenc_jax.encodings import REGISTRY, Window, parse
from posenc_jax.encodings.bias_sum import BiasSum
from posenc_jax.encodings.pope import Pope
from posenc_jax.encodings.scheme_presets import PRESETS
from posenc_jax.encodings.temperature import SSMax
from posenc_jax.training.config import RunConfig
from posenc_jax.training.config_sections import ModelSection, TrainSection


class Machine:
    """A clock that only candidates move, on a machine that halves its speed with every round."""

    def __init__(self, costs):
        self.costs, self.now, self.calls = costs, 0.0, []

    def clock(self):
        return self.now

    def candidates(self):
        return {name: lambda name=name: self.run(name) for name in self.costs}

    def run(self, name):
        rounds = len(self.calls) // len(self.costs) - WARM_UPS
        self.calls.append(name)
        return Pending(self, self.costs[name] * (2.0**rounds if rounds >= 0 else 1000.0))


class Pending:
    """A result that takes its time only when it is waited for, as an accelerator's does."""

    def __init__(self, machine, seconds):
        self.machine, self.seconds = machine, seconds

    def block_until_ready(self):
        self.machine.now += self.seconds
        return self


def timed(seed=0, rounds=6):
    machine = Machine({"nope": 2.0, "rope": 3.0, "alibi": 5.0})
    seconds = interleaved(machine.candidates(), rounds=rounds, seed=seed, clock=machine.clock)
    return machine.calls[WARM_UPS * 3 :], seconds


def test_every_round_runs_every_candidate_once_in_an_order_of_its_own():
    calls, _ = timed()
    orders = [tuple(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert len(orders) == 6
    assert all(sorted(order) == ["alibi", "nope", "rope"] for order in orders)
    assert len(set(orders)) > 1
    assert timed()[0] == calls
    assert timed(seed=1)[0] != calls


def test_a_run_is_over_when_its_arrays_are_there_and_warm_ups_do_not_count():
    _, seconds = timed(rounds=3)
    np.testing.assert_array_equal(seconds["rope"], [3, 6, 12])


def test_the_ratio_holds_while_the_machine_slows_down():
    _, seconds = timed()
    row = spread(seconds["alibi"], seconds["nope"])
    assert (row["ratio_q1"], row["ratio"], row["ratio_q3"]) == (2.5, 2.5, 2.5)
    assert row["min_ms"] == 5000
    assert row["q3_ms"] > row["median_ms"] > row["q1_ms"] > row["min_ms"]


def test_a_ratio_is_taken_in_every_round_and_not_of_the_medians():
    row = spread(np.array([1.0, 2.0, 30.0]), np.array([2.0, 1.0, 10.0]))
    assert row["ratio"] == 2  # of 1/2, 2 and 3
    assert (row["ratio_q1"], row["ratio_q3"]) == (1.25, 2.5)
    assert row["median_ms"] == 2000  # both medians are 2 s


def test_nothing_to_time_is_refused():
    with pytest.raises(ValueError, match="a candidate and a round"):
        interleaved({}, rounds=3, seed=0)
    with pytest.raises(ValueError, match="a candidate and a round"):
        interleaved({"nope": lambda: None}, rounds=0, seed=0)


class Device:
    """A device that takes runs in order, and a clock that moves only while it is waited for."""

    ROUND_TRIP = 1e-4

    def __init__(self):
        self.now, self.queued, self.calls, self.alive, self.most_alive = 0.0, 0.0, [], 0, 0

    def candidate(self, name, seconds):
        def run():
            self.calls.append(name)
            self.queued += seconds
            return Held(self)

        return run


class Held:
    def __init__(self, device):
        self.device = device
        device.alive += 1
        device.most_alive = max(device.most_alive, device.alive)

    def __del__(self):
        self.device.alive -= 1

    def block_until_ready(self):
        self.device.now += self.device.queued + Device.ROUND_TRIP
        self.device.queued = 0.0


def test_an_accelerator_is_given_bursts_and_the_time_is_that_of_one_run():
    device = Device()
    costs = {"short": 2e-5, "middle": 9.9e-3, "long": 1.0}
    seconds = interleaved(
        {name: device.candidate(name, cost) for name, cost in costs.items()},
        rounds=3, seed=0, clock=lambda: device.now, burst=0.05,
    )  # fmt: skip
    bursts = {"short": LONGEST_BURST, "middle": 5, "long": 1}
    for name, count in bursts.items():
        assert device.calls.count(name) == WARM_UPS + 1 + 3 * count
        np.testing.assert_allclose(seconds[name], costs[name] + Device.ROUND_TRIP / count)
    assert device.most_alive == 1
    assert device.queued == 0


def test_on_cpu_every_burst_is_one_run():
    device = Device()
    interleaved({"a": device.candidate("a", 1e-5)}, rounds=3, seed=0, clock=lambda: device.now)
    assert len(device.calls) == WARM_UPS + 3


def test_the_cost_table_names_every_registered_encoding_alone():
    alone = [parse(line) for line in encoding_cost.all_schemes()[: len(REGISTRY)]]
    named = []
    for scheme in alone:
        inside = [part for heads in scheme.layers[0] for part in heads.parts()]
        named += [type(part) for part in (*inside, *([scheme.absolute] if scheme.absolute else []))]
    assert named == list(REGISTRY.values())
    assert len(set(encoding_cost.all_schemes())) == len(encoding_cost.all_schemes())


def test_the_cost_table_has_one_line_for_each_scheme_and_one_for_nope(monkeypatch):
    shape = {"num_layers": 1, "model_dim": 8, "num_heads": 2, "head_dim": 4}
    monkeypatch.setattr(encoding_cost, "SHAPE", shape)
    outcome = encoding_cost.measure(
        encoding_cost.EncodingSettings(
            schemes=("slopes", "slopes", "nope"), train_length=8, batch=1, rounds=2
        )
    )
    lines = outcome.table.splitlines()
    assert sorted(line.split()[0] for line in lines[1:]) == ["nope", "slopes"]
    for direction in ("forward", "forward+backward"):
        rows = {r["scheme"]: r for r in outcome.rows if r["direction"] == direction}
        assert len(rows) == 2
        assert rows["nope"]["ratio"] == rows["nope"]["temp_ratio"] == 1
        assert rows["slopes"]["parameters_added"] == 2
        assert rows["nope"]["parameters_added"] == 0
        assert all(r["min_ms"] > 0 and r["temp_mb"] > 0 for r in rows.values())


def test_the_cost_table_has_the_switches_of_the_model_as_rows_beside_nope(monkeypatch):
    shape = {"num_layers": 1, "model_dim": 8, "num_heads": 2, "head_dim": 4}
    monkeypatch.setattr(encoding_cost, "SHAPE", shape)
    switched = [line for line in encoding_cost.all_schemes() if " with " in line]
    assert switched == ["nope with output_gate", "nope with sink_logit", "nope with token_shift"]
    both = "alibi with sink_logit+token_shift"
    outcome = encoding_cost.measure(
        encoding_cost.EncodingSettings(schemes=(*switched, both), train_length=8, batch=1, rounds=1)
    )
    added = {row["scheme"]: row["parameters_added"] for row in outcome.rows}
    assert added == {"nope": 0, **dict(zip(switched, (8 * 2 * 4, 2, 4 * 2), strict=True)), both: 2 + 4 * 2}  # fmt: skip
    assert {row["scheme"] for row in outcome.rows} == {line.split("  ")[0] for line in outcome.table.splitlines()[1:]}  # fmt: skip
    with pytest.raises(ValueError, match="'nope with token_shfit': no switch 'token_shfit'; did you mean 'token_shift'"):  # fmt: skip
        encoding_cost.measure(
            encoding_cost.EncodingSettings(
                schemes=("nope with token_shfit",), train_length=8, batch=1, rounds=1
            )
        )


def test_the_cost_table_has_every_kind_of_hybrid_that_a_scheme_can_be():
    groups = [
        group for line in encoding_cost.HYBRIDS for layer in parse(line).layers for group in layer
    ]
    there = {type(p) for group in groups for p in group.parts()} | {type(g.bias) for g in groups}
    assert {BiasSum, Pope, SSMax, Window} <= there
    assert PRESETS["nape"] in encoding_cost.HYBRIDS


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("encodings", "--schemes=alibi;ropee"), "did you mean 'rope'"),
        (("rotation", "--schemes=rope"), "--schemes is not read by rotation"),
        (
            ("rotations",),
            "name a bench first: encodings, rotation, attention, step, evaluation, loop, not 'rotations'",
        ),
    ],
)
def test_wrong_input_is_one_line_exit_code_two_and_nothing_written(tmp_path, forks, arguments, message):  # fmt: skip
    run = forks.run("scripts/bench.py", *arguments, f"--out={tmp_path / 'out'}")
    assert run.returncode == 2, run.stdout + run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
    assert message in run.stderr
    assert not (tmp_path / "out").exists()


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


def test_windows_are_timed_beside_each_other_and_compared_with_their_own_definition(monkeypatch):
    monkeypatch.setattr(attention_cost, "WINDOW", 5)
    outcome = attention_cost.measure(attention_cost.AttentionBenchSettings(
        lengths=(32,), directions=("forward",), heads=2, head_dim=8, rounds=1,
        candidates=("ours, window", "jax.nn, window", "ours"),
    ))  # fmt: skip
    rows = {row["implementation"]: row for row in outcome.rows}
    for name in ("ours, window", "jax.nn, window"):
        assert rows[name]["difference_to"] == "ours, dense, window"
        assert rows[name]["difference"] < 1e-5
    assert rows["ours"]["difference_to"] == "ours, dense"


def test_ratios_are_to_the_fold_where_there_is_one_and_rows_of_a_batch_follow(monkeypatch):
    monkeypatch.setattr(attention_cost, "KERNELS", {"splash": "cpu"})  # emulated
    monkeypatch.setattr(pytorch, "installed", lambda: False)
    outcome = attention_cost.measure(attention_cost.AttentionBenchSettings(
        lengths=(32,), batch=2, directions=("forward",), heads=2, head_dim=8, rounds=1, dtype="bfloat16"
    ))  # fmt: skip
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
    outcome = attention_cost.measure(attention_cost.AttentionBenchSettings(
        lengths=(32,), directions=("forward+backward",), heads=2, head_dim=8, rounds=1, dtype="bfloat16"
    ))  # fmt: skip
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


def test_the_attention_bench_measures_the_candidates_that_are_named():
    how = {"lengths": (40,), "directions": ("forward",), "heads": 3, "head_dim": 24, "rounds": 1}
    outcome = attention_cost.measure(
        attention_cost.AttentionBenchSettings(
            **how, candidates=("ours, nothing cut", "jax.nn, no bias")
        )
    )
    assert [row["implementation"] for row in outcome.rows] == ["ours, nothing cut", "jax.nn, no bias"]  # fmt: skip
    assert {row["baseline"] for row in outcome.rows} == {"ours, nothing cut"}
    assert {(row["heads"], row["head_dim"]) for row in outcome.rows} == {(3, 24)}
    assert outcome.rows[0]["difference_to"] == "ours, dense"  # which was not timed
    assert 0 < outcome.rows[0]["difference"] < 1e-5
    with pytest.raises(ValueError, match=r"no candidate 'ours, flesh' here; there are .*ours, no"):
        attention_cost.measure(
            attention_cost.AttentionBenchSettings(**how, candidates=("ours, flesh",))
        )


def test_candidates_that_are_not_there_at_every_length_are_left_out_where_they_are_not(monkeypatch):
    monkeypatch.setattr(attention_cost, "DENSE_LIMIT", 2 * 40**2)
    monkeypatch.setattr(pytorch, "installed", lambda: False)
    how = {"directions": ("forward",), "heads": 2, "head_dim": 8, "rounds": 1}
    named = "ours, dense", "jax.nn, no bias"
    outcome = attention_cost.measure(
        attention_cost.AttentionBenchSettings(**how, lengths=(32, 48), candidates=named)
    )
    assert [(row["implementation"], row["length"]) for row in outcome.rows] == [(name, 32) for name in named]  # fmt: skip
    why = "forward, 48 tokens: all its logits are too many"
    assert outcome.settings["skipped"] == [f"{name}, {why}" for name in sorted(named)]
    with pytest.raises(ValueError, match=f"nothing to time: jax.nn, no bias, {why}"):
        attention_cost.measure(
            attention_cost.AttentionBenchSettings(**how, lengths=(48,), candidates=named[1:])
        )


def test_the_attention_bench_in_bfloat16_is_right_to_its_rounding():
    outcome = attention_cost.measure(attention_cost.AttentionBenchSettings(
        lengths=(32,), directions=("forward+backward",), heads=2, head_dim=8, rounds=1, dtype="bfloat16"
    ))  # fmt: skip
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc")
def test_peak_memory_is_what_a_run_takes_and_gives_back():
    def run():
        return np.ones(8_000_000).sum()

    np.ones(12_000_000).sum()  # freed before, and not counted
    held = np.ones(4_000_000)  # held all the time, and not counted
    assert 60e6 < peak_bytes(run) < 72e6
    assert peak_bytes(lambda: None) < 4e6
    assert held.sum() == 4_000_000


def test_pytorchs_memory_on_a_gpu_is_what_its_allocator_counted_beyond_what_was_held(monkeypatch):
    counted = {"now": 100, "most": 900}

    def run():
        counted["most"] = max(counted["most"], counted["now"] + 40)
        return Waited()

    class Waited:
        def block_until_ready(self):
            counted["waited"] = True

    torch = types.ModuleType("torch")
    torch.__spec__ = importlib.machinery.ModuleSpec("torch", None)
    torch.cuda = types.SimpleNamespace(
        is_available=lambda: True,
        synchronize=lambda: None,
        reset_peak_memory_stats=lambda: counted.update(most=counted["now"]),
        memory_allocated=lambda: counted["now"],
        max_memory_allocated=lambda: counted["most"],
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert pytorch.device() == "cpu"  # with JAX, whatever the machine has
    assert peak(run)[1] == "system"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert pytorch.device() == "cuda"
    assert peak(run) == (40, "torch")
    assert counted["waited"]
    ours = Compiled(lambda x: (x + 1,), (jnp.ones(1000),))
    assert peak(ours) == (4000, "compiler")


def test_a_result_in_memory_that_was_given_away_is_not_planned_twice():
    x = jnp.ones(1000)
    given, kept = (jax.jit(lambda x: x + 1, donate_argnums=n) for n in ((0,), ()))
    assert planned_bytes(given.lower(x).compile()) == 0
    assert planned_bytes(kept.lower(x).compile()) == 4000


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the peers' own imports
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_step_under_every_scheme_is_timed_beside_nope_and_twins_start_from_its_losses(
    monkeypatch,
):
    monkeypatch.setattr(step_cost, "HEAD_DIM", 8)
    outcome = step_cost.measure(step_cost.StepSettings(
        schemes=("rope+alibi",), train_length=16, batch=2, layers=1, model_dim=16, rounds=2, compiled=False
    ))  # fmt: skip
    rows = {(row["implementation"], row["scheme"]): row for row in outcome.rows}
    assert {("ours", "nope"), ("ours", "rope+alibi")} <= set(rows)
    assert rows["ours", "nope"]["ratio"] == 1
    assert all(row["same_ratio"] == 1 for name, row in rows.items() if name[0] == "ours")
    assert all(
        row["split_ratio"] == 1 for name, row in rows.items() if name[0] == "ours, 2 devices"
    )
    assert rows["ours, 2 devices", "rope+alibi"]["difference"] < 1e-6
    if importlib.util.find_spec("torch") is None:
        assert any("torch: not installed" in line for line in outcome.settings["skipped"])
    else:
        assert rows["PyTorch twin", "rope+alibi"]["difference"] < 1e-6
    with pytest.raises(ValueError, match="model_dim must be a multiple of 8"):
        step_cost.measure(step_cost.StepSettings(model_dim=20))
    with pytest.raises(
        ValueError, match="3 devices: there are 8, and they must divide a batch of 4"
    ):
        step_cost.measure(step_cost.StepSettings(batch=4, devices=3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the peers' own imports
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_step_in_bfloat16_differs_from_its_twin_by_rounding_alone():
    pytest.importorskip("torch")
    outcome = step_cost.measure(step_cost.StepSettings(
        schemes=("alibi",), train_length=16, batch=2, layers=1, model_dim=64, rounds=1,
        compiled=False, dtype="bfloat16",
    ))  # fmt: skip
    rows = {(row["implementation"], row["scheme"]): row for row in outcome.rows}
    assert 0 < rows["PyTorch twin", "alibi"]["difference"] < 1e-2
    assert "bfloat16" in outcome.caption


def test_our_step_over_devices_lies_on_them_and_takes_the_same_steps():
    model = ModelSection(scheme="alibi", num_layers=1, model_dim=16, num_heads=2, head_dim=8)
    losses = []
    for devices in (1, 2):
        train = TrainSection(length=16, batch_size=2, data_devices=devices)
        run = step_cost._Ours(RunConfig(model=model, train=train), 0)
        assert len(run.batch["tokens_BT"].sharding.device_set) == devices
        losses.append([float(run()[0]) for _ in range(3)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    assert losses[0][2] != losses[0][0]


@pytest.mark.parametrize(("batch", "devices"), [(4, 4), (6, 6), (12, 6), (7, 7), (9, 3), (1, 1)])
def test_a_batch_is_split_over_as_many_devices_as_divide_it(batch, devices):
    assert step_cost._devices(None, batch) == devices  # of eight
    assert step_cost._devices(1, batch) == 1


def test_a_peer_that_fails_is_a_missing_row_and_ours_is_an_error():
    def broken():
        raise RuntimeError("no such kernel\nand more")

    missing = {}
    ours = {("ours", "nope"): lambda: lambda: (1.0, 2.0)}
    runs, losses, _ = step_cost._first_steps(ours | {("theirs", "nope"): broken}, missing)
    assert set(runs) == {("ours", "nope")}
    assert losses["ours", "nope"] == [1.0] * step_cost.CHECKED
    assert missing == {("theirs", "nope"): "RuntimeError: no such kernel"}
    with pytest.raises(RuntimeError, match="no such kernel"):
        step_cost._first_steps({("ours", "nope"): broken}, missing)


def test_scoring_is_timed_per_token_at_every_length(monkeypatch):
    shape = {"num_layers": 1, "model_dim": 8, "num_heads": 2, "head_dim": 4}
    monkeypatch.setattr(evaluation_cost, "SHAPE", shape)
    outcome = evaluation_cost.measure(
        evaluation_cost.EvaluationSettings(
            schemes=("alibi",), train_length=8, lengths=(16, 32), rounds=2
        )
    )
    assert [(row["length"], row["direction"]) for row in outcome.rows] == [
        (8, evaluation_cost.TRAINING), (8, "scoring"), (16, "scoring"), (32, "scoring"),
    ]  # fmt: skip
    assert {row["tokens"] for row in outcome.rows} == {32}
    assert outcome.rows[1]["ratio"] == 1
    with pytest.raises(ValueError, match="multiples of train_length=8"):
        evaluation_cost.measure(
            evaluation_cost.EvaluationSettings(
                schemes=("alibi",), train_length=8, lengths=(12,), rounds=1
            )
        )
