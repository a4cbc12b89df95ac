"""The status table of a study."""

from posenc_jax.study.status import table


def test_the_status_counts_runs_by_arm_and_estimates_what_is_left():
    arms = {"a-s0": "a", "a-s1": "a", "b-s0": "b", "b-s1": "b"}
    states = {"a-s0": "done", "a-s1": "running", "b-s0": "failed", "b-s1": "waiting"}
    lines = table(arms, states, ["a-s1  45% loss 2.00"], 60.0, fresh=2)
    assert lines[0] == "[1/4 done, 1 waiting, 1 failed]  0:01:00 gone, about 0:01:00 left"
    assert [line.split() for line in lines[1:]] == [
        ["arm", "done", "running", "waiting", "failed"],
        ["a", "1", "1", "0", "0"],
        ["b", "0", "0", "1", "1"],
        ["a-s1", "45%", "loss", "2.00"],
    ]
