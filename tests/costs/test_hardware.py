"""Hardware by name, and the default topology of a number of chips."""

import pytest
from posenc_jax.costs.hardware import HARDWARE, default_topology, find_hardware


def test_chips_are_known_by_name_and_near_ones_offered():
    assert find_hardware("v5e").flops_per_second == 197e12
    with pytest.raises(ValueError, match="did you mean 'h100"):
        find_hardware("H1000")
    with pytest.raises(ValueError, match="known: h100, h200"):
        find_hardware("abacus")


def test_the_usual_topology_is_the_squarest():
    want = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 256: "16x16"}
    assert {n: default_topology(HARDWARE["v5e"], n) for n in want} == want
    want = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 64: "4x4x4", 128: "4x4x8"}
    assert {n: default_topology(HARDWARE["v5p"], n) for n in want} == want
    assert [default_topology(HARDWARE["h100"], n) for n in (1, 8, 16)] == ["1x1", "1x8", "2x8"]
    with pytest.raises(ValueError, match="name --topology"):
        default_topology(HARDWARE["h100"], 12)
    with pytest.raises(ValueError, match="name --topology"):
        default_topology(HARDWARE["v5e"], 12)
