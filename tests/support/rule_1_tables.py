"""Truth tables of rule 1: outcomes by arm and measure, and what the rule says of them."""

from posenc_jax.study.decision import Margins
from posenc_jax.study.rule_1 import decide

NOISE = (0.0001, -0.0001, 0.0002, -0.0002, 0.0, 0.0001, -0.0001, 0.0)


GOOD = {
    ("rope", "Y_E"): 2.0, ("alibi", "Y_E"): 1.0, ("H", "Y_E"): 1.0,
    ("rope", "Y_R"): 0.1, ("alibi", "Y_R"): 0.2, ("H", "Y_R"): 0.9,
    ("rope", "Y_R_far"): 0.0, ("alibi", "Y_R_far"): 0.1, ("H", "Y_R_far"): 0.8,
    ("rope", "Y_R_id"): 0.9, ("alibi", "Y_R_id"): 0.9, ("H", "Y_R_id"): 0.9,
    ("rope", "bpb_id"): 1.0, ("alibi", "bpb_id"): 1.0, ("H", "bpb_id"): 1.0,
    ("rope", "P3"): 0.9, ("H", "P3"): 0.9, ("H", "P1"): 0.0, ("H", "P5"): 1.0,
    ("H", "context_gain"): 0.1, ("H", "repeat_gain"): 0.1, ("H", "window_check"): 0.1,
}  # fmt: skip


def outcomes(n=5, **changes):
    """The table above with some values changed (H_Y_E=1.2), a little noise on every seed."""
    table = dict(GOOD)
    for name, value in changes.items():
        key = tuple(name.split("_", 1))
        assert key in table
        table[key] = value
    noisy = {}
    for index, (key, value) in enumerate(table.items()):
        wobble = NOISE[index % 3 :] + NOISE[: index % 3]
        exact = key[1] in ("P1", "P5")
        noisy[key] = {s: value + (0 if exact else wobble[s]) for s in range(n)}
    return noisy


def said(table, n=5, hybrids=("H",)):
    return decide(table, hybrids, rope="rope", alibi="alibi", seeds=range(n), margins=Margins())[0]
