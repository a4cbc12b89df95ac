"""Timing of candidates in interleaved rounds: order, ratios, bursts on an accelerator."""

import numpy as np
import pytest
from posenc_jax.bench.timing import LONGEST_BURST, WARM_UPS, interleaved, spread


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
        rounds=3,
        seed=0,
        clock=lambda: device.now,
        burst=0.05,
    )
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
