"""Traces of chosen steps, and profiles that are refused."""

import pytest
from posenc_jax.training.loop import train
from posenc_jax.training.profile import Profile, parse_profile

from support import runs


@pytest.mark.thorough
def test_a_profile_is_a_trace_of_the_steps_asked_for(tmp_path, data_dir):
    config = runs.config(data_dir, train={"data_devices": 1})
    train(config, tmp_path / "x", "a test", Profile(5, 2))
    assert list((tmp_path / "x" / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("text", ["", "5", "0:3", "5:0", "a:b", "5:2:1"])
def test_a_profile_that_reads_wrong_is_refused(text):
    with pytest.raises(ValueError, match="must read first:count"):
        parse_profile(text)


def test_a_profile_of_steps_that_do_not_come_is_refused():
    parse_profile("39:2").check(done=0, steps=40)
    with pytest.raises(ValueError, match="asks for steps 40 to 41; to come are 1 to 40"):
        parse_profile("40:2").check(done=0, steps=40)
    with pytest.raises(ValueError, match="to come are 21 to 40"):
        parse_profile("20:2").check(done=20, steps=40)
