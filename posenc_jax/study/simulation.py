"""Simulated studies with a known truth: how often the decision engine is wrong, and how often right."""

from collections.abc import Mapping

import numpy as np

from posenc_jax.study.decision import Margins, Verdict, decide

# Spread of a value between seeds, within an arm; a difference of two arms has sqrt(2) of it.
SPREAD = {"Y_E": 0.004, "bpb_id": 0.004, "Y_R": 0.04, "Y_R_far": 0.04, "Y_R_id": 0.04, "P3": 0.02,
          "context_gain": 0.01, "repeat_gain": 0.01, "window_check": 0.01}  # fmt: skip
SURE = 30.0  # SDs of a difference past the threshold: such a statement holds in every study


def truth(metric: str, sds: float, margins: Margins) -> dict[tuple[str, str], float]:
    """Means under which all clauses hold for sure, but one statement is `sds` SDs past its threshold.

    metric names the statement: C1, C2, C3, C3far, C4, C4id, G1, G3window, or "none".
    """
    s = {name: SPREAD[name] * 2**0.5 for name in SPREAD}
    at = lambda name, metric_, own: (sds if name == metric else SURE) * (own or s[metric_])  # noqa: E731
    m, m_a = margins.bpb, margins.accuracy
    return {
        ("rope", "Y_E"): m + at("C1", "Y_E", 0), ("alibi", "Y_E"): -m + at("C2", "Y_E", 0),
        ("alibi", "Y_R"): -m_a - at("C3", "Y_R", 0), ("rope", "Y_R"): -at("C4", "Y_R", 0),
        ("alibi", "Y_R_far"): -at("C3far", "Y_R_far", 0),
        ("rope", "Y_R_id"): m_a - at("C4id", "Y_R_id", 0), ("alibi", "Y_R_id"): m_a - SURE * s["Y_R_id"],
        ("rope", "bpb_id"): -m + at("G1", "bpb_id", 0), ("alibi", "bpb_id"): -m + SURE * s["bpb_id"],
        ("rope", "P3"): -SURE * s["P3"],
        ("hybrid", "context_gain"): SURE * SPREAD["context_gain"],
        ("hybrid", "repeat_gain"): SURE * SPREAD["repeat_gain"],
        ("hybrid", "window_check"): at("G3window", "window_check", SPREAD["window_check"]),
    }  # fmt: skip


def simulated(
    means: Mapping[tuple[str, str], float], *, n: int, study: int, margins: Margins
) -> Verdict:
    """Draws one study of n seeds (a function of `study`) and returns the engine's own verdict."""
    random = np.random.Generator(np.random.Philox(study))
    outcomes = {}
    for metric in SPREAD:
        for arm in ("rope", "alibi", "hybrid"):
            values = means.get((arm, metric), 0.0) + SPREAD[metric] * random.normal(size=n)
            outcomes[arm, metric] = dict(enumerate(values.tolist()))
    for metric, exact in (("P1", 0.0), ("P5", 1.0)):
        outcomes["hybrid", metric] = dict.fromkeys(range(n), exact)
    return decide(
        outcomes, ["hybrid"], rope="rope", alibi="alibi", seeds=range(n), margins=margins
    )[0]
